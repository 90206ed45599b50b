"""Wall-clock seconds of a stage, by phase."""

from collections.abc import Iterator
import contextlib
import time

# Phases of a stage; each second counts in one of them.
PREPARE = "prepare"  # initial state, networks that the stage reads, the last checkpoint
CACHE = "teacher_cache"  # computing teacher outputs that later steps look up
COMPILE = "compile"  # first call of each program of the training step
TRAIN = "train"  # all other steps, with their images and metrics
EVALUATE = "evaluate"  # held-out sets, including the compilation of their programs
SAVE = "save"  # checkpoints and the files of the finished stage


class Clock:
  """Sums the seconds of phases.

  A nested phase interrupts the outer one, so that no second counts twice.
  """

  def __init__(self) -> None:
    """Creates a clock outside any phase; seconds outside phases are not counted."""
    self._seconds: dict[str, float] = {}
    self._open: list[str] = []
    self._since = 0.0

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Context manager that counts the seconds of its block, without nested phases."""
    self._count()
    self._open.append(name)
    try:
      yield
    finally:
      self._count()
      self._open.pop()

  def seconds(self) -> dict[str, float]:
    """The seconds of each phase until now."""
    self._count()
    return dict(self._seconds)

  def seconds_in(self, name: str) -> float:
    """The seconds of one phase until now."""
    return self.seconds().get(name, 0.0)

  def _count(self) -> None:
    now = time.monotonic()
    if self._open:
      phase = self._open[-1]
      self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
    self._since = now


def add_seconds(*parts: dict[str, float]) -> dict[str, float]:
  """Sums several results of `Clock.seconds`, phase by phase."""
  return {
    name: sum(part.get(name, 0.0) for part in parts) for name in dict.fromkeys(n for p in parts for n in p)
  }
