"""Command lines of the programs that take no config: flags by argparse, and one line for each mistake."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
import sys
from typing import NoReturn

from smskd_jax import entry_point
from smskd_jax.errors import UserError, check_encoding


class _Parser(argparse.ArgumentParser):
  """A parser whose mistakes are those of the user."""

  def error(self, message: str) -> NoReturn:
    """Raises what argparse has found.

    Raises:
      UserError: always.
    """
    raise UserError(f"{message}; see --help")


def parser(program: str, about: str | None) -> argparse.ArgumentParser:
  """A parser for `python -m smskd_jax.PROGRAM`; --help prints the text before the flags."""
  return _Parser(
    prog=f"python -m smskd_jax.{program}",
    description=about,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def run(
  of: argparse.ArgumentParser, arguments: Sequence[str] | None, program: Callable[[argparse.Namespace], str]
) -> int:
  """Parses the command line and prints what the program returns.

  Args:
    of: the parser.
    arguments: of the command line; None: those of the process.
    program: takes the flags. A UserError of it is printed as one line.

  Returns:
    The exit status, as `entry_point.run`.
  """

  folders: dict[str, Path | None] = {}

  def whole() -> int:
    check_encoding(sys.argv[1:] if arguments is None else arguments)
    flags = of.parse_args(arguments)
    workdir = getattr(flags, "workdir", None)
    folders.update({"--out": getattr(flags, "out", None), "WORKDIR": _first(workdir)})
    print(program(flags))
    return 0

  return entry_point.run(whole, lambda: folders)


def _first(paths: Path | Sequence[Path] | None) -> Path | None:
  return paths if isinstance(paths, Path) or paths is None else paths[0]
