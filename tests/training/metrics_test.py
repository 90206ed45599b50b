"""Tests of training/metrics.py, against values by hand and scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics

from smskd_jax.training import metrics

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.45, 0.35, 0.2], [0.25, 0.6, 0.15]])
LOGITS = np.log(P).astype(np.float32) + 5  # shifted, which changes no metric
LABEL = np.array([0, 1, 1, 1])


def test_top_k():
  assert metrics.top_k_accuracy(LOGITS, LABEL, 1) == 0.5
  assert metrics.top_k_accuracy(LOGITS, LABEL, 2) == 1.0


def test_among_equal_logits_the_first_class_is_predicted():
  assert metrics.top_k_accuracy(np.zeros((1, 3)), np.array([0]), 1) == 1.0
  assert metrics.top_k_accuracy(np.zeros((1, 3)), np.array([1]), 1) == 0.0


def test_negative_log_likelihood():
  expected = -np.log([0.7, 0.3, 0.35, 0.6]).mean()
  assert metrics.negative_log_likelihood(LOGITS, LABEL) == pytest.approx(expected, rel=1e-5)


def test_expected_calibration_error():
  """Bins of 0.5: 0.45, wrong, in (0, 0.5]; 0.7 and 0.6, right, and 0.6, wrong, in (0.5, 1]."""
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
  ensemble = metrics.ensemble_logits([LOGITS, np.log(other) - 3])
  np.testing.assert_allclose(np.exp(ensemble), (P + other) / 2, rtol=1e-5)
  assert metrics.ensemble_logits([LOGITS]) is LOGITS


def random_logits(n=600, k=5, seed=0):
  """Logits [n, k] and correlated labels [n]; class k - 2 is rare and k - 1 has no example."""
  rng = np.random.default_rng(seed)
  label = np.minimum(rng.integers(0, 8 * k, n) // 8, k - 2)
  label[label == k - 2] *= rng.integers(0, 2, np.sum(label == k - 2))
  return 2 * rng.normal(size=(n, k)) + 2 * np.eye(k)[label], label


def test_adaptive_calibration_error_by_hand():
  """Two ranges of two examples for each class, ranked by the class's probability."""
  class_0 = abs(0.1 + 0.25 - 0) + abs(0.45 + 0.7 - 1)
  class_1 = abs(0.2 + 0.3 - 1) + abs(0.35 + 0.6 - 2)
  class_2 = (0.1 + 0.15) + (0.2 + 0.6)
  expected = (class_0 + class_1 + class_2) / (4 * 3)
  assert metrics.adaptive_calibration_error(LOGITS, LABEL, bins=2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_adaptive_calibration_error_is_the_papers_mean_over_classes_and_ranges(bins):
  logits, label = random_logits(n=60 * bins)
  gaps = []
  for c in range(5):
    order = np.argsort(np.exp(metrics.log_softmax(logits))[:, c])
    for piece in np.split(order, bins):
      accuracy, confidence = (
        np.mean(label[piece] == c),
        np.mean(np.exp(metrics.log_softmax(logits))[piece, c]),
      )
      gaps.append(abs(accuracy - confidence))
  assert metrics.adaptive_calibration_error(logits, label, bins) == pytest.approx(np.mean(gaps), rel=1e-9)


def test_ranges_of_unequal_size_count_by_size():
  """Five examples of two classes in ranges of two and of three; class 1 mirrors class 0."""
  p = np.array([0.1, 0.3, 0.6, 0.7, 0.9])
  logits = np.log(np.stack([p, 1 - p], axis=1))
  label = np.array([1, 1, 0, 0, 1])
  class_0 = abs(0.1 + 0.3 - 0) + abs(0.6 + 0.7 + 0.9 - 2)
  class_1 = abs(0.1 + 0.3 - 1) + abs(0.4 + 0.7 + 0.9 - 2)
  expected = (class_0 + class_1) / (5 * 2)
  assert metrics.adaptive_calibration_error(logits, label, bins=2) == pytest.approx(expected)


def test_with_more_ranges_than_examples_each_example_is_a_range():
  expected = np.abs(P - np.eye(3)[LABEL]).mean()
  assert metrics.adaptive_calibration_error(LOGITS, LABEL, bins=100) == pytest.approx(expected, abs=1e-6)
  assert metrics.adaptive_calibration_error(LOGITS[:1], LABEL[:1]) == pytest.approx(0.2, abs=1e-6)


def test_a_network_that_predicts_the_class_frequencies_is_calibrated():
  """All probabilities are equal, and cuts must not depend on the order of the labels."""
  label = np.repeat([0, 1, 2], [50, 30, 20])
  logits = np.broadcast_to(np.log([0.5, 0.3, 0.2]), (100, 3))
  assert metrics.adaptive_calibration_error(logits, label) == pytest.approx(0, abs=1e-12)
  assert metrics.adaptive_calibration_error(logits[:, ::-1], label) == pytest.approx(0.2)


def test_calibration_does_not_depend_on_the_order_of_examples():
  logits, label = random_logits()
  logits = np.round(logits)  # many equal probabilities
  order = np.random.default_rng(1).permutation(len(label))
  expected = metrics.adaptive_calibration_error(logits, label)
  assert metrics.adaptive_calibration_error(logits[order], label[order]) == pytest.approx(expected, rel=1e-9)


def test_labels_sampled_from_the_probabilities_are_calibrated_and_sharper_probabilities_are_not():
  rng = np.random.default_rng(0)
  logits = 2 * rng.normal(size=(20000, 4))
  p = np.exp(metrics.log_softmax(logits))
  label = np.sum(rng.random((20000, 1)) > np.cumsum(p, axis=1), axis=1)
  assert metrics.adaptive_calibration_error(logits, label) < 0.012
  assert metrics.adaptive_calibration_error(3 * logits, label) > 0.05


def test_no_ranges_are_refused():
  with pytest.raises(ValueError, match="at least 1"):
    metrics.adaptive_calibration_error(LOGITS, LABEL, bins=0)


def test_brier_score_by_hand():
  expected = np.mean([0.3**2 + 0.2**2 + 0.1**2, 0.1**2 + 0.7**2 + 0.6**2, 0.45**2 + 0.65**2 + 0.2**2, 0.245])
  assert metrics.brier_score(LOGITS, LABEL) == pytest.approx(expected, abs=1e-6)


def test_brier_score_is_scikit_learns_summed_over_classes():
  logits, label = random_logits()
  p = np.exp(metrics.log_softmax(logits))
  one_class = [sklearn.metrics.brier_score_loss(label == c, p[:, c]) for c in range(4)]
  expected = sum(one_class) + np.mean(np.square(p[:, 4]))  # scikit-learn refuses a class without examples
  assert metrics.brier_score(logits, label) == pytest.approx(expected, rel=1e-9)


def test_brier_score_is_zero_at_best_and_two_at_worst():
  assert metrics.brier_score(np.array([[1e4, 0.0]]), np.array([0])) == 0
  assert metrics.brier_score(np.array([[1e4, 0.0]]), np.array([1])) == 2


def test_class_accuracy_is_scikit_learns_recall():
  logits, label = random_logits()
  expected = sklearn.metrics.recall_score(
    label, np.argmax(logits, -1), average=None, labels=range(5), zero_division=np.nan
  )
  accuracy = metrics.class_accuracy(logits, label)
  np.testing.assert_allclose(accuracy, expected)
  assert np.isnan(accuracy[4]) and np.isfinite(accuracy[:4]).all()
  weighted = np.nansum(accuracy * np.bincount(label, minlength=5)) / len(label)
  assert weighted == pytest.approx(metrics.top_k_accuracy(logits, label, 1))


def test_class_accuracy_delta_by_hand():
  other = LOGITS[:, [1, 0, 2]]  # correct for example 2 alone, of class 1
  np.testing.assert_array_equal(metrics.class_accuracy(LOGITS, LABEL), [1, 1 / 3, np.nan])
  np.testing.assert_array_equal(metrics.class_accuracy_delta(LOGITS, other, LABEL), [1, 0, np.nan])
  np.testing.assert_array_equal(metrics.class_accuracy_delta(LOGITS, LOGITS, LABEL), [0, 0, np.nan])


def test_overlap_by_hand():
  other = LOGITS[:, [1, 0, 2]]  # correct for example 2 alone; LOGITS are for 0 and 3
  assert metrics.overlap(LOGITS, other, LABEL) == metrics.Overlap(kept=0, forgotten=1, gained=2)
  assert metrics.overlap(other, LOGITS, LABEL) == metrics.Overlap(kept=0, forgotten=2, gained=1)
  assert metrics.overlap(LOGITS, LOGITS, LABEL) == metrics.Overlap(kept=2, forgotten=0, gained=0)


def test_overlap_is_scikit_learns_confusion_matrix_and_jaccard_score():
  (logits, label), (noise, _) = random_logits(), random_logits(seed=1)
  other = logits + noise
  correct, other_correct = (np.argmax(x, -1) == label for x in (logits, other))
  table = sklearn.metrics.confusion_matrix(other_correct, correct)
  overlap = metrics.overlap(logits, other, label)
  assert overlap == (table[1, 1], table[1, 0], table[0, 1]) and min(overlap) > 0
  assert overlap.iou == pytest.approx(sklearn.metrics.jaccard_score(other_correct, correct))


def test_counts_of_an_overlap_add_up_to_both_accuracies_with_ties_too():
  (logits, label), (noise, _) = random_logits(), random_logits(seed=1)
  logits, other = np.round(logits), np.round(logits + noise)
  assert np.any(np.sum(logits == logits.max(-1, keepdims=True), axis=-1) > 1)
  kept, forgotten, gained = metrics.overlap(logits, other, label)
  assert kept + gained == round(len(label) * metrics.top_k_accuracy(logits, label, 1))
  assert kept + forgotten == round(len(label) * metrics.top_k_accuracy(other, label, 1))


@pytest.mark.parametrize(
  "counts, iou", [((0, 0, 0), 1.0), ((0, 3, 0), 0.0), ((0, 0, 3), 0.0), ((5, 0, 0), 1.0), ((2, 1, 5), 0.25)]
)
def test_iou_by_hand_of_empty_sets_too(counts, iou):
  assert metrics.Overlap(*counts).iou == iou


@pytest.mark.parametrize("function", [metrics.class_accuracy, lambda x, y: metrics.overlap(x, x, y)])
def test_labels_of_another_shape_are_refused(function):
  with pytest.raises(ValueError, match="need labels of shape"):
    function(LOGITS, LABEL[:, None])
  with pytest.raises(ValueError, match="need labels of shape"):
    function(LOGITS, LABEL[:1])


def test_logits_of_other_examples_are_refused():
  with pytest.raises(ValueError, match="need labels of shape"):
    metrics.overlap(LOGITS, LOGITS[:1], LABEL)
