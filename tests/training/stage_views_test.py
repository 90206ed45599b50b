"""Tests of training/stage.py where it makes several views of a batch, and where their images are mixed."""

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
from smskd_jax.training.stage import Stage, Term, make_train_step, student_variables
from smskd_jax.types import MethodVariables, Outputs
import tiny

HALF = np.arange(8)  # of a batch of 16; with two devices, all of the first one's


def make_stage(*names, **settings):
  make = lambda channels: tiny.Tiny(channels, networks.NUM_CLASSES)
  terms = tuple(Term(name, 0.5, METHODS[name]()) for name in names)
  teachers = (make(8),) if names else ()
  return Stage(make(4), optimizer.sgd(0.1), teachers, terms, **settings)


def flipped(key, batch):
  del key
  return batch.image[:, :, ::-1]


def dimmed(key, batch):
  del key
  return batch.image * (0.5 + batch.index[:, None, None, None] / networks.NUM_EXAMPLES)


def mixed(key, image, label, axis_name):
  """By both ways to mix, one after the other."""
  target = targets.soft_labels(targets.Targets(label), networks.NUM_CLASSES, jnp.float64)
  for mix in (mixing.mixup, mixing.cutmix):
    image, target = mix(key, image, target, axis_name)
  return image, targets.Targets(jnp.argmax(target, -1), target)


def assert_near(ours, theirs):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, theirs)


def test_a_step_of_two_views_is_the_mean_of_a_step_of_each(float64):
  """In training batch norm goes by the images of one view; only its memory passes through both, in order."""
  alone = make_stage("kd")
  state, frozen = networks.init_stage(alone, dtype=np.float64)
  batch = networks.batch_of(0, dtype=np.float64)
  both = jax.jit(make_train_step(alone._replace(views=(flipped, dimmed))))
  of_both, metrics = both(state, frozen, batch)

  step = jax.jit(make_train_step(alone))
  of_first, of_first_metrics = step(state, frozen, batch._replace(image=flipped(None, batch)))
  after_first = state._replace(model_state=of_first.model_state)
  of_second, of_second_metrics = step(after_first, frozen, batch._replace(image=dimmed(None, batch)))
  mean = lambda *trees: jax.tree.map(lambda a, b: (a + b) / 2, *trees)
  assert_near(of_both.params, mean(of_first.params, of_second.params))
  assert_near(of_both.model_state, of_second.model_state)
  expected = mean(of_first_metrics, of_second_metrics)
  assert set(metrics) == set(expected)
  del metrics["gradient_norm"], expected["gradient_norm"]  # of the mean, it is not the mean
  assert_near(metrics, expected)


class Scaled(nn.Module):
  """As little as can learn."""

  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    del train, axis_name
    pixels = image.reshape(len(image), -1)
    logits = self.param("scale", nn.initializers.ones, ()) * pixels[:, : networks.NUM_CLASSES]
    return Outputs(logits, logits, (), ())


def keys_of(num_views, mixes, steps):
  """All keys that each of some steps draws from, by what draws."""
  counts, drawn = {"view": 0, "mix": 0, "method": 0}, {}

  def note(name, key):
    counts[name] += 1
    keep = functools.partial(drawn.__setitem__, f"{name} {counts[name]}")
    jax.debug.callback(keep, jax.random.key_data(key))

  def view(key, batch):
    note("view", key)
    return batch.image

  def mix(key, image, label, axis_name):
    note("mix", key)
    return image, targets.Targets(label)

  def apply(params, state, student, teachers, context):
    note("method", context.key)
    return student.logits[:, 0], state

  noted = Term(
    "noted", 1.0, contract.make(lambda *_: MethodVariables(), apply, reads=(), student_reads=("logits",))
  )
  stage = Stage(Scaled(), optimizer.sgd(0.1), terms=(noted,), views=(view,) * num_views)
  stage = stage._replace(mix=mix if mixes else None)
  (state, frozen), step = networks.init_stage(stage), jax.jit(make_train_step(stage))
  for at in steps:
    step(state._replace(step=jnp.int32(at)), frozen, networks.batch_of(0))
    jax.effects_barrier()
    yield {name: tuple(key.tolist()) for name, key in drawn.items()}


def test_a_first_view_draws_as_if_it_were_alone_and_nothing_draws_alike():
  (one,), (three, later) = keys_of(1, False, steps=[5]), keys_of(3, True, steps=[5, 6])
  assert set(one) == {"view 1", "method 1"}
  assert set(three) == {f"{what} {i}" for what in ("view", "mix", "method") for i in (1, 2, 3)}
  assert {name: three[name] for name in one} == one
  assert len({*three.values(), *later.values()}) == 18


@pytest.mark.parametrize("multi_view", [False, True])
def test_a_method_that_needs_the_views_gets_them_at_once(multi_view):
  given = []

  def loss(student, teachers, context):
    given.append([len(network.view_outputs) for network in (student, *teachers)])
    return student.logits[:, 0]

  noted = Term("noted", 1.0, contract.stateless(loss, reads=("logits",), multi_view=multi_view))
  stage = make_stage("kd", views=(flipped, dimmed, flipped))._replace(terms=(noted,))
  state, frozen = networks.init_stage(stage)
  jax.eval_shape(make_train_step(stage), state, frozen, networks.batch_of(0))
  assert given == ([[2, 2]] if multi_view else [[0, 0]] * 3)


def consistency(student, teachers, context):
  """A relation between the views of all examples."""
  del teachers
  (other,) = student.view_outputs
  everyone = contract.gather(other.embedding, context.axis_name)
  return jnp.mean((student.embedding @ everyone.T) ** 2, axis=1)


# By name: a stage, and which of a batch have no label.
RELATION = Term(
  "consistency", 0.5, contract.stateless(consistency, reads=(), student_reads=("embedding",), multi_view=True)
)
SETTINGS = {
  "two views, half of them unlabelled": (
    make_stage(views=(dimmed, flipped), label_smoothing=0.1)._replace(terms=(RELATION,)),
    HALF,
  ),
  "mixed": (make_stage(mix=mixed, label_smoothing=0.1), []),
}


@functools.cache
def trajectory(setting, num_devices):
  """The metrics of three steps, and what the learner is then."""
  stage, absent = SETTINGS[setting]
  devices = jax.local_devices()[:num_devices]
  state, frozen = parallel.replicate(networks.init_stage(stage, dtype=np.float64), devices)
  step = parallel.compile_step(make_train_step(stage, parallel.AXIS), devices)
  lines = []
  for i in range(3):
    batch = networks.batch_of(i, dtype=np.float64)
    batch.label[absent] = -1
    state, metrics = step(state, frozen, parallel.shard(batch, devices))
    lines.append(jax.device_get(metrics))
  return lines, jax.device_get(student_variables(state))


@pytest.mark.parametrize("num_devices", [2, 4])
@pytest.mark.parametrize("setting", SETTINGS)
def test_many_devices_see_what_one_does(setting, num_devices, float64):
  assert_near(trajectory(setting, num_devices), trajectory(setting, 1))
