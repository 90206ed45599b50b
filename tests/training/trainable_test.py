"""Tests of training/trainable.py, and of teachers that normalise by the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import kd
from smskd_jax.models import MODELS
from smskd_jax.runtime import parallel
from smskd_jax.training import optimizer, trainable
from smskd_jax.training.initialization import init_state
from smskd_jax.training.stage import Stage, Term, frozen_outputs, make_train_step
from smskd_jax.types import Batch, Frozen
import tiny

IMAGE = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
LABEL = np.arange(8, dtype=np.int32) % 4
BATCH = Batch(IMAGE, LABEL, np.arange(8, dtype=np.int32))


def begin(stage):
  fresh = lambda network, seed: network.init(jax.random.key(seed), IMAGE[:1])
  teachers = tuple(fresh(network, 1) for network in stage.teachers)
  state = init_state(stage, jax.random.key(2), fresh(stage.student, 0), teachers, IMAGE[:1], LABEL)
  return state, Frozen(jax.random.key(3), teachers)


def paths(marked):
  return {jax.tree_util.keystr(path) for path, yes in jax.tree_util.tree_leaves_with_path(marked) if yes}


@pytest.mark.parametrize(
  ("name", "head"),
  [("resnet8", "fc"), ("vgg8", "classifier"), ("vit_tiny", "head"), ("MobileNetV2", "classifier_0")],
)
def test_the_head_is_found_by_what_the_network_hands_out(name, head):
  network, image = MODELS[name](num_classes=5, width=0.125), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  variables = jax.eval_shape(network.init, jax.random.key(0), image)
  assert paths(trainable.head_mask(network, variables, image)) == {
    f"['{head}']['kernel']",
    f"['{head}']['bias']",
  }


def test_the_head_alone_trains_and_decays():
  stage = Stage(tiny.Tiny(4, 4), optimizer.sgd(lambda count: 0.1, weight_decay=0.1), trainable="head")
  before, frozen = begin(stage)
  after, metrics = jax.jit(make_train_step(stage))(before, frozen, BATCH)
  old, new = before.params["student"], after.params["student"]
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), old, new)
  assert paths(changed) == {"['fc']['kernel']", "['fc']['bias']"}
  # Batch norm goes on to remember, as in the survey's code.
  assert paths(jax.tree.map(lambda a, b: bool((a != b).any()), before.model_state, after.model_state))
  rest = {name: tree for name, tree in old.items() if name != "fc"}

  def task(head):
    variables = {"params": {**rest, "fc": head}, **before.model_state}
    said, _ = stage.student.apply(variables, IMAGE, train=True, mutable=["batch_stats"])
    return -jnp.mean(jax.nn.log_softmax(said.logits)[jnp.arange(8), LABEL])

  gradient = jax.grad(task)(old["fc"])
  expected = jax.tree.map(lambda p, g: p - 0.1 * (g + 0.1 * p), old["fc"], gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new["fc"], expected)
  squares = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient))
  np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(squares), rtol=1e-5)


def test_a_network_whose_classifier_is_not_its_own_is_refused():
  learner = MODELS["simkd"](num_classes=4, body="resnet8", width=0.125, teacher="resnet8", teacher_width=0.25)
  with pytest.raises(ValueError, match="trainable: 'head', but this network has no linear classifier"):
    begin(Stage(learner, optimizer.sgd(lambda count: 0.1), trainable="head"))


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_teachers_normalise_by_their_memory_or_by_the_batch(statistics):
  teacher = tiny.Tiny(8, 4)
  terms = (Term("kd", 1.0, kd.method(temperature=2.0)),)
  stage = Stage(
    tiny.Tiny(4, 4), optimizer.sgd(lambda count: 0.1), (teacher,), terms, teacher_statistics=statistics
  )
  state, frozen = begin(stage)
  _, metrics = jax.jit(make_train_step(stage))(state, frozen, BATCH)
  learner, _ = stage.student.apply(
    {"params": state.params["student"], **state.model_state}, IMAGE, train=True, mutable=["batch_stats"]
  )
  if statistics == "running":
    taught = frozen_outputs(teacher, frozen.teachers[0], IMAGE)
  else:
    taught, _ = teacher.apply(frozen.teachers[0], IMAGE, train=True, mutable=["batch_stats"])
  expected = jnp.mean(kd.loss(learner.logits, taught.logits, temperature=2.0))
  np.testing.assert_allclose(metrics["distill/kd"], expected, rtol=1e-5)


def test_batch_statistics_of_teachers_span_all_devices():
  terms = (Term("kd", 1.0, kd.method(temperature=2.0)),)
  rate = optimizer.sgd(lambda count: 0.1)
  stage = Stage(tiny.Tiny(4, 4), rate, (tiny.Tiny(8, 4),), terms, teacher_statistics="batch")
  found = []
  for devices in (jax.local_devices()[:1], jax.local_devices()[:4]):
    step = parallel.compile_step(make_train_step(stage, parallel.AXIS), devices)
    state, frozen = parallel.replicate(begin(stage), devices)
    _, metrics = step(state, frozen, parallel.shard(BATCH, devices))
    found.append(float(metrics["distill/kd"]))
  np.testing.assert_allclose(*found, rtol=1e-5)
