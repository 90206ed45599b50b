"""Typed records of finished runs and studies, read from their folders and stores."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import operator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from smskd_jax.analysis import forgetting
from smskd_jax.analysis.stages import Lines, Stage, selected_stage
from smskd_jax.errors import UserError
from smskd_jax.runtime import eval_outputs, workdir
from smskd_jax.runtime.integrity import DamagedFileError, read_json
from smskd_jax.runtime.store import StageEntry
from smskd_jax.runtime.writer import read_metrics

T = TypeVar("T")

STUDY_FILE = "study.json"
TEACHERS = "teachers"  # folder of the run that trains the shared teachers of a study
REQUIRED_FIELDS = (
  "network",
  "epochs",
  "steps",
  "forward_passes",
  "inputs",
  "seconds",
)  # of a stage in result.json


class RunRecord(NamedTuple):
  """A finished run and the files of its stages in the store, by the stages' names."""

  run: workdir.Run
  curves: dict[str, Lines]  # lines of metrics.jsonl; only the last evaluation if the store is missing
  predictions: dict[str, dict[str, np.ndarray]]
  info: dict[str, dict[str, Any]]  # software and devices that trained each stage
  labels: dict[str, np.ndarray] = {}  # of the held-out images, by set; {}: unknown
  # Paths of the outputs on held-out images, by the key of a stage or pretrained network: large, and read when needed.
  eval_outputs: dict[str, Path] = {}
  warnings: Sequence[str] = ()  # a line for each missing or damaged file

  @property
  def stages(self) -> Sequence[Stage]:
    """Items of result.json's 'stages', in the order of training."""
    return self.run.result["stages"]

  @property
  def pretrained(self) -> Sequence[Mapping[str, Any]]:
    """Items of result.json for networks that came with their variables."""
    return self.run.result.get("pretrained", ())

  @property
  def title(self) -> str:
    """Name of the folder, data set and seed."""
    return f"{self.run.folder.absolute().name}: {self.run.result.get('data', '?')}, seed {self.seed}"

  @property
  def seed(self) -> int:
    """Seed of the run."""
    return self.run.result["seed"]


class Outcome(NamedTuple):
  """Result of a study's network in one run."""

  accuracy: float  # on the test set, percent
  oracle: float  # at the best epoch by the test set, percent
  agreement: float | None  # with its teachers, percent
  forgotten: float | None  # test images that are correct after the first stage and wrong after the last
  images: int  # forward and backward, in all stages of the network
  frozen: int  # forward passes of teachers and references
  seconds: float
  iou: float | None = (
    None  # of the sets of test images that are correct after the first and after the last stage
  )


class StudyRecord(NamedTuple):
  """A study, finished or in progress, and its finished runs."""

  folder: Path
  config: dict[str, Any]  # resolved
  runs: dict[str, dict[int, RunRecord]]  # by variant and seed
  teachers: RunRecord | None
  failures: dict[str, str]  # by VARIANT:SEED

  @property
  def unfinished(self) -> list[str]:
    """Runs, as VARIANT:SEED, that are neither finished nor failed."""
    units = [
      (name, seed) for name in self.runs for seed in self.config["seeds"] if seed not in self.runs[name]
    ]
    return [f"{name}:{seed}" for name, seed in units if f"{name}:{seed}" not in self.failures]

  @property
  def warnings(self) -> list[str]:
    """A line for each missing or damaged file of the finished runs and of the teachers' run."""
    runs = [run for by_seed in self.runs.values() for run in by_seed.values()]
    lines = [line for run in (*runs, *([self.teachers] if self.teachers else [])) for line in run.warnings]
    if self.config.get(TEACHERS) and self.teachers is None:
      lines.append(f"{self.folder / TEACHERS / 'result.json'} is missing; the teachers are left out")
    return list(dict.fromkeys(lines))

  @property
  def max_seeds(self) -> int:
    """Largest number of finished seeds of a variant."""
    return max(map(len, self.runs.values()))

  @property
  def outcomes(self) -> dict[str, dict[int, Outcome]]:
    """Outcomes of the finished runs, by variant and seed."""
    network = self.config["network"]
    return {
      name: {seed: run_outcome(run.stages, network) for seed, run in by_seed.items()}
      for name, by_seed in self.runs.items()
    }


def is_study(folder: Path) -> bool:
  """True if the folder is the workdir of a study."""
  return (folder / STUDY_FILE).is_file()


def read(field: str, folder: Path) -> RunRecord | StudyRecord:
  """Reads the run or the study in a folder; see `read_run` and `read_study`."""
  return read_study(field, folder) if is_study(folder) else read_run(field, folder)


def read_run(field: str, folder: Path, stores: Sequence[Path] = ()) -> RunRecord:
  """Reads a finished run.

  Args:
    field: the flag or argument that named the folder, for messages.
    folder: workdir of the run.
    stores: stores to search besides the one that the run names and its own folder.

  Raises:
    UserError: the folder is no finished run, or config.json or result.json are damaged. Damage to other files is
      listed in `RunRecord.warnings`.
  """
  if not folder.is_dir():
    raise UserError(f"{field}: there is no folder {folder}")
  workdir.check_kind(field, folder, workdir.RUN, allow_unknown=True)
  if not (folder / "config.json").is_file():
    raise UserError(
      f"{field}: {folder} is neither a run nor a study: it has no config.json and no {STUDY_FILE}"
    )
  run = workdir.read_run(field, folder)
  try:
    files = _StageFiles()
    for stage in run.result["stages"]:
      operator.itemgetter(*REQUIRED_FIELDS)(stage)
      files.add_stage(stage, _find_entry([*workdir.stores(folder), *stores], stage["key"]))
    for item in run.result.get("pretrained", ()):
      files.add_pretrained(item["key"], workdir.pretrained_outputs_path(folder, item["network"]))
    labels = files.read(folder / "labels.npz", lambda _: workdir.read_labels(folder)) or {}
    return RunRecord(
      run, files.curves, files.predictions, files.info, labels, files.eval_outputs, files.warnings
    )
  except (ValueError, KeyError, TypeError) as error:
    text = error if isinstance(error, UserError) else f"{type(error).__name__} {' '.join(str(error).split())}"
    raise UserError(f"{field}: the files of the run in {folder} are damaged: {text}") from None


def read_study(field: str, folder: Path) -> StudyRecord:
  """Reads a study and its finished runs.

  Args:
    field: the flag or argument that named the folder, for messages.
    folder: workdir of the study.

  Raises:
    UserError: no run is finished, or files of the study are damaged.
  """
  fix = "run the study's command again, which writes it anew"
  try:
    content = read_json(folder / STUDY_FILE, f"remove it and {fix}")
    config, stores = content["study"], [Path(content["store"]), folder / "store"]
    path = folder / "result.json"
    failures = read_json(path, fix)["failures"] if path.is_file() else {}
    names, seeds = list(config["variants"]), config["seeds"]
  except DamagedFileError as error:
    raise UserError(f"{field}: {error}") from None
  except (KeyError, TypeError) as error:
    raise UserError(f"{field}: the files of the study in {folder} are damaged: {error}") from None

  def read_if_finished(path: Path) -> RunRecord | None:
    return read_run(field, path, stores) if (path / "result.json").is_file() else None

  runs = {
    name: {seed: run for seed in seeds if (run := read_if_finished(folder / name / f"seed{seed}"))}
    for name in names
  }
  if not any(runs.values()):
    raise UserError(f"{field}: no run of the study in {folder} is finished; run it first")
  return StudyRecord(folder, config, runs, read_if_finished(folder / TEACHERS), failures)


def variant_controls(study: Mapping[str, Any]) -> dict[str, str]:
  """Returns the control of each variant that is compared with another variant."""
  controls = study.get("controls", {})
  all_controls = {name: controls.get(name, study["control"]) for name in study["variants"]}
  return {name: control for name, control in all_controls.items() if name != control}


def run_outcome(stages: Sequence[Stage], network: str) -> Outcome:
  """Computes the outcome of a network from the stages of its run."""
  selected = selected_stage(stages, network)
  trained = [stage for stage in stages if stage["network"] == network]
  last = selected["metrics"]["last"]
  since_first = forgetting.since_first_stage(stages, selected)
  return Outcome(
    accuracy=100 * last["test/accuracy"],
    oracle=100 * selected["metrics"]["oracle"]["test/accuracy"],
    agreement=100 * last["test/teacher_agreement"] if "test/teacher_agreement" in last else None,
    forgotten=since_first and since_first.forgotten,
    images=sum(stage["backward_passes"] for stage in trained),
    frozen=sum(stage["forward_passes"][role] for stage in trained for role in ("teachers", "reference")),
    seconds=sum(stage["seconds"] for stage in trained),
    iou=since_first and since_first.iou,
  )


def read_outcomes(folder: Path, study: Mapping[str, Any]) -> dict[str, dict[int, Outcome]]:
  """Reads the outcomes of a study's finished runs, by variant and seed.

  The only source is their result.json.

  Runs with a damaged result.json are left out.
  """
  outcomes: dict[str, dict[int, Outcome]] = {name: {} for name in study["variants"]}
  for name, by_seed in outcomes.items():
    for seed in study["seeds"]:
      with contextlib.suppress(DamagedFileError):
        result = workdir.read_result(folder / name / f"seed{seed}")
        by_seed[seed] = run_outcome(result["stages"], study["network"])
  return outcomes


def read_eval_outputs(record: RunRecord, key: str) -> eval_outputs.EvalOutputs:
  """Reads the outputs on held-out images of a network whose key is in `record.eval_outputs`.

  Raises:
    UserError: the file is damaged.
  """
  path = record.eval_outputs[key]
  try:
    outputs = eval_outputs.read(path)
  except DamagedFileError as error:
    raise UserError(f"WORKDIR: {error}; remove it") from None
  if "test/logits" not in outputs:
    raise UserError(f"WORKDIR: {path} holds no test/logits; remove it")
  return outputs


def read_curve(entry: StageEntry) -> tuple[Lines, str]:
  """Reads the lines of a finished stage's metrics.jsonl.

  Also returns a warning about missing ones ('': none).
  """
  for file, problem in entry.problems(entry.metrics.name).items():
    return [], _describe_problem(entry, file, problem)
  lines = read_metrics(entry.metrics)
  if not lines:
    return [], f"{entry.metrics} is missing; left out"
  first = lines[0]["step"]
  return (
    lines,
    f"{entry.metrics} begins at step {first}: the lines before were lost in training" if first else "",
  )


class _StageFiles:
  """Contents of the files of a run's stages, and a warning for each missing or damaged file."""

  def __init__(self) -> None:
    self.curves, self.predictions = dict[str, Lines](), dict[str, Any]()
    self.info, self.eval_outputs = dict[str, dict[str, Any]](), dict[str, Path]()
    self.warnings = list[str]()

  def add_stage(self, stage: Stage, entry: StageEntry | None) -> None:
    """Reads the files of a stage; None: its entry is in no store."""
    name, key = stage["name"], stage["key"]
    self.curves[name] = [stage["metrics"]["last"]]
    if entry is None:
      self.warnings.append(f"stage {name!r}: {key} is in no store; only its result is shown")
      return
    lines, problem = read_curve(entry)
    self.curves[name] = lines or self.curves[name]
    self.warnings += [problem] if problem else []
    if self._is_intact(entry, entry.predictions):
      arrays = self.read(entry.predictions, _read_predictions)
      self.predictions |= {name: arrays} if arrays else {}
    if self._is_intact(entry, entry.eval_outputs) and entry.eval_outputs.is_file():
      self.eval_outputs[key] = entry.eval_outputs
    self.info[name] = (self.read(entry.folder / "stage.json", read_json) or {}).get("about", {})

  def add_pretrained(self, key: str, path: Path) -> None:
    """Checks the outputs of a pretrained network, whose file has no recorded digest."""
    if self.read(path, eval_outputs.read):
      self.eval_outputs[key] = path

  def read(self, path: Path, read_fn: Callable[[Path], T]) -> T | None:
    """Returns the content of a file; None, with a warning, if the file is missing or damaged."""
    try:
      if not path.is_file():
        raise DamagedFileError(path, "is missing")
      return read_fn(path)
    except DamagedFileError as error:
      self.warnings.append(f"{error}; left out")
      return None

  def _is_intact(self, entry: StageEntry, path: Path) -> bool:
    problems = entry.problems(path.name)
    lines = (_describe_problem(entry, file, problem) for file, problem in problems.items())
    self.warnings += [line for line in lines if line not in self.warnings]
    return not problems


def _read_predictions(path: Path) -> dict[str, np.ndarray]:
  arrays = eval_outputs.read(path)
  if "test" not in arrays:
    raise DamagedFileError(path, "holds no predictions of the test set")
  return arrays


def _describe_problem(entry: StageEntry, file: str, problem: str) -> str:
  omitted = "the files of the stage are left out" if file == "result.json" else "left out"
  return f"{entry.folder / file} {problem}; {omitted}"


def _find_entry(stores: Iterable[Path], key: str) -> StageEntry | None:
  """Returns the entry of a key in the first store that has it."""
  entries = (StageEntry(store, key) for store in stores)
  return next((entry for entry in entries if entry.folder.is_dir()), None)
