"""Tests of losses/srrl.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import srrl
from smskd_jax.losses.contract import Context
from smskd_jax.types import Head, Outputs

pytestmark = pytest.mark.usefixtures("float64")


def arrays(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def outputs(seed, *shape, k=5):
  final_map = jnp.abs(arrays(seed, *shape))
  head = Head(arrays(seed + 1, shape[-1], k), arrays(seed + 2, k))
  pooled = final_map.mean((1, 2))
  return Outputs(pooled @ head.kernel + head.bias[None], pooled, (), (), final_map, head)


def begin(method, student_outputs, teacher):
  """The MethodVariables of a pair, from shapes."""
  return method.init(jax.random.key(0), *jax.eval_shape(lambda: (student_outputs, (teacher,))), None)


def test_worked_by_hand():
  student, teacher = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [0.0, 0.0]])
  kernel = np.array([[1.0], [2.0]])
  # The embeddings differ by (1, -2), and so the classifier's answers by -3.
  np.testing.assert_allclose(srrl.loss(student, teacher, kernel), [2.5 + 9, 0])
  np.testing.assert_allclose(
    srrl.loss(student, teacher, kernel, feature_weight=2.0, logits_weight=0.0), [5, 0]
  )
  np.testing.assert_allclose(
    srrl.loss(student, teacher, kernel, feature_weight=0.0, logits_weight=2.0), [18, 0]
  )


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_in_numpy(seed):
  student_outputs, teacher = outputs(seed, 4, 3, 2, 6, k=7), outputs(seed + 10, 4, 4, 4, 8)
  method = srrl.method(feature_weight=0.5, logits_weight=3.0)
  aux = begin(method, student_outputs, teacher)
  rows, state = method.apply(*aux, student_outputs, (teacher,), Context(None))
  x = np.asarray(student_outputs.final_map) @ np.asarray(aux.params["conv"]["kernel"])[0, 0]
  mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
  adapted = np.maximum((x - mean) / np.sqrt(var + 1e-5), 0).mean((1, 2))
  answer = adapted @ teacher.head.kernel + teacher.head.bias[None]
  expected = 0.5 * np.square(adapted - teacher.embedding).mean(1) + 3 * np.square(
    answer - teacher.logits
  ).mean(1)
  np.testing.assert_allclose(rows, expected, rtol=1e-9)
  np.testing.assert_allclose(state["norm"]["mean"], 0.1 * mean.ravel(), rtol=1e-9)


def test_the_connector_and_the_student_learn():
  student_outputs, teacher = outputs(0, 4, 4, 4, 6), outputs(10, 4, 2, 2, 8)
  method = srrl.method()
  aux = begin(method, student_outputs, teacher)

  @jax.jit
  def gradients(params, final_map):
    def loss(params, final_map):
      student = student_outputs._replace(final_map=final_map)
      return method.apply(params, aux.state, student, (teacher,), Context(None))[0].mean()

    return jax.value_and_grad(loss, argnums=(0, 1))(params, final_map)

  before, (by_params, by_student) = gradients(aux.params, student_outputs.final_map)
  assert all((x != 0).any() for x in jax.tree.leaves((by_params, by_student)))
  params = jax.tree.map(lambda p, g: p - 0.01 * g, aux.params, by_params)
  assert gradients(params, student_outputs.final_map - 0.01 * by_student)[0] < before


def test_keeps_its_digits_where_the_answers_are_large():
  student, kernel = arrays(0, 4, 6).astype(np.float32), arrays(1, 6, 5).astype(np.float32)
  offset = jnp.float32(4096)  # exact to 5e-4
  teacher = student + offset + jnp.float32(0.5)
  rows = srrl.loss(student + offset, teacher, kernel)
  exact = srrl.loss(np.float64(student + offset), np.float64(teacher), np.float64(kernel))
  np.testing.assert_allclose(rows, exact, rtol=1e-6)


@pytest.mark.parametrize("who, field", [("student", "final_map"), ("teacher", "head")])
def test_refuses_networks_that_do_not_give_what_is_needed(who, field):
  whole = outputs(0, 4, 2, 2, 6)
  student_outputs, teacher = (
    whole._replace(**{field: None}) if who == name else whole for name in ("student", "teacher")
  )
  with pytest.raises(ValueError, match=f"srrl: the {who} does not give Outputs.{field}"):
    begin(srrl.method(), student_outputs, teacher)
