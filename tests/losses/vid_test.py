"""Tests of losses/vid.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import vid
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def maps(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def outputs(*features):
  return Outputs(None, None, (None, *features), (None, *features))


STUDENT = outputs(maps(0, 3, 4, 4, 3), maps(1, 3, 2, 2, 4))
TEACHER = outputs(maps(2, 3, 2, 2, 5), maps(3, 3, 4, 2, 6))


def start(**hparams):
  method = vid.method(**hparams)
  return method, method.init(jax.random.key(0), STUDENT, (TEACHER,), None)


def run(method, params, student=STUDENT):
  return jax.jit(method.apply)(params, {}, student, (TEACHER,), Context(None))[0]


def test_worked_by_hand():
  # Variances 4 and 1; squared differences 4 and 9.
  log_scale = np.log(np.expm1(np.array([4.0, 1.0]) - 1e-5))
  mean, teacher = np.zeros((1, 1, 1, 2)), np.array([2.0, 3.0]).reshape(1, 1, 1, 2)
  expected = 0.5 * np.mean([4 / 4 + np.log(4), 9 / 1 + np.log(1)])
  np.testing.assert_allclose(vid.loss(mean, teacher, log_scale), [expected])


def test_the_best_variance_is_the_mean_squared_error():
  mean, teacher = maps(0, 4, 3, 3, 2), maps(1, 4, 3, 3, 2)
  errors = np.square(mean - teacher).mean((0, 1, 2))
  gradient = jax.jit(jax.grad(lambda a: vid.loss(mean, teacher, a).mean()))
  np.testing.assert_allclose(gradient(np.log(np.expm1(errors - 1e-5))), 0, atol=1e-12)
  assert (gradient(np.log(np.expm1(0.9 * errors))) < 0).all()
  assert (gradient(np.log(np.expm1(1.1 * errors))) > 0).all()


def test_method_in_numpy():
  method, aux = start(init_variance=3.0)

  # The student's first map is averaged from 4x4, the teacher's second from 4x2, both to 2x2.
  def halves(x, axis):
    return np.asarray(x).reshape(*x.shape[:axis], 2, 2, *x.shape[axis + 1 :]).mean(axis + 1)

  students = halves(halves(STUDENT.features[1], 1), 2), np.asarray(STUDENT.features[2])
  teachers = np.asarray(TEACHER.features[1]), halves(TEACHER.features[2], 1)
  expected = 0
  for i, (x, t) in enumerate(zip(students, teachers, strict=True)):
    kernels = [np.asarray(aux.params[f"tap{i}"][f"conv{j}"]["kernel"])[0, 0] for j in range(3)]
    assert [k.shape[1] for k in kernels] == [t.shape[-1]] * 3
    mean = np.maximum(np.maximum(x @ kernels[0], 0) @ kernels[1], 0) @ kernels[2]
    expected = expected + 0.5 * ((mean - t) ** 2 / 3 + np.log(3)).mean((1, 2, 3))
  np.testing.assert_allclose(run(method, aux.params), expected)


@pytest.mark.parametrize("variance", [1e-4, 5.0, 1e4])
def test_the_variance_starts_where_asked(variance):
  _, aux = start(init_variance=variance)
  np.testing.assert_allclose(jax.nn.softplus(aux.params["tap0"]["log_scale"]) + 1e-5, variance, rtol=1e-6)


def test_a_variance_that_is_not_trained_is_no_parameter():
  method, aux = start()
  fixed, fixed_aux = start(train_variance=False)
  assert "log_scale" not in fixed_aux.params["tap0"]
  np.testing.assert_allclose(run(fixed, fixed_aux.params), run(method, aux.params), rtol=1e-6)


def test_regressors_variances_and_the_student_learn():
  method, aux = start()

  @jax.jit
  def gradients(params, x):
    def loss(params, x):
      return run(method, params, outputs(x, STUDENT.features[2])).mean()

    return jax.grad(loss, argnums=(0, 1))(params, x)

  assert all((x != 0).any() for x in jax.tree.leaves(gradients(aux.params, STUDENT.features[1])))
