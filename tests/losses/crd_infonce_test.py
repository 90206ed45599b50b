"""Tests of losses/crd_infonce.py."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import crd_infonce
from smskd_jax.losses.contract import Context
from smskd_jax.types import Batch, Outputs

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(crd_infonce.loss, static_argnames=("same_class_negatives", "axis_name"))


def embeddings(seed, b=6, d=4):
  x = np.random.default_rng(seed).normal(size=(b, d))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def in_numpy(student, teacher, labels, temperature, same_class_negatives):
  rows = np.zeros(len(labels))
  for anchors, others in ((student, teacher), (teacher, student)):
    for i, anchor in enumerate(anchors):
      terms = np.exp(others @ anchor / temperature)
      negatives = [
        j for j in range(len(labels)) if j != i and (same_class_negatives or labels[j] != labels[i])
      ]
      rows[i] -= np.log(terms[i] / (terms[i] + terms[negatives].sum()))
  return rows


def test_worked_by_hand():
  # Scores: 1 on the diagonal, 0 beside it; the third example is of the first one's class, and equals it.
  x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
  labels = np.array([4, 7, 4])
  one, two = np.log(1 + np.exp(-2)), np.log(1 + 2 * np.exp(-2))
  np.testing.assert_allclose(loss(x, x, labels, temperature=0.5), 2 * np.array([one, two, one]))
  with_same_class = 2 * np.array([np.log(2 + np.exp(-2)), two, np.log(2 + np.exp(-2))])
  np.testing.assert_allclose(loss(x, x, labels, temperature=0.5, same_class_negatives=True), with_same_class)


@pytest.mark.parametrize("same_class_negatives", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_numpy(seed, same_class_negatives):
  labels = np.random.default_rng(seed).integers(0, 3, 6)
  inputs = (embeddings(seed), embeddings(seed + 10), labels)
  rows = loss(*inputs, temperature=0.3, same_class_negatives=same_class_negatives)
  np.testing.assert_allclose(rows, in_numpy(*inputs, 0.3, same_class_negatives))
  check_grads(lambda s, t: loss(s, t, labels, temperature=0.3), inputs[:2], order=1, modes=("rev",))


@pytest.mark.parametrize("b, labels, same_class", [(1, [3], True), (4, [3, 3, 3, 3], False)])
def test_zero_without_negatives(b, labels, same_class):
  def mean_loss(student, teacher):
    rows = loss(student, teacher, np.array(labels), same_class_negatives=same_class)
    assert rows.shape == (b,)
    return rows.mean()

  value, gradients = jax.value_and_grad(mean_loss, argnums=(0, 1))(embeddings(0, b), embeddings(1, b))
  assert value == 0 and not any(x.any() for x in gradients)


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_finite_and_never_negative_in_float32(temperature):
  student, teacher = (jnp.asarray(embeddings(seed), jnp.float32) for seed in (0, 1))

  def summed(s, t):
    return loss(s, t, jnp.arange(6), temperature=temperature).sum()

  for t in (student, -student, teacher):
    value, gradient = jax.value_and_grad(summed)(student, t)
    assert value >= 0 and np.isfinite(value) and np.isfinite(gradient).all()


def test_the_method_in_numpy_and_that_its_embeddings_learn():
  rng = np.random.default_rng(0)
  student, teacher, labels = rng.normal(size=(6, 7)), rng.normal(size=(6, 9)), np.array([0, 1, 2, 0, 1, 2])
  student_outputs, teachers = Outputs(None, student, (), ()), (Outputs(None, teacher, (), ()),)
  method = crd_infonce.method(dimension=5, temperature=0.3)
  aux = method.init(jax.random.key(0), *jax.eval_shape(lambda: (student_outputs, teachers)), None)
  assert not jax.tree.leaves(aux.state)

  @jax.jit
  def gradient(params):
    def mean_loss(params):
      rows, _ = method.apply(params, aux.state, student_outputs, teachers, Context(Batch(None, labels, None)))
      return rows.mean(), rows

    return jax.value_and_grad(mean_loss, has_aux=True)(params)

  (_, rows), first = gradient(aux.params)
  embedded = [
    x @ np.asarray(aux.params[who]["kernel"]) + np.asarray(aux.params[who]["bias"])
    for who, x in (("student", student), ("teacher", teacher))
  ]
  embedded = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in embedded]
  np.testing.assert_allclose(rows, in_numpy(*embedded, labels, 0.3, False))
  assert all(x.any() for x in jax.tree.leaves(first))
  params = aux.params
  for _ in range(100):
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params)[1])
  assert gradient(params)[0][0] < 0.5 * rows.mean()
