"""Tests of training/stage.py where labels are smoothed, mixed or absent: the step in NumPy."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from smskd_jax.layers import basic
from smskd_jax.losses import kd
from smskd_jax.training import optimizer
from smskd_jax.training.reference import Reference
from smskd_jax.training.stage import Stage, Term, make_train_step
from smskd_jax.training.targets import Targets
from smskd_jax.types import Outputs

ABSENT = np.array([0, 3, 4, 9, 10, 11])  # of a batch of 16
ONE_HOT = np.eye(networks.NUM_CLASSES)


class Linear(nn.Module):
  """A linear classifier of pixels: what it says is a product in NumPy."""

  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    del train, axis_name
    pixels = image.reshape(len(image), -1)
    logits = basic.linear(networks.NUM_CLASSES, pixels.shape[1], name="fc")(pixels)
    return Outputs(logits, pixels, (), ())


STAGE = Stage(
  Linear(),
  optimizer.sgd(0.1),
  teachers=(Linear(),),
  terms=(Term("kd", 0.9, kd.method()),),
  task_weight=0.3,
  label_smoothing=0.2,
  reference=Reference(**networks.REFERENCE_OPTIONS),
)


def begin(stage):
  state, frozen = networks.init_stage(stage, dtype=np.float64)
  # Apart enough for the terms to tell who has seen what.
  return state, jax.tree.map(lambda x: 3 * x if x.dtype == np.float64 else x, frozen)


def says(variables, image):
  layer = variables["params"]["fc"]
  return image.reshape(len(image), -1) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def terms(state, frozen, image, target, label):
  """Each term of the objective on one view; `target` has rows of zeros where a label is absent."""
  student = says({"params": state.params["student"]}, image)
  teacher, reference = says(frozen.teachers[0], image), says(frozen.reference, image)
  labelled = target.sum(-1) > 0
  smooth = (0.8 * target + 0.2 / 10)[labelled]
  right = np.where(labelled[:, None], target, ONE_HOT[teacher.argmax(-1)])
  weights = 1 - (right * np.exp(log_softmax(teacher))).sum(-1)

  def divergence(from_logits, tau):
    log_p, log_q = log_softmax(from_logits / tau), log_softmax(student / tau)
    return tau**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1)

  return {
    "task": -(smooth * log_softmax(student)[labelled]).sum(-1).mean(),
    "accuracy": (student.argmax(-1) == label)[labelled].mean(),
    "distill/kd": divergence(teacher, 4.0).mean(),
    "reference": (weights * divergence(reference, 2.0)).mean(),
    "teacher_tcp": 1 - weights.mean(),
    "reference_tcp": (
      np.where(labelled[:, None], target, ONE_HOT[reference.argmax(-1)]) * np.exp(log_softmax(reference))
    )
    .sum(-1)
    .mean(),
    "reference_weight": weights.mean(),
  }


def assert_terms(metrics, views):
  expected = {name: np.mean([view[name] for view in views]) for name in views[0]}
  loss = 0.3 * expected["task"] + 0.9 * expected["distill/kd"] + 0.7 * expected["reference"]
  for name, value in (expected | {"loss": loss}).items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-9, err_msg=name)


def test_all_networks_see_the_mixed_images_and_all_terms_their_mixed_labels(float64):
  """Two views, of each of which 0.7 stays; what is right for the second is another label."""
  views = (lambda key, batch: batch.image, lambda key, batch: batch.image[:, ::-1])

  def mix(key, image, label, axis_name):
    one_hot = jnp.asarray(ONE_HOT)[label]
    return 0.7 * image + 0.3 * image[::-1], Targets(label, 0.7 * one_hot + 0.3 * one_hot[::-1])

  stage = STAGE._replace(views=views, mix=mix)
  state, frozen = begin(stage)
  batch = networks.batch_of(0, dtype=np.float64)
  _, metrics = jax.jit(make_train_step(stage))(state, frozen, batch)
  target = 0.7 * ONE_HOT[batch.label] + 0.3 * ONE_HOT[batch.label[::-1]]
  mixed = [0.7 * image + 0.3 * image[::-1] for image in (batch.image, batch.image[:, ::-1])]
  assert_terms(metrics, [terms(state, frozen, image, target, batch.label) for image in mixed])


def with_labels(label, step=0):
  return networks.batch_of(step, dtype=np.float64)._replace(label=label)


@pytest.fixture(scope="module")
def step():
  with jax.enable_x64(True):
    state, frozen = begin(STAGE)
    compiled = jax.jit(make_train_step(STAGE))
    yield state, frozen, lambda batch: compiled(state, frozen, batch)


@pytest.mark.parametrize("absent", [[], ABSENT, np.arange(1, 16)], ids=["none", "some", "all but one"])
def test_task_and_accuracy_are_those_of_the_labelled(absent, step, float64):
  state, frozen, take = step
  label = networks.batch_of(0).label.copy()
  target = ONE_HOT[label].copy()
  label[absent], target[absent] = -1, 0
  _, metrics = take(with_labels(label))
  assert_terms(metrics, [terms(state, frozen, with_labels(label).image, target, label)])


def test_no_labels_leave_distillation_alone(step, float64):
  state, frozen, take = step
  batch = with_labels(np.full(16, -1, np.int32))
  unlabelled, metrics = take(batch)
  assert metrics["task"] == 0 and metrics["accuracy"] == 0
  distilled, _ = jax.jit(make_train_step(STAGE._replace(task_weight=0.0)))(state, frozen, batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), unlabelled.params, distilled.params)


def test_the_unlabelled_do_not_pull_on_the_task(float64):
  """Its gradient is that of the batch of the labelled alone."""
  stage = STAGE._replace(teachers=(), terms=(), reference=None)
  state, frozen = begin(stage)
  batch = networks.batch_of(0, dtype=np.float64)
  label = batch.label.copy()
  label[ABSENT] = -1
  labelled = jax.tree.map(lambda x: np.delete(x, ABSENT, axis=0), batch)
  take = jax.jit(make_train_step(stage))
  (some, of_some), (alone, of_alone) = (
    take(state, frozen, b) for b in (batch._replace(label=label), labelled)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), some.params, alone.params)
  for name in ("task", "accuracy", "gradient_norm"):
    np.testing.assert_allclose(of_some[name], of_alone[name], rtol=1e-9)
