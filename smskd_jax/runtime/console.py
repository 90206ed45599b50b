"""Console output: log lines, tables, formatted numbers, and progress bars."""

from collections.abc import Iterable, Sequence
import shutil
import sys
import time

from tqdm import tqdm

from smskd_jax.runtime import distributed

SILENCE_SECONDS = 60.0  # without a line, after which a log gets a line of progress

_printed = time.monotonic()  # time of the last line


def log(text: str = "") -> None:
  """Prints a line, above the progress bar if there is one; only in process 0."""
  global _printed
  _printed = time.monotonic()
  if not distributed.is_primary():
    return
  tqdm.write(text, file=sys.stdout)
  sys.stdout.flush()


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Formats columns of text, the first left-aligned and the others right-aligned."""
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
  """Formats a duration: '48 s', '3 min 10 s', '2 h 05 min'."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60} min {whole % 60:02d} s"
  return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_si(number: float) -> str:
  """Formats a number with three digits and an SI prefix: '78 k', '1.24 M'."""
  for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
    if number >= size:
      return f"{number / size:.3g} {unit}"
  return f"{number:.3g}"


def format_clock(seconds: float) -> str:
  """Formats a duration as [hours:]minutes:seconds: '0:12', '1:02:10'."""
  minutes, rest = divmod(max(round(seconds), 0), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressBar:
  """Progress bar in a terminal; elsewhere, a log line after a minute without output."""

  def __init__(self, text: str, total: int, unit: str = " images"):
    """Shows the empty bar, only in process 0.

    Args:
      text: in front of the bar.
      total: number of units at the end.
      unit: of the count.
    """
    self._text, self._total, self._done = text, total, 0
    self._bar = None
    if sys.stderr.isatty() and distributed.is_primary():
      # 80 for a terminal of unknown size, for which tqdm would show nothing.
      columns = shutil.get_terminal_size().columns
      self._bar = tqdm(total=total, desc=text, unit=unit, unit_scale=True, leave=False, ncols=columns)

  def update(self, count: int) -> None:
    """Advances the bar by a number of units."""
    self._done += count
    if self._bar is not None:
      self._bar.update(count)
    elif time.monotonic() - _printed > SILENCE_SECONDS:
      log(f"{self._text}  {self._done / self._total:.0%}")

  def close(self) -> None:
    """Removes the bar."""
    if self._bar is not None:
      self._bar.close()
