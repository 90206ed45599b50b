"""A command that does not outlive the process that starts it, however that one ends. Linux only.

Run as a file, it is the first thing of the new process, and imports nothing that takes time.
"""

import ctypes
import os
from pathlib import Path
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def with_parent_death(of: list[str]) -> list[str]:
  """The command, tied to this process: to be started by its main thread, whose end is the process's."""
  return [sys.executable, "-I", str(Path(__file__)), str(os.getpid()), *of]


def _main(parent: str, *of: str) -> int:
  """Asks the kernel for SIGKILL when the parent ends, and becomes the command, for which that stays asked."""
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() == int(parent):  # or it has ended before this was asked
    os.execv(of[0], of)
  return 1


if __name__ == "__main__":
  sys.exit(_main(*sys.argv[1:]))
