"""Stages of a run as result.json lists them: order, ancestors and metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Stage = Mapping[str, Any]  # an item of result.json's 'stages'
Lines = Sequence[Mapping[str, Any]]  # of a metrics.jsonl
Points = list[tuple[float, float]]  # (epochs, value)


def teacher_keys(stages: Sequence[Stage]) -> set[str]:
  """Keys of the networks that are teachers of these stages."""
  return {key for stage in stages for key in stage["inputs"]["teachers"]}


def by_network(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
  """Groups stages by the network that they train."""
  groups: dict[str, list[Stage]] = {}
  for stage in stages:
    groups.setdefault(stage["network"], []).append(stage)
  return groups


def students(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
  """Stages of the networks that are no teachers.

  If every network is a teacher, of all networks.
  """
  networks, teachers = by_network(stages), teacher_keys(stages)
  return {n: s for n, s in networks.items() if not any(stage["key"] in teachers for stage in s)} or networks


def selected_stage(stages: Sequence[Stage], network: str) -> Stage:
  """Last stage of a network.

  If several stages start from scratch, the best one by validation accuracy.
  """
  network_stages = by_network(stages)[network]
  from_scratch = [stage for stage in network_stages if stage["inputs"]["init"] is None]
  validated = all("validation/accuracy" in stage["metrics"]["last"] for stage in network_stages)
  if len(from_scratch) < 2 or not validated:
    return network_stages[-1]
  return max(network_stages, key=lambda stage: stage["metrics"]["last"]["validation/accuracy"])


def ancestors(stages: Sequence[Stage], last: Stage) -> list[Stage]:
  """Stages that a stage continues from, the first one first, and itself.

  The i-th is 'earlier_i' in metrics.
  """
  by_key, chain = {stage["key"]: stage for stage in stages}, [last]
  while (init := chain[0]["inputs"]["init"]) in by_key:
    chain.insert(0, by_key[init])
  return chain


def start_epochs(network_stages: Sequence[Stage]) -> dict[str, float]:
  """Epochs that a network was trained for before each of its stages, by the stages' names."""
  starts, start = {}, 0.0
  for stage in network_stages:
    starts[stage["name"]] = start
    start += stage["epochs"]
  return starts


def metric_series(
  network_stages: Sequence[Stage], curves: Mapping[str, Lines], metric: str
) -> dict[str, Points]:
  """Returns a metric along a network's training, by the names of the stages that have it.

  Values measured at one step are placed at that step; means over steps are placed in the middle of their window.
  """
  series = {}
  for name, start in start_epochs(network_stages).items():
    if metric.startswith("train/") and "/gradient_" not in metric:
      points = window_means(curves[name], metric)
    else:
      points = [(line["epoch"], line[metric]) for line in curves[name] if metric in line]
    if points:
      series[name] = [(start + epoch, value) for epoch, value in points]
  return series


def window_means(lines: Lines, metric: str) -> Points:
  """Returns (middle of the window in epochs, mean) of a training metric of one stage.

  A line holds the mean over the steps since the line before. A short window, cut by the end of an epoch, is merged with
  the window before: the mean of a few steps would stand out by its noise.
  """
  windows: list[list[float]] = []  # steps, their sum, begin and end in epochs
  begin = 0.0
  with_metric = [line for line in lines if metric in line]
  lengths = np.diff([0, *(line["step"] for line in with_metric)])
  for line, steps in zip(with_metric, lengths, strict=True):
    if windows and 2 * steps < max(lengths):
      windows[-1][0] += steps
      windows[-1][1] += steps * line[metric]
      windows[-1][3] = line["epoch"]
    else:
      windows.append([steps, steps * line[metric], begin, line["epoch"]])
    begin = line["epoch"]
  return [((begin + end) / 2, total / steps) for steps, total, begin, end in windows if steps]


def epoch_means(lines: Lines, metrics: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Averages training metrics of one stage over the steps of each epoch.

  Args:
    lines: of one stage; each holds the means since the line before.
    metrics: names of metrics that are logged in the same lines.

  Returns:
    The ends of the epochs [e], and by name the means [e].
  """
  sums: dict[int, np.ndarray] = {}
  previous_step = 0
  for line in lines:
    if all(metric in line for metric in metrics):
      steps, previous_step = line["step"] - previous_step, line["step"]
      # Every epoch ends with a line, so that a line belongs to one epoch; rounding must not move it to the next.
      epoch = int(np.ceil(line["epoch"] - 1e-9))
      sums[epoch] = sums.get(epoch, 0.0) + steps * np.array([1.0, *(line[metric] for metric in metrics)])
  totals = np.array([sums[epoch] for epoch in sorted(sums)]).reshape(len(sums), 1 + len(metrics))
  means = {metric: totals[:, i + 1] / totals[:, 0] for i, metric in enumerate(metrics)}
  return np.array(sorted(sums), float), means


def matching_metrics(
  network_stages: Sequence[Stage], curves: Mapping[str, Lines], wanted: Callable[[str], bool]
) -> list[str]:
  """Names of the wanted metrics of a network's stages, in order of first appearance."""
  lines = (line for stage in network_stages for line in curves[stage["name"]])
  return list(dict.fromkeys(name for line in lines for name in line if wanted(name)))
