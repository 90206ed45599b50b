"""Tests of training/evaluate.py: outputs in batches, and reported metrics."""

import json

import numpy as np
import pytest

from smskd_jax.training import evaluate, metrics

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 6, 200)
LOGITS, OTHER = (RNG.normal(size=(200, 7)) + 2 * np.eye(7)[LABEL] for _ in range(2))


def test_extreme_logits_stay_finite():
  logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
  values = evaluate.classification_metrics(logits, np.array([0, 0]), {"teacher": logits})
  assert all(np.isfinite(v) for v in values.values())
  teacher_metrics = {
    "teacher_agreement",
    "teacher_kl",
    "teacher_regressions",
    "teacher_improvements",
    "teacher_iou",
  }
  assert set(values) == {"accuracy", "top2", "nll", "ece", "ace", "brier"} | teacher_metrics


@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_predictions_do_not_depend_on_the_padding_of_the_last_batch(count):
  image = np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2, 1)
  sizes = []

  def predict(indices):
    sizes.append(len(indices))
    return image[indices].reshape(len(indices), -1)[:, :3]

  logits = evaluate.map_in_batches(predict, count, 4)
  np.testing.assert_array_equal(logits, image.reshape(count, -1)[:, :3])
  assert set(sizes) == {4}


def test_every_value_is_that_of_its_metric():
  values = evaluate.classification_metrics(LOGITS, LABEL, {"reference": OTHER}, bins=7)
  assert values["ece"] == metrics.expected_calibration_error(LOGITS, LABEL, 7)
  assert values["ace"] == metrics.adaptive_calibration_error(LOGITS, LABEL, 7)
  assert values["brier"] == metrics.brier_score(LOGITS, LABEL)
  assert values["reference_kl"] == metrics.kl_divergence(LOGITS, OTHER)


def test_improvements_less_regressions_are_the_gain_in_accuracy():
  values = evaluate.classification_metrics(LOGITS, LABEL, {"reference": OTHER})
  gain = values["accuracy"] - metrics.top_k_accuracy(OTHER, LABEL, 1)
  assert values["reference_regressions"] > 0 and values["reference_improvements"] > 0
  assert values["reference_improvements"] - values["reference_regressions"] == pytest.approx(gain)


def test_each_role_has_its_values():
  values = evaluate.classification_metrics(LOGITS, LABEL, {"teacher": LOGITS, "reference": OTHER})
  assert values["teacher_regressions"] == values["teacher_improvements"] == 0 and values["teacher_iou"] == 1
  assert values["reference_regressions"] > 0
  both = values["accuracy"] - values["reference_improvements"]
  assert values["reference_iou"] == pytest.approx(
    both / (values["accuracy"] + values["reference_regressions"])
  )


def test_per_class_metrics_are_json_with_null_for_classes_without_examples():
  values = evaluate.per_class_metrics(LOGITS, LABEL, {"teacher": OTHER})
  assert set(values) == {"accuracy", "teacher_accuracy_delta"}
  assert json.loads(json.dumps(values, allow_nan=False)) == values
  assert [by_class[6] for by_class in values.values()] == [None, None]
  as_arrays = {name: np.array(by_class, float) for name, by_class in values.items()}
  np.testing.assert_array_equal(as_arrays["accuracy"], metrics.class_accuracy(LOGITS, LABEL))
  np.testing.assert_array_equal(
    as_arrays["teacher_accuracy_delta"], metrics.class_accuracy_delta(LOGITS, OTHER, LABEL)
  )


def test_per_class_metrics_without_others():
  assert set(evaluate.per_class_metrics(LOGITS, LABEL)) == {"accuracy"}
