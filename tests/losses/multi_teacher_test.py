"""Tests of losses/multi_teacher.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import contract, ctkd, fitnet, kd, mlkd, multi_teacher
from smskd_jax.losses.contract import Context
from smskd_jax.types import Batch, MethodVariables, Outputs

pytestmark = pytest.mark.usefixtures("float64")

HINT = fitnet.method(student_layer=0, teacher_layer=0)


def outputs(seed, b=8, k=5, channels=3, size=4):
  rng = np.random.default_rng(seed)
  maps = (rng.normal(size=(b, size, size, channels)),)
  return Outputs(rng.normal(size=(b, k)), rng.normal(size=(b, channels)), maps, maps)


def spec(tree):
  return jax.eval_shape(lambda: tree)


def start(method, student_outputs, teachers):
  return jax.jit(lambda key: method.init(key, spec(student_outputs), spec(teachers), None))(jax.random.key(0))


def loss_and_gradients(aux, student_outputs, teachers, axis_name=None):
  """(loss, new state) of hints from every teacher; gradients by what they learn and by the student's map."""

  def mean_loss(params, student_outputs):
    method = multi_teacher.method(HINT)
    loss, state = method.apply(
      params, aux.state, student_outputs, teachers, Context(None, jax.random.key(1), 0.0, axis_name)
    )
    return loss.mean(), (loss, state)

  (_, results), (by_params, by_learner) = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)(
    aux.params, student_outputs
  )
  return results, (by_params, by_learner.features[0])


def test_the_mean_worked_by_hand():
  losses = [np.array([1.0, 2.0]), np.array([3.0, 0.0]), np.array([5.0, 1.0])]
  np.testing.assert_allclose(multi_teacher.weighted_mean(losses), [3.0, 1.0])


def test_kd_from_several_teachers_has_the_gradient_of_kd_from_their_mean():
  student_outputs, teachers = outputs(0), (outputs(1), outputs(2), outputs(3))
  method = multi_teacher.method(kd.method(temperature=4.0))
  aux = start(method, student_outputs, teachers)
  assert aux == MethodVariables(((), (), ()), ((), (), ()))

  def total(logits):
    return method.apply(
      *aux, student_outputs._replace(logits=logits), teachers, Context(None, jax.random.key(1))
    )[0].sum()

  mean = np.mean([jax.nn.softmax(t.logits / 4.0) for t in teachers], axis=0)
  expected = 4.0 * (jax.nn.softmax(student_outputs.logits / 4.0) - mean)
  np.testing.assert_allclose(jax.jit(jax.grad(total))(student_outputs.logits), expected, atol=1e-12)


def test_multi_teacher_has_parts_of_its_own():
  student_outputs, teachers = (
    outputs(0),
    (outputs(1, channels=5), outputs(2, channels=7, size=2), outputs(3, channels=5)),
  )
  aux = start(multi_teacher.method(HINT), student_outputs, teachers)
  first, _, last = (params["conv"]["kernel"] for params in aux.params)
  assert first.shape == last.shape and not np.any(first == last)

  (loss, state), (by_params, by_map) = jax.jit(loss_and_gradients)(aux, student_outputs, teachers)
  alone = [
    jax.jit(HINT.apply)(p, s, student_outputs, (t,), Context(None))
    for p, s, t in zip(*aux, teachers, strict=True)
  ]
  np.testing.assert_allclose(loss, np.mean([row for row, _ in alone], axis=0))
  jax.tree.map(np.testing.assert_allclose, state, tuple(s for _, s in alone))
  assert jax.tree.structure(state) == jax.tree.structure(aux.state)
  assert all(np.any(x) for x in jax.tree.leaves((by_params, by_map)))


def drawing(init_student=None):
  """A method whose loss is a random number."""

  def apply(params, state, student, teachers, context):
    return (jax.random.uniform(context.key, (8,)), state)

  return contract.make(lambda *args: MethodVariables(), apply, reads=("logits",), init_student=init_student)


def test_multi_teacher_draws_with_a_key_of_its_own():
  teacher, key = outputs(1), jax.random.key(7)
  method = multi_teacher.method(drawing())
  loss, _ = method.apply(((), ()), ((), ()), outputs(0), (teacher, teacher), Context(None, key))
  draws = [jax.random.uniform(jax.random.fold_in(key, i), (8,)) for i in range(2)]
  assert not np.any(draws[0] == draws[1])
  np.testing.assert_allclose(loss, (draws[0] + draws[1]) / 2)


def test_around_another_plug_in():
  student_outputs, teachers = outputs(0), (outputs(1), outputs(2))
  method = multi_teacher.method(ctkd.method(kd.method(temperature=1.0)))
  aux = start(method, student_outputs, teachers)
  loss, _ = jax.jit(method.apply)(*aux, student_outputs, teachers, Context(None, jax.random.key(1)))
  t = ctkd.temperature(1.0)
  expected = np.mean([kd.loss(student_outputs.logits, x.logits, temperature=t) for x in teachers], axis=0)
  np.testing.assert_allclose(loss, expected)


def test_finite_at_extremes():
  student_outputs, teacher = outputs(0), outputs(1)
  extremes = [teacher._replace(logits=x) for x in (np.zeros((8, 5)), 1e4 * np.sign(teacher.logits))]
  method = multi_teacher.method(kd.method())

  @jax.jit
  def total(logits):
    return method.apply(
      ((), ()),
      ((), ()),
      student_outputs._replace(logits=logits),
      tuple(extremes),
      Context(None, jax.random.key(1)),
    )[0].sum()

  for logits in (np.zeros((8, 5)), -1e4 * np.sign(teacher.logits), jnp.ones((8, 5), jnp.bfloat16)):
    value, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(value) and np.isfinite(np.asarray(gradient, float)).all()


def test_one_device_equals_four():
  student_outputs, teachers = outputs(0), (outputs(1, channels=5), outputs(2, channels=7))
  aux = start(multi_teacher.method(HINT), student_outputs, teachers)
  (loss, state), (by_params, by_map) = jax.jit(loss_and_gradients)(aux, student_outputs, teachers)

  def on_one(aux, student_outputs, teachers):
    (loss, state), (by_params, by_map) = loss_and_gradients(aux, student_outputs, teachers, "batch")
    return loss, by_map, contract.pmean((state, by_params), "batch")

  def split(tree):
    return jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), tree)

  on_four = jax.pmap(on_one, "batch", in_axes=(None, 0, 0), devices=jax.devices()[:4])
  rows, gradient, replicas = on_four(aux, split(student_outputs), split(teachers))
  np.testing.assert_allclose(rows.reshape(8), loss, rtol=1e-10)
  np.testing.assert_allclose(gradient.reshape(by_map.shape), 4 * by_map, rtol=1e-9, atol=1e-12)

  def compare(actual, expected):
    return np.testing.assert_allclose(actual[3], expected, rtol=1e-9, atol=1e-12)

  jax.tree.map(compare, replicas, (state, by_params))


def test_adoption_needs_a_single_teacher():
  def init_student(variables, teachers):
    return teachers

  method = multi_teacher.method(drawing(init_student))
  assert method.init_student is init_student
  assert start(method, outputs(0), (outputs(1),)) == MethodVariables(((),), ((),))
  with pytest.raises(
    ValueError, match="multi_teacher: the wrapped method takes over a part of its teacher .*got 2"
  ):
    start(method, outputs(0), (outputs(1), outputs(2)))


def test_refuses_no_teacher():
  with pytest.raises(ValueError, match="multi_teacher: needs at least one teacher, got 0"):
    start(multi_teacher.method(kd.method()), outputs(0), ())


def logits_of(*probabilities):
  """Logits [b, k] of a teacher with these softmax probabilities."""
  return np.log(np.array(probabilities))


# Three examples, the last one without a label, which its teachers' answers of class 0 must not make right.
LABELS = np.array([1, 0, -1])
TEACHERS = (
  logits_of([0.2, 0.8], [0.6, 0.4], [0.9, 0.1]),  # right twice
  logits_of([0.6, 0.4], [0.9, 0.1], [0.9, 0.1]),  # once
  logits_of([0.8, 0.2], [0.4, 0.6], [0.9, 0.1]),  # never
)
BY_ACCURACY = np.array([[2 / 3], [1 / 3], [0.0]])
BY_TCP = np.array(
  [[0.8 / 1.4, 0.6 / 1.9, 1 / 3], [0.4 / 1.4, 0.9 / 1.9, 1 / 3], [0.2 / 1.4, 0.4 / 1.9, 1 / 3]]
)


def test_weights_worked_by_hand():
  np.testing.assert_allclose(multi_teacher.accuracy_weights(TEACHERS, LABELS), BY_ACCURACY)
  np.testing.assert_allclose(multi_teacher.tcp_weights(TEACHERS, LABELS), BY_TCP)
  losses = [np.array([1.0, 2.0]), np.array([3.0, 0.0])]
  np.testing.assert_allclose(multi_teacher.weighted_mean(losses, np.array([[0.75], [0.25]])), [1.5, 1.5])
  np.testing.assert_allclose(
    multi_teacher.weighted_mean(losses, np.array([[0.5, 1.0], [0.5, 0.0]])), [2.0, 2.0]
  )


@pytest.mark.parametrize("labels", [[0, 0, 0], [-1, -1, -1]])
def test_teachers_that_are_never_right_count_the_same(labels):
  wrong = (logits_of([0.2, 0.8], [0.2, 0.8], [0.2, 0.8]),) * 2
  np.testing.assert_array_equal(multi_teacher.accuracy_weights(wrong, np.array(labels)), [[0.5], [0.5]])


def test_no_probability_is_too_small_to_be_shared_out():
  # Both are zero in floating point; they differ by a factor of e.
  sure = tuple(np.array([[0.0, 1e4 + i]]) for i in range(2))
  weights = multi_teacher.tcp_weights(sure, np.array([0]))
  np.testing.assert_allclose(weights[:, 0], np.array([1, np.exp(-1)]) / (1 + np.exp(-1)))


@pytest.mark.parametrize(
  "options, weights",
  [
    ({}, np.full((3, 1), 1 / 3)),
    ({"weighting": "accuracy"}, BY_ACCURACY),
    ({"weighting": "tcp"}, BY_TCP),
    ({"weights": (1.0, 3, 0.0)}, np.array([[0.25], [0.75], [0.0]])),
  ],
)
def test_weighted_kd_in_numpy(options, weights):
  student_outputs = outputs(0, b=3, k=2)
  teachers = tuple(outputs(1, b=3, k=2)._replace(logits=logits) for logits in TEACHERS)
  method = multi_teacher.method(kd.method(temperature=4.0), **options)
  batch = Batch(None, LABELS, np.arange(3))

  def run(logits):
    return method.apply(
      *start(method, student_outputs, teachers),
      student_outputs._replace(logits=logits),
      teachers,
      Context(batch, jax.random.key(1)),
    )[0]

  losses = [kd.loss(student_outputs.logits, logits, temperature=4.0) for logits in TEACHERS]
  np.testing.assert_allclose(jax.jit(run)(student_outputs.logits), (weights * losses).sum(0))
  mixed = (weights[..., None] * [jax.nn.softmax(logits / 4.0) for logits in TEACHERS]).sum(0)
  gradient = jax.jit(jax.grad(lambda logits: run(logits).sum()))(student_outputs.logits)
  np.testing.assert_allclose(
    gradient, 4.0 * (jax.nn.softmax(student_outputs.logits / 4.0) - mixed), atol=1e-12
  )


@pytest.mark.parametrize("weighting", ["accuracy", "tcp"])
def test_weights_span_devices(weighting):
  student_outputs, teachers = outputs(0), (outputs(1), outputs(2), outputs(3))
  method = multi_teacher.method(kd.method(), weighting=weighting)
  batch = Batch(None, np.array([0, 1, 2, -1, 4, 0, -1, 1]), np.arange(8))
  right = [(t.logits.argmax(1) == batch.label).reshape(4, 2).sum(1) for t in teachers]
  assert any(len(set(counts)) > 1 for counts in right), "every device would say the same"

  def loss(student_outputs, teachers, batch, axis_name=None):
    empty = ((),) * 3
    return method.apply(
      empty, empty, student_outputs, teachers, Context(batch, jax.random.key(1), 0.0, axis_name)
    )[0]

  def split(tree):
    return jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), tree)

  on_four = jax.pmap(lambda *share: loss(*share, "batch"), "batch", devices=jax.devices()[:4])
  rows = on_four(*split((student_outputs, teachers, batch)))
  np.testing.assert_allclose(rows.reshape(8), jax.jit(loss)(student_outputs, teachers, batch), rtol=1e-10)


def test_no_gradient_flows_through_the_weights():
  """Inside ctkd what the teachers say is divided by a temperature that learns, and the weights change with it."""
  student_outputs, teachers = outputs(0), (outputs(1), outputs(2))
  batch = Batch(None, np.array([0, 1, 2, 3, 4, 0, -1, 1]), np.arange(8))

  def slope(weight_temperature, loss_temperature):
    weights = multi_teacher.tcp_weights([t.logits / weight_temperature for t in teachers], batch.label)
    losses = [
      kd.loss(student_outputs.logits / loss_temperature, t.logits / loss_temperature, temperature=1.0)
      for t in teachers
    ]
    return (loss_temperature**2 * multi_teacher.weighted_mean(losses, weights)).mean()

  method = ctkd.method(multi_teacher.method(kd.method(temperature=1.0), weighting="tcp"))
  aux = start(method, student_outputs, teachers)

  def loss(params):
    return method.apply(params, aux.state, student_outputs, teachers, Context(batch, jax.random.key(1), 1e3))[
      0
    ].mean()

  value, gradient = jax.jit(jax.value_and_grad(loss))(aux.params)
  t, by_theta = jax.value_and_grad(ctkd.temperature)(aux.params["theta"])
  expected, by_t = jax.value_and_grad(slope, argnums=1)(t, t)
  np.testing.assert_allclose(value, expected)
  np.testing.assert_allclose(gradient["theta"], -by_t * by_theta)  # reversed, as ctkd does


def test_a_method_of_all_views_is_weighted_by_the_first():
  def views(seed):
    return outputs(seed)._replace(view_outputs=(outputs(10 + seed),))

  student_outputs, teachers = views(0), (views(1), views(2))
  batch = Batch(None, np.arange(8) % 5, np.arange(8))
  wrapped = mlkd.method(temperatures=(4.0,))
  method = multi_teacher.method(wrapped, weighting="tcp")
  assert method.multi_view

  def run(method, teachers):
    return jax.jit(method.apply)(
      *start(method, student_outputs, teachers), student_outputs, teachers, Context(batch, jax.random.key(1))
    )[0]

  weights = multi_teacher.tcp_weights([t.logits for t in teachers], batch.label)
  expected = sum(w * run(wrapped, (t,)) for w, t in zip(weights, teachers, strict=True))
  np.testing.assert_allclose(run(method, teachers), expected)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"weighting": "best"}, "weighting must be one of equal, accuracy, tcp, got 'best'"),
    ({"weights": [1.0, 1.0]}, "weights must be a tuple of numbers, one a teacher, got "),
    ({"weights": (1.0, -1.0)}, "weights must be a number >= 0, got -1.0"),
    ({"weights": (1.0, float("nan"))}, "weights must be a number >= 0, got nan"),
    ({"weights": ("1",)}, "weights must be a number >= 0, got '1'"),
    ({"weights": (0.0, 0)}, "weights must not all be zero"),
    ({"weights": (1.0, 2.0), "weighting": "tcp"}, "weights and weighting='tcp' contradict each other"),
  ],
)
def test_refuses_weights(options, message):
  with pytest.raises(ValueError, match=f"multi_teacher: {message}"):
    multi_teacher.method(kd.method(), **options)


@pytest.mark.parametrize("count", [1, 3])
def test_refuses_another_number_of_weights_than_teachers(count):
  method = multi_teacher.method(kd.method(), weights=(2.0, 1.0))
  with pytest.raises(ValueError, match=f"multi_teacher: weights must be one a teacher, got 2 for {count}"):
    start(method, outputs(0), (outputs(1),) * count)


@pytest.mark.parametrize("weighting", ["accuracy", "tcp"])
def test_refuses_to_weight_teachers_of_another_task(weighting):
  method = multi_teacher.method(HINT, weighting=weighting)
  with pytest.raises(ValueError, match="multi_teacher: the student has 5 classes, the teacher 7"):
    start(method, outputs(0), (outputs(1), outputs(2, k=7)))
  start(multi_teacher.method(HINT), outputs(0), (outputs(1), outputs(2, k=7)))
