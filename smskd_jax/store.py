"""Lists, verifies and removes the stages of a store.

  python -m smskd_jax.store runs/quickstart/store
  python -m smskd_jax.store stages --verify
  python -m smskd_jax.store stages --remove=0123456789abcdef --dependents --dry_run

Stages that others were built on are kept, unless --dependents or --force says otherwise.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from smskd_jax import cli
from smskd_jax.errors import UserError

if TYPE_CHECKING:
  from smskd_jax.runtime.inventory import StoredStageInfo


def main(arguments: Sequence[str] | None = None) -> int:
  """Does what the command line asks for; returns the exit status."""
  parser = cli.make_parser("store", __doc__)
  parser.add_argument("store", type=Path, help="the folder of the store, as WORKDIR/store")
  parser.add_argument("--verify", action="store_true", help="read every file and compare its digest")
  parser.add_argument("--remove", default="", metavar="KEY,KEY", help="remove these stages")
  parser.add_argument("--unfinished", action="store_true", help="remove the stages that are not finished")
  parser.add_argument(
    "--unused_by",
    default="",
    metavar="WORKDIR,WORKDIR",
    help="remove the stages that none of these finished runs and studies uses",
  )
  parser.add_argument(
    "--dependents", action="store_true", help="remove the stages that were built on removed ones, too"
  )
  parser.add_argument("--force", action="store_true", help="remove stages although others were built on them")
  parser.add_argument("--dry_run", action="store_true", help="name what would be removed, and remove nothing")
  return cli.run(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> str:
  keys = [key for key in flags.remove.split(",") if key]
  workdirs = [Path(folder) for folder in flags.unused_by.split(",") if folder]
  if not (keys or workdirs or flags.unfinished):
    return show(flags.store, verify=flags.verify)
  how = {"dependents": flags.dependents, "force": flags.force, "dry_run": flags.dry_run}
  return remove(flags.store, keys, unfinished=flags.unfinished, unused_by=workdirs, **how)


def show(store: Path, *, verify: bool = False) -> str:
  """A table of the stages; where files are damaged it is printed, with a line on each of them, before the error.

  Args:
    store: the folder.
    verify: read all files; else damage shows only in those that the table is made from.

  Raises:
    UserError: the folder is no store, or files of it are damaged.
  """
  from smskd_jax.runtime import console, inventory

  stages = _scan(store)
  header = ("key", "stage", "network", "state", "size", "age", "inputs", "read by")
  rows = [inventory.table_row(one, stages, stages.values()) for one in stages.values()]
  size = sum(one.bytes for one in stages.values()) / 1e6
  text = f"{console.format_table(header, rows)}\n\n{len(stages)} stages, {size:,.1f} MB"
  damaged = inventory.verify(store, [one for one in stages.values() if verify or one.state == "damaged"])
  if not damaged:
    return f"{text}; all files of finished stages are as they were left" if verify else text
  print(text)
  for key, problems in damaged.items():
    for name, problem in problems.items():
      print(f"{stages[key].title}: {store / key / name} {problem}")
  raise UserError(
    f"{len(damaged)} of {len(stages)} stages are damaged; the run that trains such a stage trains it again, or says "
    "what to remove first"
  )


def remove(
  store: Path,
  keys: Sequence[str] = (),
  *,
  unfinished: bool = False,
  unused_by: Sequence[Path] = (),
  dependents: bool = False,
  force: bool = False,
  dry_run: bool = False,
) -> str:
  """Removes stages, and prints each; returns how many they were.

  Args:
    store: the folder.
    keys: of stages to remove.
    unfinished: remove all that are not finished.
    unused_by: workdirs of runs and studies; the stages that none of them uses are removed.
    dependents: remove the stages that read removed ones, too.
    force: remove stages although others read them.
    dry_run: print what would be removed, and remove nothing.

  Raises:
    UserError: a key is unknown, a stage that would stay reads a removed one, or a process holds one.
  """
  from smskd_jax.runtime import inventory

  stages = _scan(store)
  chosen = [*keys]
  if unfinished:
    chosen += [key for key, stage in stages.items() if stage.state == inventory.UNFINISHED]
  if unused_by:
    used = inventory.required_keys(stages, set().union(*map(inventory.used_by, unused_by)))
    chosen += [key for key in stages if key not in used]
  doomed = inventory.stages_to_remove(stages, chosen, dependents=dependents, force=force)
  if dry_run:
    for stage in doomed:
      print(f"would remove {stage.title}, {stage.bytes / 1e6:,.1f} MB")
  else:
    inventory.remove(store, doomed, print)
  done = "would be removed" if dry_run else "removed"
  return f"{len(doomed)} of {len(stages)} stages, {sum(one.bytes for one in doomed) / 1e6:,.1f} MB, {done}"


def _scan(store: Path) -> "dict[str, StoredStageInfo]":
  from smskd_jax.runtime import file_kinds, inventory

  if not store.is_dir():
    raise UserError(f"STORE: there is no folder {store}")
  if file_kinds.folder_kind(store) == file_kinds.RUN and (store / "store").is_dir():
    raise UserError(
      f"STORE: {store} is {file_kinds.RUN}, not {file_kinds.STORE}; its own is {store / 'store'}"
    )
  file_kinds.check_kind("STORE", store, file_kinds.STORE, absent=True)
  stages = inventory.scan(store)
  if not stages and any(store.iterdir()):
    raise UserError(f"STORE: {store} holds other files and no stage; name a store, as WORKDIR/store")
  return stages


if __name__ == "__main__":
  sys.exit(main())
