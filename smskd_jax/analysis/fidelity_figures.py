"""Figures of the similarity of students and teachers. Fractions are drawn in percent."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from smskd_jax.analysis import figures
from smskd_jax.analysis.fidelity import Calibration, Embedding2D

MAX_CLASS_NAME = 18  # characters
MAX_TITLE = 30  # characters of each line of a panel's title
MAX_LABELED_SIZE = 8  # heat maps of up to so many rows and columns show their values
MANY_POINTS = 800  # images above which points are smaller


def reliability(calibrations: Mapping[str, Calibration]) -> bytes:
  """Draws accuracy against confidence, and the distribution of confidence, by network."""
  figure, (upper, lower) = figures.column(3.8, 1.7)
  upper.plot((0, 100), (0, 100), color=figures.GREY, linestyle="--", linewidth=1)
  for color, marker, (name, c) in zip(figures.COLORS, "osD^vP", calibrations.items(), strict=False):
    edges = np.linspace(0, 100, len(c.images) + 1)
    nonempty = c.images > 0
    style = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.3}
    label = f"{name}: ECE {c.ece:.3f}"
    upper.plot(100 * c.confidence[nonempty], 100 * c.accuracy[nonempty], label=label, **style)
    lower.stairs(100 * c.images / c.images.sum(), edges, color=color, linewidth=1.3)
  upper.set_xlim(0, 100)
  upper.set_ylim(0, 101)
  upper.set_ylabel("accuracy [%]")
  upper.legend(fontsize=8)
  lower.set_ylabel("images [%]")
  lower.set_xlabel("confidence [%]")
  return figures.to_png(figure)


def correlation_gaps(gaps: Sequence[tuple[str, np.ndarray]]) -> bytes:
  """Draws absolute differences [k, k] of correlations on one colour scale."""
  from matplotlib.ticker import MaxNLocator

  figure, axes = figures.grid(len(gaps))
  largest = max((float(np.nanmax(gap)) for _, gap in gaps if not np.isnan(gap).all()), default=0.0)
  for panel, (title, gap) in zip(axes, gaps, strict=True):
    image = _draw_heat_map(panel, gap, "Reds", largest or 1.0)
    for axis in (panel.xaxis, panel.yaxis):
      axis.set_major_locator(MaxNLocator(6, integer=True))
    panel.tick_params(labelsize=7)
    _set_title(panel, title)
  _add_color_bar(figure, image, axes, "difference of the correlations")
  return figures.to_png(figure, crop=True)


def cka(panels: Sequence[tuple[str, Mapping[str, Any]]]) -> bytes:
  """Draws linear CKA between the features of two networks, each table with a title.

  Args:
    panels: titles, and items of a stage's 'similarity' in result.json; null for unknown values.
  """
  figure, axes = figures.grid(len(panels), columns=3, extra=0.8)
  num_columns = axes[0].get_subplotspec().get_gridspec().ncols
  for i, (panel, (title, table)) in enumerate(zip(axes, panels, strict=True)):
    values = np.array(table["cka"], float)  # null becomes NaN
    image = _draw_heat_map(panel, values, "viridis", 1.0)
    rows, columns = ([name.replace("_", " ") for name in table[side]] for side in ("student", "other"))
    style = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "fontsize": 7}
    panel.set_xticks(range(len(columns)), columns, **style)
    is_first = i % num_columns == 0
    panel.set_yticks(range(len(rows)), rows if is_first else [""] * len(rows), fontsize=7)
    if max(values.shape) <= MAX_LABELED_SIZE:
      _write_values(panel, values)
    if is_first:
      panel.set_ylabel("student", fontsize=8)
    panel.set_xlabel("teacher", fontsize=8)
    _set_title(panel, title)
  _add_color_bar(figure, image, axes, "linear CKA")
  return figures.to_png(figure, crop=True)


def embeddings(
  panels: Sequence[tuple[str, Embedding2D]], label: np.ndarray, class_names: Mapping[int, str]
) -> bytes:
  """Draws embeddings of the same images by several networks.

  Args:
    panels: titles, and embeddings of n images.
    label: classes of the images [n].
    class_names: names of the classes that are drawn.
  """
  figure, axes = figures.grid(len(panels), columns=2 if len(panels) == 4 else 3, extra=0.7)
  size = 9 if len(label) < MANY_POINTS else 4
  for panel, (title, embedding) in zip(axes, panels, strict=True):
    for color, (class_, name) in zip(figures.MORE_COLORS, class_names.items(), strict=False):
      points = embedding.points[label == class_]
      name = figures.truncate(name, MAX_CLASS_NAME)
      panel.scatter(*points.T, s=size, color=color, linewidths=0, alpha=0.7, label=name)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_aspect("equal", adjustable="datalim")
    panel.margins(0.04)
    if embedding.explained_variance is not None:
      first, second = 100 * embedding.explained_variance
      title += f"\n{first:.0f} % and {second:.0f} % of the variance"
    _set_title(panel, title)
  handles, labels = axes[0].get_legend_handles_labels()
  num_columns = max(
    1, min(len(labels), 70 // (4 + max(map(len, labels), default=0)))
  )  # as wide as the figure
  style = {"loc": "outside lower center", "fontsize": 8, "markerscale": 2}
  legend = figure.legend(handles, labels, ncols=num_columns, **style)
  for text in legend.get_texts():
    text.set_parse_math(False)
  return figures.to_png(figure, crop=True)


def class_accuracy(accuracy: np.ndarray, changes: Mapping[str, np.ndarray], names: Sequence[str]) -> bytes:
  """Draws accuracies of s classes, and by how much they exceed those of other networks.

  Args:
    accuracy: fractions [s].
    changes: differences of fractions [s], by the name of the other network.
    names: of the classes.
  """
  figure, (left, right) = figures.row(max(2.0, 1.1 + 0.28 * len(names)), ratios=(2, 3))
  positions = np.arange(len(names))
  left.barh(positions, 100 * accuracy, 0.7, color=figures.GREY)
  left.set_xlim(0, 100)
  left.set_xlabel("accuracy [%]")
  labels = [figures.truncate(name, MAX_CLASS_NAME) for name in names]
  left.set_yticks(positions, labels, fontsize=8, parse_math=False)
  left.set_ylabel("class")
  width = 0.8 / len(changes)
  for i, (color, (name, change)) in enumerate(zip(figures.COLORS, changes.items(), strict=False)):
    offset = (i - (len(changes) - 1) / 2) * width
    right.barh(positions + offset, 100 * change, width, color=color, label=f"against {name}")
  right.axvline(0, color=figures.COLORS[-1], linewidth=0.8)
  right.set_xlabel("change of the accuracy [points]")
  right.tick_params(labelleft=False)
  right.grid(axis="x", linewidth=0.4, alpha=0.6)
  right.set_axisbelow(True)
  right.set_ylim(len(names) - 0.4, -0.6)  # the first class on top
  figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
  return figures.to_png(figure)


def _draw_heat_map(axes: Any, values: np.ndarray, colors: str, largest: float) -> Any:
  from matplotlib import colormaps

  shades = colormaps[colors].with_extremes(bad="#d9d9d9")
  return axes.imshow(np.ma.masked_invalid(values), cmap=shades, vmin=0.0, vmax=largest)


def _write_values(axes: Any, values: np.ndarray) -> None:
  """Writes the values into a heat map with light colours for high values."""
  for (row, column), value in np.ndenumerate(values):
    if not math.isnan(value):
      color = "#000000" if value > 0.6 else "#ffffff"
      axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)


def _add_color_bar(figure: Any, image: Any, axes: Sequence[Any], label: str) -> None:
  bar = figure.colorbar(image, ax=axes, shrink=0.9, fraction=0.04, pad=0.02)
  bar.set_label(label, fontsize=8)
  bar.ax.tick_params(labelsize=7)


def _set_title(axes: Any, title: str) -> None:
  axes.set_title("\n".join(figures.truncate(line, MAX_TITLE) for line in title.splitlines()), fontsize=8.5)
