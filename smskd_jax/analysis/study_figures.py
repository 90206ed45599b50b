"""Figures that compare the variants of a study: means and standard deviations over seeds."""

from collections.abc import Mapping, Sequence
import json
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.analysis import figures, stages, statistics
from smskd_jax.analysis.records import Outcome, RunRecord
from smskd_jax.analysis.stages import Stage

MARKERS = "osD^vPX*<>"
OFFSET = 3.0  # typographic points between variants at the same x, so that no marker hides another
MIN_WEIGHTS = 3  # different weights of the reference that make a line

Runs = Mapping[str, Mapping[int, RunRecord]]  # by variant and seed


class WeightPoint(NamedTuple):
  """Results of a variant with one weight of the reference, a value for each seed."""

  weight: float
  iou: Sequence[float]
  forgotten: Sequence[float]
  gained: Sequence[float]
  accuracy: Sequence[float]  # percent


def ancestor_chains(runs: Runs, network: str) -> dict[str, list[list[Stage]]]:
  """Returns by variant, for each seed, the stages that the network continues from."""
  return {
    name: [
      stages.ancestors(run.stages, stages.selected_stage(run.stages, network)) for run in by_seed.values()
    ]
    for name, by_seed in runs.items()
    if by_seed
  }


def accuracy_by_stage(chains: Mapping[str, Sequence[Sequence[Stage]]]) -> bytes:
  """Draws the accuracy at the end of the first, second, ... stage of each variant."""
  figure, (axes,) = figures.column(4.2)
  for i, (name, runs) in enumerate(chains.items()):
    ends = zip(
      *([100 * stage["metrics"]["last"]["test/accuracy"] for stage in run] for run in runs), strict=False
    )
    summaries = [statistics.summary(values) for values in ends]
    x = list(range(1, 1 + len(summaries)))
    _draw_summaries(axes, i, name, x, summaries, len(chains), linestyle="-" if len(summaries) > 1 else "none")
  longest = max(len(run) for runs in chains.values() for run in runs)
  axes.set_xticks(range(1, 1 + longest))
  axes.set_xlim(0.6, longest + 0.4)
  axes.set_xlabel("stages of the network's training")
  axes.set_ylabel("test accuracy [%]")
  _add_legend(figure, axes)
  return figures.to_png(figure)


def accuracy_by_cost(outcomes: Mapping[str, Sequence[Outcome]]) -> bytes:
  """Draws accuracy against the images of training, and against those of frozen networks."""
  from matplotlib.ticker import EngFormatter

  figure, axes = figures.column(3.4, 3.4, shared=False)
  labels = {
    "images": "images of the student (forward and backward)",
    "frozen": "images of teachers and references (forward)",
  }
  for panel, (field, label) in zip(axes, labels.items(), strict=True):
    for i, (name, runs) in enumerate(outcomes.items()):
      accuracy = statistics.summary([outcome.accuracy for outcome in runs])
      cost = float(np.mean([getattr(outcome, field) for outcome in runs]))
      _draw_summaries(panel, i, name, [cost], [accuracy], len(outcomes))
    panel.xaxis.set_major_formatter(EngFormatter())
    panel.set_xlabel(label)
    panel.set_ylabel("test accuracy [%]")
    panel.margins(x=0.15)
  _add_legend(figure, axes[0])
  return figures.to_png(figure)


def training_curves(runs: Runs, network: str) -> bytes | None:
  """Draws accuracy and forgetting along the training of the variants.

  Standard deviations are over seeds.
  """
  labels = {
    "test/accuracy": "test accuracy [%]",
    "test/earlier_1_regressions": "forgotten since\nstage 1 [% of images]",
    "test/reference_agreement": "same prediction as\nthe reference [%]",
  }
  curves = {
    metric: {name: c for name, by_seed in runs.items() if (c := mean_curves(by_seed, network, metric))}
    for metric in labels
  }
  curves = {metric: variants for metric, variants in curves.items() if variants}
  if not curves:
    return None
  figure, axes = figures.column(*(3.6 if i == 0 else 2.4 for i in range(len(curves))))
  index = {name: i for i, name in enumerate(runs)}
  for panel, (metric, variants) in zip(axes, curves.items(), strict=True):
    for name, stage_curves in variants.items():
      color = figures.MORE_COLORS[index[name] % len(figures.MORE_COLORS)]
      linestyle = ("-", "--", ":", "-.")[index[name] // len(figures.MORE_COLORS) % 4]
      label: str | None = name  # in the legend once
      for x, mean, std in stage_curves:
        points = list(zip(x, mean, strict=True))
        figures.draw_line(panel, points, color=color, label=label, linestyle=linestyle)
        panel.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
        label = None
    panel.set_ylabel(labels[metric])
  axes[-1].set_xlabel(figures.EPOCHS_LABEL)
  _add_legend(figure, axes[0])
  return figures.to_png(figure)


def mean_curves(
  by_seed: Mapping[int, RunRecord], network: str, metric: str
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Returns mean and standard deviation over seeds in percent, by stage epochs.

  Stages without a value of every seed are left out.
  """
  series = []
  for run in by_seed.values():
    chain = stages.ancestors(run.stages, stages.selected_stage(run.stages, network))
    series.append(stages.metric_series(chain, run.curves, metric))
  curves = []
  for name in series[0] if series else ():
    points = [dict(seed_series.get(name, ())) for seed_series in series]
    epochs = [x for x in points[0] if all(x in other for other in points)]
    if epochs:
      values = 100 * np.array([[seed_points[x] for x in epochs] for seed_points in points])
      std = values.std(axis=0, ddof=1) if len(points) > 1 else 0 * values[0]
      curves.append((np.array(epochs), values.mean(axis=0), std))
  return curves


def forgetting_by_weight(lines: Mapping[str, Sequence[WeightPoint]]) -> bytes:
  """Draws IoU, forgotten and gained images, and accuracy against lambda_r.

  Values are by the name of a line.
  """
  figure, axes = figures.column(2.6, 2.6, 2.2)
  panels = (
    (axes[0], "iou", "-"),
    (axes[1], "forgotten", "-"),
    (axes[1], "gained", "--"),
    (axes[2], "accuracy", "-"),
  )
  for i, (name, points) in enumerate(lines.items()):
    color = figures.MORE_COLORS[i % len(figures.MORE_COLORS)]
    weights = [point.weight for point in points]
    label = name if len(lines) > 1 else None
    for panel, field, linestyle in panels:
      summaries = [statistics.summary(getattr(point, field)) for point in points]
      means, stds = [s.mean for s in summaries], [s.std or 0.0 for s in summaries]
      style = {"marker": "o", "markersize": 4, "capsize": 2, "linestyle": linestyle}
      panel.errorbar(weights, means, stds, color=color, label=label, **style)
      label = None
  axes[0].set_ylabel("IoU with stage 1")
  axes[1].set_ylabel("images since stage 1:\nforgotten (solid),\ngained (dashed)")
  axes[2].set_ylabel("test accuracy [%]")
  axes[-1].set_xlabel("weight of the reference term, lambda_r")
  if len(lines) > 1:
    figure.legend(loc="outside upper center", fontsize=8, ncols=2)
  return figures.to_png(figure)


def weight_families(variants: Mapping[str, Mapping[str, Any]], network: str) -> dict[str, dict[str, float]]:
  """Groups variants that differ only in lambda_r of the last stage.

  A variant whose last stage has no reference belongs, with weight 0, to every family of its other fields.

  Args:
    variants: resolved configs by name.
    network: of the study.

  Returns:
    Weights by variant, in increasing order, by the name of the family (its first and last variant); only families of
    at least three different weights.
  """
  split = {}
  for name, config in variants.items():
    try:
      split[name] = _split_weight(config, network)
    except (KeyError, TypeError, IndexError):
      continue  # a config of another version
  families = {}
  for rest, reference in dict.fromkeys((rest, ref) for _, rest, ref in split.values() if ref is not None):
    members = {
      name: weight
      for name, (weight, other_rest, other_reference) in split.items()
      if other_rest == rest and other_reference in (reference, None)
    }
    if len(set(members.values())) >= MIN_WEIGHTS:
      ordered = dict(sorted(members.items(), key=lambda item: item[1]))
      names = list(ordered)
      families[f"{names[0]} … {names[-1]}"] = ordered
  return families


def _split_weight(config: Mapping[str, Any], network: str) -> tuple[float, str, str | None]:
  """Returns lambda_r of the last stage, the rest of the config, and other options.

  The options are those of the reference (None: none).
  """
  config_stages = [dict(stage) for stage in config["stages"]]
  last = [stage for stage in config_stages if stage["network"] == network][-1]
  reference = dict(last.pop("reference"))
  del last["name"]
  rest = json.dumps({**config, "stages": config_stages, "seed": 0}, sort_keys=True)
  weight = float(reference.pop("weight"))
  if reference["stage"] == "none":
    return 0.0, rest, None
  return weight, rest, json.dumps(reference, sort_keys=True)


def _draw_summaries(
  axes: Any,
  index: int,
  name: str,
  x: Sequence[float],
  summaries: Sequence[statistics.Summary],
  num_variants: int,
  **style: Any,
) -> None:
  """Draws the means of a variant with error bars, shifted a little to the side by its index."""
  from matplotlib.transforms import ScaledTranslation

  offset = (index - (num_variants - 1) / 2) * OFFSET / 72
  shift = ScaledTranslation(offset, 0, axes.figure.dpi_scale_trans)
  axes.errorbar(
    x,
    [s.mean for s in summaries],
    [s.std or 0.0 for s in summaries],
    color=figures.MORE_COLORS[index % len(figures.MORE_COLORS)],
    marker=MARKERS[index % len(MARKERS)],
    markersize=5,
    linewidth=1.2,
    capsize=2,
    label=name,
    transform=axes.transData + shift,
    **{"linestyle": "none"} | style,
  )
  # Shifted artists do not count for the limits of the axes.
  for sign in (-1, 1):
    limits = [(a, (s.mean or 0.0) + sign * (s.std or 0.0)) for a, s in zip(x, summaries, strict=True)]
    axes.update_datalim(limits)
  axes.autoscale_view()


def _add_legend(figure: Any, axes: Any) -> None:
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside right upper", fontsize=8)
