"""Recovery of finished stages with damaged files: train again, compute again, go without them, or refuse."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from smskd_jax.errors import UserError
from smskd_jax.runtime import inventory
from smskd_jax.runtime.integrity import DamagedFileError
from smskd_jax.runtime.store import StageEntry

# Files that no stage and no result depends on: reports read them, and say where they are missing.
RECORDS = {"metrics.jsonl", "predictions.npz"}


class StoredStage(NamedTuple):
  """State of a stage in the store."""

  result: dict[str, Any] | None  # None: it is to be trained
  has_eval_outputs: bool = True  # False: eval_outputs.npz is to be computed again, from `final/`
  has_metrics: bool = True  # False: metrics.jsonl is damaged


def read_finished(entry: StageEntry, name: str, say: Callable[[str], None]) -> StoredStage:
  """Verifies what a stage left. What was damaged and nothing was built on is removed, to be trained again.

  Args:
    entry: of the stage; the caller holds its lock, and the stages that it reads are whole.
    name: of the stage.
    say: told of every damaged entry.

  Raises:
    UserError: what the result or later stages depend on is damaged, and other stages were built on it; or the entry is
      of another format.
  """
  try:
    result = entry.result()
    problems = {} if result is None else entry.problems()
  except DamagedFileError as error:
    result, problems = None, {error.path.name: error.problem}
  if not problems:
    return StoredStage(result)
  damage = f"stage {name!r}: {describe_problems(entry, problems)}"
  if set(problems) == {"eval_outputs.npz"}:
    say(f"{damage}; computed again from its network")
    return StoredStage(result, has_eval_outputs=False)
  built = inventory.readers(inventory.scan(entry.folder.parent), [entry.key])
  if not built:
    say(f"{damage}; nothing was built on it, and the stage is trained again")
    entry.clear()
    return StoredStage(None)
  if set(problems) <= RECORDS | {"eval_outputs.npz"}:
    say(f"{damage}; reports go without it, and no result depends on it")
    return StoredStage(result, "eval_outputs.npz" not in problems, "metrics.jsonl" not in problems)
  raise UserError(
    f"{damage}; {len(built)} stage{' was' if len(built) == 1 else 's were'} built on it ({built[0].title}"
    f"{', ...' if len(built) > 1 else ''}); to train all of them again, remove them: "
    f"python -m smskd_jax.store {entry.folder.parent} --remove={entry.key} --dependents"
  )


def describe_problems(entry: StageEntry, problems: Mapping[str, str]) -> str:
  """The problems with an entry's files, the first three of them by name."""
  named = [f"{entry.folder / file} {problem}" for file, problem in list(problems.items())[:3]]
  return "; ".join(named) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
