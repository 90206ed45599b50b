"""Tests of training/train_step.py with smoothed, mixed and missing labels, in NumPy."""

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
from smskd_jax.training.stage import Stage, Term
from smskd_jax.training.targets import Targets
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Outputs

UNLABELED = np.array([0, 3, 4, 9, 10, 11])  # of a batch of 16
ONE_HOT = np.eye(networks.NUM_CLASSES)


class Linear(nn.Module):
  """A linear classifier of pixels, whose logits are a product in NumPy."""

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


def init_stage(stage):
  state, frozen = networks.init_stage(stage, dtype=np.float64)
  # Larger variables: the terms then depend visibly on the images and labels that each network gets.
  return state, jax.tree.map(lambda x: 3 * x if x.dtype == np.float64 else x, frozen)


def logits_of(variables, image):
  layer = variables["params"]["fc"]
  return image.reshape(len(image), -1) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def expected_terms(state, frozen, image, target, label):
  """Each term of the objective on one view; `target` is zero for images without a label."""
  student = logits_of({"params": state.params["student"]}, image)
  teacher, reference = logits_of(frozen.teachers[0], image), logits_of(frozen.reference, image)
  labeled = target.sum(-1) > 0
  smooth = (0.8 * target + 0.2 / 10)[labeled]

  def tcp(logits):
    true_class = np.where(labeled[:, None], target, ONE_HOT[logits.argmax(-1)])
    return (true_class * np.exp(log_softmax(logits))).sum(-1)

  def divergence(other, tau):
    log_p, log_q = log_softmax(other / tau), log_softmax(student / tau)
    return tau**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1)

  weights = 1 - tcp(teacher)
  return {
    "task": -(smooth * log_softmax(student)[labeled]).sum(-1).mean(),
    "accuracy": (student.argmax(-1) == label)[labeled].mean(),
    "distill/kd": divergence(teacher, 4.0).mean(),
    "reference": (weights * divergence(reference, 2.0)).mean(),
    "teacher_tcp": tcp(teacher).mean(),
    "reference_tcp": tcp(reference).mean(),
    "reference_weight": weights.mean(),
  }


def assert_terms(metrics, views):
  expected = {name: np.mean([view[name] for view in views]) for name in views[0]}
  loss = 0.3 * expected["task"] + 0.9 * expected["distill/kd"] + 0.7 * expected["reference"]
  for name, value in (expected | {"loss": loss}).items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-9, err_msg=name)


def test_all_networks_get_the_mixed_images_and_all_terms_the_mixed_labels(float64):
  """Two views, mixed by 0.7 and 0.3 with the batch in reverse order."""
  views = (lambda key, batch: batch.image, lambda key, batch: batch.image[:, ::-1])

  def mix(key, image, label, axis_name):
    one_hot = jnp.asarray(ONE_HOT)[label]
    return 0.7 * image + 0.3 * image[::-1], Targets(label, 0.7 * one_hot + 0.3 * one_hot[::-1])

  stage = STAGE._replace(views=views, mix=mix)
  state, frozen = init_stage(stage)
  batch = networks.batch_of(0, dtype=np.float64)
  _, metrics = jax.jit(make_train_step(stage))(state, frozen, batch)
  target = 0.7 * ONE_HOT[batch.label] + 0.3 * ONE_HOT[batch.label[::-1]]
  mixed = [0.7 * image + 0.3 * image[::-1] for image in (batch.image, batch.image[:, ::-1])]
  assert_terms(metrics, [expected_terms(state, frozen, image, target, batch.label) for image in mixed])


def with_labels(label, step=0):
  return networks.batch_of(step, dtype=np.float64)._replace(label=label)


@pytest.fixture(scope="module")
def step():
  with jax.enable_x64(True):
    state, frozen = init_stage(STAGE)
    compiled = jax.jit(make_train_step(STAGE))
    yield state, frozen, lambda batch: compiled(state, frozen, batch)


@pytest.mark.parametrize("unlabeled", [[], UNLABELED, np.arange(1, 16)], ids=["none", "some", "all but one"])
def test_task_and_accuracy_are_means_over_the_labeled_images(unlabeled, step, float64):
  state, frozen, run = step
  label = networks.batch_of(0).label.copy()
  target = ONE_HOT[label].copy()
  label[unlabeled], target[unlabeled] = -1, 0
  _, metrics = run(with_labels(label))
  assert_terms(metrics, [expected_terms(state, frozen, with_labels(label).image, target, label)])


def test_without_any_label_only_distillation_trains(step, float64):
  state, frozen, run = step
  batch = with_labels(np.full(16, -1, np.int32))
  unlabeled, metrics = run(batch)
  assert metrics["task"] == 0 and metrics["accuracy"] == 0
  distilled, _ = jax.jit(make_train_step(STAGE._replace(task_weight=0.0)))(state, frozen, batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), unlabeled.params, distilled.params)


def test_unlabeled_images_do_not_change_the_gradient_of_the_task(float64):
  """The gradient is that of the batch of the labeled images alone."""
  stage = STAGE._replace(teachers=(), terms=(), reference=None)
  state, frozen = init_stage(stage)
  batch = networks.batch_of(0, dtype=np.float64)
  label = batch.label.copy()
  label[UNLABELED] = -1
  labeled = jax.tree.map(lambda x: np.delete(x, UNLABELED, axis=0), batch)
  step = jax.jit(make_train_step(stage))
  some, some_metrics = step(state, frozen, batch._replace(label=label))
  alone, alone_metrics = step(state, frozen, labeled)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), some.params, alone.params)
  for name in ("task", "accuracy", "gradient_norm"):
    np.testing.assert_allclose(some_metrics[name], alone_metrics[name], rtol=1e-9)
