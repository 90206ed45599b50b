"""Tests of training/schedule.py against formulas in NumPy."""

import numpy as np
import pytest

from smskd_jax.training import schedule
from smskd_jax.training.schedule import SCHEDULES

WARMED_UP = pytest.mark.parametrize("warmup_epochs", [0, 2, 2.5])
STEPS = np.arange(40)  # of 10 epochs of 4 steps


def rates(rate, count=40):
  return [float(rate(step)) for step in range(count)]


def expected_rates(scale, warmup_epochs):
  """0.2 times the scale of each step, after a linear rise from 0 to 0.2."""
  warmup = 4 * warmup_epochs
  return 0.2 * np.where(warmup > STEPS, STEPS / max(warmup, 1), scale)


@WARMED_UP
def test_constant(warmup_epochs):
  rate = schedule.constant(0.2, 4, 10, warmup_epochs=warmup_epochs)
  np.testing.assert_allclose(rates(rate), expected_rates(np.ones(40), warmup_epochs), rtol=1e-6)


@WARMED_UP
def test_cosine(warmup_epochs):
  rate = schedule.cosine(0.2, 4, 10, warmup_epochs=warmup_epochs)
  fraction = (STEPS - 4 * warmup_epochs) / (40 - 4 * warmup_epochs)
  expected = expected_rates((1 + np.cos(np.pi * fraction)) / 2, warmup_epochs)
  np.testing.assert_allclose(rates(rate), expected, rtol=1e-6, atol=1e-8)
  np.testing.assert_allclose([rate(40), rate(99)], 0, atol=1e-8)


@WARMED_UP
def test_multistep(warmup_epochs):
  milestones, factor = (0.5, 0.74, 0.75), 0.3  # the 5th, 7th and 8th of 10 epochs
  rate = schedule.multistep(0.2, 4, 10, milestones=milestones, factor=factor, warmup_epochs=warmup_epochs)
  drops = (STEPS[:, None] // 4 >= np.array([5, 7, 8])).sum(1)
  np.testing.assert_allclose(rates(rate), expected_rates(factor**drops, warmup_epochs), rtol=1e-5)


@WARMED_UP
@pytest.mark.parametrize("every_epochs", [1, 3, 5])
def test_step(every_epochs, warmup_epochs):
  rate = schedule.step(0.2, 4, 10, every_epochs=every_epochs, factor=0.5, warmup_epochs=warmup_epochs)
  drops = STEPS // 4 // every_epochs
  np.testing.assert_allclose(rates(rate), expected_rates(0.5**drops, warmup_epochs), rtol=1e-5)


def test_multistep_is_the_crd_recipe_at_240_epochs():
  rate = schedule.multistep(0.05, 10, 240)
  assert [float(rate(10 * epoch)) for epoch in (0, 149, 150, 180, 210, 239)] == pytest.approx(
    [0.05, 0.05, 5e-3, 5e-4, 5e-5, 5e-5]
  )
  assert float(rate(1499)) == pytest.approx(0.05), "the rate drops between epochs"


def test_milestones_scale_with_the_epochs_and_may_coincide():
  assert rates(schedule.multistep(1.0, 1, 8), 8) == pytest.approx([1, 1, 1, 1, 1, 0.1, 0.01, 0.001])
  assert rates(schedule.multistep(1.0, 1, 2), 3) == pytest.approx([1, 0.1, 0.001])


def test_milestones_within_the_warm_up_lower_the_rates_after_it():
  rate = schedule.multistep(1.0, 1, 8, milestones=(0.125, 0.25, 0.5), warmup_epochs=2)
  assert rates(rate, 6) == pytest.approx([0, 0.5, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("options", [{"milestones": ()}, {"milestones": (1.0,)}, {"factor": 1.0}])
def test_multistep_without_drops(options):
  assert rates(schedule.multistep(0.2, 4, 10, **options)) == pytest.approx([0.2] * 40)


def test_step_is_constant_within_its_epochs():
  assert rates(schedule.step(0.2, 4, 10)) == pytest.approx([0.2] * 40)
  assert rates(schedule.step(0.2, 4, 10, every_epochs=10)) == pytest.approx([0.2] * 40)


def test_a_warm_up_shorter_than_half_a_step_has_no_effect():
  assert rates(schedule.constant(0.2, 4, 10, warmup_epochs=0.1), 3) == pytest.approx([0.2] * 3)


def test_a_warm_up_may_fill_all_epochs_except_of_a_cosine():
  rate = schedule.constant(0.2, 4, 10, warmup_epochs=10)
  np.testing.assert_allclose(rates(rate), 0.2 * STEPS / 40, rtol=1e-6)
  with pytest.raises(ValueError, match="warmup_epochs: 10 leaves nothing of 10 epochs"):
    schedule.cosine(0.2, 4, 10, warmup_epochs=10)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_refuses_a_bad_warm_up(name, value):
  with pytest.raises(ValueError, match=f"warmup_epochs must be a number >= 0, got {value}"):
    SCHEDULES[name](0.1, 5, 2, warmup_epochs=value)


@pytest.mark.parametrize(
  ("name", "option", "value"),
  [
    ("multistep", "milestones", (0.5, 0.25)),
    ("multistep", "milestones", (0.0, 0.5)),
    ("multistep", "milestones", (0.5, 1.5)),
    ("multistep", "milestones", (float("nan"),)),
    ("multistep", "factor", 0.0),
    ("multistep", "factor", 1.5),
    ("multistep", "factor", float("nan")),
    ("step", "factor", 0.0),
    ("step", "every_epochs", 0),
  ],
)
def test_bad_options_are_refused(name, option, value):
  with pytest.raises(ValueError, match=f"^{option}\\b"):
    SCHEDULES[name](0.1, 5, 2, **{option: value})
