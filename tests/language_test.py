"""First lines of docstrings: a noun of the field or an imperative, in under 90 characters."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "smskd_jax"
OPENINGS = ("What", "How", "Whether", "Where", "Which")
NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def first_lines(path):
  """First line of every docstring of a file."""
  docstrings = (
    ast.get_docstring(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, NODES)
  )
  return [docstring.partition("\n")[0] for docstring in docstrings if docstring]


@pytest.mark.parametrize(
  "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_first_lines_are_short_and_direct(path):
  offenders = [
    line for line in first_lines(path) if len(line) >= 90 or line.split(" ")[0].strip(",.:") in OPENINGS
  ]
  assert not offenders
