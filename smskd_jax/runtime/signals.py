"""Graceful shutdown on SIGTERM and Ctrl-C.

A program that listens ends at once, in one line, where nothing is unsaved, and at the second signal anywhere. Where
something is unsaved, `watch` notes the first signal, and the loop stops where its state can be saved.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading
import types

from smskd_jax.runtime import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
  """The run was asked to stop, has saved its state and can be continued."""

  def __init__(self, signum: int, message: str):
    """Notes which signal it was."""
    super().__init__(message)
    self.signum = signum


class StopRequest:
  """Request to stop by a signal, and the need to save something before."""

  def __init__(self, *, unsaved: bool = True):
    """No signal has come yet; `unsaved` is as for `set_unsaved`."""
    self.signum, self._unsaved, self._passed_on, self._calls = 0, unsaved, False, 0
    self._lock = threading.Lock()

  def __bool__(self) -> bool:
    """True if a signal has asked to stop."""
    return self.signum != 0

  def should_stop(self) -> bool:
    """Whether to stop now: in all processes at the same call, soon after one of them was asked to."""
    if distributed.process_count() == 1:
      return bool(self)
    from jax.experimental import multihost_utils  # imported here: one process needs none of it

    self._calls += 1
    if multihost_utils.reached_preemption_sync_point(self._calls):
      self.signum = signal.SIGTERM
    return bool(self)

  def set_unsaved(self, unsaved: bool) -> None:
    """Says whether the end of the process would now lose anything.

    Raises:
      Interrupted: a signal has come, and nothing is unsaved any more.
    """
    with self._lock:
      self._unsaved = unsaved
    if self.signum and not unsaved and distributed.process_count() == 1:
      raise Interrupted(self.signum, "stopped between two stages")

  def on_signal(self, signum: int) -> bool:
    """Notes a signal; False if there is nothing to wait for: nothing is unsaved, or it is the second."""
    joined = distributed.is_initialized()
    with self._lock:
      if self.signum or self._passed_on or not (self._unsaved or joined):
        return False
      self._passed_on = joined
      if not joined:
        self.signum = signum
    if joined:
      os.kill(os.getpid(), signal.SIGTERM)  # all are to stop at one step: JAX tells them so
    return True


_watched: StopRequest | None = None  # the innermost
_listens = False
_ends = False  # whether the program's last line is printed


def install_handlers() -> None:
  """From now on SIGTERM and Ctrl-C end this process in one line, at once where no `watch` keeps them from it.

  For programs alone, and early in them: a thread does it, also while the main thread imports or compiles. A signal that
  is ignored stays so, as Ctrl-C in a shell's background. Exit status: 128 + the signal's number.
  """
  global _listens
  if _listens:
    return
  _listens = True
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for signum in SIGNALS:
    if signal.getsignal(signum) != signal.SIG_IGN:
      signal.signal(
        signum, lambda *_: None
      )  # the thread acts; with no handler there would be nothing to read
  os.register_at_fork(after_in_child=_reset)
  shown, shown_too = sys.excepthook, sys.unraisablehook
  # Errors of libraries' threads are raised in the main thread too, where their results are taken.
  sys.excepthook = lambda *error: shown(*error) if _in_main_thread() else None
  # Those of files that are dropped are of the disk again.
  lost = lambda error: _in_main_thread() and not isinstance(error.exc_value, OSError)
  sys.unraisablehook = lambda error: shown_too(error) if lost(error) else None
  threading.Thread(target=_watch_pipe, args=(reader,), daemon=True, name="signals").start()


def write_line(line: str) -> None:
  """Prints the last line of a program to stderr; a signal that comes later prints nothing more."""
  global _ends
  _ends = True
  with contextlib.suppress(OSError):  # the disk that it is redirected to may be full
    print(line, file=sys.stderr, flush=True)


def exit_process(status: int) -> int:
  """Ends a program that listens at once: at its usual end, libraries would wait for what cannot be written any more."""
  if _listens:
    os._exit(status)
  return status


@contextlib.contextmanager
def handle_signals(*, unsaved: bool = True) -> Iterator[StopRequest]:
  """Notes SIGTERM and Ctrl-C while something is unsaved; outside the main thread, and of no program, notes nothing.

  In a program that does not listen, as a notebook, a signal for which there is nothing to wait acts as it did before.
  With several processes SIGTERM to any of them is JAX's to tell all, by `reached`; Ctrl-C is taken for it.

  Args:
    unsaved: as for `set_unsaved`, to begin with.
  """
  global _watched
  interrupt = StopRequest(unsaved=unsaved)
  if not _in_main_thread():
    yield interrupt
    return
  outer, _watched = _watched, interrupt
  try:
    with contextlib.nullcontext() if _listens else _handlers(interrupt):
      yield interrupt
  finally:
    _watched = outer


@contextlib.contextmanager
def _handlers(interrupt: StopRequest) -> Iterator[None]:
  """Python's own handling of signals, which waits for the main thread, in the place of `listen`'s."""
  signums = [signal.SIGINT] if distributed.is_initialized() else SIGNALS
  before = {signum: signal.getsignal(signum) for signum in signums}

  def handle(signum: int, frame: types.FrameType | None) -> None:
    if interrupt.on_signal(signum):
      return
    handler = before[signal.Signals(signum)]
    if callable(handler):
      handler(signum, frame)
    elif handler != signal.SIG_IGN:
      signal.signal(signum, signal.SIG_DFL)
      os.kill(os.getpid(), signum)

  for signum in signums:
    signal.signal(signum, handle)
  try:
    yield
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)


def _in_main_thread() -> bool:
  return threading.current_thread() is threading.main_thread()


def _watch_pipe(reader: int) -> None:
  while True:
    for signum in os.read(reader, 64):
      if signum in SIGNALS and not (_watched is not None and _watched.on_signal(signum)):
        _exit_on_signal(signum)


def _exit_on_signal(signum: int) -> None:
  """Ends this process at once. What is on the disk is whole at any moment, and locks end with their process."""
  if not _ends:
    line = f"stopped by {signal.Signals(signum).name}; the same command goes on from what is saved\n"
    with contextlib.suppress(OSError):
      os.write(2, line.encode())  # the main thread may be within sys.stderr
  os._exit(128 + signum)


def _reset() -> None:
  """In a forked process: signals to it are not its parent's."""
  signal.set_wakeup_fd(-1)
  for signum, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(signum) != signal.SIG_IGN:
      signal.signal(signum, handler)
