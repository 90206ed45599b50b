"""Tests of training/stage.py: trainable parameters, and the teachers' batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import kd
from smskd_jax.models import MODELS
from smskd_jax.runtime import parallel
from smskd_jax.training import optimizer
from smskd_jax.training.initialization import init_state
from smskd_jax.training.stage import Stage, Term, frozen_outputs, head_mask
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Batch, Frozen
import tiny

IMAGE = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
LABEL = np.arange(8, dtype=np.int32) % 4
BATCH = Batch(IMAGE, LABEL, np.arange(8, dtype=np.int32))


def constant_rate(count):
  return 0.1


def init_stage(stage):
  def init(network, seed):
    return jax.jit(network.init)(jax.random.key(seed), IMAGE[:1])

  teachers = tuple(init(network, 1) for network in stage.teachers)
  state = init_state(stage, jax.random.key(2), init(stage.student, 0), teachers, IMAGE[:1], LABEL)
  return state, Frozen(jax.random.key(3), teachers)


def true_paths(tree):
  return {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf}


def shapes_of(network, shape):
  image = jax.ShapeDtypeStruct(shape, np.float32)
  return jax.eval_shape(network.init, jax.random.key(0), image), image


@pytest.mark.parametrize(
  ("name", "head"),
  [("resnet8", "fc"), ("vgg8", "classifier"), ("vit_tiny", "head"), ("MobileNetV2", "classifier_0")],
)
def test_the_head_is_the_parameters_that_the_network_returns_as_its_head(name, head):
  network = MODELS[name](num_classes=5, width=0.125)
  mask = head_mask(network, *shapes_of(network, (1, 32, 32, 3)))
  assert true_paths(mask) == {f"['{head}']['kernel']", f"['{head}']['bias']"}


def test_with_the_head_alone_nothing_else_trains_or_decays():
  stage = Stage(tiny.Tiny(4, 4), optimizer.sgd(constant_rate, weight_decay=0.1), trainable="head")
  before, frozen = init_stage(stage)
  after, metrics = jax.jit(make_train_step(stage))(before, frozen, BATCH)
  old, new = before.params["student"], after.params["student"]
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), old, new)
  assert true_paths(changed) == {"['fc']['kernel']", "['fc']['bias']"}
  # Batch norm keeps updating its statistics, as in the survey's code.
  assert true_paths(jax.tree.map(lambda a, b: bool((a != b).any()), before.model_state, after.model_state))
  others = {name: tree for name, tree in old.items() if name != "fc"}

  def task(head):
    variables = {"params": {**others, "fc": head}, **before.model_state}
    outputs, _ = stage.student.apply(variables, IMAGE, train=True, mutable=["batch_stats"])
    return -jnp.mean(jax.nn.log_softmax(outputs.logits)[jnp.arange(8), LABEL])

  gradient = jax.jit(jax.grad(task))(old["fc"])
  expected = jax.tree.map(lambda p, g: p - 0.1 * (g + 0.1 * p), old["fc"], gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new["fc"], expected)
  squares = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient))
  np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(squares), rtol=1e-5)


def test_a_network_whose_classifier_is_not_its_own_has_no_head():
  options = {"body": "resnet8", "width": 0.125, "teacher": "resnet8", "teacher_width": 0.25}
  student = MODELS["simkd"](num_classes=4, **options)
  stage = Stage(student, optimizer.sgd(constant_rate), trainable="head")
  variables, image = shapes_of(student, (1, 8, 8, 3))
  with pytest.raises(ValueError, match="trainable: 'head', but this network has no linear classifier"):
    init_state(stage, jax.random.key(2), variables, (), image, LABEL)


KD = (Term("kd", 1.0, kd.method(temperature=2.0)),)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_teachers_normalize_by_running_statistics_or_by_the_batch(statistics):
  teacher, sgd = tiny.Tiny(8, 4), optimizer.sgd(constant_rate)
  stage = Stage(tiny.Tiny(4, 4), sgd, (teacher,), KD, teacher_statistics=statistics)
  state, frozen = init_stage(stage)
  _, metrics = jax.jit(make_train_step(stage))(state, frozen, BATCH)
  variables = {"params": state.params["student"], **state.model_state}
  student, _ = stage.student.apply(variables, IMAGE, train=True, mutable=["batch_stats"])
  if statistics == "running":
    outputs = frozen_outputs(teacher, frozen.teachers[0], IMAGE)
  else:
    outputs, _ = teacher.apply(frozen.teachers[0], IMAGE, train=True, mutable=["batch_stats"])
  expected = jnp.mean(kd.loss(student.logits, outputs.logits, temperature=2.0))
  np.testing.assert_allclose(metrics["distill/kd"], expected, rtol=1e-5)


def test_batch_statistics_of_teachers_span_all_devices():
  sgd = optimizer.sgd(constant_rate)
  stage = Stage(tiny.Tiny(4, 4), sgd, (tiny.Tiny(8, 4),), KD, teacher_statistics="batch")
  losses = []
  for devices in (jax.local_devices()[:1], jax.local_devices()[:4]):
    step = parallel.compile_step(make_train_step(stage, parallel.AXIS), devices)
    state, frozen = parallel.replicate(init_stage(stage), devices)
    _, metrics = step(state, frozen, parallel.shard(BATCH, devices))
    losses.append(float(metrics["distill/kd"]))
  np.testing.assert_allclose(*losses, rtol=1e-5)
