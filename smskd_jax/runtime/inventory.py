"""Stages of a store: listing, dependents, verification, recovery and removal."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
import contextlib
import fcntl
from pathlib import Path
import shutil
import time
from typing import Any, NamedTuple

from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.runtime import console, workdir
from smskd_jax.runtime.integrity import DamagedFileError, read_json
from smskd_jax.runtime.store import StageEntry

UNFINISHED = "unfinished"
EVAL_OUTPUTS = "eval_outputs.npz"
# Files that no stage and no result depends on: only reports read them, and reports name missing files.
REPORT_FILES = {"metrics.jsonl", "predictions.npz"}


class StoredStageInfo(NamedTuple):
  """A store entry, as described by its small files."""

  key: str
  name: str  # of the stage in the run that trained it; 'pretrained': variables from elsewhere
  network: str
  state: str  # 'finished', 'unfinished', 'damaged', or 'of format N'
  size: int  # bytes
  modified: float  # seconds since the epoch, of its newest file
  inputs: tuple[str, ...]  # keys of the entries that its result depends on

  @property
  def title(self) -> str:
    """Key and name, for messages."""
    return f"{self.key} ({self.name})"


class StoredStage(NamedTuple):
  """A stage that was looked up in the store."""

  result: dict[str, Any] | None  # None: to be trained
  has_eval_outputs: bool = True  # False: eval_outputs.npz is to be computed again, from `final/`
  has_metrics: bool = True  # False: metrics.jsonl is damaged


def scan(store: Path) -> dict[str, StoredStageInfo]:
  """All entries of a store by key, the oldest first."""
  folders = [path for path in store.iterdir() if _is_entry(path)]
  stages = sorted(map(_describe, folders), key=lambda stage: stage.modified)
  return {stage.key: stage for stage in stages}


def _is_entry(folder: Path) -> bool:
  """True for files that only store entries have."""

  def has(name: str) -> bool:
    return (folder / name).exists()

  return has("stage.json") or (has("lock") and (has("result.json") or has("final")))


def _describe(folder: Path) -> StoredStageInfo:
  files = [path.stat() for path in _files(folder)]
  stage, result = (_read_or_empty(folder / name) for name in ("stage.json", "result.json"))
  metadata = stage.get("about", {})
  return StoredStageInfo(
    folder.name,
    "pretrained" if "source" in metadata else metadata.get("name", "?"),
    metadata.get("network") or result.get("model") or "?",
    _state(StageEntry(folder.parent, folder.name)),
    sum(stat.st_size for stat in files),
    max((stat.st_mtime for stat in files), default=folder.stat().st_mtime),
    _input_keys(stage, result),
  )


def _files(folder: Path) -> Iterator[Path]:
  # Files may vanish during the scan, while a process trains the stage.
  for path in folder.rglob("*"):
    with contextlib.suppress(OSError):
      if path.is_file():
        yield path


def _read_or_empty(path: Path) -> dict[str, Any]:
  try:
    return read_json(path)
  except DamagedFileError:
    return {}


def _state(entry: StageEntry) -> str:
  try:
    return {"in the store": "finished", "": UNFINISHED}.get(entry.state(), "damaged")
  except UserError:
    return f"of format {_read_or_empty(entry.folder / 'stage.json').get('format')}"


def _input_keys(stage: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, ...]:
  inputs = stage.get("hashed", {}).get("inputs") or result.get("inputs") or {}
  keys = [key for value in inputs.values() for key in ([value] if isinstance(value, str) else value or ())]
  source = Path(stage.get("about", {}).get("source", ""))  # of pretrained variables: perhaps those of a stage
  return tuple(dict.fromkeys([*keys, *([source.parent.name] if source.name == "final" else [])]))


def find_dependents(stages: Mapping[str, StoredStageInfo], keys: Iterable[str]) -> list[StoredStageInfo]:
  """The stages that depend on some keys, directly or not, without the keys themselves."""
  found, latest = dict[str, StoredStageInfo](), set(keys)
  first = set(latest)
  while latest:
    latest = {
      key
      for key, stage in stages.items()
      if latest & set(stage.inputs) and key not in found and key not in first
    }
    found |= {key: stages[key] for key in latest}
  return list(found.values())


def required_keys(stages: Mapping[str, StoredStageInfo], keys: Iterable[str]) -> set[str]:
  """Some keys and all keys that they depend on, directly or not."""
  found, latest = set[str](), set(keys)
  while latest:
    found |= latest
    latest = {key for one in latest if one in stages for key in stages[one].inputs} - found
  return found


def keys_used_by(folder: Path) -> set[str]:
  """The keys in the results of a finished run, or of the finished runs of a study.

  Raises:
    UserError: the folder is of neither, or one of its runs is not finished.
  """
  if (folder / "study.json").is_file():
    study = read_json(folder / "study.json")["study"]
    runs = [folder / name / f"seed{seed}" for name in study["variants"] for seed in study["seeds"]]
    runs += [folder / "teachers"] if study.get("teachers") else []
  else:
    runs = [folder]
  keys = set[str]()
  for run in runs:
    if not (run / "result.json").is_file():
      raise UserError(f"--unused_by: {run} holds no finished run, so the stages that it uses are not known")
    result = read_json(run / "result.json")
    keys |= {one["key"] for one in (*result["stages"], *result.get("pretrained", ()))}
  return keys


def verify(store: Path, stages: Iterable[StoredStageInfo]) -> dict[str, dict[str, str]]:
  """By key and relative path, the problems with the files of finished stages.

  Intact stages are left out.
  """
  finished = [stage for stage in stages if stage.state in ("finished", "damaged")]
  found = {stage.key: StageEntry(store, stage.key).problems() for stage in finished}
  return {key: problems for key, problems in found.items() if problems}


def read_finished(entry: StageEntry, name: str, log: Callable[[str], None]) -> StoredStage:
  """Verifies the files of a stage.

  Removes a damaged stage without dependents, which is then trained again.

  Args:
    entry: of the stage; the caller holds its lock, and the stage's inputs are intact.
    name: of the stage.
    log: receives a line about every damaged entry.

  Raises:
    UserError: a damaged file affects results, and other stages depend on the stage; or the entry is of another format.
  """
  try:
    result = entry.result()
    problems = {} if result is None else entry.problems()
  except DamagedFileError as error:
    result, problems = None, {error.path.name: error.problem}
  if not problems:
    return StoredStage(result)
  damage = f"stage {name!r}: {describe_problems(entry, problems)}"
  if set(problems) == {EVAL_OUTPUTS}:
    log(f"{damage}; computed again from its network")
    return StoredStage(result, has_eval_outputs=False)
  dependents = find_dependents(scan(entry.folder.parent), [entry.key])
  if not dependents:
    log(f"{damage}; no other stage depends on it, and the stage is trained again")
    entry.clear()
    return StoredStage(None)
  if set(problems) <= REPORT_FILES | {EVAL_OUTPUTS}:
    log(f"{damage}; reports leave it out, and no result depends on it")
    return StoredStage(result, EVAL_OUTPUTS not in problems, "metrics.jsonl" not in problems)
  raise UserError(
    f"{damage}; {_describe_dependents(dependents, 1)}; to train all of them again, remove them: "
    f"python -m smskd_jax.store {entry.folder.parent} --remove={entry.key} --dependents"
  )


def describe_problems(entry: StageEntry, problems: Mapping[str, str]) -> str:
  """The first three problems with an entry's files, by path, and the number of the others."""
  named = [f"{entry.folder / file} {problem}" for file, problem in list(problems.items())[:3]]
  return "; ".join(named) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")


def _describe_dependents(stages: Sequence[StoredStageInfo], limit: int) -> str:
  named = ", ".join(stage.title for stage in stages[:limit]) + (", ..." if len(stages) > limit else "")
  count = "1 stage depends" if len(stages) == 1 else f"{len(stages)} stages depend"
  return f"{count} on it ({named})"


def list_stages(store: Path, *, verify: bool = False) -> str:
  """A table of the stages.

  Prints the table and the problems before the error of damaged files.

  Args:
    store: the folder.
    verify: read all files; otherwise only the small files of the table are checked.

  Raises:
    UserError: the folder is no store, or some of its files are damaged.
  """
  stages = _open_store(store)
  header = ("key", "stage", "network", "state", "size", "age", "inputs", "dependents")
  rows = [table_row(stage, stages) for stage in stages.values()]
  size = sum(stage.size for stage in stages.values()) / 1e6
  text = f"{console.format_table(header, rows)}\n\n{len(stages)} stages, {size:,.1f} MB"
  damaged = _verify_all(store, stages, every_file=verify)
  if not damaged:
    return f"{text}; all files of finished stages are intact" if verify else text
  print(text)
  for key, problems in damaged.items():
    for name, problem in problems.items():
      print(f"{stages[key].title}: {store / key / name} {problem}")
  raise UserError(
    f"{len(damaged)} of {len(stages)} stages are damaged; the run that trains such a stage trains it again, or says "
    "what to remove first"
  )


def _verify_all(
  store: Path, stages: Mapping[str, StoredStageInfo], *, every_file: bool
) -> dict[str, dict[str, str]]:
  return verify(store, [stage for stage in stages.values() if every_file or stage.state == "damaged"])


def table_row(stage: StoredStageInfo, stages: Mapping[str, StoredStageInfo]) -> tuple[str, ...]:
  """Key, name, network, state, size, age, and names of inputs and dependents, as text."""
  inputs = [stages[key].name if key in stages else key for key in stage.inputs]
  dependents = [other.name for other in stages.values() if stage.key in other.inputs]
  size = f"{stage.size / 1e6:.1f} MB"
  lists = _join_names(inputs), _join_names(dependents)
  return stage.key, stage.name, stage.network, stage.state, size, _format_age(stage.modified), *lists


def _join_names(names: Sequence[str]) -> str:
  unique = list(dict.fromkeys(names))
  more = f" and {len(unique) - 3} more" if len(unique) > 3 else ""
  return ", ".join(unique[:3]) + more or "-"


def _format_age(modified: float) -> str:
  days = (time.time() - modified) / 86400
  if days >= 2:
    return f"{days:.0f} days"
  return f"{24 * days:.0f} h" if days >= 1 / 12 else f"{1440 * days:.0f} min"


def remove_stages(
  store: Path,
  keys: Sequence[str] = (),
  *,
  unfinished: bool = False,
  unused_by: Sequence[Path] = (),
  dependents: bool = False,
  force: bool = False,
  dry_run: bool = False,
) -> str:
  """Removes stages and prints each; returns a line of their number and size.

  Args:
    store: the folder.
    keys: of stages to remove.
    unfinished: also remove all stages that are not finished.
    unused_by: workdirs of runs and studies; stages that none of them uses are removed too.
    dependents: also remove the stages that depend on removed ones.
    force: remove stages although others depend on them.
    dry_run: print what would be removed, and remove nothing.

  Raises:
    UserError: a key is unknown, a remaining stage depends on a removed one, or a process holds a stage.
  """
  stages = _open_store(store)
  selected = [*keys]
  if unfinished:
    selected += [key for key, stage in stages.items() if stage.state == UNFINISHED]
  if unused_by:
    used = required_keys(stages, set().union(*map(keys_used_by, unused_by)))
    selected += [key for key in stages if key not in used]
  removed = stages_to_remove(stages, selected, dependents=dependents, force=force)
  if dry_run:
    for stage in removed:
      print(f"would remove {stage.title}, {stage.size / 1e6:,.1f} MB")
  else:
    remove(store, removed, print)
  size = sum(stage.size for stage in removed) / 1e6
  verb = "would be removed" if dry_run else "removed"
  return f"{len(removed)} of {len(stages)} stages, {size:,.1f} MB, {verb}"


def stages_to_remove(
  stages: Mapping[str, StoredStageInfo], keys: Iterable[str], *, dependents: bool = False, force: bool = False
) -> list[StoredStageInfo]:
  """Selects the stages of a removal.

  Args:
    stages: of the store.
    keys: to be removed.
    dependents: add the stages that depend on them.
    force: accept that remaining stages depend on them.

  Raises:
    UserError: a key is not in the store, or a remaining stage depends on one of them.
  """
  keys = list(dict.fromkeys(keys))
  for key in keys:
    if key not in stages:
      raise unknown_name_error("--remove", key, stages)
  others = find_dependents(stages, keys)
  if others and not (dependents or force):
    named = ", ".join(stage.title for stage in others[:3]) + (", ..." if len(others) > 3 else "")
    count = "1 other stage depends" if len(others) == 1 else f"{len(others)} other stages depend"
    raise UserError(
      f"--remove: {count} on what would be removed: {named}; add --dependents to remove these too, or --force to "
      "keep them"
    )
  return [stages[key] for key in keys] + (others if dependents else [])


def remove(store: Path, stages: Collection[StoredStageInfo], log: Callable[[str], None]) -> None:
  """Removes stages, dependents first.

  Raises:
    UserError: a process holds one of them; nothing is removed.
  """
  with contextlib.ExitStack() as locks:
    for stage in stages:
      file = locks.enter_context(open(store / stage.key / "lock", "w"))
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise UserError(f"{stage.title} is in use by a process; stop it or wait for it") from None
    for stage in reversed(list(stages)):
      # result.json marks a finished stage. Removed first: an interruption must not leave a partial finished stage.
      (store / stage.key / "result.json").unlink(missing_ok=True)
      shutil.rmtree(store / stage.key)
      log(f"removed {stage.title}")


def _open_store(store: Path) -> dict[str, StoredStageInfo]:
  """Scans the folder named on the command line.

  Raises:
    UserError: the folder is absent or no store.
  """
  if not store.is_dir():
    raise UserError(f"STORE: there is no folder {store}")
  if workdir.folder_kind(store) == workdir.RUN and (store / "store").is_dir():
    raise UserError(f"STORE: {store} is {workdir.RUN}, not {workdir.STORE}; its own is {store / 'store'}")
  workdir.check_kind("STORE", store, workdir.STORE, allow_unknown=True)
  stages = scan(store)
  if not stages and any(store.iterdir()):
    raise UserError(f"STORE: {store} holds other files and no stage; name a store, as WORKDIR/store")
  return stages
