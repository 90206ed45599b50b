"""The shape of the package: who may import whom, how long things are, what has one place only."""

import ast
import functools
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "smskd_jax"

# Room -> what its modules may import besides each other: rooms, or single modules of one. A room is a folder or a
# file; a file with a line of its own is not part of its folder's room. `__init__` is the notebook's list of names.
MAY_IMPORT = {
  "state": "",
  "errors": "",
  "layers": "",
  "custom": "",
  "losses": "state layers custom",
  "losses.__main__": "errors losses",
  "models": "state layers custom",
  "data": "state errors",
  "runtime": "state errors",
  "training": "state losses models data",
  "training.program": "state runtime training",
  "training.window": "errors",
  "training.loop": "state data runtime training training.program training.window",
  "__init__": "state losses models training runtime.interrupt",
  "exchange": "state errors filling layers models data training runtime",
  "exchange.runs": "config errors exchange filling runtime",
  "exchange.pretrained": "errors filling data exchange exchange.runs runtime",
  "checks": "errors filling losses models data training",
  "prerequisites": "errors filling losses data training",
  "filling": "errors",
  "config": "checks prerequisites filling errors custom losses models data training",
  "build": "config custom filling errors exchange.variables losses models data training",
  "plan": (
    "build config custom filling errors models data training training.loop exchange.variables runtime.store state"
  ),
  "profiling": "plan state runtime training",
  "estimates": "plan models data runtime training",
  "overview": "errors estimates plan models data runtime training",
  "progress": "estimates plan runtime",
  "literature": "config errors",
  "memory": "plan errors models data runtime",
  "recipes": "literature losses errors config studies.config",
  "keeping": "build plan state errors losses models data runtime training",
  "recall": "plan state losses data runtime training",
  "heldout": "plan recall data runtime training",
  "learner": "plan heldout keeping recall state models data runtime training training.loop training.program",
  "runner": (
    "learner plan estimates progress profiling exchange.variables runtime training.loop training.program "
    "training.window"
  ),
  "analysis": (
    "errors runtime.answers runtime.choices runtime.console runtime.integrity runtime.kinds runtime.store "
    "runtime.workdir runtime.writer "
    "training.evaluate training.metrics"
  ),
  "arguments": "errors entry_point",
  "report": "arguments errors analysis runtime.workdir studies.table",
  "compare": "arguments errors analysis studies.table",
  "store": "arguments errors runtime",
  "experiment": (
    "errors filling data exchange runtime config build plan memory keeping heldout learner estimates overview "
    "profiling runner analysis"
  ),
  "studies": (
    "checks config literature losses errors filling data build plan memory estimates models training exchange runtime "
    "experiment analysis"
  ),
  "evaluate": "arguments errors build models data training exchange exchange.pretrained runtime",
  "import_torch": "arguments errors data models exchange runtime",
  "export": "arguments errors models exchange exchange.runs runtime",
  "config_file": "errors filling",
  "entry_point": "errors runtime",
  "command": "config_file entry_point errors runtime.processes runtime.programs",
  "main": "command experiment",
  "study": "command errors studies",
}


def module_name(path):
  """'training.stage' of smskd_jax/training/stage.py, and 'losses' of smskd_jax/losses/__init__.py."""
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module):
  """The longest entry of MAY_IMPORT that the module's name is or lies in."""
  parts = module.split(".")
  names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
  room = next((name for name in names if name in MAY_IMPORT), None)
  assert room, f"{module} is in no room yet: say in MAY_IMPORT what it may import"
  return room


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


def test_the_order_has_no_circles():
  rooms = {room: {room_of(other) for other in others.split()} for room, others in MAY_IMPORT.items()}
  graphlib.TopologicalSorter(rooms).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
  room = room_of(module)
  for other in filter(None, map(ours, imports_of(module))):
    allowed = room_of(other) == room or not {other, room_of(other)}.isdisjoint(MAY_IMPORT[room].split())
    assert allowed, (
      f"{module} must not import {other}; {room} may import: {MAY_IMPORT[room] or 'nothing of ours'}"
    )


@pytest.mark.parametrize("module", MODULES)
def test_short_functions(module):
  too_long = {f.name: length(f) for f in functions_of(module) if length(f) > 50}
  assert not too_long


def test_no_file_is_named_utils():
  assert not [module for module in MODULES if "util" in module.rpartition(".")[2]]


def test_pmap_has_one_place():
  named = lambda node: getattr(node, "attr", getattr(node, "id", None)) == "pmap"
  users = {module for module in MODULES if any(map(named, ast.walk(tree_of(module))))}
  users |= {module for module in MODULES if any(name.endswith(".pmap") for name in imports_of(module))}
  assert users == {"runtime.parallel"}


def test_orbax_has_one_place():
  users = {module for module in MODULES if any(name.startswith("orbax") for name in imports_of(module))}
  assert users == {"runtime.checkpoint"}


def test_grain_has_one_place():
  users = {module for module in MODULES if any(name.split(".")[0] == "grain" for name in imports_of(module))}
  assert users == {"data.ahead"}


def test_ray_has_one_place():
  users = {module for module in MODULES if any(name.split(".")[0] == "ray" for name in imports_of(module))}
  assert users == {"studies.cluster"}
