"""Pictures of runs: what all of them share, and accuracy and forgetting along the stages."""

from collections.abc import Mapping, Sequence
import io
from pathlib import Path
from typing import Any

from smskd_jax.analysis import records
from smskd_jax.analysis.records import Lines, Stage

COLORS = ("#0b62a8", "#d1495b", "#3c8d53", "#8a5cb8", "#b8860b", "#4d4d4d")
MORE_COLORS = (*COLORS, "#1f9e9e", "#d277b8", "#7a7a1e", "#8c564b")
GREY = "#8c8c8c"
DPI = 150
WIDTH = 7.5  # inches of a figure, if it is not narrower
WIDEST = 3.4  # inches of one of several square axes
EPOCHS = "epochs of the network's training"
FEW_POINTS = 60  # so many of a line are marked: one epoch alone is a point


def panels(*heights: float, shared: bool = True) -> tuple[Any, Any]:
  """A figure, and its axes from top to bottom, of these heights in inches, which may share what is to the right."""
  figure = _figure(WIDTH, sum(heights))
  return figure, figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False, sharex=shared)[:, 0]


def beside(height: float, ratios: Sequence[float]) -> tuple[Any, Any]:
  """A figure of this height in inches, and its axes from left to right, of widths in these ratios."""
  figure = _figure(WIDTH, height)
  return figure, figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False, sharey=True)[0]


def grid(count: int, *, columns: int = 4, extra: float = 0.5) -> tuple[Any, list[Any]]:
  """A figure, and as many square axes row by row; each row has `extra` inches for what is written above and below.

  `png` is to cut off what is left over: how much that is depends on what is written.
  """
  rows = -(-count // columns)
  columns = -(-count // rows)
  side = min(WIDTH / columns, WIDEST)
  figure = _figure(min(WIDTH, side * columns + 1.0), rows * (side + extra), "compressed")
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for unused in axes[count:]:
    unused.remove()
  return figure, list(axes[:count])


def _figure(width: float, height: float, layout: Any = "constrained") -> Any:
  # The object-oriented interface: pyplot would open windows, and keep state.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout=layout)
  FigureCanvasAgg(figure)
  return figure


def shorter(text: str, most: int) -> str:
  """A name that has little room."""
  return text if len(text) <= most else f"{text[: most - 1]}…"


def png(figure: Any, *, cut: bool = False) -> bytes:
  """A figure as a file; cut to what is in it, or of the size that it has."""
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight" if cut else None, pad_inches=0.06)
  return file.getvalue()


def line(axes: Any, points: Sequence[tuple[float, float]], *, scale: float = 1.0, **style: Any) -> None:
  """Draws (x, value) points, in units of `scale`, as a line."""
  marker = "." if len(points) <= FEW_POINTS else None
  x, y = zip(*points, strict=True)
  axes.plot(
    x, [scale * value for value in y], **{"marker": marker, "markersize": 4, "linewidth": 1.3} | style
  )


def accuracy(results: Sequence[Stage], curves: Mapping[str, Lines], given: Sequence[Any] = ()) -> bytes:
  """The test accuracy of the networks along their stages; teachers are lines, given ones (result.json's) too."""
  figure, (axes,) = panels(4.0)
  _draw_accuracy(axes, results, records.students(results), curves, given)
  axes.set_xlabel(EPOCHS)
  return png(figure)


def stages(results: Sequence[Stage], curves: Mapping[str, Lines], path: Path) -> None:
  """Draws test accuracy along the stages, and how far each stage has moved from its reference.

  Args:
    results: result.json's 'stages'.
    curves: metrics by the stage's name.
    path: of the PNG.
  """
  anchored = any("test/reference_agreement" in line for lines in curves.values() for line in lines)
  figure, axes = panels(*((4.0, 2.0, 2.0) if anchored else (4.0,)))
  students = records.students(results)
  _draw_accuracy(axes[0], results, students, curves)
  if anchored:
    _draw_forgetting(axes[1], students, curves, "reference_agreement", "agreement [%]", 100.0)
    _draw_forgetting(axes[2], students, curves, "reference_kl", "KL [nats]", 1.0)
    axes[1].set_title(
      "Forgetting: agreement with, and divergence from, the stage's own reference", fontsize=10
    )
  axes[-1].set_xlabel(EPOCHS)
  path.write_bytes(png(figure))


def _draw_accuracy(axes, results, students, curves, given=()) -> None:
  for color, (network, own) in zip(COLORS * len(students), students.items(), strict=False):
    of_stages = records.series(own, curves, "test/accuracy").values()
    line(axes, [point for points in of_stages for point in points], scale=100, color=color, label=network)
    _draw_references(axes, own, curves, color)
    if len(own) > 1:
      mark_boundaries(axes, own)
  teaching = records.teaching(results)
  teachers = {one["name"]: one["metrics"]["last"] for one in results if one["key"] in teaching}
  teachers |= {one["network"]: one["metrics"] for one in given}
  for name, metrics in teachers.items():
    label = f"{name} {100 * metrics['test/accuracy']:.1f} %"
    axes.axhline(100 * metrics["test/accuracy"], color=GREY, linestyle="--", linewidth=1.2, label=label)
  of_all = [*teachers.values(), *(stage["metrics"]["last"] for stage in results)]
  best = max(100 * metrics["test/accuracy"] for metrics in of_all)
  worst = min(100 * s["metrics"]["last"]["test/accuracy"] for own in students.values() for s in own)
  # Where every stage ended has to be seen; the first epochs of a network may leave at the bottom.
  axes.set_ylim(max(0.0, worst - 0.15 * (100 - worst) - 2), min(100.5, best + 0.2 * (100 - best) + 1))
  axes.set_ylabel("test accuracy [%]")
  axes.legend(loc="lower right", fontsize=8)


def _draw_references(axes, own, curves, color) -> None:
  """The accuracy of each stage's reference, dotted across the stage that it anchors."""
  by_key = {stage["key"]: stage for stage in own}
  start = 0.0
  label: str | None = "reference"  # in the legend once
  for stage in own:
    end = start + stage["epochs"]
    if stage["inputs"]["reference"] in by_key:
      accuracy = 100 * by_key[stage["inputs"]["reference"]]["metrics"]["last"]["test/accuracy"]
      axes.plot((start, end), (accuracy, accuracy), color=color, linestyle=":", linewidth=1.3, label=label)
      label = None
    start = end


def _draw_forgetting(axes, students, curves, metric: str, label: str, scale: float) -> None:
  for color, own in zip(COLORS * len(students), students.values(), strict=False):
    for points in records.series(own, curves, f"test/{metric}").values():
      line(axes, points, scale=scale, color=color)
    if len(own) > 1:
      mark_boundaries(axes, own, named=False)
  axes.set_ylabel(label)


def mark_boundaries(axes, own, named: bool = True) -> None:
  """Marks where the stages of a network begin, and says their names above."""
  from matplotlib.ticker import MaxNLocator

  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  start = 0.0
  for i, stage in enumerate(own):
    if i:
      axes.axvline(start, color=GREY, linewidth=0.8, alpha=0.6)
    if named:
      axes.annotate(
        stage["name"],
        (start + stage["epochs"] / 2, 1.0),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
        fontsize=8,
      )
    start += stage["epochs"]
  axes.set_xlim(0, start)
