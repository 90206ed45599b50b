"""Tests of losses/reduction.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import contract, nd
from smskd_jax.losses.reduction import Reduction, for_each_teacher, join, map_teachers, reduce_outputs
from smskd_jax.types import Outputs

LABELS = np.array([2, 0, 1, 0, 2, 2], np.int32)


def outputs(seed, b=6, k=3, d=4):
  rng = np.random.default_rng(seed)
  return Outputs(rng.normal(size=(b, k)), rng.normal(size=(b, d)), (), ())


def sum_of_logits(accumulate=True):
  """The sum of the first teacher's logits over all images, [k]; without `accumulate`, that of the last batch."""

  def init(teachers, labels):
    del labels
    return np.zeros(teachers[0].logits.shape[1])

  def update(accumulator, teachers, labels):
    del labels
    return accumulator * accumulate + teachers[0].logits.sum(0)

  return Reduction(frozenset({"logits"}), init, update, lambda x: x)


def in_batches(reduction, teachers, size):
  """The statistics, in batches of a size; a smaller one last."""
  accumulator = reduction.init(jax.eval_shape(lambda: teachers), LABELS)
  for start in range(0, len(LABELS), size):
    batch = jax.tree.map(lambda x, start=start: x[start : start + size], teachers)
    accumulator = reduction.update(accumulator, batch, LABELS[start : start + size])
  return reduction.finish(accumulator)


@pytest.mark.parametrize("size", [1, 4, 6])
def test_batches_of_any_size_give_the_same(size):
  teachers = (outputs(0),)
  sums, means = in_batches(join([sum_of_logits(), nd.CLASS_MEANS]), teachers, size)
  np.testing.assert_allclose(sums, teachers[0].logits.sum(0), rtol=1e-6)
  expected = [teachers[0].embedding[label == LABELS].mean(0) for label in range(3)]
  np.testing.assert_allclose(means, expected, rtol=1e-5)


def test_joined_reductions_are_those_alone():
  teachers = (outputs(0),)
  joined = join([None, nd.CLASS_MEANS, sum_of_logits()])
  assert joined.reads == {"embedding", "logits"}
  nothing, means, sums = reduce_outputs(joined, teachers, LABELS)
  assert nothing == ()
  np.testing.assert_array_equal(means, reduce_outputs(nd.CLASS_MEANS, teachers, LABELS))
  np.testing.assert_array_equal(sums, reduce_outputs(sum_of_logits(), teachers, LABELS))
  assert join([None]).reads == frozenset() and reduce_outputs(join([None]), teachers, LABELS) == ((),)
  assert reduce_outputs(None, teachers, LABELS) == ()


def test_each_teacher_has_statistics_of_its_own():
  teachers = outputs(0), outputs(1, d=7)
  statistics = reduce_outputs(for_each_teacher(nd.CLASS_MEANS), teachers, LABELS)
  for teacher, means in zip(teachers, statistics, strict=True):
    np.testing.assert_array_equal(means, reduce_outputs(nd.CLASS_MEANS, (teacher,), LABELS))


def test_transformed_outputs_are_reduced():
  def double(teachers):
    return contract.transform_logits(lambda logits: 2 * logits, teachers)

  teachers = (outputs(0),)
  sums = reduce_outputs(map_teachers(sum_of_logits(), double), teachers, LABELS)
  np.testing.assert_allclose(sums, 2 * teachers[0].logits.sum(0))
