"""Pictures of forgetting: kept, forgotten and gained images, and IoU against the weight of the reference."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from smskd_jax.analysis import figures, statistics

KINDS = {"kept": "#0b62a8", "forgotten": "#d1495b", "gained": "#b8860b"}
LONGEST = 44  # characters of a bar's name
NARROW = 0.05  # of all images: a number does not fit into a shorter piece of a bar


class Bar(NamedTuple):
  """Mean numbers of images of a network at two times."""

  name: str
  kept: float
  forgotten: float
  gained: float


class Point(NamedTuple):
  """Results of the variants with one weight of the reference, a value for each seed."""

  weight: float
  iou: Sequence[float]
  forgotten: Sequence[float]
  gained: Sequence[float]
  accuracy: Sequence[float]  # percent


def counts(bars: Sequence[Bar]) -> bytes:
  """Stacked bars: images that both networks classify correctly, the earlier alone, and the later alone."""
  figure, (axes,) = figures.panels(1.0 + 0.34 * len(bars))
  most = max(1.0, *(sum(bar[1:]) for bar in bars))
  places = range(len(bars))
  left = [0.0] * len(bars)
  for kind, color in KINDS.items():
    values = [getattr(bar, kind) for bar in bars]
    axes.barh(places, values, left=left, color=color, height=0.72, label=kind)
    for i, value in enumerate(values):
      if value > NARROW * most:
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": "white"}
        axes.text(left[i] + value / 2, i, f"{value:,.0f}", **style)
    left = [before + value for before, value in zip(left, values, strict=True)]
  axes.set_yticks(places, [figures.shorter(bar.name, LONGEST) for bar in bars], fontsize=8)
  axes.invert_yaxis()
  axes.set_xlim(0, 1.01 * most)
  axes.set_xlabel("images")
  figure.legend(loc="outside upper center", fontsize=8, ncols=len(KINDS))
  return figures.png(figure)


def against_weight(lines: Mapping[str, Sequence[Point]]) -> bytes:
  """IoU, forgotten and gained images, and accuracy against the weight of the reference; by the name of a line."""
  figure, axes = figures.panels(2.6, 2.6, 2.2)
  for i, (name, points) in enumerate(lines.items()):
    color = figures.MORE_COLORS[i % len(figures.MORE_COLORS)]
    weights = [point.weight for point in points]
    label = name if len(lines) > 1 else None
    for one, field, style in (
      (axes[0], "iou", "-"),
      (axes[1], "forgotten", "-"),
      (axes[1], "gained", "--"),
      (axes[2], "accuracy", "-"),
    ):
      found = [statistics.summary(getattr(point, field)) for point in points]
      means, spreads = [of.mean for of in found], [of.std or 0.0 for of in found]
      one.errorbar(
        weights,
        means,
        spreads,
        color=color,
        marker="o",
        markersize=4,
        capsize=2,
        linestyle=style,
        label=label,
      )
      label = None
  axes[0].set_ylabel("IoU with stage 1")
  axes[1].set_ylabel("images since stage 1:\nforgotten (solid),\ngained (dashed)")
  axes[2].set_ylabel("test accuracy [%]")
  axes[-1].set_xlabel("weight of the reference term, lambda_r")
  if len(lines) > 1:
    figure.legend(loc="outside upper center", fontsize=8, ncols=2)
  return figures.png(figure)
