"""The files that the stages of a run left, and a line on each that is missing or damaged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from smskd_jax.runtime import eval_outputs as answers_lib
from smskd_jax.runtime.integrity import DamagedFileError, read_json
from smskd_jax.runtime.store import StageEntry
from smskd_jax.runtime.writer import read_metrics

T = TypeVar("T")
Stage = Mapping[str, Any]  # an item of result.json's 'stages'
Lines = Sequence[Mapping[str, Any]]  # of a metrics.jsonl


class StoredFiles:
  """Files that the stages of a run left, and a line on each missing one."""

  def __init__(self) -> None:
    self.curves, self.choices, self.about = dict[str, Lines](), dict[str, Any](), dict[str, dict[str, Any]]()
    self.answers, self.missing = dict[str, Path](), list[str]()

  def add(self, stage: Stage, entry: StageEntry | None) -> None:
    """Reads what lies under the key of a stage."""
    name, key = stage["name"], stage["key"]
    self.curves[name] = [stage["metrics"]["last"]]
    if entry is None:
      self.missing.append(f"stage {name!r}: {key} is in no store; its result alone is shown")
      return
    lines, problem = read_curve(entry)
    self.curves[name] = lines or self.curves[name]
    self.missing += [problem] if problem else []
    if self._whole(entry, entry.predictions):
      found = self.read(entry.predictions, lambda: _predictions(entry.predictions))
      self.choices |= {name: found} if found else {}
    if self._whole(entry, entry.eval_outputs) and entry.eval_outputs.is_file():
      self.answers[key] = entry.eval_outputs
    about = entry.folder / "stage.json"
    self.about[name] = (self.read(about, lambda: read_json(about)) or {}).get("about", {})

  def add_given(self, one: Mapping[str, Any], path: Path) -> None:
    """Takes notice of what is kept of a network that came with its variables: no list of files has its digest."""
    if self.read(path, lambda: answers_lib.read(path)):
      self.answers[one["key"]] = path

  def read(self, path: Path, make: Callable[[], T]) -> T | None:
    """Content of a file by a reading function; None, and a line in `missing`, for a damaged or absent file."""
    try:
      if not path.is_file():
        raise DamagedFileError(path, "is missing")
      return make()
    except DamagedFileError as error:
      self.missing.append(f"{error}; left out")
      return None

  def _whole(self, entry: StageEntry, path: Path) -> bool:
    problems = entry.problems(path.name)
    self.missing += [
      line
      for file, problem in problems.items()
      if (line := _of_problem(entry, file, problem)) not in self.missing
    ]
    return not problems


def _predictions(path: Path) -> dict[str, np.ndarray]:
  found = answers_lib.read(path)
  if "test" not in found:
    raise DamagedFileError(path, "holds no predictions of the test set")
  return found


def _of_problem(entry: StageEntry, file: str, problem: str) -> str:
  what = "what the stage left is left out" if file == "result.json" else "left out"
  return f"{entry.folder / file} {problem}; {what}"


def read_curve(entry: StageEntry) -> tuple[Lines, str]:
  """The lines of a finished stage's metrics.jsonl, and a line on what of them is missing: '' if nothing is."""
  for file, problem in entry.problems(entry.metrics.name).items():
    return [], _of_problem(entry, file, problem)
  lines = read_metrics(entry.metrics)
  if not lines:
    return [], f"{entry.metrics} is missing; left out"
  first = lines[0]["step"]
  return (
    lines,
    f"{entry.metrics} begins at step {first}: the lines before were lost in training" if first else "",
  )


def find(roots: Iterable[Path], key: str) -> StageEntry | None:
  """The key's place in the first store that has it."""
  found = (StageEntry(root, key) for root in roots)
  return next((entry for entry in found if entry.folder.is_dir()), None)
