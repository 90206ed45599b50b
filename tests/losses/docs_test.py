"""Tests of the methods' documentation and of `python -m smskd_jax.losses`."""

import inspect
import pathlib
import re
import subprocess
import sys

import pytest

from smskd_jax.losses import FAMILIES, METHODS, PLUGINS
from smskd_jax.losses import __main__ as docs

ROOT = pathlib.Path(__file__).parents[2]
NAMES = [*METHODS, *PLUGINS]


def test_every_method_is_in_one_family():
  assert sorted(name for names in FAMILIES.values() for name in names) == sorted(METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_documentation_is_complete(name):
  doc = docs.describe(name)
  assert doc.title.endswith(".") and "\n" not in doc.title
  assert '"' in doc.paper and "https://" in doc.paper
  assert doc.cite.split()[-1].isdigit(), doc.cite
  assert doc.formula and doc.reads
  assert "Difference" in doc.notes or "No difference" in doc.notes
  factory = METHODS.get(name, PLUGINS.get(name))
  assert set(doc.defaults) <= set(inspect.signature(factory).parameters)


def test_the_page_is_up_to_date():
  page = (ROOT / "docs" / "methods.md").read_text()
  assert page == docs.format_markdown(), "run: python -m smskd_jax.losses --markdown > docs/methods.md"


def test_the_teacher_cache_is_for_methods_that_read_logits_and_embeddings():
  caches = {doc.name: doc.teacher_cache for doc in docs.describe_all()}
  assert [caches[name] for name in ("kd", "rkd", "ofa", "fitnet", "tfkd")] == ["yes", "yes", "yes", "no", "-"]


def test_other_collections_have_names_of_methods():
  """In the column of the methods that are here."""
  rows = re.findall(r"^\|([^|]*)\|([^|]*)\|([^|]*)\|$", docs.PEERS_PATH.read_text(), re.MULTILINE)[2:]
  assert len(rows) >= 8
  for collection, here, _ in rows:
    names = re.findall(r"`(\w+)`", here)
    assert names and set(names) <= {*NAMES}, collection


def test_the_list_has_a_line_for_each(capsys):
  assert docs.main([]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines[1:]] == [doc.name for doc in docs.describe_all()]
  assert len(lines) == 1 + len(NAMES)


def test_one_is_explained_with_its_formula():
  done = subprocess.run(
    [sys.executable, "-W", "ignore", "-m", "smskd_jax.losses", "rkd"],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0
  for words in ("Park, Kim, Lu, Cho", "L_i = w_d mean_j", "distance_weight=25.0", "family: relation"):
    assert words in done.stdout


def test_several_names_are_explained_one_after_another(capsys):
  assert docs.main(["kd", "fitnet"]) == 0
  kd, fitnet = (docs.format_method(docs.describe(name)) for name in ("kd", "fitnet"))
  assert capsys.readouterr().out == f"{kd}\n\n{fitnet}\n"
