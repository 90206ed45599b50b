"""Figures of the training of networks, stage after stage.

None where the run recorded no data for a figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.analysis import figures, forgetting, stages
from smskd_jax.analysis.stages import Lines, Stage

NUM_BINS = 10  # of the reference weights between 0 and 1, as training logs them
WEIGHT_FRACTIONS = tuple(f"train/reference_weight_fraction/{i}" for i in range(NUM_BINS))
WEIGHT_MEANS = ("train/accuracy", "train/reference_weight", "train/reference_weight_if_correct")
MAX_EVENTS = 8  # the last bar counts images with this many events or more
COUNT_COLORS = {"kept": "#0b62a8", "forgotten": "#d1495b", "gained": "#b8860b"}
MAX_BAR_NAME = 44  # characters
MIN_LABELED_BAR = 0.05  # fraction of all images; shorter pieces of a bar have no number


class CountBar(NamedTuple):
  """Mean numbers of test images that are correct at two times, or at one only.

  At both, at the earlier one only, at the later one only.
  """

  name: str
  kept: float
  forgotten: float
  gained: float


def accuracy_curves(
  results: Sequence[Stage], curves: Mapping[str, Lines], pretrained: Sequence[Any] = ()
) -> bytes:
  """Draws the test accuracy of the students along their stages.

  Teachers are horizontal lines.

  Args:
    results: stages of the run.
    curves: lines of metrics.jsonl by stage.
    pretrained: items of result.json for networks that came with their variables.
  """
  figure, (axes,) = figures.column(4.0)
  _draw_accuracy(axes, results, curves, pretrained)
  axes.set_xlabel(figures.EPOCHS_LABEL)
  return figures.to_png(figure)


def summary(results: Sequence[Stage], curves: Mapping[str, Lines]) -> bytes:
  """Draws test accuracy along the stages, and agreement with the reference.

  Also the divergence from the reference of each stage.
  """
  has_reference = any("test/reference_agreement" in line for lines in curves.values() for line in lines)
  figure, axes = figures.column(*((4.0, 2.0, 2.0) if has_reference else (4.0,)))
  _draw_accuracy(axes[0], results, curves)
  if has_reference:
    panels = (("reference_agreement", "agreement [%]", 100.0), ("reference_kl", "KL [nats]", 1.0))
    for panel, (metric, label, scale) in zip(axes[1:], panels, strict=True):
      networks = stages.students(results).values()
      for color, network_stages in zip(figures.COLORS * len(networks), networks, strict=False):
        _draw_metric(panel, network_stages, curves, f"test/{metric}", scale=scale, color=color)
        if len(network_stages) > 1:
          figures.mark_stages(panel, network_stages, with_names=False)
      panel.set_ylabel(label)
    axes[1].set_title(
      "Forgetting: agreement with, and divergence from, the reference of the stage", fontsize=10
    )
  axes[-1].set_xlabel(figures.EPOCHS_LABEL)
  return figures.to_png(figure)


def _draw_accuracy(
  axes: Any, results: Sequence[Stage], curves: Mapping[str, Lines], pretrained: Sequence[Any] = ()
) -> None:
  students = stages.students(results)
  for color, (network, network_stages) in zip(figures.COLORS * len(students), students.items(), strict=False):
    series = stages.metric_series(network_stages, curves, "test/accuracy").values()
    points = [point for stage_points in series for point in stage_points]
    figures.draw_line(axes, points, scale=100, color=color, label=network)
    _draw_references(axes, network_stages, color)
    if len(network_stages) > 1:
      figures.mark_stages(axes, network_stages)
  teacher_keys = stages.teacher_keys(results)
  teachers = {stage["name"]: stage["metrics"]["last"] for stage in results if stage["key"] in teacher_keys}
  teachers |= {item["network"]: item["metrics"] for item in pretrained}
  for name, metrics in teachers.items():
    percent = 100 * metrics["test/accuracy"]
    label = f"{name} {percent:.1f} %"
    axes.axhline(percent, color=figures.GREY, linestyle="--", linewidth=1.2, label=label)
  all_metrics = [*teachers.values(), *(stage["metrics"]["last"] for stage in results)]
  best = max(100 * metrics["test/accuracy"] for metrics in all_metrics)
  worst = min(100 * s["metrics"]["last"]["test/accuracy"] for group in students.values() for s in group)
  # The end of every stage must be visible; first epochs may be cut off below.
  axes.set_ylim(max(0.0, worst - 0.15 * (100 - worst) - 2), min(100.5, best + 0.2 * (100 - best) + 1))
  axes.set_ylabel("test accuracy [%]")
  axes.legend(loc="lower right", fontsize=8)


def _draw_references(axes: Any, network_stages: Sequence[Stage], color: str) -> None:
  """Draws the accuracy of the reference of each stage as a dotted line across the stage."""
  by_key = {stage["key"]: stage for stage in network_stages}
  start = 0.0
  label: str | None = "reference"  # in the legend once
  for stage in network_stages:
    end = start + stage["epochs"]
    if (reference := stage["inputs"]["reference"]) in by_key:
      accuracy = 100 * by_key[reference]["metrics"]["last"]["test/accuracy"]
      axes.plot((start, end), (accuracy, accuracy), color=color, linestyle=":", linewidth=1.3, label=label)
      label = None
    start = end


def objective_terms(network_stages: Sequence[Stage], curves: Mapping[str, Lines]) -> bytes | None:
  """Draws the unweighted terms of the objective, and training and test accuracy."""
  fixed = ("train/task", "train/reference", "train/loss")
  recorded = stages.matching_metrics(
    network_stages, curves, lambda name: name in fixed or name.startswith("train/distill/")
  )
  names = [name for name in fixed if name in recorded] + [name for name in recorded if name not in fixed]
  if not names:
    return None
  figure, (upper, lower) = figures.column(3.2, 2.4)
  for color, name in zip(figures.COLORS * len(names), names, strict=False):
    style = {"linestyle": "--", "color": figures.GREY} if name == "train/loss" else {"color": color}
    label = name.removeprefix("train/").removeprefix("distill/")
    _draw_metric(upper, network_stages, curves, name, label=label, **style)
  _set_log_scale_if_positive(upper, curves, names)
  upper.set_ylabel("mean over images")
  for color, split in zip(figures.COLORS, ("train", "test"), strict=False):
    _draw_metric(lower, network_stages, curves, f"{split}/accuracy", scale=100, color=color, label=split)
  lower.set_ylabel("accuracy [%]")
  return _finish(figure, network_stages, upper, lower)


def forgetting_curves(
  network_stages: Sequence[Stage], results: Sequence[Stage], curves: Mapping[str, Lines]
) -> bytes | None:
  """Draws forgotten images, losses of earlier stages, and distance from the reference.

  Args:
    network_stages: stages of one network.
    results: all stages of the run.
    curves: lines of metrics.jsonl by stage.
  """

  def select(suffix: str) -> list[str]:
    return stages.matching_metrics(
      network_stages, curves, lambda name: name.startswith("test/earlier_") and suffix in name
    )

  lost, ious, losses = select("_regressions"), select("_iou"), select("_loss/")
  candidates = (
    ("test/reference_agreement", "same prediction as\nthe reference [%]", 100.0),
    ("test/reference_kl", "KL from the\nreference [nats]", 1.0),
  )
  recorded = stages.matching_metrics(network_stages, curves, lambda name: name.startswith("test/reference_"))
  references = [candidate for candidate in candidates if candidate[0] in recorded]
  if not lost and not references:
    return None
  heights = (
    *(h for h, names in ((3.0, lost), (1.9, ious), (2.4, losses)) if names),
    *(1.9 for _ in references),
  )
  figure, axes = figures.column(*heights)
  panels = iter(axes)
  if lost:
    panel = next(panels)
    for color, name in zip(figures.COLORS * len(lost), lost, strict=False):
      label = f"correct after {_earlier_name(network_stages, results, int(name.split('_')[1]))}"
      _draw_metric(panel, network_stages, curves, name, scale=100, color=color, label=label)
    panel.set_ylabel("forgotten\n[% of test images]")
  if ious:
    panel = next(panels)
    for color, name in zip(figures.COLORS * len(ious), ious, strict=False):
      _draw_metric(panel, network_stages, curves, name, color=color)
    panel.set_ylabel("IoU of\ncorrect images")
  if losses:
    _draw_relative_losses(next(panels), network_stages, results, curves, losses)
  for panel, (name, label, scale) in zip(panels, references, strict=True):
    _draw_metric(panel, network_stages, curves, name, scale=scale, color=figures.COLORS[0])
    panel.set_ylabel(label)
  return _finish(figure, network_stages, *axes)


def _draw_relative_losses(
  axes: Any,
  network_stages: Sequence[Stage],
  results: Sequence[Stage],
  curves: Mapping[str, Lines],
  names: Sequence[str],
) -> None:
  """Draws losses of earlier stages, each divided by its value at the end of its stage."""
  for color, name in zip(figures.COLORS * len(names), names, strict=False):
    first = next(line[name] for stage in network_stages for line in curves[stage["name"]] if name in line)
    if first:
      term = name.rpartition("/")[2]
      stage_name = _earlier_name(network_stages, results, int(name.split("_")[1]))
      label = term if term == stage_name else f"{term} of {stage_name}"
      _draw_metric(axes, network_stages, curves, name, scale=1 / first, color=color, label=label)
  axes.axhline(1, color=figures.GREY, linewidth=0.8)
  axes.set_ylabel("loss / loss at the\nend of its stage")


def reference_weights(
  network_stages: Sequence[Stage], curves: Mapping[str, Lines], labeled_fraction: Mapping[str, float]
) -> bytes | None:
  """Draws the distribution of the weights of the reference term, epoch by epoch.

  Also their means over images.

  Args:
    network_stages: stages of one network.
    curves: lines of metrics.jsonl by stage.
    labeled_fraction: fraction of the images of a stage that have a label; 1 for stages that are not listed.
  """
  names = [
    stage["name"]
    for stage in network_stages
    if any(WEIGHT_FRACTIONS[0] in line for line in curves[stage["name"]])
  ]
  if not names:
    return None
  from matplotlib import cm, colormaps, colors

  figure, (upper, lower) = figures.column(3.2, 2.6)
  shades = colormaps["viridis"].resampled(NUM_BINS)
  for name, start in stages.start_epochs(network_stages).items():
    if name not in names:
      continue
    ends, fractions = stages.epoch_means(curves[name], WEIGHT_FRACTIONS)
    edges = start + np.concatenate((ends[:1] - 1, ends))
    heights = [100 * np.append(fractions[bin_], fractions[bin_][-1:]) for bin_ in WEIGHT_FRACTIONS]
    upper.stackplot(edges, heights, colors=shades(range(NUM_BINS)), step="post", linewidth=0)
    _draw_mean_weights(lower, curves[name], start, labeled_fraction.get(name, 1.0), first=name == names[0])
  mappable = cm.ScalarMappable(colors.BoundaryNorm(np.linspace(0, 1, NUM_BINS + 1), NUM_BINS), shades)
  label = "weight (last bin: all larger weights)"
  bar = figure.colorbar(mappable, ax=upper, label=label, ticks=np.linspace(0, 1, 6))
  bar.ax.yaxis.label.set_size(8)
  upper.set_ylim(0, 100)
  upper.set_ylabel("images [%]")
  lower.set_ylabel("mean weight")
  return _finish(figure, network_stages, upper, lower)


def _draw_mean_weights(axes: Any, lines: Lines, start: float, labeled_fraction: float, first: bool) -> None:
  ends, means = stages.epoch_means(lines, WEIGHT_MEANS)
  correct, incorrect = mean_weights_by_correctness(means, labeled_fraction)
  for color, label, values in zip(
    (figures.GREY, *figures.COLORS),
    ("all images", "correct images", "other images"),
    (means[WEIGHT_MEANS[1]], correct, incorrect),
    strict=False,
  ):
    points = [(start + end - 0.5, y) for end, y in zip(ends, values, strict=True)]
    if points:
      figures.draw_line(axes, points, color=color, label=label if first else None)


def mean_weights_by_correctness(
  means: Mapping[str, np.ndarray], labeled_fraction: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean weights [e] of correctly classified images, and of all others.

  NaN where there are no such images.

  Args:
    means: by the names of `WEIGHT_MEANS`, [e]: accuracy over labelled images, mean weight over all images, and mean of
      the weight where the network is correct and 0 elsewhere.
    labeled_fraction: fraction of the images that have a label; images without a label count as not correct.
  """
  accuracy, weight, weight_of_correct = (means[name] for name in WEIGHT_MEANS)
  correct = labeled_fraction * accuracy

  def nan_if_empty(fraction: np.ndarray) -> np.ndarray:
    return np.where(fraction > 1e-6, fraction, np.nan)  # rounding leaves tiny fractions of no images

  return weight_of_correct / nan_if_empty(correct), (weight - weight_of_correct) / nan_if_empty(1 - correct)


def gradient_curves(network_stages: Sequence[Stage], curves: Mapping[str, Lines]) -> bytes | None:
  """Draws the gradient norm of each part of the objective, and cosines between parts."""
  norms = stages.matching_metrics(
    network_stages, curves, lambda name: name.startswith("train/gradient_norm/")
  )
  cosines = stages.matching_metrics(
    network_stages, curves, lambda name: name.startswith("train/gradient_cosine/")
  )
  if not norms:
    return None
  figure, axes = figures.column(2.8, *((2.4,) if cosines else ()))
  for color, name in zip(figures.COLORS * len(norms), norms, strict=False):
    _draw_metric(axes[0], network_stages, curves, name, color=color, label=name.rpartition("/")[2])
  _set_log_scale_if_positive(axes[0], curves, norms)
  axes[0].set_ylabel("gradient norm")
  for color, name in zip(figures.COLORS * len(cosines), cosines, strict=False):
    label = " and ".join(name.rpartition("/")[2].split("_"))
    _draw_metric(axes[-1], network_stages, curves, name, color=color, label=label)
  if cosines:
    axes[-1].axhline(0, color=figures.GREY, linewidth=0.8)
    axes[-1].set_ylim(-1.05, 1.05)
    axes[-1].set_ylabel("cosine")
  return _finish(figure, network_stages, *axes)


def event_histogram(events: Mapping[str, forgetting.Events], labels: tuple[str, str]) -> bytes | None:
  """Draws how many images had how many events, by stage.

  `labels` describe lost and gained events.
  """
  if not events:
    return None
  figure, axes = figures.column(2.2, 2.2, shared=False)
  largest = max(
    1, *(int(counts.max(initial=0)) for stage_events in events.values() for counts in stage_events)
  )
  bars = np.arange(min(largest, MAX_EVENTS) + 1)
  width = 0.8 / len(events)
  for panel, label, kind in zip(axes, labels, ("lost", "gained"), strict=True):
    colored = zip(figures.COLORS * len(events), events.items(), strict=False)
    for i, (color, (name, stage_events)) in enumerate(colored):
      counts = forgetting.histogram(getattr(stage_events, kind), bars[-1])
      panel.bar(bars + (i - (len(events) - 1) / 2) * width, counts, width, color=color, label=name)
    panel.set_yscale("symlog", linthresh=1)
    panel.set_ylim(0)
    panel.set_xticks(bars, [*map(str, bars[:-1]), f"{bars[-1]}{' or more' * (largest > MAX_EVENTS)}"])
    panel.set_ylabel("images")
    panel.set_xlabel(label)
  axes[0].legend(fontsize=8, ncols=3)
  return figures.to_png(figure)


def confusion_change(change: np.ndarray, stage_names: tuple[str, str]) -> bytes:
  """Draws the change of the confusion matrix [k, k] between the ends of two stages.

  Changes are in percentage points.
  """
  figure, (axes,) = figures.column(4.5)
  largest = max(1.0, float(np.abs(change).max()))
  image = axes.imshow(change, cmap="RdBu_r", vmin=-largest, vmax=largest)
  figure.colorbar(image, ax=axes, label="percentage points")
  axes.set_xlabel("predicted class")
  axes.set_ylabel("class")
  axes.set_title(f"{stage_names[0]} to {stage_names[1]}", fontsize=10)
  return figures.to_png(figure)


def count_bars(bars: Sequence[CountBar]) -> bytes:
  """Draws stacked bars of kept, forgotten and gained images."""
  figure, (axes,) = figures.column(1.0 + 0.34 * len(bars))
  longest = max(1.0, *(sum(bar[1:]) for bar in bars))
  left = np.zeros(len(bars))
  for kind, color in COUNT_COLORS.items():
    values = np.array([getattr(bar, kind) for bar in bars])
    axes.barh(range(len(bars)), values, left=left, color=color, height=0.72, label=kind)
    for i, value in enumerate(values):
      if value > MIN_LABELED_BAR * longest:
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": "white"}
        axes.text(left[i] + value / 2, i, f"{value:,.0f}", **style)
    left += values
  axes.set_yticks(range(len(bars)), [figures.truncate(bar.name, MAX_BAR_NAME) for bar in bars], fontsize=8)
  axes.invert_yaxis()
  axes.set_xlim(0, 1.01 * longest)
  axes.set_xlabel("images")
  figure.legend(loc="outside upper center", fontsize=8, ncols=len(COUNT_COLORS))
  return figures.to_png(figure)


def _draw_metric(
  axes: Any, network_stages: Sequence[Stage], curves: Mapping[str, Lines], metric: str, **style: Any
) -> None:
  """Draws a metric as one line, broken between stages, with one entry in the legend."""
  for points in stages.metric_series(network_stages, curves, metric).values():
    figures.draw_line(axes, points, **style)
    style["label"] = None


def _earlier_name(network_stages: Sequence[Stage], results: Sequence[Stage], number: int) -> str:
  """Name of the stage that metrics call 'earlier_NUMBER'.

  'stage NUMBER' where the stages differ in ancestors.
  """
  chains = [stages.ancestors(results, stage) for stage in network_stages]
  names = {chain[number - 1]["name"] for chain in chains if len(chain) > number}
  return names.pop() if len(names) == 1 else f"stage {number}"


def _finish(figure: Any, network_stages: Sequence[Stage], *axes: Any) -> bytes:
  for i, panel in enumerate(axes):
    figures.mark_stages(panel, network_stages, with_names=i == 0)
    if panel.get_legend_handles_labels()[1]:
      panel.legend(fontsize=8)
  axes[-1].set_xlabel(figures.EPOCHS_LABEL)
  return figures.to_png(figure)


def _set_log_scale_if_positive(axes: Any, curves: Mapping[str, Lines], names: Sequence[str]) -> None:
  values = [line[name] for lines in curves.values() for line in lines for name in names if name in line]
  if min(values) > 0:
    axes.set_yscale("log")
