"""Tables of runs. A number that a run did not leave is a '-'; a column in which there is none is left out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from smskd_jax.analysis import forgetting, records
from smskd_jax.analysis.page import Table
from smskd_jax.analysis.records import Record, Stage
from smskd_jax.runtime import console

Value = Callable[[Stage], Any]
Column = tuple[str, Value, Callable[[Any], str]]


def percent(share: float | None) -> str:
  """A share for a table; '-' of None."""
  return "-" if share is None else f"{100 * share:.2f} %"


def accuracy(stages: Sequence[Stage]) -> Table:
  """Test accuracy by the rules by which an epoch can be chosen."""
  of = lambda which, metric: lambda stage: (stage["metrics"].get(which) or {}).get(metric)
  whole = lambda epoch: f"{epoch:g}"
  columns: list[Column] = [
    ("network", lambda stage: stage["network"], str),
    ("model", lambda stage: stage.get("model"), str),
    ("methods", lambda stage: " + ".join(stage.get("methods", ())) or None, str),
    ("last epoch", of("last", "test/accuracy"), percent),
    ("best by validation", of("best_by_validation", "test/accuracy"), percent),
    ("its epoch", of("best_by_validation", "epoch"), whole),
    ("oracle", of("oracle", "test/accuracy"), percent),
    ("its epoch", of("oracle", "epoch"), whole),
    *((f"top-{k}, last", of("last", f"test/top{k}"), percent) for k in range(2, 6)),
  ]
  caption = (
    "Accuracy on the test set at the end of each stage. The test set selects nothing: `oracle` is what it would have "
    "selected, the best epoch by the test set itself, and is there to compare with tables made that way."
  )
  return _table(stages, columns, caption)


def calibration(stages: Sequence[Stage]) -> Table:
  """Likelihood and calibration at the end of each stage."""
  of = lambda metric: lambda stage: stage["metrics"]["last"].get(f"test/{metric}")
  names = {"nll": "NLL", "ece": "ECE", "ace": "ACE", "brier": "Brier"}
  columns: list[Column] = [(name, of(metric), lambda value: f"{value:.3f}") for metric, name in names.items()]
  caption = (
    "On the test set, at the last epoch: negative log-likelihood in nats, expected and adaptive calibration error, and "
    "Brier score. All are better when smaller."
  )
  return _table(stages, columns, caption)


def beside_others(stages: Sequence[Stage]) -> Table | None:
  """Agreement with the teacher, the reference and what earlier stages left, if anything of it was recorded."""
  rows = []
  for stage in stages:
    last, past = stage["metrics"]["last"], records.chain(stages, stage)[:-1]
    names = {"teacher": "its teacher", "reference": "its reference"}
    # What is the reference is not told of twice.
    names |= {
      f"earlier_{i}": f"itself after {earlier['name']}"
      for i, earlier in enumerate(past, start=1)
      if earlier["key"] != stage["inputs"]["reference"]
    }
    for role, name in names.items():
      values = [last.get(f"test/{role}_{metric}") for metric in ("agreement", "lost", "won")]
      kl = last.get(f"test/{role}_kl")
      if values[0] is not None:
        rows.append([stage["name"], name, *map(percent, values), "-" if kl is None else f"{kl:.3f}"])
  caption = (
    "The network at the end of each stage beside others, on the test set. Lost are the images that the other has right "
    "and this one wrong, won those the other way round, in percent of all images; KL is the mean divergence from the "
    "other, in nats."
  )
  return Table(["stage", "beside", "same answer", "lost", "won", "KL"], rows, caption) if rows else None


def forgotten(pairs: Sequence[forgetting.Pair]) -> Table | None:
  """Kept, forgotten and gained images of each stage against each earlier one; None without such pairs."""
  rows = []
  for stage, earlier, split, counts in pairs:
    before, now = counts.kept + counts.forgotten, counts.kept + counts.gained
    lost = f"{counts.forgotten:,}" + (f" ({100 * counts.forgotten / before:.1f} %)" if before else "")
    rows.append([stage, earlier, split, f"{before:,}", f"{now:,}"])
    rows[-1] += [f"{counts.kept:,}", lost, f"{counts.gained:,}", f"{counts.iou:.4f}"]
  header = ["stage", "earlier stage", "set", "right then", "right now", "kept", "forgotten", "gained", "IoU"]
  caption = (
    "Images that a network classifies correctly at the end of a stage (now) and at the end of an earlier stage that it "
    "goes on from (then): in both, only then, only now. IoU is kept / (kept + forgotten + gained), 1 for equal sets. "
    "Networks are as their stages leave them."
  )
  return Table(header, rows, caption) if rows else None


def _table(stages: Sequence[Stage], columns: Sequence[Column], caption: str) -> Table:
  there = [column for column in columns if any(column[1](stage) is not None for stage in stages)]
  cell = lambda value, text: "-" if value is None else text(value)
  rows = [[stage["name"], *(cell(of(stage), text) for _, of, text in there)] for stage in stages]
  return Table(["stage", *(name for name, _, _ in there)], rows, caption)


def further(stages: Sequence[Stage]) -> Table | None:
  """Accuracy on further test sets, if there are any; of a corruption, the mean over its severities."""
  values = [over_severities(stage.get("extra_tests", {})) for stage in stages]
  names = list(dict.fromkeys(name for of in values for name in of))
  if not names:
    return None
  rows = [
    [s["name"], *(percent(of.get(name)) for name in names)] for s, of in zip(stages, values, strict=True)
  ]
  caption = (
    "Accuracy on further test sets, which select nothing; of a corruption, the mean over its severities."
  )
  return Table(["stage", *names], rows, caption)


def over_severities(accuracies: Mapping[str, float]) -> dict[str, float]:
  """Accuracies by the name of the set; those of 'NAME:SEVERITY' are averaged."""
  found: dict[str, list[float]] = {}
  for name, value in accuracies.items():
    found.setdefault(name.partition(":")[0], []).append(value)
  return {name: sum(of) / len(of) for name, of in found.items()}


def budget(stages: Sequence[Stage]) -> Table:
  """What each stage cost, so that a gain can be held against it."""
  rows = []
  for stage in stages:
    forward, backward = stage["forward_passes"], stage.get("backward_passes")
    counts = [forward["student"], backward, forward["teachers"], forward["reference"]]
    row = [stage["name"], stage["network"], f"{stage['epochs']:,}", f"{stage['steps']:,}"]
    rows.append([*row, *map(count, counts), console.format_duration(stage["seconds"])])
  seconds = sum(stage["seconds"] for stage in stages)
  sums = [sum(s["forward_passes"][who] for s in stages) for who in ("student", "teachers", "reference")]
  backward = sum(stage.get("backward_passes", 0) for stage in stages)
  rows.append(["all", "", "", f"{sum(s['steps'] for s in stages):,}"])
  rows[-1] += [*map(count, (sums[0], backward, *sums[1:])), console.format_duration(seconds)]
  header = ["stage", "network", "epochs", "steps", "learner forward", "backward", "teachers forward"]
  caption = (
    "Images that went through each network; an image counts twice where two views are made of it, or two teachers see "
    "it. Evaluation is not counted. The time is that of the training, on the devices that are named at the end."
  )
  return Table([*header, "reference forward", "time"], rows, caption)


def ledger(record: Record) -> Table:
  """What each network did over the whole run: as learner, as teacher and as a reference."""
  done: dict[str, list[float]] = {}
  teachers = {entry["name"]: entry.get("teachers", ()) for entry in record.run.config.get("stages", ())}
  for stage in record.stages:
    forward, taught = stage["forward_passes"], teachers.get(stage["name"], ())
    _add(done, stage["network"], 0, forward["student"])
    _add(done, stage["network"], 1, stage.get("backward_passes", 0))
    for name in taught:
      _add(done, name, 2, forward["teachers"] // len(taught))
    _add(done, stage["network"], 3, forward["reference"])
    _add(done, stage["network"], 4, stage["seconds"])
  rows = [
    [name, *map(count, of[:4]), console.format_duration(of[4]) if of[4] else "-"] for name, of in done.items()
  ]
  header = ["network", "trained, forward", "backward", "as a teacher", "as a reference", "trained for"]
  return Table(header, rows, "The same by network, over all stages.")


def _add(done: dict[str, list[float]], name: str, place: int, amount: float) -> None:
  done.setdefault(name, [0] * 5)[place] += amount


def count(number: float | None) -> str:
  """Images for a table."""
  return f"{number:,}" if number else "-"


def answers(choices: Mapping[str, Any], goes_on: Collection[str]) -> Table:
  """How steady the answers on test images were.

  Args:
    choices: by the stage's name.
    goes_on: the stages that go on from others: what these begin with says something.
  """
  rows = []
  for name, of in choices.items():
    given = of["test"]
    changes, back = forgetting.changes(given), forgetting.events(given, given[0])
    rows.append(
      [name, f"{given.shape[1]:,}", str(len(given)), percent((changes == 0).mean()), f"{changes.mean():.2f}"]
      + [percent(of.mean() if name in goes_on else None) for of in (given[-1] != given[0], back.gained > 0)]
    )
  header = ["stage", "test images", "evaluations", "answer never changed", "changes per image"]
  caption = (
    "What the network takes each test image for, right or wrong, from evaluation to evaluation of a stage."
  )
  return Table([*header, "other than at the stage's beginning", "given up and taken up again"], rows, caption)


def keys(record: Record) -> Table:
  """Where each number comes from: the key of its stage in the store, and what trained it."""
  rows = []
  for stage in record.stages:
    about = record.about.get(stage["name"], {})
    devices = about.get("devices", {})
    made_on = f"{devices['count']} x {devices['kind']}" if {"count", "kind"} <= devices.keys() else "-"
    versions = about.get("versions", {})
    rows.append(
      [stage["name"], stage["key"], made_on, versions.get("jax") or "-", about.get("git_revision") or "-"]
    )
  rows += [
    [one["network"], one["key"], "-", "-", one["source"]] for one in record.run.result.get("given", ())
  ]
  caption = (
    "Keys of the store, and what trained each stage; of a network that was given, where it comes from."
  )
  return Table(["stage", "key", "devices", "jax", "revision"], rows, caption)
