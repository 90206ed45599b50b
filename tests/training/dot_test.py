"""Tests of training/dot.py, and of the step that gives it both gradients."""

import jax
import numpy as np
import optax
import pytest

import networks
from smskd_jax.training import optimizer
from smskd_jax.training.stage import Stage, make_train_step, student_variables


def test_three_steps_in_numpy(float64):
  rng = np.random.default_rng(0)
  params, rate, mu, delta, decay = {"w": rng.normal(size=3)}, 0.1, 0.9, 0.075, 5e-4
  transformation = optimizer.dot(rate, momentum=mu, delta=delta, weight_decay=decay)
  state, expected = transformation.init(params), params["w"].copy()
  v_task = v_distill = np.zeros(3)
  for _ in range(3):
    task, distill = rng.normal(size=(2, 3))
    updates, state = transformation.update({"w": task}, state, params, distill={"w": distill})
    params = optax.apply_updates(params, updates)
    v_task = (mu - delta) * v_task + task + decay * expected
    v_distill = (mu + delta) * v_distill + distill
    expected = expected - rate * (v_task + v_distill)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-12)


@pytest.mark.parametrize("missing", ["task", "distill"])
def test_a_parameter_of_one_gradient_is_trained_by_sgd(missing, float64):
  rng = np.random.default_rng(1)
  params = of_sgd = {"w": rng.normal(size=3)}
  dot, sgd = optimizer.dot(0.1), optimizer.sgd(0.1)
  state, sgd_state = dot.init(params), sgd.init(of_sgd)
  for _ in range(3):
    gradient = {"w": rng.normal(size=3)}
    given = {"task": gradient, "distill": gradient} | {missing: {"w": np.zeros(3)}}
    updates, state = dot.update(given["task"], state, params, distill=given["distill"])
    params = optax.apply_updates(params, updates)
    updates, sgd_state = sgd.update(gradient, sgd_state, of_sgd)
    of_sgd = optax.apply_updates(of_sgd, updates)
    np.testing.assert_allclose(params["w"], of_sgd["w"], rtol=1e-12)


def test_without_a_difference_it_is_sgd_on_the_sum(float64):
  """A whole stage: with delta = 0 both momenta add up to the one of SGD."""
  stage = networks.make_stage(("kd", 0.9), ("fitnet", 2.0), learning_rate=0.1)
  of_dot = stage._replace(optimizer=optimizer.dot(0.1, delta=0.0), separate_distill_gradient=True)

  def trained(stage: Stage):
    state, frozen = networks.init_stage(stage, dtype=np.float64)
    step = jax.jit(make_train_step(stage))
    for i in range(3):
      state, metrics = step(state, frozen, networks.batch_of(i, dtype=np.float64))
    return student_variables(state), metrics

  ours, theirs = trained(of_dot), trained(stage)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, theirs)


@pytest.mark.parametrize(
  "options", [{"delta": 0.1}, {"delta": -0.1}, {"delta": 0.95}, {"weight_decay": -1.0}]
)
def test_refuses(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    optimizer.dot(0.1, **options)
