"""Tests of runtime/parallel.py. Eight virtual devices are there: see conftest.py."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.errors import UserError
from smskd_jax.runtime import parallel


@pytest.fixture(autouse=True)
def eight_devices():
  """JAX is started before `select` could give it fewer."""
  assert len(jax.devices()) == 8


def test_cpu_devices_by_default(monkeypatch):
  monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))

  def count(*sizes):
    return len(parallel.select_devices(sizes))

  assert count(128) == 4
  assert count(64) == 2  # no fewer than 32 images each
  assert count(32) == 1
  assert count(128, 96) == 2  # 3 would suit 96, not 128
  assert count(8) == 1


def test_a_process_that_leaves_accelerators_looks_for_none():
  code = "import jax; from smskd_jax.runtime import parallel; parallel.force_cpu(); "
  code += "print(jax.devices()[0].platform)"
  environment = os.environ | {"JAX_PLATFORMS": "cuda,tpu"}  # of which there may be none
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
  assert done.stdout == "cpu\n", done.stderr


def test_as_many_as_asked_for():
  assert len(parallel.select_devices([64], 8)) == 8
  with pytest.raises(UserError, match="--cpu_devices: 0 is too small"):
    parallel.select_devices([64], 0)
  with pytest.raises(UserError, match="--cpu_devices: 16, but JAX was started with 8"):
    parallel.select_devices([64], 16)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest():
  with pytest.raises(UserError, match="batch_size: 30 images do not divide over 8 devices; .* 24 or 32"):
    parallel.select_devices([64, 30], 8)
  with pytest.raises(UserError, match="the nearest that do: 8$"):
    parallel.check_divisible(3, 8)


def test_split_and_joined():
  devices = jax.devices()[:4]
  tree = {"x": np.arange(24).reshape(8, 3), "y": np.arange(8)}
  parts = parallel.shard(tree, devices)
  assert parts["x"].shape == (4, 2, 3) and parts["y"].shape == (4, 2)
  np.testing.assert_array_equal(parallel.unshard(jnp.asarray(parts["x"]), devices), tree["x"])


def test_a_step_over_devices_is_one_of_the_whole_batch():
  devices = jax.devices()[:4]

  def step(state, frozen, batch):
    mean = jax.lax.pmean(jnp.mean(batch), parallel.AXIS)
    return state + frozen * mean, {"mean": mean}

  state, frozen = (parallel.replicate(jnp.float32(v), devices) for v in (1, 10))
  state, metrics = parallel.compile_step(step, devices)(
    state, frozen, parallel.shard(np.arange(8.0, dtype=np.float32), devices)
  )
  assert float(state) == 36 and float(metrics["mean"]) == 3.5
  shards = [float(s.data) for s in state.addressable_shards]
  assert shards == [36] * 4


def test_the_old_state_is_given_away():
  devices = jax.devices()[:2]
  step = parallel.compile_step(lambda s, f, b: (s + 1, {}), devices)
  old = parallel.replicate(jnp.zeros(4), devices)
  step(old, parallel.replicate(jnp.zeros(()), devices), np.zeros((2, 1), np.float32))
  assert old.is_deleted()


def test_batches_of_several_shapes_and_an_xla_without_the_option(monkeypatch):
  devices = jax.devices()[:2]
  for option in (None, "xla_cpu_no_such_option"):
    if option:
      monkeypatch.setattr(parallel._StepInOrder, "_OPTIONS", {option: "X"})
    step = parallel.compile_step(lambda s, f, b: (s + jax.lax.pmean(b.sum(), parallel.AXIS), {}), devices)
    for size in (2, 4, 2):
      state, frozen = (parallel.replicate(jnp.zeros(()), devices) for _ in range(2))
      state, _ = step(state, frozen, parallel.shard(np.ones(size, np.float32), devices))
      assert float(state) == size / 2


def test_predictions_keep_their_order():
  devices = jax.devices()[:4]
  predict = parallel.compile_predict(lambda variables, x: variables * x, devices)
  out = predict(parallel.replicate(jnp.float32(2), devices), parallel.shard(np.arange(8.0), devices))
  np.testing.assert_array_equal(parallel.unshard(out, devices), 2 * np.arange(8.0))
