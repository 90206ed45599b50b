"""Shared parts of figures: sizes, colours, layouts, and PNG files. Drawn without pyplot."""

from collections.abc import Sequence
import io
from typing import Any

from smskd_jax.analysis.stages import Stage

COLORS = ("#0b62a8", "#d1495b", "#3c8d53", "#8a5cb8", "#b8860b", "#4d4d4d")
MORE_COLORS = (*COLORS, "#1f9e9e", "#d277b8", "#7a7a1e", "#8c564b")
GREY = "#8c8c8c"
DPI = 150
WIDTH = 7.5  # inches
MAX_SQUARE = 3.4  # inches; side of one of several square axes
EPOCHS_LABEL = "epochs of the network's training"
MAX_MARKED_POINTS = 60  # lines of more points have no markers


def column(*heights: float, shared: bool = True) -> tuple[Any, Any]:
  """Creates axes of these heights in inches, from top to bottom.

  They share the x axis if `shared`.
  """
  figure = _create(WIDTH, sum(heights))
  return figure, figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False, sharex=shared)[:, 0]


def row(height: float, ratios: Sequence[float]) -> tuple[Any, Any]:
  """Creates axes from left to right, of one height in inches and of widths in these ratios."""
  figure = _create(WIDTH, height)
  return figure, figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False, sharey=True)[0]


def grid(count: int, *, columns: int = 4, extra: float = 0.5) -> tuple[Any, list[Any]]:
  """Creates square axes row by row; each row has `extra` inches for titles and labels.

  Save the figure with `to_png(..., crop=True)`: unused space depends on the texts.
  """
  rows = -(-count // columns)
  columns = -(-count // rows)
  side = min(WIDTH / columns, MAX_SQUARE)
  figure = _create(min(WIDTH, side * columns + 1.0), rows * (side + extra), "compressed")
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for unused in axes[count:]:
    unused.remove()
  return figure, list(axes[:count])


def _create(width: float, height: float, layout: Any = "constrained") -> Any:
  # The object-oriented interface: pyplot would open windows and keep state.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout=layout)
  FigureCanvasAgg(figure)
  return figure


def truncate(text: str, max_length: int) -> str:
  """Shortens a name to `max_length` characters."""
  return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def to_png(figure: Any, *, crop: bool = False) -> bytes:
  """Encodes a figure as PNG, cropped to its content if `crop`."""
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight" if crop else None, pad_inches=0.06)
  return file.getvalue()


def draw_line(axes: Any, points: Sequence[tuple[float, float]], *, scale: float = 1.0, **style: Any) -> None:
  """Draws (x, scale * value) points as a line."""
  marker = "." if len(points) <= MAX_MARKED_POINTS else None
  x, y = zip(*points, strict=True)
  defaults = {"marker": marker, "markersize": 4, "linewidth": 1.3}
  axes.plot(x, [scale * value for value in y], **defaults | style)


def mark_stages(axes: Any, network_stages: Sequence[Stage], with_names: bool = True) -> None:
  """Draws a line where each stage of a network begins, with its name above the axes."""
  from matplotlib.ticker import MaxNLocator

  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  start = 0.0
  for i, stage in enumerate(network_stages):
    if i:
      axes.axvline(start, color=GREY, linewidth=0.8, alpha=0.6)
    if with_names:
      position = start + stage["epochs"] / 2, 1.0
      style = {"ha": "center", "va": "bottom", "fontsize": 8}
      axes.annotate(stage["name"], position, xycoords=("data", "axes fraction"), **style)
    start += stage["epochs"]
  axes.set_xlim(0, start)
