"""The report of a run: tables and a figure, made from its workdir and store alone."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from smskd_jax.analysis import figures
from smskd_jax.runtime import console
from smskd_jax.runtime.store import Entry
from smskd_jax.runtime.writer import read_metrics

Stage = Mapping[str, Any]  # an item of result.json's 'stages'


def write(workdir: Path, store: Path) -> Path:
  """Writes WORKDIR/report.md and WORKDIR/figures; returns the report's path."""
  result = json.loads((workdir / "result.json").read_text())
  curves = {stage["name"]: read_metrics(Entry(store, stage["key"]).metrics) for stage in result["stages"]}
  (workdir / "figures").mkdir(exist_ok=True)
  figures.stages(result["stages"], curves, workdir / "figures" / "stages.png")
  path = workdir / "report.md"
  path.write_text(_text(result))
  return path


def _text(result: Mapping[str, Any]) -> str:
  stages = result["stages"]
  versions = result["versions"]
  parts = [
    f"# {result['data']}, seed {result['seed']}",
    "Held-out numbers of the network that each stage ends with. The test set selects nothing.",
    *_given_table(result.get("given", ())),
    _accuracy_table(stages),
    _budget_table(stages),
    "![Test accuracy and forgetting along the stages](figures/stages.png)",
    f"{result['devices']['count']} x {result['devices']['kind']}, jax {versions['jax']}, flax {versions['flax']}, "
    f"optax {versions['optax']}, smskd_jax {versions['smskd_jax']} ({result['git_revision']}).",
  ]
  return "\n\n".join(parts) + "\n"


def _given_table(given: Sequence[Mapping[str, Any]]) -> Sequence[str]:
  """The networks that came with their variables, if any did."""
  rows = [
    [one["network"], _percent(one["metrics"]["test/accuracy"]), one["key"], one["source"]] for one in given
  ]
  return [markdown_table(["given network", "test", "key", "from"], rows)] if rows else []


def _accuracy_table(stages: Sequence[Stage]) -> str:
  top = next(name for name in stages[0]["metrics"]["last"] if name.startswith("test/top"))
  header = [
    "stage",
    "network",
    "model",
    "test",
    top.removeprefix("test/").replace("top", "top-"),
    "NLL",
    "ECE",
  ]
  header += ["agrees with teacher", "with reference"]
  with_validation = any(stage["metrics"]["best_by_validation"] for stage in stages)
  if with_validation:
    header += ["test, best by validation", "at epoch"]
  rows = []
  for stage in stages:
    last, best = stage["metrics"]["last"], stage["metrics"]["best_by_validation"]
    row = [
      stage["name"],
      stage["network"],
      stage["model"],
      _percent(last["test/accuracy"]),
      _percent(last[top]),
    ]
    row += [f"{last['test/nll']:.3f}", f"{last['test/ece']:.3f}"]
    row += [_percent(last.get(f"test/{role}_agreement")) for role in ("teacher", "reference")]
    if with_validation:
      row += [_percent(best["test/accuracy"]), f"{best['epoch']:g}"]
    rows.append(row)
  return markdown_table(header, rows)


def _budget_table(stages: Sequence[Stage]) -> str:
  """What each stage cost, so that a gain can be held against it."""
  header = [
    "stage",
    "methods",
    "epochs",
    "steps",
    "forward and backward",
    "teachers forward",
    "reference forward",
  ]
  rows = []
  for stage in stages:
    passes = stage["forward_passes"]
    rows.append(
      [stage["name"], " + ".join(stage["methods"]) or "-", str(stage["epochs"]), f"{stage['steps']:,}"]
      + [f"{passes[who]:,}" if passes[who] else "-" for who in ("learner", "teachers", "reference")]
      + [console.duration(stage["seconds"]), f"`{stage['key']}`"]
    )
  return markdown_table([*header, "time", "key"], rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table whose columns line up in plain text too; the first is text, the others numbers."""
  widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
  line = lambda row: "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
  rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
  return "\n".join((line(header), rule, *map(line, rows)))


def _percent(share: float | None) -> str:
  return "-" if share is None else f"{100 * share:.2f} %"
