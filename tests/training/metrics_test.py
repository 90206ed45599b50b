"""Tests of training/metrics.py and evaluate.py, by hand."""

import numpy as np
import pytest

from smskd_jax.training import evaluate, metrics

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.45, 0.35, 0.2], [0.25, 0.6, 0.15]])
LOGITS = np.log(P).astype(np.float32) + 5  # a shift says nothing
LABEL = np.array([0, 1, 1, 1])


def test_top_k():
  assert metrics.top_k_accuracy(LOGITS, LABEL, 1) == 0.5
  assert metrics.top_k_accuracy(LOGITS, LABEL, 2) == 1.0


def test_of_equal_logits_the_first_class_counts():
  assert metrics.top_k_accuracy(np.zeros((1, 3)), np.array([0]), 1) == 1.0
  assert metrics.top_k_accuracy(np.zeros((1, 3)), np.array([1]), 1) == 0.0


def test_negative_log_likelihood():
  expected = -np.log([0.7, 0.3, 0.35, 0.6]).mean()
  assert metrics.negative_log_likelihood(LOGITS, LABEL) == pytest.approx(expected, rel=1e-5)


def test_expected_calibration_error():
  """Bins of 0.5: (0, 0.5] holds 0.45, wrong; (0.5, 1] holds 0.7 and 0.6, right, and 0.6, wrong."""
  expected = (0.45 + abs(0.7 + 0.6 + 0.6 - 2)) / 4
  assert metrics.expected_calibration_error(LOGITS, LABEL, bins=2) == pytest.approx(expected, abs=1e-5)


def test_agreement_and_divergence():
  assert metrics.agreement(LOGITS, LOGITS[[0, 1, 1, 3]]) == 0.75
  assert metrics.kl_divergence(LOGITS, LOGITS) == pytest.approx(0, abs=1e-7)
  other = np.roll(P, 1, axis=1)
  expected = (other * np.log(other / P)).sum(-1).mean()
  assert metrics.kl_divergence(LOGITS, np.log(other)) == pytest.approx(expected, rel=1e-5)


def test_an_ensemble_is_the_mean_of_probabilities():
  other = np.roll(P, 1, axis=0)
  ensemble = metrics.ensemble([LOGITS, np.log(other) - 3])
  np.testing.assert_allclose(np.exp(ensemble), (P + other) / 2, rtol=1e-5)
  assert metrics.ensemble([LOGITS]) is LOGITS


def test_extreme_logits_stay_finite():
  logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
  values = evaluate.evaluate(logits, np.array([0, 0]), {"teacher": logits})
  assert all(np.isfinite(v) for v in values.values())
  assert set(values) == {"accuracy", "top2", "nll", "ece", "teacher_agreement", "teacher_kl"}


@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_predictions_do_not_depend_on_the_padding_of_the_last_batch(count):
  image = np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2, 1)
  sizes = []

  def predict(batch):
    sizes.append(len(batch))
    return batch.reshape(len(batch), -1)[:, :3]

  logits = evaluate.logits_of(predict, image, 4)
  np.testing.assert_array_equal(logits, image.reshape(count, -1)[:, :3])
  assert set(sizes) == {4}
