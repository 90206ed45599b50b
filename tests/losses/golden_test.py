"""The losses against public implementations: value and every gradient, in float64."""

import importlib
import json

import golden
import jax
import numpy as np
import pytest

from smskd_jax.losses import METHODS

CASES = golden.params((case["file"], case) for case in golden.index("losses").get("cases", []))


def collect(arrays, prefix):
  """{name: array, or tuple of the arrays name.0, name.1, ...} of the keys that start with the prefix."""
  found = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
  names = dict.fromkeys(key.partition(".")[0] for key in found)
  count = lambda name: sum(key.startswith(f"{name}.") for key in found)
  return {
    name: found[name] if name in found else tuple(found[f"{name}.{i}"] for i in range(count(name)))
    for name in names
  }


@pytest.mark.parametrize("case", CASES)
def test_equals_public_implementation(case):
  if case["method"] not in METHODS:
    pytest.skip(f"{case['method']} is not in METHODS")
  arrays = golden.load("losses", case["file"])
  hparams = json.loads(str(arrays["hparams"]))
  inputs, gradients = collect(arrays, "in."), collect(arrays, "grad.")
  fixed = {name: value for name, value in inputs.items() if name not in gradients}
  loss = importlib.import_module(f"smskd_jax.losses.{case['method']}").loss

  def mean_loss(differentiated):
    return loss(**differentiated, **fixed, **hparams).mean()

  with jax.enable_x64(True):
    value, gradient = jax.jit(jax.value_and_grad(mean_loss))({name: inputs[name] for name in gradients})
    value, gradient = jax.tree.map(np.asarray, (value, gradient))
  np.testing.assert_allclose(value, arrays["loss"], rtol=1e-6)
  assert jax.tree.structure(gradient) == jax.tree.structure(gradients)
  for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradients), strict=True):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())
