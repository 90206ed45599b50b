"""Graceful shutdown on SIGTERM and Ctrl-C.

After `install_handlers`, a program without unsaved state ends at once, with one line, as every program does at the
second signal. With unsaved state, `handle_signals` records the first signal, and the training loop stops after saving.
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
  """A signal stopped the run after its state was saved; the run can be continued."""

  def __init__(self, signum: int, message: str):
    """Creates the exception of a signal number, with a message for the last line."""
    super().__init__(message)
    self.signum = signum


class StopRequest:
  """Request to stop by a signal, and whether there is unsaved state."""

  def __init__(self, *, unsaved: bool = True):
    """Creates a request without a signal; `unsaved` as in `set_unsaved`."""
    self.signum, self._unsaved, self._forwarded, self._calls = 0, unsaved, False, 0
    self._lock = threading.Lock()

  def __bool__(self) -> bool:
    """True if a signal has asked to stop."""
    return self.signum != 0

  def should_stop(self) -> bool:
    """True if the run must stop now; with several processes, in all processes at the same call."""
    if distributed.process_count() == 1:
      return bool(self)
    from jax.experimental import multihost_utils  # a late import: a single process does not need the module

    self._calls += 1
    if multihost_utils.reached_preemption_sync_point(self._calls):
      self.signum = signal.SIGTERM
    return bool(self)

  def set_unsaved(self, unsaved: bool) -> None:
    """Sets whether the end of the process would now lose anything.

    Raises:
      Interrupted: a signal has come, and everything is saved.
    """
    with self._lock:
      self._unsaved = unsaved
    if self.signum and not unsaved and distributed.process_count() == 1:
      raise Interrupted(self.signum, "stopped between two stages")

  def on_signal(self, signum: int) -> bool:
    """Records a signal; False if the process may end at once.

    It may if nothing is unsaved, or at the second signal.
    """
    several = distributed.is_initialized()
    with self._lock:
      if self.signum or self._forwarded or not (self._unsaved or several):
        return False
      self._forwarded = several
      if not several:
        self.signum = signum
    if several:
      os.kill(
        os.getpid(), signal.SIGTERM
      )  # JAX forwards SIGTERM, so that all processes stop at the same step
    return True


_active: StopRequest | None = None  # the innermost
_installed = False
_finished = False  # True after the program's last line


def install_handlers() -> None:
  """Makes SIGTERM and Ctrl-C end this process with one line.

  The end is immediate unless `handle_signals` delays it.

  Only for programs, as early as possible: a thread handles signals while the main thread imports or compiles. An
  ignored signal stays ignored, as Ctrl-C in a shell's background. Exit status: 128 + the signal's number.
  """
  global _installed
  if _installed:
    return
  _installed = True
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for signum in SIGNALS:
    if signal.getsignal(signum) != signal.SIG_IGN:
      # The thread acts; without a handler, nothing would be written to the pipe.
      signal.signal(signum, lambda *_: None)
  os.register_at_fork(after_in_child=_reset)
  _silence_background_errors()
  threading.Thread(target=_watch_pipe, args=(reader,), daemon=True, name="signals").start()


def _silence_background_errors() -> None:
  """Prints errors only once."""
  excepthook, unraisablehook = sys.excepthook, sys.unraisablehook

  def print_error(*error):
    if _in_main_thread():
      excepthook(*error)

  def print_unraisable(error):
    # An OSError of a dropped file repeats an error of the disk.
    if _in_main_thread() and not isinstance(error.exc_value, OSError):
      unraisablehook(error)

  sys.excepthook, sys.unraisablehook = print_error, print_unraisable


def write_line(line: str) -> None:
  """Prints the last line of a program to stderr; later signals print nothing."""
  global _finished
  _finished = True
  with contextlib.suppress(OSError):  # stderr may be a file on a full disk
    print(line, file=sys.stderr, flush=True)


def exit_process(status: int) -> int:
  """Ends a program with installed handlers at once.

  A usual exit would wait for writes that cannot succeed.

  Without installed handlers, returns `status`.
  """
  if _installed:
    os._exit(status)
  return status


@contextlib.contextmanager
def handle_signals(*, unsaved: bool = True) -> Iterator[StopRequest]:
  """Records SIGTERM and Ctrl-C while state is unsaved.

  Records nothing outside the main thread.

  Without installed handlers, as in a notebook, a signal without unsaved state acts as before. With several processes,
  JAX forwards SIGTERM to all of them, for `StopRequest.should_stop`; Ctrl-C is treated as SIGTERM.

  Args:
    unsaved: initial value of `StopRequest.set_unsaved`.
  """
  global _active
  request = StopRequest(unsaved=unsaved)
  if not _in_main_thread():
    yield request
    return
  outer, _active = _active, request
  try:
    with contextlib.nullcontext() if _installed else _python_handlers(request):
      yield request
  finally:
    _active = outer


@contextlib.contextmanager
def _python_handlers(request: StopRequest) -> Iterator[None]:
  """Installs Python signal handlers in place of `install_handlers`."""
  signums = [signal.SIGINT] if distributed.is_initialized() else SIGNALS
  before = {signum: signal.getsignal(signum) for signum in signums}

  def handle(signum: int, frame: types.FrameType | None) -> None:
    if request.on_signal(signum):
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
  """Reads signal numbers from the wakeup pipe, forever."""
  while True:
    for signum in os.read(reader, 64):
      if signum in SIGNALS and not (_active is not None and _active.on_signal(signum)):
        _exit_on_signal(signum)


def _exit_on_signal(signum: int) -> None:
  """Ends this process at once."""
  if not _finished:
    line = f"stopped by {signal.Signals(signum).name}; the same command continues from the saved state\n"
    with contextlib.suppress(OSError):
      os.write(2, line.encode())  # not sys.stderr, whose lock the main thread may hold
  os._exit(128 + signum)


def _reset() -> None:
  """Restores the default handlers in a forked process."""
  signal.set_wakeup_fd(-1)
  for signum, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(signum) != signal.SIG_IGN:
      signal.signal(signum, handler)
