"""Tests of data/__init__.py."""

import inspect
import json
import subprocess
import sys

import pytest

import runs
from smskd_jax import data
from smskd_jax.data import corruptions, views


def test_an_unknown_source_lists_the_known_ones_and_suggests_the_nearest(refuses):
  refuses(
    "cifar_10", "data.source: unknown 'cifar_10'", "did you mean 'cifar10'?", "fashion_mnist_small, digits"
  )


@pytest.mark.parametrize("source", ["", "mnist", "cifar10:x", "cifar10_jpeg", "npz", "http://example.org"])
def test_refuses_unknown_sources(source, refuses):
  refuses(source, f"data.source: unknown {source!r}", "npz:, folder:, tfds:")


@pytest.mark.parametrize("source", ["npz:", "folder:", "tfds:"])
def test_refuses_a_source_without_its_argument(source, refuses):
  refuses(source, f"data.source: {source!r} lacks what follows the colon")


def test_sources_are_read_only():
  with pytest.raises(TypeError):
    data.SOURCES["mine"] = None


def test_documentation_lists_every_source_view_corruption_and_option():
  page = (runs.ROOT / "docs" / "data.md").read_text()
  for name in data.SOURCES:
    assert name in data.__doc__ and f"`{name}" in page
  for name in (*views.VIEWS, *corruptions.CORRUPTIONS):
    assert f"`{name}`" in page
  for name in views.VIEWS:
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    for option, default in views.view_options(name)[name].items():
      assert f"`{option}={json.dumps(default) if isinstance(default, str) else default}`" in row
  for field in (*inspect.signature(data.load).parameters, "extra_tests"):
    assert f"| `{field}` |" in page


def test_import_loads_no_heavy_library():
  heavy = "'sklearn', 'tensorflow_datasets', 'PIL', 'tensorflow'"
  code = f"import sys, smskd_jax.data; print([name for name in ({heavy},) if name in sys.modules])"
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "[]"
