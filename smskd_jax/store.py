"""Lists, verifies and removes the stages of a store.

  python -m smskd_jax.store runs/quickstart/store
  python -m smskd_jax.store stages --verify
  python -m smskd_jax.store stages --remove=0123456789abcdef --dependents --dry_run

A stage that other stages depend on is kept, unless --dependents or --force is given.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from smskd_jax import cli


def main(arguments: Sequence[str] | None = None) -> int:
  """Lists, verifies or removes stages; returns the exit status."""
  parser = cli.make_parser("store", __doc__)
  parser.add_argument("store", type=Path, help="folder of the store, as WORKDIR/store")
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
    "--dependents", action="store_true", help="also remove the stages that depend on removed ones"
  )
  parser.add_argument("--force", action="store_true", help="remove stages although others depend on them")
  parser.add_argument(
    "--dry_run", action="store_true", help="print what would be removed, and remove nothing"
  )
  return cli.run(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> str:
  from smskd_jax.runtime import inventory  # a late import: --help does not wait for it

  keys = [key for key in flags.remove.split(",") if key]
  workdirs = [Path(folder) for folder in flags.unused_by.split(",") if folder]
  if not (keys or workdirs or flags.unfinished):
    return inventory.list_stages(flags.store, verify=flags.verify)
  return inventory.remove_stages(
    flags.store,
    keys,
    unfinished=flags.unfinished,
    unused_by=workdirs,
    dependents=flags.dependents,
    force=flags.force,
    dry_run=flags.dry_run,
  )


if __name__ == "__main__":
  sys.exit(main())
