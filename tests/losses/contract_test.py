"""What every method of METHODS promises; see losses/method.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import METHODS
from smskd_jax.losses.method import mean
from smskd_jax.state import Batch, Outputs

NAMES = sorted(METHODS)
NUM_EXAMPLES = 50


def network(rng, b, k, channels, sizes):
  features = tuple(rng.normal(size=(b, h, h, c)) for h, c in zip(sizes, channels, strict=True))
  pooled = rng.normal(size=(b, channels[-1]))
  return Outputs(rng.normal(size=(b, k)), pooled, tuple(np.maximum(x, 0) for x in features), features)


def example(b=8, k=5, dtype=np.float32):
  """(learner, teachers, batch): a student and a teacher with more channels and one more map, as a VGG has."""
  rng = np.random.default_rng(0)
  learner = network(rng, b, k, (3, 4, 6, 8), (8, 8, 4, 2))
  teacher = network(rng, b, k, (5, 7, 9, 12, 12), (8, 4, 4, 2, 2))
  learner, teacher = jax.tree.map(lambda x: jnp.asarray(x, dtype), (learner, teacher))
  labels, index = rng.integers(0, k, b), rng.permutation(NUM_EXAMPLES)[:b]
  batch = Batch(
    jnp.zeros((b, 8, 8, 3), jnp.uint8), jnp.asarray(labels, jnp.int32), jnp.asarray(index, jnp.int32)
  )
  return learner, (teacher,), batch


def spec(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def started(name, learner, teachers):
  """The method with its default hyper-parameters, and its Aux from shapes alone."""
  method = METHODS[name]()
  return method, method.init(jax.random.key(0), spec(learner), spec(teachers), NUM_EXAMPLES)


def apply(method, aux, learner, teachers, batch, axis_name=None):
  return method.apply(*aux, learner, teachers, batch, jax.random.key(1), jnp.int32(0), axis_name)


def loss_and_gradients(method, aux, learner, teachers, batch, axis_name=None):
  """(loss [b], new state), and the gradients of its mean by the auxiliary parameters and by the learner."""

  def mean_loss(params, learner):
    loss, state = apply(method, aux._replace(params=params), learner, teachers, batch, axis_name)
    return loss.mean(), (loss, state)

  (_, results), gradients = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)(aux.params, learner)
  return results, gradients


def assert_finite(tree):
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    assert np.isfinite(np.asarray(x, np.float64)).all(), jax.tree_util.keystr(path)


def assert_close(actual, expected, tolerance):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_the_table_is_sorted_and_cannot_be_changed():
  assert list(METHODS) == NAMES
  with pytest.raises(TypeError):
    METHODS["mine"] = METHODS["kd"]


@pytest.mark.parametrize("name", NAMES)
def test_one_loss_an_example_and_one_compilation(name):
  learner, teachers, batch = example()
  method, aux = started(name, learner, teachers)
  traces = []

  @jax.jit
  def step(aux, learner, teachers, batch):
    traces.append(name)
    return apply(method, aux, learner, teachers, batch)

  for _ in range(3):
    loss, state = step(aux, learner, teachers, batch)
    assert loss.shape == (8,) and loss.dtype == jnp.float32
    assert jax.tree.structure(state) == jax.tree.structure(aux.state)
    assert spec(state) == spec(aux.state)
    aux = aux._replace(state=state)
  assert len(traces) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_batch_does_not_matter(name):
  order = np.random.default_rng(1).permutation(8)
  with jax.enable_x64(True):
    everything = example(dtype=np.float64)
    method, aux = started(name, *everything[:2])
    run = jax.jit(lambda x: apply(method, aux, *x))
    loss, state = run(everything)
    shuffled, shuffled_state = run(jax.tree.map(lambda x: x[order], everything))
    assert_close(shuffled, loss[order], 1e-10)
    assert_close(shuffled_state, state, 1e-10)


EXTREMES = {
  "huge logits": lambda x: x._replace(logits=jnp.where(x.logits > 0, 1e4, -1e4).astype(x.logits.dtype)),
  "identical rows": lambda x: jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), x),
  "zeros": lambda x: jax.tree.map(jnp.zeros_like, x),
  "large": lambda x: jax.tree.map(lambda leaf: 1e4 * leaf, x),
  "small": lambda x: jax.tree.map(lambda leaf: 1e-6 * leaf, x),
}


@pytest.mark.parametrize("name", NAMES)
def test_finite_at_extremes(name):
  learner, teachers, batch = example()
  method, aux = started(name, learner, teachers)
  run = jax.jit(lambda learner, teachers: loss_and_gradients(method, aux, learner, teachers, batch))
  for extreme in EXTREMES.values():
    assert_finite(run(extreme(learner), teachers))
    assert_finite(run(learner, tuple(map(extreme, teachers))))
    assert_finite(run(extreme(learner), tuple(map(extreme, teachers))))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("b, k, dtype", [(8, 5, jnp.bfloat16), (8, 2, jnp.float32), (1, 5, jnp.float32)])
def test_finite_in_half_precision_with_two_classes_and_one_example(name, b, k, dtype):
  learner, teachers, batch = example(b, k, dtype)
  method, aux = started(name, learner, teachers)
  (loss, state), gradients = jax.jit(loss_and_gradients, static_argnums=0)(
    method, aux, learner, teachers, batch
  )
  assert loss.shape == (b,) and loss.dtype == jnp.float32
  assert spec(state) == spec(aux.state)
  assert_finite((loss, state, gradients))


@pytest.mark.parametrize("name", NAMES)
def test_one_device_equals_four(name):
  devices = 4
  if jax.device_count() < devices:
    pytest.skip(f"needs {devices} devices")
  with jax.enable_x64(True):
    everything = example(dtype=np.float64)
    method, aux = started(name, *everything[:2])

    def run(aux, everything, axis_name=None):
      (loss, state), (by_params, by_learner) = loss_and_gradients(method, aux, *everything, axis_name)
      return (loss, by_learner), (state, mean(by_params, axis_name))

    (loss, by_learner), of_all = jax.jit(run)(aux, everything)
    split = lambda tree: jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), tree)
    # What a device differentiates is the sum of the devices' means: `devices` times the global mean.
    of_rows = split((loss, jax.tree.map(lambda x: devices * x, by_learner)))
    on_each = jax.pmap(
      lambda aux, x: run(aux, x, "batch"),
      axis_name="batch",
      in_axes=(None, 0),
      devices=jax.devices()[:devices],
    )
    rows, replicas = on_each(aux, split(everything))
    assert_close(rows, of_rows, 1e-10)
    assert_close(replicas, jax.tree.map(lambda x: np.broadcast_to(x, (devices, *x.shape)), of_all), 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_any_other_number_of_teachers(name):
  learner, (teacher,), _ = example()
  for teachers in ((), (teacher, teacher)):
    with pytest.raises(ValueError, match=f"{name}: needs exactly one teacher, got {len(teachers)}"):
      started(name, learner, teachers)
