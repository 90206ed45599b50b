"""The report of a run: tables and a figure, made from its workdir and store alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smskd_jax.analysis import figures, forgetting, tables
from smskd_jax.analysis.page import markdown_table
from smskd_jax.analysis.stored_files import read_curve
from smskd_jax.analysis.tables import percent
from smskd_jax.runtime import console
from smskd_jax.runtime.integrity import read_json
from smskd_jax.runtime.store import StageEntry

Stage = Mapping[str, Any]  # an item of result.json's 'stages'


def write(workdir: Path, store: Path) -> Path:
  """Writes WORKDIR/report.md and WORKDIR/figures; returns the report's path."""
  result = read_json(workdir / "result.json")
  found = {stage["name"]: read_curve(StageEntry(store, stage["key"])) for stage in result["stages"]}
  curves = {name: lines for name, (lines, _) in found.items()}
  missing = [problem for _, problem in found.values() if problem]
  (workdir / "figures").mkdir(exist_ok=True)
  figures.stages(result["stages"], curves, workdir / "figures" / "stages.png")
  path = workdir / "report.md"
  path.write_text(_text(result, missing))
  return path


def _text(result: Mapping[str, Any], missing: Sequence[str] = ()) -> str:
  stages = result["stages"]
  versions = result["versions"]
  parts = [
    f"# {result['data']}, seed {result['seed']}",
    "Held-out numbers of the network that each stage ends with. The test set selects nothing; `oracle` is what it "
    "would have selected: the best epoch by the test set itself.",
    *(["\n".join(f"- {line}" for line in missing)] if missing else []),
    *_given_table(result.get("given", ())),
    _accuracy_table(stages),
    *_extra_table(stages),
    *_forgetting(stages),
    _budget_table(stages),
    "![Test accuracy and forgetting along the stages](figures/stages.png)",
    f"{result['devices']['count']} x {result['devices']['kind']}, jax {versions['jax']}, flax {versions['flax']}, "
    f"optax {versions['optax']}, smskd_jax {versions['smskd_jax']} ({result['git_revision']}).",
  ]
  return "\n\n".join(parts) + "\n"


def _given_table(given: Sequence[Mapping[str, Any]]) -> Sequence[str]:
  """The networks that came with their variables, if any did."""
  rows = [
    [one["network"], percent(one["metrics"]["test/accuracy"]), one["key"], one["source"]] for one in given
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
  header.append("oracle")
  rows = []
  for stage in stages:
    last, best = stage["metrics"]["last"], stage["metrics"]["best_by_validation"]
    row = [
      stage["name"],
      stage["network"],
      stage["model"],
      percent(last["test/accuracy"]),
      percent(last[top]),
    ]
    row += [f"{last['test/nll']:.3f}", f"{last['test/ece']:.3f}"]
    row += [percent(last.get(f"test/{role}_agreement")) for role in ("teacher", "reference")]
    if with_validation:
      row += [percent(best["test/accuracy"]), f"{best['epoch']:g}"]
    rows.append([*row, percent(stage["metrics"]["oracle"]["test/accuracy"])])
  return markdown_table(header, rows)


def _extra_table(stages: Sequence[Stage]) -> Sequence[str]:
  """Accuracy on further test sets, if there are any; of a corruption, the mean over its severities."""
  table = tables.further(stages)
  return [markdown_table(table.header, table.rows)] if table else []


def _forgetting(stages: Sequence[Stage]) -> Sequence[str]:
  """Each stage against the earlier ones that it goes on from, if any does; and what is missing of it."""
  pairs, problems = forgetting.pairs(stages)
  table = tables.forgotten(pairs)
  of_table = [markdown_table(table.header, table.rows), table.caption] if table else []
  return [*of_table, *(["\n".join(problems)] if problems else [])]


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
      + [f"{passes[who]:,}" if passes[who] else "-" for who in ("student", "teachers", "reference")]
      + [console.format_duration(stage["seconds"]), f"`{stage['key']}`"]
    )
  return markdown_table([*header, "time", "key"], rows)
