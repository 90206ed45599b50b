"""Tests of analysis/fidelity.py against numbers computed by hand."""

import numpy as np
import pytest

from smskd_jax.analysis import fidelity
from smskd_jax.training import metrics


def test_correlations_of_planted_logits():
  a = np.array([1.0, 2.0, 3.0, 4.0])
  b = np.array([1.0, -1.0, -1.0, 1.0])  # uncorrelated with a
  student = np.stack([a, -2 * a + 7, b], axis=1).astype(np.float32)
  teacher = np.stack([a, a, a + b], axis=1).astype(np.float32)
  own, other = fidelity.correlation(student), fidelity.correlation(teacher)
  np.testing.assert_allclose(own, [[1, -1, 0], [-1, 1, 0], [0, 0, 1]], atol=1e-12)
  r = np.sqrt(5 / 9)  # of a and a + b: the variance of a is 5/4, that of b is 1
  np.testing.assert_allclose(other, [[1, 1, r], [1, 1, r], [r, r, 1]], atol=1e-12)
  np.testing.assert_allclose(fidelity.mean_correlation_gap(own, other), (2 + 2 * r) / 3)
  assert fidelity.mean_correlation_gap(own, own) == 0


def test_correlations_are_numpys_and_do_not_overflow():
  logits = 1e6 + np.random.default_rng(0).normal(size=(50, 100))
  np.testing.assert_allclose(fidelity.correlation(logits), np.corrcoef(logits.T), atol=1e-6)


def test_a_logit_that_never_changes_has_no_correlation():
  logits = np.array([[0.1, 1.0, 2.0], [0.1, 2.0, 1.0], [0.1, 4.0, 0.0]], np.float32)
  found = fidelity.correlation(logits)
  assert np.isnan(found[0]).all() and np.isnan(found[:, 0]).all()
  np.testing.assert_allclose(found[1, 1], 1)
  full = np.zeros((3, 3))
  np.testing.assert_allclose(fidelity.mean_correlation_gap(found, full), abs(found[1, 2]))
  assert np.isnan(fidelity.mean_correlation_gap(np.full((2, 2), np.nan), np.eye(2)))


def test_reliability_by_hand():
  confidence = np.array([0.55, 0.65, 0.75, 0.95])
  logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
  of = fidelity.calibration(logits, np.array([0, 1, 0, 0]), 5)
  nan = np.nan
  np.testing.assert_array_equal(of.images, [0, 0, 1, 2, 1])
  np.testing.assert_allclose(of.confidence, [nan, nan, 0.55, 0.7, 0.95])
  np.testing.assert_allclose(of.accuracy, [nan, nan, 1, 0.5, 1])
  np.testing.assert_allclose(of.ece, (0.45 + 2 * 0.2 + 0.05) / 4)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_bins_are_those_of_the_calibration_error(bins):
  random = np.random.default_rng(0)
  logits, label = random.normal(size=(500, 7)) * 3, random.integers(0, 7, 500)
  of = fidelity.calibration(logits, label, bins)
  assert of.ece == metrics.expected_calibration_error(logits, label, bins)
  gap = np.nan_to_num(np.abs(of.accuracy - of.confidence))
  np.testing.assert_allclose(np.sum(gap * of.images) / 500, of.ece)


def test_a_bin_holds_its_upper_end():
  logits = np.array([[0.0, 0.0], [50.0, 0.0], [0.1, 0.0]])
  confidence, index = metrics.confidence_bins(logits, 2)
  np.testing.assert_allclose(confidence, [0.5, 1, 1 / (1 + np.exp(-0.1))])
  assert index.tolist() == [0, 1, 1]


def test_principal_components_by_hand():
  # Along (3, 4) / 5 with variance 25 times that across it; a shift changes nothing.
  along, across = np.array([3.0, 4.0]) / 5, np.array([-4.0, 3.0]) / 5
  of = np.array([[10.0, 1], [10, -1], [-10, 1], [-10, -1]])
  of[:, 1] *= 2
  found = fidelity.pca((of @ np.stack([along, across]) + 100).astype(np.float32))
  np.testing.assert_allclose(found.explained_variance, [100 / 104, 4 / 104], rtol=1e-5)
  np.testing.assert_allclose(found.points, of * [[1, -1]], atol=1e-4)  # the largest loading is positive


def test_principal_components_are_those_of_the_svd():
  x = np.random.default_rng(0).normal(size=(60, 8)) * np.arange(1, 9)
  found = fidelity.pca(x)
  left, values, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
  np.testing.assert_allclose(found.explained_variance, np.square(values[:2]) / np.sum(np.square(values)))
  np.testing.assert_allclose(np.abs(found.points), np.abs(left[:, :2] * values[:2]))


@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("embed", fidelity.EMBEDDINGS.values(), ids=fidelity.EMBEDDINGS)
def test_projections_of_few_images_or_dimensions(embed, shape):
  assert embed(np.ones(shape, np.float32)).points.tolist() == [[0, 0]] * shape[0]
  random = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  assert embed(random).points.shape == (shape[0], 2)
  assert np.isfinite(embed(random).points).all()


def test_tsne_is_deterministic_and_separates_groups():
  label = np.repeat([0, 1], 12)
  x = (np.random.default_rng(0).normal(size=(24, 5)) + 20 * label[:, None]).astype(np.float32)
  found = fidelity.tsne(x)
  assert found.explained_variance is None
  np.testing.assert_array_equal(found.points, fidelity.tsne(x).points)
  distance = np.linalg.norm(found.points[:, None] - found.points[None], axis=-1)
  np.fill_diagonal(distance, np.inf)
  assert (label[distance.argmin(axis=1)] == label).all()


def test_signs_of_axes_are_aligned():
  first = fidelity.Embedding2D(np.array([[1.0, 2.0], [-1.0, -2.0]]))
  other = fidelity.Embedding2D(np.array([[-3.0, 1.0], [3.0, -1.0]]), np.array([0.6, 0.4]))
  found = fidelity.align_signs(other, first)
  np.testing.assert_array_equal(found.points, [[3, 1], [-3, -1]])
  np.testing.assert_array_equal(found.explained_variance, other.explained_variance)


def test_the_classes_that_changed_most():
  change = np.array([0.1, -0.3, 0.0, np.nan, 0.2, -0.1, 0.05])
  assert fidelity.most_changed(change, 2).tolist() == [4, 0, 5, 1]
  assert fidelity.most_changed(change, 9).tolist() == [4, 0, 6, 5, 1]
  assert fidelity.most_changed(np.zeros(3), 2).tolist() == []
