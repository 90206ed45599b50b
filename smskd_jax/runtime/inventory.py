"""The stages of a store: what each is, how large and how old, which others read it, and the removal of some of them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
import contextlib
import fcntl
from pathlib import Path
import shutil
import time
from typing import Any, NamedTuple

from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.runtime.integrity import DamagedFileError, read_json
from smskd_jax.runtime.store import StageEntry

UNFINISHED = "unfinished"


class StoredStageInfo(NamedTuple):
  """An entry of a store, as its small files describe it."""

  key: str
  name: str  # of the stage in the run that trained it; 'given': variables that no stage has trained
  network: str
  state: str  # 'finished', 'unfinished', 'damaged', or 'of format N'
  bytes: int
  changed: float  # seconds since the epoch, of its newest file
  reads: tuple[str, ...]  # keys of the entries that its result depends on

  @property
  def title(self) -> str:
    """The key and the name, as messages call the stage."""
    return f"{self.key} ({self.name})"


def scan(store: Path) -> dict[str, StoredStageInfo]:
  """All entries of a store by their keys, the oldest first."""
  folders = [path for path in store.iterdir() if _is_entry(path)]
  stages = sorted(map(_stage, folders), key=lambda stage: stage.changed)
  return {stage.key: stage for stage in stages}


def _is_entry(folder: Path) -> bool:
  """Looks for what only entries have: other folders must never be taken for stages that may be removed."""
  has = lambda name: (folder / name).exists()
  return has("stage.json") or (has("lock") and (has("result.json") or has("final")))


def _stage(folder: Path) -> StoredStageInfo:
  files = [path.stat() for path in _files(folder)]
  about, result = (_read(folder / name) for name in ("stage.json", "result.json"))
  recorded = about.get("about", {})
  given = "source" in recorded
  return StoredStageInfo(
    folder.name,
    "given" if given else recorded.get("name", "?"),
    recorded.get("network") or result.get("model") or "?",
    _state(StageEntry(folder.parent, folder.name)),
    sum(stat.st_size for stat in files),
    max((stat.st_mtime for stat in files), default=folder.stat().st_mtime),
    _input_keys(about, result),
  )


def _files(folder: Path) -> Iterator[Path]:
  # Some may vanish in the meantime, where a stage is being trained.
  for path in folder.rglob("*"):
    with contextlib.suppress(OSError):
      if path.is_file():
        yield path


def _read(path: Path) -> dict[str, Any]:
  try:
    return read_json(path)
  except DamagedFileError:
    return {}


def _state(entry: StageEntry) -> str:
  try:
    return {"in the store": "finished", "": UNFINISHED}.get(entry.state(), "damaged")
  except UserError:
    return f"of format {_read(entry.folder / 'stage.json').get('format')}"


def _input_keys(about: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, ...]:
  reads = about.get("hashed", {}).get("inputs") or result.get("inputs") or {}
  keys = [key for value in reads.values() for key in ([value] if isinstance(value, str) else value or ())]
  source = Path(about.get("about", {}).get("source", ""))  # of given variables: perhaps what a stage left
  return tuple(dict.fromkeys([*keys, *([source.parent.name] if source.name == "final" else [])]))


def readers(stages: Mapping[str, StoredStageInfo], keys: Iterable[str]) -> list[StoredStageInfo]:
  """The stages that read one of some keys, or that read these in turn; none of the keys themselves."""
  found, latest = dict[str, StoredStageInfo](), set(keys)
  first = set(latest)
  while latest:
    latest = {
      key
      for key, stage in stages.items()
      if latest & set(stage.reads) and key not in found and key not in first
    }
    found |= {key: stages[key] for key in latest}
  return list(found.values())


def required_keys(stages: Mapping[str, StoredStageInfo], keys: Iterable[str]) -> set[str]:
  """Some keys and all that they read, directly or not."""
  found, latest = set[str](), set(keys)
  while latest:
    found |= latest
    latest = {read for key in latest if key in stages for read in stages[key].reads} - found
  return found


def verify(store: Path, stages: Iterable[StoredStageInfo]) -> dict[str, dict[str, str]]:
  """By key and relative path, what is wrong with the files of finished stages; those that are whole are left out."""
  wanted = [stage for stage in stages if stage.state in ("finished", "damaged")]
  found = {stage.key: StageEntry(store, stage.key).problems() for stage in wanted}
  return {key: problems for key, problems in found.items() if problems}


def used_by(workdir: Path) -> set[str]:
  """The keys that a finished run, or the finished runs of a study, name in their results.

  Raises:
    UserError: the folder is of neither, or one of its runs is not finished: its keys are not known.
  """
  if (workdir / "study.json").is_file():
    study = read_json(workdir / "study.json")["study"]
    runs = [workdir / name / f"seed{seed}" for name in study["variants"] for seed in study["seeds"]]
    runs += [workdir / "teachers"] if study.get("teachers") else []
  else:
    runs = [workdir]
  keys = set[str]()
  for run in runs:
    if not (run / "result.json").is_file():
      raise UserError(f"--unused_by: {run} holds no finished run, so the stages that it uses are not known")
    result = read_json(run / "result.json")
    keys |= {one["key"] for one in (*result["stages"], *result.get("given", ()))}
  return keys


def stages_to_remove(
  stages: Mapping[str, StoredStageInfo], keys: Iterable[str], *, dependents: bool = False, force: bool = False
) -> list[StoredStageInfo]:
  """The stages to remove.

  Args:
    stages: of the store.
    keys: to be removed.
    dependents: remove the stages that read them, too.
    force: remove them although others read them.

  Raises:
    UserError: a key is not in the store, or a stage that would stay reads one of them.
  """
  keys = list(dict.fromkeys(keys))
  for key in keys:
    if key not in stages:
      raise unknown_name_error("--remove", key, stages)
  others = readers(stages, keys)
  if others and not (dependents or force):
    named = ", ".join(stage.title for stage in others[:3]) + (", ..." if len(others) > 3 else "")
    count = "1 other stage was" if len(others) == 1 else f"{len(others)} other stages were"
    raise UserError(
      f"--remove: {count} built on what would be removed: {named}; add --dependents to remove these too, or --force to "
      "keep them"
    )
  return [stages[key] for key in keys] + (others if dependents else [])


def remove(store: Path, doomed: Collection[StoredStageInfo], say: Callable[[str], None]) -> None:
  """Removes stages, those that read others first.

  Raises:
    UserError: a process holds one of them; nothing is removed.
  """
  with contextlib.ExitStack() as held:
    for stage in doomed:
      folder = store / stage.key
      file = held.enter_context(open(folder / "lock", "w"))
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise UserError(f"{stage.title} is in use by a process; stop it or wait for it") from None
    for stage in reversed(list(doomed)):
      # First what marks the stage as finished: what an interruption leaves is never taken for a whole stage.
      (store / stage.key / "result.json").unlink(missing_ok=True)
      shutil.rmtree(store / stage.key)
      say(f"removed {stage.title}")


def table_row(
  stage: StoredStageInfo, names: Mapping[str, StoredStageInfo], others: Iterable[StoredStageInfo]
) -> tuple[str, ...]:
  """A row of the list: key, name, network, state, size, age, what it reads and who reads it."""
  title = lambda key: names[key].name if key in names else key
  read_by = list(dict.fromkeys(other.name for other in others if stage.key in other.reads))
  short = lambda found: (
    ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "") or "-"
  )
  reads = short(list(dict.fromkeys(map(title, stage.reads))))
  size, days = f"{stage.bytes / 1e6:.1f} MB", (time.time() - stage.changed) / 86400
  age = (
    f"{days:.0f} days" if days >= 2 else f"{24 * days:.0f} h" if days >= 1 / 12 else f"{1440 * days:.0f} min"
  )
  return stage.key, stage.name, stage.network, stage.state, size, age, reads, short(read_by)
