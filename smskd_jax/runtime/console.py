"""Text for the person who started a run: lines, tables, and progress bars in terminals."""

from collections.abc import Iterable, Sequence
import shutil
import sys
import time

from tqdm import tqdm

from smskd_jax.runtime import distributed

SILENCE_SECONDS = 60.0  # without a line, after which a log gets one of the progress

_printed = time.monotonic()  # when the last line was


def log(text: str = "") -> None:
  """Prints a line, above a progress bar if there is one. The lead does, of several processes."""
  global _printed
  _printed = time.monotonic()
  if not distributed.is_primary():
    return
  tqdm.write(text, file=sys.stdout)
  sys.stdout.flush()


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
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


def format_duration(seconds: float) -> str:
  """A duration as a person would say it: '48 s', '3 min 10 s', '2 h 05 min'."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60} min {whole % 60:02d} s"
  return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_si(number: float) -> str:
  """A large number in three digits: '78.0 k', '1.24 M'."""
  for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
    if number >= size:
      return f"{number / size:.3g} {unit}"
  return f"{number:.3g}"


def format_clock(seconds: float) -> str:
  """A duration in few characters: '0:12', '1:02:10'."""
  minutes, rest = divmod(max(round(seconds), 0), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressBar:
  """A progress bar in a terminal; elsewhere a line where nothing was printed for a minute."""

  def __init__(self, text: str, total: int, unit: str = " images"):
    """Shows the bar, empty. The lead does, of several processes.

    Args:
      text: in front of the bar.
      total: of the count that `update` gets parts of.
      unit: what is counted.
    """
    self._text, self._total, self._done = text, total, 0
    self._bar = None
    if sys.stderr.isatty() and distributed.is_primary():
      columns = (
        shutil.get_terminal_size().columns
      )  # 80 for a terminal that tells no size: tqdm would show nothing
      self._bar = tqdm(total=total, desc=text, unit=unit, unit_scale=True, leave=False, ncols=columns)

  def update(self, count: int) -> None:
    """Adds to what is done."""
    self._done += count
    if self._bar is not None:
      self._bar.update(count)
    elif time.monotonic() - _printed > SILENCE_SECONDS:
      log(f"{self._text}  {self._done / self._total:.0%}")

  def close(self) -> None:
    """Removes the bar."""
    if self._bar is not None:
      self._bar.close()
