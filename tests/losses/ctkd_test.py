"""Tests of losses/ctkd.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import contract, ctkd, fitnet, kd, mlkd
from smskd_jax.losses.contract import Context
from smskd_jax.types import MethodVariables, Outputs

pytestmark = pytest.mark.usefixtures("float64")

KD = kd.method(temperature=1.0)
CTKD = ctkd.method(KD)


def outputs(seed, b=8, k=5):
  rng = np.random.default_rng(seed)
  maps = (rng.normal(size=(b, 4, 4, 3)),)
  return Outputs(3 * rng.normal(size=(b, k)), rng.normal(size=(b, 3)), maps, maps)


def start(method, student_outputs, *teachers):
  specs = jax.eval_shape(lambda: (student_outputs, teachers))
  return jax.jit(lambda key: method.init(key, *specs, None))(jax.random.key(0))


def loss_and_gradients(method, aux, student_outputs, teachers, epoch=0.0, axis_name=None):
  """The loss [b]; gradients of its mean by what the plug-in learns and by the student's logits."""

  def mean_loss(params, logits):
    context = Context(None, jax.random.key(1), epoch, axis_name)
    loss, _ = method.apply(params, aux.state, student_outputs._replace(logits=logits), teachers, context)
    return loss.mean(), loss

  gradient_of = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)
  (_, loss), gradients = gradient_of(aux.params, student_outputs.logits)
  return loss, gradients


jitted = jax.jit(loss_and_gradients, static_argnums=0, static_argnames="axis_name")


def test_temperature_worked_by_hand():
  assert ctkd.temperature(0.0) == 11.0
  np.testing.assert_allclose(ctkd.temperature(1.0), 1 + 20 / (1 + np.exp(-1)))
  np.testing.assert_allclose(ctkd.temperature(np.array([-1e4, 1e4]), start=2.0, end=3.0), [2.0, 5.0])


@pytest.mark.parametrize(
  "epoch, expected",
  [(0, 0.0244717), (0.99, 0.0244717), (1.0, 0.0954915), (4.0, 0.5), (9.0, 1.0), (9.5, 1.0), (200, 1.0)],
)
def test_the_curriculum_counts_whole_epochs_from_one(epoch, expected):
  np.testing.assert_allclose(ctkd.curriculum(epoch), expected, rtol=1e-5)


def test_kd_at_a_temperature_of_one_becomes_kd_at_the_learned_temperature():
  student_outputs, teacher = outputs(0), outputs(1)
  aux = start(CTKD, student_outputs, teacher)
  assert aux == MethodVariables({"theta": 1.0, "method": ()}, ())
  loss, (_, by_student) = jitted(CTKD, aux, student_outputs, (teacher,))
  t = 1 + 20 / (1 + np.exp(-1))
  np.testing.assert_allclose(loss, kd.loss(student_outputs.logits, teacher.logits, temperature=t))

  def softened(x):
    return jax.nn.softmax(x.logits / t)

  np.testing.assert_allclose(by_student, t * (softened(student_outputs) - softened(teacher)) / 8, atol=1e-12)


def test_a_temperature_of_the_wrapped_methods_own_multiplies():
  student_outputs, teacher = outputs(0), outputs(1)
  method = ctkd.method(kd.method(temperature=2.0), start=3.0, end=0.0)
  loss, _ = jitted(method, start(method, student_outputs, teacher), student_outputs, (teacher,))
  np.testing.assert_allclose(loss, kd.loss(student_outputs.logits, teacher.logits, temperature=6.0))


def slope(s, t, temperature):
  """d/dT of the mean of T^2 KL(p || q), in NumPy: 2 T KL - sum of p (v - E v) (log p - log q), v the teacher's logits.

  The terms of the student's log-partition cancel but for E_p u - E_q u, u the student's logits.
  """
  p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum(1, keepdims=True) for x in (t, s))
  ratio = np.log(p / q)
  kl = (p * ratio).sum(1)
  # dp/dT = -p (v - E_p v) / T^2, and d log(q)/dT = -(u - E_q u) / T^2.
  by_teacher = -(p * (t - (p * t).sum(1, keepdims=True)) * ratio).sum(1) / temperature**2
  by_student = (p * (s - (q * s).sum(1, keepdims=True))).sum(1) / temperature**2
  return (2 * temperature * kl + temperature**2 * (by_teacher + by_student)).mean()


@pytest.mark.parametrize("epoch, reversal", [(0.5, 0.0244717418), (4.2, 0.5), (30.0, 1.0)])
def test_theta_climbs_by_the_reversed_gradient(epoch, reversal):
  student_outputs, teacher = outputs(0), outputs(1)
  aux = start(CTKD, student_outputs, teacher)
  before, (by_params, by_student) = jitted(CTKD, aux, student_outputs, (teacher,), epoch)
  sigmoid = 1 / (1 + np.exp(-1))
  expected = (
    -reversal * 20 * sigmoid * (1 - sigmoid) * slope(student_outputs.logits, teacher.logits, 1 + 20 * sigmoid)
  )
  np.testing.assert_allclose(by_params["theta"], expected, rtol=1e-7)
  # A step of gradient descent on both: theta makes the loss larger, the student smaller.
  theta = aux._replace(params={"theta": aux.params["theta"] - 0.1 * by_params["theta"], "method": ()})
  student = student_outputs._replace(logits=student_outputs.logits - 0.1 * by_student)
  assert jitted(CTKD, theta, student_outputs, (teacher,))[0].mean() > before.mean()
  assert jitted(CTKD, aux, student, (teacher,))[0].mean() < before.mean()


def numpy_temperature(params, student, teacher):
  params = jax.tree.map(np.asarray, params)
  x = np.concatenate([student, teacher], axis=1)
  x = np.maximum(x @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
  theta = x @ params["theta"]["kernel"] + params["theta"]["bias"]
  return 1 + 20 / (1 + np.exp(-theta))


def test_per_instance_in_numpy():
  student_outputs, teacher, other = outputs(0), outputs(1), outputs(2)
  method = ctkd.method(mean_of_teachers(), per_instance=True)
  aux = start(method, student_outputs, teacher, other)
  assert aux.params["theta"]["hidden"]["kernel"].shape == (10, 128)
  loss, (by_params, by_student) = jitted(method, aux, student_outputs, (teacher, other), 20.0)
  mean = (teacher.logits + other.logits) / 2
  t = numpy_temperature(aux.params["theta"], student_outputs.logits, mean)
  assert np.ptp(t) > 0.1
  p, q = (np.asarray(jax.nn.softmax(x / t)) for x in (mean, student_outputs.logits))
  np.testing.assert_allclose(loss, np.square(t)[:, 0] * (p * np.log(p / q)).sum(1))
  # The student learns at the temperature it is given, ...
  np.testing.assert_allclose(by_student, t * (q - p) / 8, atol=1e-12)
  # ... and the temperature makes its task harder.
  assert all(np.any(x) for x in jax.tree.leaves(by_params))
  harder = jax.tree.map(lambda p, g: p - 0.01 * g, aux.params, by_params)
  assert (
    jitted(method, aux._replace(params=harder), student_outputs, (teacher, other))[0].mean() > loss.mean()
  )


def mean_of_teachers():
  """KD at a temperature of 1 from the mean logits of all teachers."""

  def loss_fn(student, teachers, context):
    return kd.loss(student.logits, sum(t.logits for t in teachers) / len(teachers), temperature=1.0)

  return contract.stateless(loss_fn, reads=("logits",))


def test_what_the_wrapped_method_learns_and_remembers_and_other_outputs_stay():
  peer, teacher = outputs(1), outputs(2)
  student_outputs = outputs(0)._replace(peer_outputs=(peer,))
  hint = fitnet.method(student_layer=0, teacher_layer=0)
  method = ctkd.method(hint, start=2.0, end=0.0)
  aux = start(method, student_outputs, teacher)
  inputs = (student_outputs, (teacher,), Context(None, jax.random.key(1)))
  loss, state = jax.jit(method.apply)(*aux, *inputs)
  expected, expected_state = jax.jit(hint.apply)(aux.params["method"], aux.state, *inputs)
  np.testing.assert_allclose(loss, 4 * expected)
  jax.tree.map(np.testing.assert_allclose, state, expected_state)

  peer_method = contract.stateless(
    lambda student, *_: student.peer_outputs[0].logits[:, 0] - peer.logits[:, 0], reads=("peer_outputs",)
  )
  method = ctkd.method(peer_method)
  assert not np.any(method.apply(*start(method, student_outputs, teacher), *inputs)[0])


def test_adoption_is_the_wrapped_methods():
  def init_student(variables, teachers):
    return variables

  assert ctkd.method(KD._replace(init_student=init_student)).init_student is init_student
  assert ctkd.method(KD).init_student is None


@pytest.mark.parametrize("per_instance", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_finite_at_extremes(per_instance, dtype):
  student_outputs, teacher = jax.tree.map(lambda x: jnp.asarray(x, dtype), (outputs(0), outputs(1)))
  method = ctkd.method(KD, per_instance=per_instance)
  aux = start(method, student_outputs, teacher)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(aux))
  extremes = (lambda x: 0 * x, lambda x: 1e4 * jnp.sign(x), lambda x: x)
  for student_rows in extremes:
    for change_teacher in extremes:
      s = student_outputs._replace(logits=student_rows(student_outputs.logits).astype(dtype))
      t = teacher._replace(logits=change_teacher(teacher.logits).astype(dtype))
      loss, gradients = jitted(method, aux, s, (t,), 5.0)
      assert loss.dtype == jnp.float32 and np.isfinite(loss).all()
      assert all(np.isfinite(np.asarray(x, float)).all() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("per_instance", [False, True])
def test_one_device_equals_four(per_instance):
  student_outputs, teacher = outputs(0), outputs(1)
  method = ctkd.method(KD if per_instance else mlkd.method(temperatures=(1.0,)), per_instance=per_instance)
  aux = start(method, student_outputs, teacher)
  loss, (by_params, by_student) = jitted(method, aux, student_outputs, (teacher,), 3.0)

  def on_one(networks):
    student_outputs, teacher = networks
    loss, (by_params, by_student) = loss_and_gradients(method, aux, student_outputs, (teacher,), 3.0, "batch")
    return loss, by_student, contract.pmean(by_params, "batch")

  split = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), (student_outputs, teacher))
  rows, student_rows, params_rows = jax.pmap(on_one, "batch", devices=jax.devices()[:4])(split)
  np.testing.assert_allclose(rows.reshape(8), loss, rtol=1e-10)
  np.testing.assert_allclose(student_rows.reshape(8, 5), 4 * by_student, rtol=1e-9, atol=1e-12)

  def compare(actual, expected):
    return np.testing.assert_allclose(actual[2], expected, rtol=1e-9, atol=1e-12)

  jax.tree.map(compare, params_rows, by_params)


def test_refuses_instance_temperatures_without_a_teacher():
  with pytest.raises(ValueError, match="ctkd: per_instance needs at least one teacher, got 0"):
    start(ctkd.method(mean_of_teachers(), per_instance=True), outputs(0))
