"""A polite end: SIGTERM and Ctrl-C are noted, and the loop stops where its state can be saved."""

from collections.abc import Iterator
import contextlib
import os
import signal
import threading

from smskd_jax.runtime import processes


class Interrupted(Exception):
  """The run was asked to stop, has saved its state and can be continued."""

  def __init__(self, signum: int, message: str):
    """Notes which signal it was."""
    super().__init__(message)
    self.signum = signum


class Interrupt:
  """Whether a signal has asked to stop."""

  def __init__(self) -> None:
    """Nobody has asked yet."""
    self.signum, self._calls = 0, 0

  def __bool__(self) -> bool:
    """Whether somebody has asked."""
    return self.signum != 0

  def reached(self) -> bool:
    """Whether to stop now: in all processes at the same call, soon after one of them was asked to."""
    if processes.count() == 1:
      return bool(self)
    from jax.experimental import multihost_utils  # imported here: one process needs none of it

    self._calls += 1
    if multihost_utils.reached_preemption_sync_point(self._calls):
      self.signum = signal.SIGTERM
    return bool(self)

  def note(self, signum: int, frame: object) -> None:
    """A signal handler: notes the first signal; the next of the same kind acts as if there were no handler."""
    del frame
    self.signum = signum
    signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


@contextlib.contextmanager
def watch() -> Iterator[Interrupt]:
  """Watches for SIGTERM and Ctrl-C; outside the main thread, where Python handles no signals, watches nothing.

  With several processes SIGTERM to any of them is JAX's to tell all, by `reached`; Ctrl-C is taken for it.
  """
  interrupt = Interrupt()
  if threading.current_thread() is not threading.main_thread():
    yield interrupt
    return
  handlers = {signal.SIGTERM: interrupt.note, signal.SIGINT: interrupt.note}
  if processes.joined():
    handlers = {signal.SIGINT: _as_sigterm}
  before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
  try:
    yield interrupt
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)


def _as_sigterm(signum: int, frame: object) -> None:
  """A signal handler: the first Ctrl-C asks to stop, the second stops."""
  del frame
  signal.signal(signum, signal.default_int_handler)
  os.kill(os.getpid(), signal.SIGTERM)
