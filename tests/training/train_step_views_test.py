"""Tests of training/train_step.py with several views of a batch, and with mixed images."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from smskd_jax.data import mixing
from smskd_jax.losses import METHODS, contract
from smskd_jax.runtime import parallel
from smskd_jax.training import optimizer, targets
from smskd_jax.training.stage import Stage, Term, student_variables
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import MethodVariables, Outputs
import tiny

HALF = np.arange(8)  # of a batch of 16; with two devices, all images of the first device


def make_stage(*names, **options):
  terms = tuple(Term(name, 0.5, METHODS[name]()) for name in names)
  teachers = (tiny.Tiny(8, networks.NUM_CLASSES),) if names else ()
  return Stage(tiny.Tiny(4, networks.NUM_CLASSES), optimizer.sgd(0.1), teachers, terms, **options)


def flipped(key, batch):
  del key
  return batch.image[:, :, ::-1]


def dimmed(key, batch):
  del key
  return batch.image * (0.5 + batch.index[:, None, None, None] / networks.NUM_EXAMPLES)


def mixed(key, image, label, axis_name):
  """Mixup, then CutMix."""
  soft_label = targets.soft_labels(targets.Targets(label), networks.NUM_CLASSES, jnp.float64)
  for mix in (mixing.mixup, mixing.cutmix):
    image, soft_label = mix(key, image, soft_label, axis_name)
  return image, targets.Targets(jnp.argmax(soft_label, -1), soft_label)


def assert_near(ours, theirs):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, theirs)


def test_a_step_of_two_views_is_the_mean_of_a_step_of_each(float64):
  """Batch norm normalizes each view alone; running statistics pass through both views."""
  stage = make_stage("kd")
  state, frozen = networks.init_stage(stage, dtype=np.float64)
  batch = networks.batch_of(0, dtype=np.float64)
  both, metrics = jax.jit(make_train_step(stage._replace(views=(flipped, dimmed))))(state, frozen, batch)

  step = jax.jit(make_train_step(stage))
  first, first_metrics = step(state, frozen, batch._replace(image=flipped(None, batch)))
  after_first = state._replace(model_state=first.model_state)
  second, second_metrics = step(after_first, frozen, batch._replace(image=dimmed(None, batch)))

  def mean(*trees):
    return jax.tree.map(lambda a, b: (a + b) / 2, *trees)

  assert_near(both.params, mean(first.params, second.params))
  assert_near(both.model_state, second.model_state)
  expected = mean(first_metrics, second_metrics)
  assert set(metrics) == set(expected)
  del metrics["gradient_norm"], expected["gradient_norm"]  # the norm of a mean is not the mean of norms
  assert_near(metrics, expected)


class Scaled(nn.Module):
  """A network of one parameter."""

  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    del train, axis_name
    pixels = image.reshape(len(image), -1)
    logits = self.param("scale", nn.initializers.ones, ()) * pixels[:, : networks.NUM_CLASSES]
    return Outputs(logits, logits, (), ())


def keys_of(num_views, mixes, steps):
  """All random keys of each of some steps, by their use."""
  counts, keys = {"view": 0, "mix": 0, "method": 0}, {}

  def record(use, key):
    counts[use] += 1
    store = functools.partial(keys.__setitem__, f"{use} {counts[use]}")
    jax.debug.callback(store, jax.random.key_data(key))

  def view(key, batch):
    record("view", key)
    return batch.image

  def mix(key, image, label, axis_name):
    record("mix", key)
    return image, targets.Targets(label)

  def apply(params, state, student, teachers, context):
    record("method", context.key)
    return student.logits[:, 0], state

  method = contract.make(lambda *_: MethodVariables(), apply, reads=(), student_reads=("logits",))
  stage = Stage(
    Scaled(), optimizer.sgd(0.1), terms=(Term("recorder", 1.0, method),), views=(view,) * num_views
  )
  stage = stage._replace(mix=mix if mixes else None)
  (state, frozen), step = networks.init_stage(stage), jax.jit(make_train_step(stage))
  for i in steps:
    step(state._replace(step=jnp.int32(i)), frozen, networks.batch_of(0))
    jax.effects_barrier()
    yield {name: tuple(key.tolist()) for name, key in keys.items()}


def test_all_keys_differ_and_those_of_the_first_view_do_not_depend_on_the_others():
  (one,), (three, later) = keys_of(1, False, steps=[5]), keys_of(3, True, steps=[5, 6])
  assert set(one) == {"view 1", "method 1"}
  assert set(three) == {f"{use} {i}" for use in ("view", "mix", "method") for i in (1, 2, 3)}
  assert {name: three[name] for name in one} == one
  assert len({*three.values(), *later.values()}) == 18


@pytest.mark.parametrize("multi_view", [False, True])
def test_a_multi_view_method_gets_all_views_at_once(multi_view):
  num_others = []

  def loss(student, teachers, context):
    num_others.append([len(network.view_outputs) for network in (student, *teachers)])
    return student.logits[:, 0]

  term = Term("recorder", 1.0, contract.stateless(loss, reads=("logits",), multi_view=multi_view))
  stage = make_stage("kd", views=(flipped, dimmed, flipped))._replace(terms=(term,))
  state, frozen = networks.init_stage(stage)
  jax.eval_shape(make_train_step(stage), state, frozen, networks.batch_of(0))
  assert num_others == ([[2, 2]] if multi_view else [[0, 0]] * 3)


def consistency(student, teachers, context):
  """A relation between the views of all examples of the global batch."""
  del teachers
  (other,) = student.view_outputs
  everyone = contract.gather(other.embedding, context.axis_name)
  return jnp.mean((student.embedding @ everyone.T) ** 2, axis=1)


RELATION = Term(
  "consistency", 0.5, contract.stateless(consistency, reads=(), student_reads=("embedding",), multi_view=True)
)
# Name -> (stage, indices of the unlabeled images in each batch).
CASES = {
  "two views, half of the images unlabeled": (
    make_stage(views=(dimmed, flipped), label_smoothing=0.1)._replace(terms=(RELATION,)),
    HALF,
  ),
  "mixed": (make_stage(mix=mixed, label_smoothing=0.1), []),
}


@functools.cache
def trajectory(case, num_devices):
  """Metrics of three steps, and the student's variables after them."""
  stage, unlabeled = CASES[case]
  devices = jax.local_devices()[:num_devices]
  state, frozen = parallel.replicate(networks.init_stage(stage, dtype=np.float64), devices)
  step = parallel.compile_step(make_train_step(stage, parallel.AXIS), devices)
  lines = []
  for i in range(3):
    batch = networks.batch_of(i, dtype=np.float64)
    batch.label[unlabeled] = -1
    state, metrics = step(state, frozen, parallel.shard(batch, devices))
    lines.append(jax.device_get(metrics))
  return lines, jax.device_get(student_variables(state))


@pytest.mark.parametrize("num_devices", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_many_devices_train_as_one_device(case, num_devices, float64):
  assert_near(trajectory(case, num_devices), trajectory(case, 1))
