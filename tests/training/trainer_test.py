"""Tests of training/trainer.py: several learners in one program are those learners."""

import itertools

import jax
import numpy as np
import pytest

import networks
from smskd_jax.runtime import seed_parallel
from smskd_jax.training.stage import make_gradient_diagnostics, make_train_step
from smskd_jax.training.trainer import SeedParallelTrainer, SeedState

STAGE = networks.make_stage(("kd", 0.9), ("crd", 0.5), reference={"weight": 0.5})


def learners(count, *, own_teachers=False, dtype=np.float64):
  """(state, frozen) of each, of its own seed; the teachers are those of the first but where each has its own."""
  begun = [networks.init_stage(STAGE, seed=10 * i, dtype=dtype) for i in range(count)]
  keyed = [(state, frozen._replace(key=jax.random.key(i))) for i, (state, frozen) in enumerate(begun)]
  shared = begun[0][1].teachers
  return [(state, frozen if own_teachers else frozen._replace(teachers=shared)) for state, frozen in keyed]


def together(begun, num_devices, own_teachers=False):
  beside = [SeedState(*one, (i if own_teachers else 0,)) for i, one in enumerate(begun)]
  return SeedParallelTrainer(STAGE, jax.devices()[:num_devices], beside)


def batches(learner, steps):
  return [networks.batch_of(100 * learner + step, dtype=np.float64) for step in steps]


STEP, PROBE = jax.jit(make_train_step(STAGE)), jax.jit(make_gradient_diagnostics(STAGE))


def alone(begun, steps):
  """Each learner trained by itself: its state and its metrics, one a step."""
  for i, (state, frozen) in enumerate(begun):
    metrics = []
    for batch in batches(i, steps):
      state, of_step = STEP(state, frozen, batch)
      metrics.append(jax.device_get(of_step))
    yield state, metrics


@pytest.mark.parametrize("count, num_devices, own_teachers", [(2, 2, False), (4, 2, True)])
def test_learners_at_once_are_the_learners(float64, count, num_devices, own_teachers):
  begun = learners(count, own_teachers=own_teachers)
  expected = list(alone(begun, range(3)))
  program = together(begun, num_devices, own_teachers)
  found = [
    program.split_metrics(jax.device_get(program.train([of_step])))
    for of_step in zip(*(batches(i, range(3)) for i in range(count)), strict=True)
  ]
  for i, (state, metrics) in enumerate(expected):
    for ours, theirs in zip([of_step[i] for of_step in found], metrics, strict=True):
      assert set(ours) == set(theirs)
      for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-9, err_msg=name)
    for a, b in zip(jax.tree.leaves(program.state(i)), jax.tree.leaves(state), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
  losses = [float(metrics[-1]["loss"]) for _, metrics in expected]
  assert len(set(losses)) == count, "they are different learners"


def test_several_steps_at_once_are_these_steps(float64):
  begun = learners(2)
  program, steps = together(begun, 2), list(zip(*(batches(i, range(3)) for i in range(2)), strict=True))
  found = program.split_metrics(jax.device_get(program.train(steps)))
  for i, (state, metrics) in enumerate(alone(begun, range(3))):
    np.testing.assert_allclose(found[i]["loss"], [of_step["loss"] for of_step in metrics], rtol=1e-9)
    for a, b in zip(jax.tree.leaves(program.state(i)), jax.tree.leaves(state), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_what_pulls_on_each_is_what_pulls_on_it_alone(float64):
  begun = learners(2)
  program = together(begun, 2)
  own = [batches(i, [0])[0] for i in range(2)]
  found = program.split_metrics(jax.device_get(program.gradient_stats(own)))
  for i, (state, frozen) in enumerate(begun):
    pulls = PROBE(state, frozen, own[i])
    assert set(pulls) == set(found[i])
    for name, value in pulls.items():
      np.testing.assert_allclose(found[i][name], value, rtol=1e-9, err_msg=name)


def test_devices_say_nothing_to_each_other():
  begun = learners(2, dtype=np.float32)
  program = together(begun, 2)
  dealt = program._shard([networks.batch_of(i) for i in range(2)])
  text = program._step.lower(program._state, program._frozen, dealt).as_text()
  assert "convolution" in text
  assert not [word for word in ("all_reduce", "all_gather", "all_to_all", "permute") if word in text]


def test_shifts_have_one_learner_a_device_on_cpus():
  two = jax.devices()[:2]
  assert seed_parallel.seed_groups([7, 8, 9], two) == [[7, 8], [9]]
  assert seed_parallel.seed_groups([], two) == []


class Gpu:
  platform = "gpu"


@pytest.mark.parametrize(
  "count, num_devices, sizes", [(5, 1, [5]), (5, 2, [4, 1]), (3, 4, [3]), (9, 4, [8, 1]), (4, 4, [4])]
)
def test_shifts_have_as_many_learners_on_each_accelerator(count, num_devices, sizes):
  found = seed_parallel.seed_groups(list(range(count)), [Gpu()] * num_devices)
  assert [len(some) for some in found] == sizes
  assert list(itertools.chain(*found)) == list(range(count))
