"""Wraps a command so that the kernel kills the command when its parent process ends.

Linux only.

This file runs as a script at the start of the new process, and imports only fast modules of the standard library.
"""

import ctypes
import os
from pathlib import Path
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def with_parent_death(argv: list[str]) -> list[str]:
  """The wrapped command.

  Start it from the main thread, because the signal follows the parent thread.
  """
  return [sys.executable, "-I", str(Path(__file__)), str(os.getpid()), *argv]


def _main(parent: str, *argv: str) -> int:
  """Requests SIGKILL at the parent's end, and executes the command."""
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() == int(parent):  # otherwise the parent ended before the request
    os.execv(argv[0], argv)
  return 1


if __name__ == "__main__":
  sys.exit(_main(*sys.argv[1:]))
