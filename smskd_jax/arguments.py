"""Command lines of the programs that take no config: flags by argparse, and one line for each mistake."""

import argparse
from collections.abc import Callable, Sequence
import sys
from typing import NoReturn

from smskd_jax.errors import UserError, check_encoding, refuse


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
    The exit status: 0, or 2 for a mistake.
  """
  try:
    check_encoding(sys.argv[1:] if arguments is None else arguments)
    print(program(of.parse_args(arguments)))
    return 0
  except UserError as error:
    return refuse(error)
