"""Pictures of a study: its variants against each other."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.analysis import figures, records, statistics
from smskd_jax.analysis.records import Record

MARKERS = "osD^vPX*<>"
SHIFT = 3.0  # points between variants of the same cost, so that none hides another


class Cost(NamedTuple):
  """What a run of a variant took, in images."""

  accuracy: float  # percent
  images: int  # forward and backward
  frozen: int  # forward through teachers and references


Records = Mapping[str, Mapping[int, Record]]  # by variant and seed


def chains(found: Records, network: str) -> dict[str, list[list[records.Stage]]]:
  """By variant, for each seed the stages that the network's result goes on from."""
  return {
    name: [records.chain(one.stages, records.chosen(one.stages, network)) for one in seeds.values()]
    for name, seeds in found.items()
    if seeds
  }


def by_stages(of_variants: Mapping[str, Sequence[Sequence[records.Stage]]]) -> bytes:
  """Accuracy at the end of the first, second, ... stage of each variant."""
  figure, (axes,) = figures.panels(4.2)
  for i, (name, runs) in enumerate(of_variants.items()):
    ends = zip(
      *([100 * stage["metrics"]["last"]["test/accuracy"] for stage in run] for run in runs), strict=False
    )
    found = [statistics.summary(values) for values in ends]
    numbers = list(range(1, 1 + len(found)))
    _points(axes, i, name, numbers, found, len(of_variants), linestyle="-" if len(found) > 1 else "none")
  most = max(len(run) for runs in of_variants.values() for run in runs)
  axes.set_xticks(range(1, 1 + most))
  axes.set_xlim(0.6, most + 0.4)
  axes.set_xlabel("stages of the network's training")
  axes.set_ylabel("test accuracy [%]")
  _legend(figure, axes)
  return figures.png(figure)


def by_cost(costs: Mapping[str, Sequence[Cost]]) -> bytes:
  """Accuracy against what was trained on, and against what frozen networks looked at."""
  from matplotlib.ticker import EngFormatter

  figure, axes = figures.panels(3.4, 3.4, shared=False)
  for one, field, label in zip(
    axes,
    ("images", "frozen"),
    ("trained on (forward and backward)", "seen by teachers and references"),
    strict=True,
  ):
    for i, (name, of) in enumerate(costs.items()):
      found = statistics.summary([cost.accuracy for cost in of])
      _points(one, i, name, [float(np.mean([getattr(cost, field) for cost in of]))], [found], len(costs))
    one.xaxis.set_major_formatter(EngFormatter())
    one.set_xlabel(f"images {label}")
    one.set_ylabel("test accuracy [%]")
    one.margins(x=0.15)
  _legend(figure, axes[0])
  return figures.png(figure)


def along(found: Records, network: str) -> bytes | None:
  """Accuracy and forgetting along the training of the variants: means over seeds, and their spread."""
  metrics = {
    "test/accuracy": "test accuracy [%]",
    "test/earlier_1_lost": "lost of what stage 1\ngot right [% of images]",
    "test/reference_agreement": "same answer as\nthe reference [%]",
  }
  drawn = {
    metric: {name: lines for name, of in found.items() if (lines := _over_seeds(of, network, metric))}
    for metric in metrics
  }
  drawn = {metric: of for metric, of in drawn.items() if of}
  if not drawn:
    return None
  figure, axes = figures.panels(*(3.6 if i == 0 else 2.4 for i in range(len(drawn))))
  order = list(found)
  for one, (metric, of_variants) in zip(axes, drawn.items(), strict=True):
    for name, of_stages in of_variants.items():
      color = figures.MORE_COLORS[order.index(name) % len(figures.MORE_COLORS)]
      label: str | None = name  # said once
      style = ("-", "--", ":", "-.")[order.index(name) // len(figures.MORE_COLORS) % 4]
      for x, mean, std in of_stages:
        figures.line(one, list(zip(x, mean, strict=True)), color=color, label=label, linestyle=style)
        one.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
        label = None
    one.set_ylabel(metrics[metric])
  axes[-1].set_xlabel(figures.EPOCHS)
  _legend(figure, axes[0])
  return figures.png(figure)


def _over_seeds(
  of: Mapping[int, Record], network: str, metric: str
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Stage by stage: epochs, mean and standard deviation over the seeds, in percent, where all seeds have a value."""
  each = []
  for one in of.values():
    own = records.chain(one.stages, records.chosen(one.stages, network))
    each.append(records.series(own, one.curves, metric))
  found = []
  for name in each[0] if each else ():
    points = [dict(series.get(name, ())) for series in each]
    epochs = [x for x in points[0] if all(x in other for other in points)]
    if epochs:
      values = 100 * np.array([[other[x] for x in epochs] for other in points])
      found.append(
        (
          np.array(epochs),
          values.mean(axis=0),
          values.std(axis=0, ddof=1) if len(points) > 1 else 0 * values[0],
        )
      )
  return found


def _points(
  axes: Any, i: int, name: str, x: Sequence[float], found: Sequence[statistics.Summary], n: int, **style: Any
) -> None:
  """A variant's means with their standard deviations, moved aside a little."""
  from matplotlib.transforms import ScaledTranslation

  aside = ScaledTranslation((i - (n - 1) / 2) * SHIFT / 72, 0, axes.figure.dpi_scale_trans)
  axes.errorbar(
    x,
    [of.mean for of in found],
    [of.std or 0.0 for of in found],
    color=figures.MORE_COLORS[i % len(figures.MORE_COLORS)],
    marker=MARKERS[i % len(MARKERS)],
    markersize=5,
    linewidth=1.2,
    capsize=2,
    label=name,
    transform=axes.transData + aside,
    **{"linestyle": "none"} | style,
  )
  # What is moved aside does not count for the limits of the axes by itself.
  for sign in (-1, 1):
    axes.update_datalim(
      [(a, (of.mean or 0.0) + sign * (of.std or 0.0)) for a, of in zip(x, found, strict=True)]
    )
  axes.autoscale_view()


def _legend(figure: Any, axes: Any) -> None:
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside right upper", fontsize=8)
