"""Structure of the package: order of imports, length of functions, libraries that one module alone may import."""

import ast
import functools
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "smskd_jax"

# Folder or module at the top level -> the folders and modules that its modules may import beside each other.
BASE = "errors types custom"
PURE = f"{BASE} layers losses models data"
MAY_IMPORT = {
  "errors": "",
  "types": "",
  "custom": "",
  "layers": f"{BASE} runtime",
  "losses": f"{BASE} layers",
  "models": f"{BASE} layers",
  "data": f"{BASE} runtime",
  "runtime": BASE,
  "training": f"{PURE} runtime",
  "config": f"{PURE} training",
  "exchange": f"{PURE} runtime training config",
  "engine": f"{PURE} runtime training config exchange analysis",
  "analysis": "errors runtime training",
  "studies": f"{PURE} runtime training config exchange engine analysis",
  "recipes": "errors losses config",
  "cli": "errors runtime config",
}
COMMANDS = "main study report compare evaluate export import_torch store __init__"  # may import everything


def module_name(path):
  """'training.stage' of smskd_jax/training/stage.py, and 'losses' of smskd_jax/losses/__init__.py."""
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def folder_of(module):
  """Folder or top-level module that a module lies in."""
  return module.partition(".")[0]


@functools.cache
def tree_of(module):
  return ast.parse(MODULES[module].read_text())


def imports_of(module):
  """The full names of all that a module imports, in functions too."""
  for node in ast.walk(tree_of(module)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{module}: a relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(name):
  """The module of this package that an imported name is or lies in; None of another package's."""
  parts = name.split(".")
  if parts[0] != PACKAGE.name:
    return None
  names = (".".join(parts[1:n]) for n in range(len(parts), 1, -1))
  return next((name for name in names if name in MODULES), "__init__")


def functions_of(module):
  return [
    node for node in ast.walk(tree_of(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  ]


def length(function):
  """Lines from `def` to the end, without the docstring."""
  first = function.body[0]
  has_docstring = ast.get_docstring(function) is not None
  docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
  return function.end_lineno - function.lineno + 1 - docstring


def test_order_has_no_cycles():
  graphlib.TopologicalSorter({folder: others.split() for folder, others in MAY_IMPORT.items()}).prepare()


@pytest.mark.parametrize(
  "module", [module for module in MODULES if folder_of(module) not in COMMANDS.split()]
)
def test_imports_follow_the_order(module):
  folder = folder_of(module)
  for other in map(folder_of, filter(None, map(ours, imports_of(module)))):
    assert other in (folder, *MAY_IMPORT[folder].split()), f"{module} must not import {other}"


@pytest.mark.parametrize("module", MODULES)
def test_imported_modules_exist(module):
  """Type checkers take a missing module of this package for one of another package."""
  for node in ast.walk(tree_of(module)):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{PACKAGE.name}."):
      name = node.module.removeprefix(f"{PACKAGE.name}.")
      assert name in MODULES, f"{module} imports {node.module}, which is missing"


def test_at_most_twelve_modules_beside_the_folders():
  assert len(list(PACKAGE.glob("[a-z]*.py"))) <= 12


@pytest.mark.parametrize("module", MODULES)
def test_short_functions(module):
  too_long = {f.name: length(f) for f in functions_of(module) if length(f) > 50}
  assert not too_long


def test_no_file_is_named_utils():
  assert not [module for module in MODULES if "util" in module.rpartition(".")[2]]


def test_pmap_has_one_place():
  def named(node):
    return getattr(node, "attr", getattr(node, "id", None)) == "pmap"

  users = {module for module in MODULES if any(map(named, ast.walk(tree_of(module))))}
  users |= {module for module in MODULES if any(name.endswith(".pmap") for name in imports_of(module))}
  assert users == {"runtime.parallel"}


def test_orbax_has_one_place():
  users = {module for module in MODULES if any(name.startswith("orbax") for name in imports_of(module))}
  assert users == {"runtime.checkpoint"}


def test_grain_has_one_place():
  users = {module for module in MODULES if any(name.split(".")[0] == "grain" for name in imports_of(module))}
  assert users == {"data.prefetch"}


def test_ray_has_one_place():
  users = {module for module in MODULES if any(name.split(".")[0] == "ray" for name in imports_of(module))}
  assert users == {"studies.ray_executor"}
