"""A polite end: SIGTERM and Ctrl-C are noted, and the loop stops where its state can be saved."""

from collections.abc import Iterator
import contextlib
import signal
import threading


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
    self.signum = 0

  def __bool__(self) -> bool:
    """Whether somebody has asked."""
    return self.signum != 0

  def note(self, signum: int, frame: object) -> None:
    """A signal handler: notes the first signal; the next of the same kind acts as if there were no handler."""
    del frame
    self.signum = signum
    signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


@contextlib.contextmanager
def watch() -> Iterator[Interrupt]:
  """Watches for SIGTERM and Ctrl-C; outside the main thread, where Python handles no signals, watches nothing."""
  interrupt = Interrupt()
  if threading.current_thread() is not threading.main_thread():
    yield interrupt
    return
  before = {s: signal.signal(s, interrupt.note) for s in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield interrupt
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)
