"""The names that notebooks use, the examples of the README, and what an import brings along."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import smskd_jax

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
HEAVY = ("orbax", "matplotlib", "tensorflow_datasets", "tensorboardX")


def imported_by(statement):
  """The top-level packages that a fresh Python holds after a statement."""
  code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
  return set(done.stdout.split())


@pytest.mark.parametrize("name", smskd_jax.__all__)
def test_every_public_name_is_there(name):
  assert getattr(smskd_jax, name) is not None
  assert name in dir(smskd_jax)


def test_the_public_names_are_sorted_and_what_type_checkers_see():
  assert smskd_jax.__all__ == sorted(smskd_jax.__all__)
  tree = ast.parse(pathlib.Path(smskd_jax.__file__).read_text())
  (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
  imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
  for node in imports:
    for alias in node.names:
      source = __import__(node.module, fromlist=[alias.name])
      assert getattr(smskd_jax, alias.name) is getattr(source, alias.name)
  assert sorted(alias.name for node in imports for alias in node.names) == smskd_jax.__all__


def test_other_names_are_refused():
  with pytest.raises(AttributeError, match="module 'smskd_jax' has no attribute 'Stages'"):
    _ = smskd_jax.Stages


def test_there_are_examples():
  assert len(EXAMPLES) == 4


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_readme_runs(example):
  exec(compile(example, "README.md", "exec"), {})


def test_importing_the_package_brings_nothing_along():
  assert imported_by("import smskd_jax").isdisjoint({"jax", "flax", "numpy", *HEAVY})


def test_importing_the_public_names_brings_no_disk_and_no_figures_along():
  found = imported_by("from smskd_jax import *")
  assert "jax" in found and found.isdisjoint(HEAVY)


def test_importing_what_config_files_need_brings_no_disk_and_no_figures_along():
  assert imported_by("import smskd_jax.config").isdisjoint(HEAVY)


def test_the_files_that_the_documents_name_are_there():
  for document in ("README.md", "CONTRIBUTING.md", "launch/README.md"):
    text = (ROOT / document).read_text()
    names = set(re.findall(r"(?:configs|docs|launch|tests|smskd_jax)/[\w/]+\.\w+", text))
    placeholders = re.compile("NAME|FAMILY")
    missing = sorted(name for name in names if not (ROOT / name).exists() and not placeholders.search(name))
    assert not missing, f"{document} names files that do not exist: {missing}"
