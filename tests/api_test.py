"""Public names, the examples and names in documents, and the packages that an import loads."""

import ast
import importlib
import json
import pathlib
import re
import subprocess
import sys

import pytest

import smskd_jax
from smskd_jax import main
from smskd_jax.config import schema

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md"]
DOCUMENTS += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {name: (ROOT / name).read_text() for name in DOCUMENTS}
PROGRAMS = ("main", "study", "report", "compare", "evaluate", "export", "import_torch", "store", "losses")
# Python blocks of these run as they stand.
EXAMPLES = [
  (name, example)
  for name in ("README.md", "CONTRIBUTING.md", "docs/architecture.md")
  for example in re.findall(r"^```python\n(.*?)^```", TEXTS[name], re.MULTILINE | re.DOTALL)
]
HEAVY = ("orbax", "matplotlib", "tensorflow_datasets", "tensorboardX")


def imported_by(statement):
  """The top-level packages that a fresh Python holds after a statement."""
  code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
  return set(done.stdout.split())


def command_lines(text):
  """Commands in the code blocks of a document, one line each."""
  blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
  return "\n".join(blocks).replace("\\\n", " ").splitlines()


@pytest.fixture
def flags_of(capsys):
  """Function from a program to the set of its flags."""

  def flags(program):
    module = importlib.import_module(f"smskd_jax.{program}" + (".__main__" if program == "losses" else ""))
    try:
      module.main(["--help"])
    except SystemExit as stop:
      assert not stop.code
    return set(re.findall(r"--(\w+)", capsys.readouterr().out))

  return flags


@pytest.fixture
def config_file(tmp_path):
  """The README's config as a file."""
  (example,) = (text for name, text in EXAMPLES if name == "README.md" and "get_config" in text)
  path = tmp_path / "my_config.py"
  path.write_text(example)
  return path


@pytest.mark.parametrize("name", smskd_jax.__all__)
def test_every_public_name_exists(name):
  assert getattr(smskd_jax, name) is not None
  assert name in dir(smskd_jax)


def test_public_names_are_sorted_and_equal_those_of_type_checkers():
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


def test_documents_have_examples():
  assert [name for name, _ in EXAMPLES] == ["README.md"] * 3 + ["CONTRIBUTING.md", "docs/architecture.md"]


@pytest.mark.parametrize("document, example", EXAMPLES)
def test_examples_of_the_documents_run(document, example):
  exec(compile(example, document, "exec"), {})


def test_the_config_of_the_readme_can_be_planned(config_file, tmp_path, capsys):
  assert main.main([f"--config={config_file}", f"--workdir={tmp_path / 'run'}", "--dry_run"]) == 0
  assert "student_kd" in capsys.readouterr().out


@pytest.mark.slow
def test_the_config_of_the_readme_trains(config_file, tmp_path):
  assert main.main([f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]) == 0
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  accuracy = [stage["metrics"]["last"]["test/accuracy"] for stage in result["stages"]]
  assert len(accuracy) == 3 and min(accuracy) > 0.6


def test_importing_the_package_imports_no_array_library():
  assert imported_by("import smskd_jax").isdisjoint({"jax", "flax", "numpy", *HEAVY})


def test_importing_the_public_names_imports_no_heavy_package():
  found = imported_by("from smskd_jax import *")
  assert "jax" in found and found.isdisjoint(HEAVY)


def test_importing_the_names_of_config_files_imports_no_heavy_package():
  assert imported_by("import smskd_jax.config").isdisjoint(HEAVY)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_files_in_documents_exist(document):
  names = set(
    re.findall(r"(?:benchmarks|configs|docs|launch|notebooks|tests|smskd_jax)/[\w/]+\.\w+", TEXTS[document])
  )
  names = {name for name in names if not re.search("NAME|FAMILY", name)}
  missing = sorted(name for name in names if not (ROOT / name).exists())
  assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_to_a_heading(document):
  text = re.sub(r"^```.*?^```|`[^`]*`", "", TEXTS[document], flags=re.MULTILINE | re.DOTALL)
  for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
    target = ((ROOT / document).parent / path if path else ROOT / document).resolve()
    assert target.exists(), path
    if anchor:
      headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
      slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
      assert anchor in slugs, f"{path}#{anchor}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_flags_in_commands_of_documents_exist(program, flags_of):
  known = flags_of(program) | {"config"}
  for document, text in TEXTS.items():
    for line in command_lines(text):
      _, found, arguments = line.partition(f"python -m smskd_jax.{program} ")
      if found:
        unknown = set(re.findall(r"(?<!\S)--(\w+)", arguments.partition(" #")[0])) - known
        assert not unknown, f"{document}: {line}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_config_fields_on_command_lines_of_documents_exist(document):
  sections = (schema.EXPERIMENT, schema.STAGE, schema.METHOD, schema.NETWORK)
  known = {name for section in sections for name in section}
  known |= {
    name for section in sections for field in section.values() if isinstance(field, dict) for name in field
  }
  known |= {"crop_flip", "num_views", "FIELD", "PATH", "student", "teacher", "alone"}
  for field in re.findall(r"--config\.([\w.\[\]]+)", TEXTS[document]):
    unknown = set(re.findall(r"[A-Za-z_]+", field)) - known
    assert not unknown, field
