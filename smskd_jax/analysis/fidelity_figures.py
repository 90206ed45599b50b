"""Pictures of how like its teacher a network has become. Shares are drawn in percent."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from smskd_jax.analysis import figures
from smskd_jax.analysis.fidelity import Calibration, Embedded

NAME = 18  # characters of a class's name
TITLE = 30  # of a panel's title, line by line
WRITTEN = 8  # heat maps of so many rows and columns at most have their values written in


def reliability(found: Mapping[str, Calibration]) -> bytes:
  """Accuracy against confidence, and below how many images have which confidence; by the networks' names."""
  figure, (above, below) = figures.panels(3.8, 1.7)
  above.plot((0, 100), (0, 100), color=figures.GREY, linestyle="--", linewidth=1)
  for color, marker, (name, of) in zip(figures.COLORS, "osD^vP", found.items(), strict=False):
    edges = np.linspace(0, 100, len(of.images) + 1)
    there = of.images > 0
    above.plot(
      100 * of.confidence[there],
      100 * of.accuracy[there],
      color=color,
      marker=marker,
      markersize=4,
      linewidth=1.3,
      label=f"{name}: ECE {of.ece:.3f}",
    )
    below.stairs(100 * of.images / of.images.sum(), edges, color=color, linewidth=1.3)
  above.set_xlim(0, 100)
  above.set_ylim(0, 101)
  above.set_ylabel("accuracy [%]")
  above.legend(fontsize=8)
  below.set_ylabel("images [%]")
  below.set_xlabel("confidence [%]")
  return figures.png(figure)


def correlations(gaps: Sequence[tuple[str, np.ndarray]]) -> bytes:
  """Absolute differences [k, k] of correlations, each with a title, on one scale of colours."""
  from matplotlib.ticker import MaxNLocator

  figure, axes = figures.grid(len(gaps))
  most = max((float(np.nanmax(gap)) for _, gap in gaps if not np.isnan(gap).all()), default=0.0)
  for one, (title, gap) in zip(axes, gaps, strict=True):
    image = _heat(one, gap, "Reds", most or 1.0)
    for axis in (one.xaxis, one.yaxis):
      axis.set_major_locator(MaxNLocator(6, integer=True))
    one.tick_params(labelsize=7)
    _title(one, title)
  _bar(figure, image, axes, "difference of the correlations")
  return figures.png(figure, cut=True)


def similarity(panels: Sequence[tuple[str, Mapping[str, Any]]]) -> bytes:
  """Linear CKA of the taps of two networks, each with a title.

  Args:
    panels: titles, and items of a stage's 'similarity'; null where a value is not known.
  """
  figure, axes = figures.grid(len(panels), columns=3, extra=0.8)
  for i, (one, (title, of)) in enumerate(zip(axes, panels, strict=True)):
    values = np.array(of["cka"], float)  # null becomes NaN
    image = _heat(one, values, "viridis", 1.0)
    rows, columns = (_spaced(of[side]) for side in ("student", "other"))
    one.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    first = i % _columns(axes) == 0
    one.set_yticks(range(len(rows)), rows if first else [""] * len(rows), fontsize=7)
    if max(values.shape) <= WRITTEN:
      _write(one, values)
    if first:
      one.set_ylabel("the student's", fontsize=8)
    one.set_xlabel("its teacher's", fontsize=8)
    _title(one, title)
  _bar(figure, image, axes, "linear CKA")
  return figures.png(figure, cut=True)


def embeddings(found: Sequence[tuple[str, Embedded]], label: np.ndarray, names: Mapping[int, str]) -> bytes:
  """Networks' embeddings of the same images, each with a title.

  Args:
    found: titles, and points [n, 2].
    label: the images' classes [n].
    names: of the classes that are there.
  """
  figure, axes = figures.grid(len(found), columns=2 if len(found) == 4 else 3, extra=0.7)
  for one, (title, embedded) in zip(axes, found, strict=True):
    for color, (of_class, name) in zip(figures.MORE_COLORS, names.items(), strict=False):
      points = embedded.points[label == of_class]
      size = 9 if len(label) < 800 else 4
      one.scatter(*points.T, s=size, color=color, linewidths=0, alpha=0.7, label=figures.shorter(name, NAME))
    one.set_xticks([])
    one.set_yticks([])
    one.set_aspect("equal", adjustable="datalim")
    one.margins(0.04)
    shares = embedded.shares
    told = "" if shares is None else f"\n{100 * shares[0]:.0f} % and {100 * shares[1]:.0f} % of the variance"
    _title(one, title + told)
  handles, labels = axes[0].get_legend_handles_labels()
  legend = figure.legend(
    handles, labels, loc="outside lower center", ncols=_legend_columns(labels), fontsize=8, markerscale=2
  )
  for text in legend.get_texts():
    text.set_parse_math(False)
  return figures.png(figure, cut=True)


def classes(accuracy: np.ndarray, changes: Mapping[str, np.ndarray], names: Sequence[str]) -> bytes:
  """Accuracies of classes [s], and by how much they are above others' [s], by their names; all are shares."""
  figure, (left, right) = figures.beside(max(2.0, 1.1 + 0.28 * len(names)), ratios=(2, 3))
  places = np.arange(len(names))
  left.barh(places, 100 * accuracy, 0.7, color=figures.GREY)
  left.set_xlim(0, 100)
  left.set_xlabel("accuracy [%]")
  left.set_yticks(places, [figures.shorter(name, NAME) for name in names], fontsize=8, parse_math=False)
  left.set_ylabel("class")
  width = 0.8 / len(changes)
  for i, (color, (name, change)) in enumerate(zip(figures.COLORS, changes.items(), strict=False)):
    aside = (i - (len(changes) - 1) / 2) * width
    right.barh(places + aside, 100 * change, width, color=color, label=f"against {name}")
  right.axvline(0, color=figures.COLORS[-1], linewidth=0.8)
  right.set_xlabel("change of the accuracy [points]")
  right.tick_params(labelleft=False)
  right.grid(axis="x", linewidth=0.4, alpha=0.6)
  right.set_axisbelow(True)
  right.set_ylim(len(names) - 0.4, -0.6)  # the first is above
  figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
  return figures.png(figure)


def _heat(axes: Any, values: np.ndarray, colors: str, most: float) -> Any:
  from matplotlib import colormaps

  shades = colormaps[colors].with_extremes(bad="#d9d9d9")
  return axes.imshow(np.ma.masked_invalid(values), cmap=shades, vmin=0.0, vmax=most)


def _write(axes: Any, values: np.ndarray) -> None:
  """Writes the values into a heat map whose high values are light."""
  for (row, column), value in np.ndenumerate(values):
    if not math.isnan(value):
      color = "#000000" if value > 0.6 else "#ffffff"
      axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)


def _bar(figure: Any, image: Any, axes: Sequence[Any], label: str) -> None:
  bar = figure.colorbar(image, ax=axes, shrink=0.9, fraction=0.04, pad=0.02)
  bar.set_label(label, fontsize=8)
  bar.ax.tick_params(labelsize=7)


def _title(axes: Any, title: str) -> None:
  axes.set_title("\n".join(figures.shorter(line, TITLE) for line in title.splitlines()), fontsize=8.5)


def _spaced(names: Sequence[str]) -> list[str]:
  return [name.replace("_", " ") for name in names]


def _columns(axes: Sequence[Any]) -> int:
  return axes[0].get_subplotspec().get_gridspec().ncols


def _legend_columns(labels: Sequence[str]) -> int:
  """So many that the legend is not wider than the figure."""
  return max(1, min(len(labels), 70 // (4 + max(map(len, labels), default=0))))
