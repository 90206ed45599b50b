"""Finished runs as their folders and stores tell of them; what is not there is left empty."""

from collections.abc import Mapping, Sequence
import operator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.analysis.stored_files import Lines, Stage, StoredFiles, find
from smskd_jax.errors import UserError
from smskd_jax.runtime import eval_outputs as answers_lib
from smskd_jax.runtime import workdir
from smskd_jax.runtime.integrity import DamagedFileError

# What every version of this package has kept of a stage; all else may be missing.
NEEDED = "network", "epochs", "steps", "forward_passes", "inputs", "seconds"


class Record(NamedTuple):
  """A finished run, and by their names what its stages left in the store."""

  run: workdir.Run
  curves: dict[str, Lines]  # at least the last evaluation, if the store is gone
  choices: dict[str, dict[str, np.ndarray]]
  about: dict[str, dict[str, Any]]  # the software and devices that trained each
  labels: dict[str, np.ndarray] = {}  # of the held-out images, by the name of their set; {}: not known
  # Where what a network says of the held-out images lies, by the key of a stage or of a given network, if it is there:
  # it is large, and few need it.
  answers: dict[str, Path] = {}
  left_out: Sequence[str] = ()  # a line on each file that is missing or damaged, and so left out

  @property
  def stages(self) -> Sequence[Stage]:
    """In the order in which they were trained."""
    return self.run.result["stages"]

  @property
  def title(self) -> str:
    """How a page calls it."""
    return f"{self.run.folder.absolute().name}: {self.run.result.get('data', '?')}, seed {self.seed}"

  @property
  def seed(self) -> int:
    """The run's."""
    return self.run.result["seed"]


def read(field: str, folder: Path, stores: Sequence[Path] = ()) -> Record:
  """Reads a finished run.

  Args:
    field: what named the folder, for messages.
    folder: its workdir.
    stores: where its stages may lie besides the store that it names and its own folder.

  Raises:
    UserError: it is no run, is not finished, or config.json or result.json are damaged. Other files may be: see
      `Record.left_out`.
  """
  if not folder.is_dir():
    raise UserError(f"{field}: there is no folder {folder}")
  workdir.check_kind(field, folder, workdir.RUN, allow_unknown=True)
  if not (folder / "config.json").is_file():
    raise UserError(f"{field}: {folder} is of no run and no study: it has neither config.json nor study.json")
  run = workdir.read_run(field, folder)
  try:
    left = StoredFiles()
    for stage in run.result["stages"]:
      operator.itemgetter(*NEEDED)(stage)
      left.add(stage, find([*workdir.stores(folder), *stores], stage["key"]))
    for one in run.result.get("given", ()):
      left.add_given(one, workdir.pretrained_outputs_path(folder, one["network"]))
    labels = left.read(folder / "labels.npz", lambda: workdir.read_labels(folder)) or {}
    return Record(run, left.curves, left.choices, left.about, labels, left.answers, left.missing)
  except (ValueError, KeyError, TypeError) as error:
    words = (
      error if isinstance(error, UserError) else f"{type(error).__name__} {' '.join(str(error).split())}"
    )
    raise UserError(f"{field}: the files of the run in {folder} are damaged: {words}") from None


def read_answers(record: Record, key: str) -> answers_lib.EvalOutputs:
  """Reads what the network of a key in `record.answers` says of the held-out images.

  Raises:
    UserError: the file is damaged.
  """
  path = record.answers[key]
  try:
    found = answers_lib.read(path)
  except DamagedFileError as error:
    raise UserError(f"WORKDIR: {error}; remove it") from None
  if "test/logits" not in found:
    raise UserError(f"WORKDIR: {path} holds no test/logits; remove it")
  return found


def teaching(stages: Sequence[Stage]) -> set[str]:
  """The keys of those that others learn from."""
  return {key for stage in stages for key in stage["inputs"]["teachers"]}


def by_network(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
  """The stages of each network."""
  learners: dict[str, list[Stage]] = {}
  for stage in stages:
    learners.setdefault(stage["network"], []).append(stage)
  return learners


def students(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
  """The stages of each network that is nobody's teacher; of all networks if every one teaches."""
  learners, teachers = by_network(stages), teaching(stages)
  return {n: s for n, s in learners.items() if not any(stage["key"] in teachers for stage in s)} or learners


def chosen(stages: Sequence[Stage], network: str) -> Stage:
  """The network's last stage; of several that start afresh, the one best by validation."""
  own = by_network(stages)[network]
  afresh = [stage for stage in own if stage["inputs"]["init"] is None]
  validated = all("validation/accuracy" in stage["metrics"]["last"] for stage in own)
  if len(afresh) < 2 or not validated:
    return own[-1]
  return max(own, key=lambda stage: stage["metrics"]["last"]["validation/accuracy"])


def chain(stages: Sequence[Stage], last: Stage) -> list[Stage]:
  """The stages that one goes on from, the first first, and itself: the i-th is what metrics call 'earlier_i'."""
  by_key, found = {stage["key"]: stage for stage in stages}, [last]
  while (start := found[0]["inputs"]["init"]) in by_key:
    found.insert(0, by_key[start])
  return found


def starts(own: Sequence[Stage]) -> dict[str, float]:
  """By the names of a network's stages, the epochs it had been trained for before."""
  found, start = {}, 0.0
  for stage in own:
    found[stage["name"]] = start
    start += stage["epochs"]
  return found


def series(
  own: Sequence[Stage], curves: Mapping[str, Lines], metric: str
) -> dict[str, list[tuple[float, float]]]:
  """By the names of those of a network's stages that have a metric: (epochs of its training, value).

  What was measured at one step is where it was measured; means over steps are in their middle.
  """
  found = {}
  for name, start in starts(own).items():
    if metric.startswith("train/") and "/gradient_" not in metric:
      points = windows(curves[name], metric)
    else:
      points = [(line["epoch"], line[metric]) for line in curves[name] if metric in line]
    if points:
      found[name] = [(start + epoch, value) for epoch, value in points]
  return found


def windows(lines: Lines, name: str) -> list[tuple[float, float]]:
  """A training metric of one stage: (middle of the time it is the mean of, in epochs; value).

  A line tells of the steps since the one before. Where an epoch's end makes these few, they are joined to those before:
  the mean of a few steps would stand out for its noise.
  """
  found: list[list[float]] = []  # steps, their sum, begin and end in epochs
  epoch = 0.0
  told = [line for line in lines if name in line]
  steps = np.diff([0, *(line["step"] for line in told)])
  for line, of_line in zip(told, steps, strict=True):
    if found and 2 * of_line < max(steps):
      found[-1][0] += of_line
      found[-1][1] += of_line * line[name]
      found[-1][3] = line["epoch"]
    else:
      found.append([of_line, of_line * line[name], epoch, line["epoch"]])
    epoch = line["epoch"]
  return [((begin + end) / 2, total / n) for n, total, begin, end in found if n]


def by_epoch(lines: Lines, names: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Training metrics averaged over the steps of each epoch.

  Args:
    lines: of one stage; each tells the means since the line before it.
    names: of the metrics, all of which are in the same lines.

  Returns:
    The ends of the epochs [e], and by name the means [e].
  """
  sums: dict[int, np.ndarray] = {}
  before = 0
  for line in lines:
    if all(name in line for name in names):
      steps, before = line["step"] - before, line["step"]
      # A line is written at every epoch's end, and so is of one epoch only; rounding must not make it the next.
      epoch = int(np.ceil(line["epoch"] - 1e-9))
      sums[epoch] = sums.get(epoch, 0.0) + steps * np.array([1.0, *(line[name] for name in names)])
  totals = np.array([sums[epoch] for epoch in sorted(sums)]).reshape(len(sums), 1 + len(names))
  return np.array(sorted(sums), float), {
    name: totals[:, i + 1] / totals[:, 0] for i, name in enumerate(names)
  }
