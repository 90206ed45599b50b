"""Pictures of runs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Lines = Sequence[Mapping[str, Any]]  # of a metrics.jsonl

_COLORS = ("#0b62a8", "#d1495b", "#3c8d53", "#8a5cb8", "#b8860b", "#4d4d4d")
_GREY = "#8c8c8c"


def stages(results: Sequence[Mapping[str, Any]], curves: Mapping[str, Lines], path: Path) -> None:
  """Draws test accuracy along the stages, and how far each stage has moved from its reference.

  Args:
    results: result.json's 'stages'.
    curves: metrics by the stage's name.
    path: of the PNG.
  """
  # The object-oriented interface: pyplot would open windows, and keep state.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  anchored = any("test/reference_agreement" in line for lines in curves.values() for line in lines)
  figure = Figure(figsize=(7.5, 8.0 if anchored else 4.0), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots(
    3 if anchored else 1, 1, height_ratios=(2, 1, 1) if anchored else None, squeeze=False
  )[:, 0]
  students = _students(results)
  _draw_accuracy(axes[0], results, students, curves)
  if anchored:
    _draw_forgetting(axes[1], students, curves, "reference_agreement", "agreement [%]", 100.0)
    _draw_forgetting(axes[2], students, curves, "reference_kl", "KL [nats]", 1.0)
    axes[1].set_title(
      "Forgetting: agreement with, and divergence from, the stage's own reference", fontsize=10
    )
  axes[-1].set_xlabel("epochs of the network's training")
  figure.savefig(path, dpi=150)


def _students(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
  """The stages of each network that is nobody's teacher; of all networks if every one teaches."""
  teaching = {key for stage in results for key in stage["reads"]["teachers"]}
  learners: dict[str, list[Mapping[str, Any]]] = {}
  for stage in results:
    learners.setdefault(stage["network"], []).append(stage)
  return {n: s for n, s in learners.items() if not any(stage["key"] in teaching for stage in s)} or learners


def _draw_accuracy(axes, results, students, curves) -> None:
  for color, (network, own) in zip(_COLORS * len(students), students.items(), strict=False):
    points = [(e, 100 * line["test/accuracy"]) for stage, line, e in _evaluations(own, curves)]
    axes.plot(*zip(*points, strict=True), color=color, marker=".", markersize=4, linewidth=1.3, label=network)
    _draw_references(axes, own, curves, color)
    if len(own) > 1:
      _mark_boundaries(axes, own)
  teaching = {key for stage in results for key in stage["reads"]["teachers"]}
  for stage in results:
    if stage["key"] in teaching:
      accuracy = 100 * stage["metrics"]["last"]["test/accuracy"]
      axes.axhline(
        accuracy, color=_GREY, linestyle="--", linewidth=1.2, label=f"{stage['name']} {accuracy:.1f} %"
      )
  best = max(100 * stage["metrics"]["last"]["test/accuracy"] for stage in results)
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
    if stage["reads"]["reference"] in by_key:
      accuracy = 100 * by_key[stage["reads"]["reference"]]["metrics"]["last"]["test/accuracy"]
      axes.plot((start, end), (accuracy, accuracy), color=color, linestyle=":", linewidth=1.3, label=label)
      label = None
    start = end


def _draw_forgetting(axes, students, curves, metric: str, label: str, scale: float) -> None:
  for color, own in zip(_COLORS * len(students), students.values(), strict=False):
    for stage in own:
      points = [
        (e, scale * line[f"test/{metric}"])
        for s, line, e in _evaluations(own, curves)
        if s is stage and f"test/{metric}" in line
      ]
      if points:
        axes.plot(*zip(*points, strict=True), color=color, marker=".", markersize=4, linewidth=1.3)
    if len(own) > 1:
      _mark_boundaries(axes, own, named=False)
  axes.set_ylabel(label)


def _mark_boundaries(axes, own, named: bool = True) -> None:
  start = 0.0
  for i, stage in enumerate(own):
    if i:
      axes.axvline(start, color=_GREY, linewidth=0.8, alpha=0.6)
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


def _evaluations(own, curves) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], float]]:
  """(stage, line of metrics, epochs since the network's first stage began), where it was evaluated."""
  start = 0.0
  for stage in own:
    for line in curves[stage["name"]]:
      if "test/accuracy" in line:
        yield stage, line, start + line["epoch"]
    start += stage["epochs"]
