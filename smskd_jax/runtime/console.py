"""What a run tells the person who started it: lines, and a progress bar for each stage."""

from collections.abc import Iterable, Sequence
import sys
import time

from tqdm import tqdm

from smskd_jax.runtime import processes

LINE_EVERY_SECONDS = 10.0  # between lines of progress where there is no terminal


def say(text: str = "") -> None:
  """Prints a line, above a progress bar if there is one. The lead does, of several processes."""
  if not processes.is_lead():
    return
  tqdm.write(text, file=sys.stdout)
  sys.stdout.flush()


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Columns of text, the first to the left and all others to the right."""
  cells = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
  return "\n".join(
    "  "
    + "  ".join(
      c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
    )
    for row in cells
  )


def duration(seconds: float) -> str:
  """A duration as a person would say it: '48 s', '3 min 10 s', '2 h 05 min'."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60} min {whole % 60:02d} s"
  return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def quantity(number: float) -> str:
  """A large number in three digits: '78.0 k', '1.24 M'."""
  for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
    if number >= size:
      return f"{number / size:.3g} {unit}"
  return f"{number:.3g}"


class Progress:
  """The progress of one stage in images: a bar on a terminal, a line now and then elsewhere."""

  def __init__(self, name: str, total: int, done: int):
    """Starts to measure; `done` of the `total` images were trained on in an earlier life of the run."""
    self._name, self._total, self._start, self._done = name, total, done, done
    self._began = self._said = time.monotonic()
    self._bar = None
    if sys.stderr.isatty() and processes.is_lead():
      self._bar = tqdm(total=total, initial=done, desc=name, unit=" images", unit_scale=True, leave=False)

  def advance(self, images: int) -> None:
    """Tells of images trained on."""
    self._done += images
    if self._bar is not None:
      self._bar.update(images)
    elif time.monotonic() - self._said > LINE_EVERY_SECONDS:
      self._said = time.monotonic()
      say(f"  {self._name}: {self._done / self._total:.0%}, {self.rate():.0f} images/s, {self._left()} left")

  def rate(self) -> float:
    """Images per second since the stage was started or continued."""
    return (self._done - self._start) / max(time.monotonic() - self._began, 1e-9)

  def close(self) -> None:
    """Takes the bar away."""
    if self._bar is not None:
      self._bar.close()

  def _left(self) -> str:
    return duration((self._total - self._done) / max(self.rate(), 1e-9))
