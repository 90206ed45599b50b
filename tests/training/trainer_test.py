"""Tests of the trainers of training/loop.py: several seeds in one program."""

import itertools

import jax
import numpy as np
import pytest

import networks
from smskd_jax.runtime import seed_parallel
from smskd_jax.training.loop import SeedParallelTrainer, SeedState
from smskd_jax.training.train_step import make_gradient_diagnostics, make_train_step

STAGE = networks.make_stage(("kd", 0.9), ("crd", 0.5), reference={"weight": 0.5})
STEP, DIAGNOSTICS = jax.jit(make_train_step(STAGE)), jax.jit(make_gradient_diagnostics(STAGE))


def init_seeds(count, *, own_teachers=False, dtype=np.float64):
  """(state, frozen) of each seed; all have the first seed's teachers unless each has its own."""
  seeds = []
  for i in range(count):
    state, frozen = networks.init_stage(STAGE, seed=10 * i, dtype=dtype)
    seeds.append((state, frozen._replace(key=jax.random.key(i))))
  teachers = seeds[0][1].teachers
  return [(state, frozen if own_teachers else frozen._replace(teachers=teachers)) for state, frozen in seeds]


def make_trainer(seeds, num_devices, own_teachers=False):
  states = [SeedState(*seed, (i if own_teachers else 0,)) for i, seed in enumerate(seeds)]
  return SeedParallelTrainer(STAGE, jax.devices()[:num_devices], states)


def batches_of(seed_index, steps):
  return [networks.batch_of(100 * seed_index + step, dtype=np.float64) for step in steps]


def train_alone(seeds, steps):
  """(state, metrics of each step) of each seed."""
  for i, (state, frozen) in enumerate(seeds):
    metrics = []
    for batch in batches_of(i, steps):
      state, step_metrics = STEP(state, frozen, batch)
      metrics.append(jax.device_get(step_metrics))
    yield state, metrics


def assert_states_near(ours, theirs):
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
  "count, num_devices, own_teachers", [(2, 2, False), pytest.param(4, 2, True, marks=pytest.mark.slow)]
)
def test_seeds_in_one_program_train_as_each_alone(float64, count, num_devices, own_teachers):
  seeds = init_seeds(count, own_teachers=own_teachers)
  expected = list(train_alone(seeds, range(3)))
  trainer = make_trainer(seeds, num_devices, own_teachers)
  by_step = [
    trainer.split_metrics(jax.device_get(trainer.train([batches])))
    for batches in zip(*(batches_of(i, range(3)) for i in range(count)), strict=True)
  ]
  for i, (state, metrics) in enumerate(expected):
    for ours, theirs in zip([seeds[i] for seeds in by_step], metrics, strict=True):
      assert set(ours) == set(theirs)
      for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-9, err_msg=name)
    assert_states_near(trainer.state(i), state)
  losses = [float(metrics[-1]["loss"]) for _, metrics in expected]
  assert len(set(losses)) == count, "the seeds must differ"


def test_several_steps_in_one_call_equal_single_steps(float64):
  seeds = init_seeds(2)
  trainer = make_trainer(seeds, 2)
  steps = list(zip(*(batches_of(i, range(3)) for i in range(2)), strict=True))
  by_seed = trainer.split_metrics(jax.device_get(trainer.train(steps)))
  for i, (state, metrics) in enumerate(train_alone(seeds, range(3))):
    np.testing.assert_allclose(by_seed[i]["loss"], [step["loss"] for step in metrics], rtol=1e-9)
    assert_states_near(trainer.state(i), state)


def test_gradient_diagnostics_of_several_seeds_are_those_of_each_alone(float64):
  seeds = init_seeds(2)
  trainer, batches = make_trainer(seeds, 2), [batches_of(i, [0])[0] for i in range(2)]
  by_seed = trainer.split_metrics(jax.device_get(trainer.gradient_stats(batches)))
  for i, (state, frozen) in enumerate(seeds):
    expected = DIAGNOSTICS(state, frozen, batches[i])
    assert set(expected) == set(by_seed[i])
    for name, value in expected.items():
      np.testing.assert_allclose(by_seed[i][name], value, rtol=1e-9, err_msg=name)


def test_devices_with_a_seed_each_do_not_communicate():
  trainer = make_trainer(init_seeds(2, dtype=np.float32), 2)
  batches = trainer._shard([networks.batch_of(i) for i in range(2)])
  text = trainer._step.lower(trainer._state, trainer._frozen, batches).as_text()
  assert "convolution" in text
  assert not [word for word in ("all_reduce", "all_gather", "all_to_all", "permute") if word in text]


def test_cpu_devices_train_one_seed_each():
  two = jax.devices()[:2]
  assert seed_parallel.seed_groups([7, 8, 9], two) == [[7, 8], [9]]
  assert seed_parallel.seed_groups([], two) == []


class Gpu:
  platform = "gpu"


@pytest.mark.parametrize(
  "count, num_devices, sizes", [(5, 1, [5]), (5, 2, [4, 1]), (3, 4, [3]), (9, 4, [8, 1]), (4, 4, [4])]
)
def test_accelerators_train_equally_many_seeds_each(count, num_devices, sizes):
  groups = seed_parallel.seed_groups(list(range(count)), [Gpu()] * num_devices)
  assert [len(group) for group in groups] == sizes
  assert list(itertools.chain(*groups)) == list(range(count))
