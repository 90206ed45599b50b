"""The kinds of folders that this package makes, so that no command takes one for another."""

from pathlib import Path

from smskd_jax.errors import UserError

RUN, STUDY, STORE, STAGE, NETWORK = (
  "the workdir of a run",
  "the folder of a study",
  "a store of stages",
  "a stage in a store",
  "an imported network",
)


def folder_kind(folder: Path) -> str | None:
  """Kind of a folder by the files in it; None for a folder that this package has not made."""
  for name, found in (
    ("study.json", STUDY),
    ("config.json", RUN),
    ("stage.json", STAGE),
    ("network.json", NETWORK),
  ):
    if (folder / name).exists():
      return found
  return STORE if next(folder.glob("*/stage.json"), None) else None


def check_kind(field: str, folder: Path, kind: str, *, absent: bool = False) -> None:
  """Refuses a folder of another kind.

  Args:
    field: what named the folder, for messages.
    folder: need not be there.
    wanted: a kind.
    absent: take a folder that is of no kind, too.

  Raises:
    UserError: names the kind of the folder.
  """
  found = folder_kind(folder)
  if found not in (kind, *([None] * absent)):
    raise UserError(f"{field}: {folder} is {found or 'of no known kind'}, not {kind}; name another folder")
