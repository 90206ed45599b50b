"""Tests of losses/logit_standardization.py."""

import functools

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import fitnet, kd, logit_standardization, mlkd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")

standardize = jax.jit(logit_standardization.standardize, static_argnames=("ddof", "eps"))
KD = kd.method(temperature=2.0)
MLKD = mlkd.method(temperatures=(2.0,))


def outputs(seed, b=8, k=5):
  rng = np.random.default_rng(seed)
  maps = (rng.normal(size=(b, 4, 4, 3)),)
  return Outputs(2 * rng.normal(size=(b, k)) + 1, rng.normal(size=(b, 3)), maps, maps)


def spec(tree):
  return jax.eval_shape(lambda: tree)


@functools.partial(jax.jit, static_argnums=0, static_argnames="axis_name")
def run(wrapped, student_outputs, *teachers, axis_name=None):
  """(loss, new state) of the method in the plug-in."""
  method = logit_standardization.method(wrapped)
  aux = method.init(jax.random.key(0), spec(student_outputs), spec(teachers), None)
  return method.apply(*aux, student_outputs, teachers, Context(None, jax.random.key(1), 0.5, axis_name))


def z_score(x):
  return (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-7)


def test_worked_by_hand():
  logits = np.array([[1.0, 2.0, 3.0], [40.0, 20.0, 0.0]])
  scores = np.array([[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]])
  np.testing.assert_allclose(standardize(logits, eps=0.0), scores, atol=1e-12)
  np.testing.assert_allclose(standardize(logits, ddof=0, eps=0.0), np.sqrt(1.5) * scores, atol=1e-12)
  np.testing.assert_allclose(standardize(logits[:1], eps=1.0), 0.5 * scores[:1], atol=1e-12)


def test_gradient():
  check_grads(standardize, (outputs(0).logits,), order=1, modes=("rev",), rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 7.3, -1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_logits_have_no_scores_and_no_gradient(value, dtype):
  logits = np.full((2, 7), value, dtype)
  assert not np.any(standardize(logits))
  assert not np.any(jax.jit(jax.grad(lambda x: standardize(x)[:, 0].sum()))(logits))


def test_the_wrapped_method_sees_the_scores():
  student_outputs, teacher = outputs(0), outputs(1)
  loss, _ = run(KD, student_outputs, teacher)
  expected = kd.loss(z_score(student_outputs.logits), z_score(teacher.logits), temperature=2.0)
  np.testing.assert_allclose(loss, expected)


@pytest.mark.parametrize("move", [lambda x: 3 * x, lambda x: 0.1 * x, lambda x: x + 5])
def test_ignores_scale_and_offset_of_either_network(move):
  student_outputs, teacher = outputs(0), outputs(1)

  def moved(x):
    return x._replace(logits=move(x.logits))

  loss, _ = run(KD, student_outputs, teacher)
  np.testing.assert_allclose(run(KD, moved(student_outputs), teacher)[0], loss, rtol=1e-5)
  np.testing.assert_allclose(run(KD, student_outputs, moved(teacher))[0], loss, rtol=1e-5)


def test_what_is_learned_and_remembered_is_the_wrapped_methods():
  student_outputs, teacher = outputs(0), outputs(1)
  wrapped = fitnet.method(student_layer=0, teacher_layer=0)
  aux = jax.jit(lambda key: wrapped.init(key, spec(student_outputs), (spec(teacher),), None))(
    jax.random.key(0)
  )
  expected = jax.jit(wrapped.apply)(*aux, student_outputs, (teacher,), Context(None, jax.random.key(1), 0.5))
  jax.tree.map(np.testing.assert_allclose, run(wrapped, student_outputs, teacher), expected)


def test_adoption_is_the_wrapped_methods():
  def init_student(variables, teachers):
    return variables

  assert logit_standardization.method(KD._replace(init_student=init_student)).init_student is init_student
  assert logit_standardization.method(KD).init_student is None


@jax.jit
def value_and_gradient(student, teacher):
  def wrapped_loss(s):
    return run(KD, outputs(0, 2, 3)._replace(logits=s), outputs(1, 2, 3)._replace(logits=teacher))

  return jax.value_and_grad(lambda s: wrapped_loss(s)[0].mean())(student)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_finite_at_extremes(dtype):
  usual = outputs(0, 2, 3).logits
  for logits in (np.zeros((2, 3)), np.full((2, 3), 0.1), np.array([[1e4, -1e4, 0.0]] * 2)):
    for pair in ((logits, usual), (usual, logits), (logits, -logits)):
      value, gradient = value_and_gradient(*(jnp.asarray(x, dtype) for x in pair))
      assert value.dtype == jnp.float32
      assert np.isfinite(value) and np.isfinite(np.asarray(gradient, float)).all()


def test_one_device_equals_four():
  networks = outputs(0), outputs(1)
  split = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), networks)
  on_four = jax.pmap(lambda x: run(MLKD, *x, axis_name="batch")[0], "batch", devices=jax.devices()[:4])
  np.testing.assert_allclose(on_four(split).reshape(8), run(MLKD, *networks)[0], rtol=1e-10)


def test_refuses_fewer_classes_than_the_deviation_needs():
  network = Outputs(jax.ShapeDtypeStruct((4, 1), float), None, (), ())
  with pytest.raises(ValueError, match="logit_standardization: the standard deviation of 1 classes is not"):
    logit_standardization.method(KD).init(jax.random.key(0), network, (network,), None)
