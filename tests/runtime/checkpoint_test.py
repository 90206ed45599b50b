"""Tests of runtime/checkpoint.py: what is saved comes back, and what is damaged does not."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.runtime import checkpoint, parallel

# Where a file is damaged, orbax drops reads that were under way, and their errors come out when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
  """So that they come out here, and not in the middle of another test."""
  yield
  gc.collect()


def state_of(step):
  tree = {"step": jnp.int32(step), "w": jnp.arange(1000.0) * step, "nested": ({"b": jnp.ones((2, 3))},)}
  return parallel.replicate(tree, jax.devices()[:2])


@pytest.fixture
def saved(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  for step in (1, 2, 3):
    checkpoints.save(step, state_of(step), {"seconds": 0.5 * step})
  checkpoints.close()
  return tmp_path


def reopened(folder):
  warnings = []
  checkpoints = checkpoint.Checkpoints(folder)
  restored = checkpoints.restore(state_of(0), warnings.append)
  steps = checkpoints.steps()
  checkpoints.close()
  return restored, steps, warnings


def assert_equal(restored, step):
  assert (restored.step, restored.metadata) == (step, {"seconds": 0.5 * step})
  jax.tree.map(np.testing.assert_array_equal, restored.state, state_of(step))
  assert restored.state["w"].sharding == state_of(0)["w"].sharding


def test_the_newest_comes_back_and_two_are_kept(saved):
  restored, steps, warnings = reopened(saved)
  assert_equal(restored, 3)
  assert sorted(steps) == [2, 3] and not warnings


def test_nothing_to_restore(tmp_path):
  assert reopened(tmp_path)[0] is None


def damage(folder, change):
  files = [f for f in folder.rglob("*") if f.is_file() and f.stat().st_size > 500]
  assert files
  for file in files:
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
  "change",
  [lambda data: data[: len(data) // 2], lambda data: data[:-40] + bytes(40), lambda data: b""],
  ids=["cut", "zeroed", "emptied"],
)
def test_a_damaged_one_falls_back_to_the_one_before(saved, change):
  damage(saved / "3", change)
  restored, steps, (warning,) = reopened(saved)
  assert_equal(restored, 2)
  assert steps == [2] and "damaged" in warning and str(saved / "3") in warning


def test_nothing_is_left_of_all_damaged(saved):
  for step in ("2", "3"):
    damage(saved / step, lambda data: b"")
  restored, steps, warnings = reopened(saved)
  assert restored is None and not steps and len(warnings) == 2


def test_a_state_of_another_shape_is_not_restored(saved):
  checkpoints, warnings = checkpoint.Checkpoints(saved), []
  other = state_of(0) | {"w": jnp.zeros(7)}
  assert checkpoints.restore(parallel.replicate(other, jax.devices()[:2]), warnings.append) is None
  checkpoints.close()


def test_digest_sees_structure_shapes_types_and_bytes():
  tree = {"a": np.zeros(4, np.float32), "b": np.ones(2)}
  others = [
    {"a": np.zeros(4, np.float32), "c": np.ones(2)},
    {"a": np.zeros((2, 2), np.float32), "b": np.ones(2)},
    {"a": np.zeros(4, np.int32), "b": np.ones(2)},
    {"a": np.array([0, 0, 0, -0.0], np.float32), "b": np.ones(2)},
  ]
  digests = {checkpoint.tree_digest(t) for t in (tree, *others)}
  assert len(digests) == 5
  assert checkpoint.tree_digest({name: leaf.copy() for name, leaf in tree.items()}) == checkpoint.tree_digest(
    tree
  )


def test_variables_alone(tmp_path):
  variables = {"params": {"fc": {"kernel": jnp.arange(6.0).reshape(2, 3)}}, "batch_stats": {"m": jnp.ones(3)}}
  checkpoint.save_variables(tmp_path / "final", {"params": {"old": jnp.zeros(1)}})
  checkpoint.save_variables(tmp_path / "final", variables)  # as a run does that died between the two
  jax.tree.map(np.testing.assert_array_equal, checkpoint.load_variables(tmp_path / "final"), variables)


def test_a_readable_checkpoint_with_other_bytes_is_damaged(saved, monkeypatch):
  monkeypatch.setattr(checkpoint, "tree_digest", lambda tree: "another digest")
  restored, steps, warnings = reopened(saved)
  assert restored is None and not steps
  assert len(warnings) == 2 and all("its bytes differ from the saved ones" in line for line in warnings)
