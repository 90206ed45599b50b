"""Tests of data/__init__.py."""

import subprocess
import sys

import pytest

from smskd_jax import data


def test_suggests_the_nearest_name(refuses):
  refuses(
    "cifar_10", "data.source: unknown 'cifar_10'", "did you mean 'cifar10'?", "fashion_mnist_small, digits"
  )


@pytest.mark.parametrize("source", ["", "mnist", "cifar10:x", "npz", "http://example.org"])
def test_refuses_unknown_names(source, refuses):
  refuses(source, f"data.source: unknown {source!r}", "npz:, folder:, tfds:")


@pytest.mark.parametrize("source", ["npz:", "folder:", "tfds:"])
def test_refuses_a_colon_with_nothing_behind_it(source, refuses):
  refuses(source, f"data.source: {source!r} lacks what follows the colon")


def test_table_cannot_be_changed():
  with pytest.raises(TypeError):
    data.SOURCES["mine"] = None


def test_every_source_is_in_the_docstring():
  for name in data.SOURCES:
    assert name in data.__doc__


def test_import_loads_no_heavy_library():
  heavy = "'sklearn', 'tensorflow_datasets', 'PIL', 'tensorflow'"
  code = f"import sys, smskd_jax.data; print([name for name in ({heavy},) if name in sys.modules])"
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "[]"
