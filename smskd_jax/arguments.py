"""Command lines of the programs that take no config: flags by argparse, and one line for each mistake."""

import argparse
from collections.abc import Callable, Sequence
import sys
from typing import NoReturn

from smskd_jax.errors import UserError


class _Parser(argparse.ArgumentParser):
  """A parser whose complaint is one line."""

  def error(self, message: str) -> NoReturn:
    """Ends the process with status 2."""
    self.exit(2, f"error: {message}; see --help\n")


def parser(program: str, about: str | None) -> argparse.ArgumentParser:
  """A parser for `python -m smskd_jax.PROGRAM`; --help prints the text before the flags."""
  return _Parser(
    prog=f"python -m smskd_jax.{program}",
    description=about,
    formatter_class=argparse.RawDescriptionHelpFormatter,
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
  flags = of.parse_args(arguments)
  try:
    print(program(flags))
    return 0
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
