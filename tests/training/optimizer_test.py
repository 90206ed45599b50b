"""Tests of training/optimizer.py: schedules by hand, and steps against PyTorch's published update rules."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smskd_jax.training import optimizer


def rates(schedule, count):
  return [float(schedule(step)) for step in range(count)]


def test_constant_and_its_warm_up():
  assert rates(optimizer.constant(0.1, 10, 2), 3) == pytest.approx([0.1] * 3)
  warmed = optimizer.constant(0.1, 4, 2, warmup_epochs=1.0)
  assert rates(warmed, 6) == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1])


def test_cosine_ends_at_zero():
  schedule = optimizer.cosine(0.2, 5, 4)
  steps = np.arange(21)
  np.testing.assert_allclose(
    rates(schedule, 21), 0.1 * (1 + np.cos(np.pi * steps / 20)), rtol=1e-6, atol=1e-8
  )
  warmed = optimizer.cosine(0.2, 5, 4, warmup_epochs=2)
  assert warmed(10) == pytest.approx(0.2) and warmed(20) == pytest.approx(0, abs=1e-8)


def test_multistep_is_the_crd_recipe_at_240_epochs():
  schedule = optimizer.multistep(0.05, 10, 240)
  at_epoch = lambda epoch: float(schedule(10 * epoch))
  assert [at_epoch(e) for e in (0, 149, 150, 180, 210, 239)] == pytest.approx(
    [0.05, 0.05, 5e-3, 5e-4, 5e-5, 5e-5]
  )


def test_milestones_scale_with_the_stage_and_may_coincide():
  assert rates(optimizer.multistep(1.0, 1, 8), 8) == pytest.approx([1, 1, 1, 1, 1, 0.1, 0.01, 0.001])
  assert rates(optimizer.multistep(1.0, 1, 2), 3) == pytest.approx([1, 0.1, 0.001])


def test_milestones_count_from_the_start_of_the_stage():
  schedule = optimizer.multistep(1.0, 1, 4, milestones=(0.5,), warmup_epochs=1)
  assert rates(schedule, 4) == pytest.approx([0, 1, 0.1, 0.1])


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_pytorch(nesterov):
  """torch.optim.SGD: g += decay p; v = momentum v + g; p -= rate (g + momentum v if nesterov else v)."""
  transform = optimizer.sgd(optax.constant_schedule(0.1), momentum=0.9, nesterov=nesterov, weight_decay=0.01)
  params, state = jnp.array([1.0, -2.0]), None
  expected, velocity = np.array([1.0, -2.0]), np.zeros(2)
  for gradient in ([0.5, 0.1], [-0.2, 0.3], [0.4, 0.0]):
    state = transform.init(params) if state is None else state
    updates, state = transform.update(jnp.array(gradient), state, params)
    params = optax.apply_updates(params, updates)
    g = np.array(gradient) + 0.01 * expected
    velocity = 0.9 * velocity + g
    expected = expected - 0.1 * (g + 0.9 * velocity if nesterov else velocity)
  np.testing.assert_allclose(params, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: optimizer.sgd(0.1, momentum=1.0), r"momentum: 1.0 is not in \[0, 1\)"),
    (lambda: optimizer.sgd(0.1, weight_decay=-1.0), "weight_decay: -1.0"),
    (lambda: optimizer.adamw(0.1, b2=1.0), "b2: 1.0"),
    (lambda: optimizer.cosine(0.1, 5, 2, warmup_epochs=2), "warmup_epochs: 2 leaves nothing of 2 epochs"),
    (lambda: optimizer.multistep(0.1, 5, 2, milestones=(0.5, 0.25)), "milestones"),
    (lambda: optimizer.multistep(0.1, 5, 2, factor=0.0), "factor: 0.0"),
    (lambda: optimizer.constant(0.1, 5, 2, warmup_epochs=-1.0), "warmup_epochs: -1.0"),
  ],
)
def test_bad_settings(make, message):
  with pytest.raises(ValueError, match=message):
    make()
