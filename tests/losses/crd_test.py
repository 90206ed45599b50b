"""Tests of losses/crd.py."""

import functools

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import crd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Batch, Outputs

pytestmark = pytest.mark.usefixtures("float64")

N = 40
update = jax.jit(crd.update_bank)
LABELS = np.random.default_rng(3).integers(0, 4, N).astype(np.int32)


def outputs(pooled):
  return Outputs(None, pooled, (), ())


def example(seed=0, b=6):
  """(student, teachers, batch)."""
  rng = np.random.default_rng(seed)
  index = rng.permutation(N)[:b].astype(np.int32)
  student, teacher = rng.normal(size=(b, 7)), rng.normal(size=(b, 9))
  return outputs(student), (outputs(teacher),), Batch(None, LABELS[index], index)


def started(labels=LABELS, **hparams):
  method = crd.method(**{"dimension": 5, "num_negatives": 11, "temperature": 0.3, **hparams})
  specs = jax.eval_shape(lambda: example()[:2])
  return method, in_numpy(jax.jit(lambda: method.init(jax.random.key(0), *specs, labels))())


def in_numpy(tree):
  return jax.tree.map(np.asarray, tree)


@functools.partial(jax.jit, static_argnums=0)
def _run(apply, aux, inputs, key):
  def mean_loss(params, student_outputs, teachers, batch):
    rows, state = apply(params, aux.state, student_outputs, teachers, Context(batch, jax.random.key(key)))
    return rows.mean(), (rows, state)

  gradient = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)
  (_, (rows, state)), gradients = gradient(aux.params, *inputs)
  return rows, state, gradients


def run(method, aux, inputs, key):
  """Loss, new state and the gradients of its mean by the parameters and the student."""
  return in_numpy(_run(method.apply, aux, inputs, key))


@functools.partial(jax.jit, static_argnames="positives")
def drawn(classes, batch, key, positives):
  return crd.sample_indices(classes, batch, jax.random.key(key), num_negatives=11, positives=positives)


def test_worked_by_hand():
  # K / n = 1/2, and p is 1/2 everywhere for the student's embedding, 3/2 for the teacher's.
  student, teacher = np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])
  memory_teacher = np.full((4, 2), np.log(0.5 * 3.0))
  memory_student = np.full((4, 2), np.log(1.5 * 5.0) / 2)
  rows = jax.jit(crd.loss, static_argnames="eps")(
    student,
    teacher,
    memory_student,
    memory_teacher,
    positive_index=np.array([2]),
    negative_index=np.array([[0, 3]]),
    normalizer_student=3.0,
    normalizer_teacher=5.0,
    temperature=1.0,
    eps=0.0,
  )
  np.testing.assert_allclose(rows, [3 * np.log(2) + np.log(4 / 3) + 2 * np.log(4)])


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def contrast_in_numpy(exponentials, normalizer):
  p, noise = exponentials / normalizer, 11 / N
  log_negatives = np.log(noise / (p[:, 1:] + noise + 1e-7)).sum(axis=1)
  return -np.log(p[:, 0] / (p[:, 0] + noise + 1e-7)) - log_negatives


@pytest.mark.parametrize("positives", ["exact", "relaxed"])
def test_two_steps_in_numpy(positives):
  method, aux = started(positives=positives)
  normalizers = None
  for step in range(2):
    inputs = student_outputs, (teacher,), batch = example(step)
    rows, state, _ = run(method, aux, inputs, step)
    index = np.asarray(drawn(aux.state.classes, batch, step, positives))
    positive = index[:, 0]
    assert (LABELS[positive] == batch.label).all() and (index[:, 1:].shape == (6, 11))
    assert (positive == batch.index).all() == (positives == "exact")
    assert (LABELS[index[:, 1:]] != batch.label[:, None]).all()
    embedded = [
      unit(x @ aux.params[who]["kernel"] + aux.params[who]["bias"])
      for who, x in (("student", student_outputs.embedding), ("teacher", teacher.embedding))
    ]
    banks = [aux.state.memory_student, aux.state.memory_teacher]
    exponentials = [
      np.exp(np.einsum("bd,bmd->bm", x, bank[index]) / 0.3)
      for x, bank in zip(embedded, banks[::-1], strict=True)
    ]
    normalizers = normalizers or [x.mean() * N for x in exponentials]
    expected = sum(map(contrast_in_numpy, exponentials, normalizers))
    np.testing.assert_allclose(rows, expected)
    np.testing.assert_allclose(np.exp(state.log_normalizers), normalizers)
    for x, old, new in zip(embedded, banks, (state.memory_student, state.memory_teacher), strict=True):
      others = np.setdiff1d(np.arange(N), batch.index)
      np.testing.assert_array_equal(new[others], old[others])
      np.testing.assert_allclose(new[batch.index], unit(0.5 * old[batch.index] + 0.5 * x))
    aux = aux._replace(state=state)


def test_update_worked_by_hand():
  bank = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
  new = update(bank, np.array([2, 0]), np.array([[1.0, 0.0], [-1.0, 0.0]]), momentum=0.25)
  np.testing.assert_allclose(new, [[-1, 0], [0.6, 0.8], np.array([3, 1]) / np.sqrt(10)])
  cancelled = update(bank, np.array([0]), np.array([[-1.0, 0.0]]), momentum=0.5)
  np.testing.assert_array_equal(cancelled[0], [0, 0])


def test_the_banks_start_like_the_public_code():
  _, aux = started(np.arange(4000) % 10, dimension=12)
  for bank in (aux.state.memory_student, aux.state.memory_teacher):
    assert bank.shape == (4000, 12) and np.abs(bank).max() <= 0.5
    np.testing.assert_allclose([bank.mean(), bank.std()], [0, np.sqrt(1 / 12)], atol=0.005)
  assert not np.allclose(aux.state.memory_student, aux.state.memory_teacher)


def test_the_order_of_the_batch_does_not_change_the_state():
  method, aux = started(positives="relaxed")
  inputs, order = example(), np.array([4, 2, 0, 5, 1, 3])
  rows, state, _ = run(method, aux, inputs, 0)
  shuffled, shuffled_state, _ = run(method, aux, jax.tree.map(lambda x: x[order], inputs), 0)
  np.testing.assert_allclose(shuffled, rows[order], rtol=1e-13)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-13), shuffled_state, state)


def test_the_normalizers_are_constants_in_the_gradient():
  method, aux = started(num_negatives=2)
  rows, state, gradients = run(method, aux, example(), 0)
  fixed = aux._replace(state=aux.state._replace(log_normalizers=state.log_normalizers))
  same_rows, _, same_gradients = run(method, fixed, example(), 0)
  np.testing.assert_allclose(same_rows, rows)
  jax.tree.map(np.testing.assert_allclose, gradients, same_gradients)
  assert all(np.any(x) for x in jax.tree.leaves(gradients))

  @jax.jit
  def mean_loss(params, pooled):
    _, teachers, batch = example()
    key, state = jax.random.key(0), jax.tree.map(jnp.asarray, fixed.state)
    return method.apply(params, state, outputs(pooled), teachers, Context(batch, key))[0].mean()

  check_grads(mean_loss, (aux.params, example()[0].embedding), order=1, modes=("rev",))


def test_no_exponential_overflows():
  method, aux = started(temperature=0.003, num_negatives=500)

  def single(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32 if x.dtype == float else x.dtype), tree)

  aux, inputs = single(aux), single(example())
  for step in range(2):
    rows, state, gradients = run(method, aux, inputs, step)
    assert rows.dtype == state.memory_student.dtype == state.log_normalizers.dtype == jnp.float32
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((rows, state, gradients)))
    aux = aux._replace(state=state)


def test_memory_stays_under_a_gibibyte():
  n, b = 50_000, 256
  method = crd.method()
  student_outputs, teachers = jax.tree.map(
    lambda width: outputs(jax.ShapeDtypeStruct((b, width), jnp.float32)), (256, (256,))
  )
  labels = np.arange(n) % 100
  aux, key = jax.eval_shape(
    lambda: (method.init(jax.random.key(0), student_outputs, teachers, labels), jax.random.key(0))
  )
  batch = Batch(None, *[jax.ShapeDtypeStruct((b,), jnp.int32)] * 2)

  def step(params, student_outputs, state, teachers, batch, key):
    rows, state = method.apply(params, state, student_outputs, teachers, Context(batch, key))
    return rows.mean(), state

  gradient = jax.grad(step, argnums=(0, 1), has_aux=True)
  compiled = jax.jit(gradient).lower(aux.params, student_outputs, aux.state, teachers, batch, key).compile()
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes < 2**29


@pytest.mark.parametrize("trace", [lambda f: f(), jax.eval_shape])
def test_refuses_a_single_class(trace):
  with pytest.raises(
    ValueError, match="crd: needs examples of other classes, but the training set has a single"
  ):
    trace(lambda: started(np.full(N, 3))[1])


@pytest.mark.parametrize("change", [{"teacher": (6, 4)}, {"memory": (9, 5)}, {"negative": (6,)}])
def test_refuses_shapes(change):
  shapes = {"teacher": (6, 5), "memory": (8, 5), "negative": (6, 3), **change}
  with pytest.raises(AssertionError):
    crd.loss(
      np.ones((6, 5)),
      np.ones(shapes["teacher"]),
      np.ones((8, 5)),
      np.ones(shapes["memory"]),
      positive_index=np.zeros(6, int),
      negative_index=np.zeros(shapes["negative"], int),
      normalizer_student=1.0,
      normalizer_teacher=1.0,
    )
