"""Tests of losses/every_teacher.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import ctkd, every_teacher, fitnet, kd
from smskd_jax.losses import method as _method
from smskd_jax.state import Aux, Outputs

pytestmark = pytest.mark.usefixtures("float64")

HINT = fitnet.method(student_tap=0, teacher_tap=0)


def outputs(seed, b=8, k=5, channels=3, size=4):
  rng = np.random.default_rng(seed)
  maps = (rng.normal(size=(b, size, size, channels)),)
  return Outputs(rng.normal(size=(b, k)), rng.normal(size=(b, channels)), maps, maps)


def spec(tree):
  return jax.eval_shape(lambda: tree)


def start(method, learner, teachers):
  return jax.jit(lambda key: method.init(key, spec(learner), spec(teachers), None))(jax.random.key(0))


def loss_and_gradients(aux, learner, teachers, axis_name=None):
  """(loss, new state) of hints from every teacher; gradients by what they learn and by the student's map."""

  def mean_loss(params, learner):
    method = every_teacher.method(HINT)
    loss, state = method.apply(params, aux.state, learner, teachers, None, jax.random.key(1), 0.0, axis_name)
    return loss.mean(), (loss, state)

  (_, results), (by_params, by_learner) = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)(
    aux.params, learner
  )
  return results, (by_params, by_learner.features[0])


def test_the_mean_worked_by_hand():
  losses = [np.array([1.0, 2.0]), np.array([3.0, 0.0]), np.array([5.0, 1.0])]
  np.testing.assert_allclose(every_teacher.mean(losses), [3.0, 1.0])


def test_kd_from_several_teachers_has_the_gradient_of_kd_from_their_mean():
  learner, teachers = outputs(0), (outputs(1), outputs(2), outputs(3))
  method = every_teacher.method(kd.method(temperature=4.0))
  aux = start(method, learner, teachers)
  assert aux == Aux(((), (), ()), ((), (), ()))

  def total(logits):
    return method.apply(*aux, learner._replace(logits=logits), teachers, None, jax.random.key(1), 0.0)[
      0
    ].sum()

  mean = np.mean([jax.nn.softmax(t.logits / 4.0) for t in teachers], axis=0)
  expected = 4.0 * (jax.nn.softmax(learner.logits / 4.0) - mean)
  np.testing.assert_allclose(jax.jit(jax.grad(total))(learner.logits), expected, atol=1e-12)


def test_every_teacher_has_parts_of_its_own():
  learner, teachers = (
    outputs(0),
    (outputs(1, channels=5), outputs(2, channels=7, size=2), outputs(3, channels=5)),
  )
  aux = start(every_teacher.method(HINT), learner, teachers)
  first, _, last = (params["conv"]["kernel"] for params in aux.params)
  assert first.shape == last.shape and not np.any(first == last)

  (loss, state), (by_params, by_map) = jax.jit(loss_and_gradients)(aux, learner, teachers)
  alone = [
    jax.jit(HINT.apply)(p, s, learner, (t,), None, None, 0.0) for p, s, t in zip(*aux, teachers, strict=True)
  ]
  np.testing.assert_allclose(loss, np.mean([row for row, _ in alone], axis=0))
  jax.tree.map(np.testing.assert_allclose, state, tuple(s for _, s in alone))
  assert jax.tree.structure(state) == jax.tree.structure(aux.state)
  assert all(np.any(x) for x in jax.tree.leaves((by_params, by_map)))


def drawing(adopt=None):
  """A method whose loss is a random number."""
  apply = lambda params, state, learner, teachers, batch, key, epoch, axis_name: (
    jax.random.uniform(key, (8,)),
    state,
  )
  return _method.make(lambda *args: Aux(), apply, adopt)


def test_every_teacher_draws_with_a_key_of_its_own():
  teacher, key = outputs(1), jax.random.key(7)
  method = every_teacher.method(drawing())
  loss, _ = method.apply(((), ()), ((), ()), outputs(0), (teacher, teacher), None, key, 0.0)
  draws = [jax.random.uniform(jax.random.fold_in(key, i), (8,)) for i in range(2)]
  assert not np.any(draws[0] == draws[1])
  np.testing.assert_allclose(loss, (draws[0] + draws[1]) / 2)


def test_around_another_plug_in():
  learner, teachers = outputs(0), (outputs(1), outputs(2))
  method = every_teacher.method(ctkd.method(kd.method(temperature=1.0)))
  aux = start(method, learner, teachers)
  loss, _ = jax.jit(method.apply)(*aux, learner, teachers, None, jax.random.key(1), 0.0)
  t = ctkd.temperature(1.0)
  expected = np.mean([kd.loss(learner.logits, x.logits, temperature=t) for x in teachers], axis=0)
  np.testing.assert_allclose(loss, expected)


def test_finite_at_extremes():
  learner, teacher = outputs(0), outputs(1)
  extremes = [teacher._replace(logits=x) for x in (np.zeros((8, 5)), 1e4 * np.sign(teacher.logits))]
  method = every_teacher.method(kd.method())

  @jax.jit
  def total(logits):
    return method.apply(
      ((), ()), ((), ()), learner._replace(logits=logits), tuple(extremes), None, jax.random.key(1), 0
    )[0].sum()

  for logits in (np.zeros((8, 5)), -1e4 * np.sign(teacher.logits), jnp.ones((8, 5), jnp.bfloat16)):
    value, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(value) and np.isfinite(np.asarray(gradient, float)).all()


def test_one_device_equals_four():
  learner, teachers = outputs(0), (outputs(1, channels=5), outputs(2, channels=7))
  aux = start(every_teacher.method(HINT), learner, teachers)
  (loss, state), (by_params, by_map) = jax.jit(loss_and_gradients)(aux, learner, teachers)

  def on_one(aux, learner, teachers):
    (loss, state), (by_params, by_map) = loss_and_gradients(aux, learner, teachers, "batch")
    return loss, by_map, _method.mean((state, by_params), "batch")

  split = lambda tree: jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), tree)
  on_four = jax.pmap(on_one, "batch", in_axes=(None, 0, 0), devices=jax.devices()[:4])
  rows, gradient, replicas = on_four(aux, split(learner), split(teachers))
  np.testing.assert_allclose(rows.reshape(8), loss, rtol=1e-10)
  np.testing.assert_allclose(gradient.reshape(by_map.shape), 4 * by_map, rtol=1e-9, atol=1e-12)
  compare = lambda actual, expected: np.testing.assert_allclose(actual[3], expected, rtol=1e-9, atol=1e-12)
  jax.tree.map(compare, replicas, (state, by_params))


def test_adoption_needs_a_single_teacher():
  adopt = lambda variables, teachers: teachers
  method = every_teacher.method(drawing(adopt))
  assert method.adopt is adopt
  assert start(method, outputs(0), (outputs(1),)) == Aux(((),), ((),))
  with pytest.raises(
    ValueError, match="every_teacher: the wrapped method takes over a part of its teacher .*got 2"
  ):
    start(method, outputs(0), (outputs(1), outputs(2)))


def test_refuses_no_teacher():
  with pytest.raises(ValueError, match="every_teacher: needs at least one teacher, got 0"):
    start(every_teacher.method(kd.method()), outputs(0), ())
