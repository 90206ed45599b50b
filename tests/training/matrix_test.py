"""Every method with every kind of pair of networks: the loss on their outputs, and the training step."""

import functools

import jax
import numpy as np
import pytest

from method_examples import example_statistics, loss_and_gradients
import networks
from smskd_jax.losses import METHODS
from smskd_jax.losses.contract import init_method
from smskd_jax.models import MODELS
from smskd_jax.training import optimizer
from smskd_jax.training.initialization import init_state
from smskd_jax.training.stage import Stage, Term
from smskd_jax.training.statistics import statistics_spec
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Frozen
import tiny

# Name -> (teacher and its width, student and its width, shape of an image).
PAIRS = {
  "same family": (("resnet14", 0.5), ("resnet8", 0.5), (16, 16, 3)),
  "same network": (("resnet8", 0.5), ("resnet8", 0.5), (16, 16, 3)),
  "wider teacher": (("resnet8x4", 0.25), ("resnet14", 0.5), (16, 16, 3)),
  "wider student": (("resnet8", 0.25), ("resnet8x4", 0.25), (16, 16, 3)),
  "other family, one map more": (("vgg8", 0.125), ("resnet8", 0.5), (16, 16, 3)),
  "other family, one map less": (("resnet8", 0.5), ("vgg11", 0.125), (16, 16, 3)),
  "oblong images, maps of odd sizes": (("vgg8", 0.125), ("resnet8", 0.5), (20, 13, 3)),
  "images of one channel": (("vgg8", 0.125), ("resnet8", 0.5), (28, 28, 1)),
  "wide to shuffled": (("wrn_16_2", 0.25), ("ShuffleV2", 0.125), (16, 16, 3)),
  "shuffled to mobile": (("ShuffleV1", 0.125), ("MobileNetV2", 0.25), (32, 32, 3)),
  "convolutions to transformer": (("resnet14", 0.5), ("vit_tiny", 0.125), (16, 16, 3)),
  "transformer to convolutions": (("vit_tiny", 0.125), ("resnet8", 0.5), (16, 16, 3)),
  "convolutions to mixer": (("wrn_10_1", 0.5), ("mixer_tiny", 0.125), (16, 16, 3)),
  "bottlenecks to the survey's": (("ResNet50", 0.0625), ("survey_resnet8", 0.5), (32, 32, 3)),
  "large images": (("imagenet_resnet18", 0.125), ("imagenet_mobilenet_v1", 0.125), (64, 64, 3)),
}
# Of a single feature map: too small for most methods that read maps.
SMALLEST = (("tiny", 0.5), ("tiny", 0.25), (8, 8, 1))
NAMES = sorted(set(METHODS) - {"dml"})
MULTI_VIEW = sorted(name for name, make in METHODS.items() if make().multi_view)
SINGLE_VIEW = sorted(set(NAMES) - set(MULTI_VIEW))


def make_stage(pair, names):
  """A stage of the pair with joint methods, of two views if needed; the shape of its images."""
  (teacher, teacher_width), (student, width), shape = {**PAIRS, "smallest": SMALLEST}[pair]

  def make(name, width):
    return {**MODELS, **tiny.MODELS}[name](num_classes=networks.NUM_CLASSES, width=width)

  views = (lambda key, batch: batch.image, lambda key, batch: batch.image[:, :, ::-1])
  stage = Stage(
    student=make(student, width),
    optimizer=optimizer.sgd(0.01),
    teachers=(make(teacher, teacher_width),),
    terms=tuple(Term(name, 1e-3, METHODS[name]()) for name in names),
    views=views if set(names) & set(MULTI_VIEW) else views[:1],
  )
  return stage, shape


def shapes_of(stage, shape):
  """The shapes of a stage's (state, frozen), from those of its networks."""
  image, key = jax.ShapeDtypeStruct((1, *shape), np.float32), jax.random.key(0)

  def init(network):
    return jax.eval_shape(network.init, key, image)

  def init_from(variables, teachers, statistics):
    return init_state(stage, key, variables, teachers, image, networks.LABELS, statistics=statistics)

  teachers = tuple(map(init, stage.teachers))
  statistics = statistics_spec(stage, teachers, image, networks.LABELS)
  return jax.eval_shape(init_from, init(stage.student), teachers, statistics), Frozen(key, teachers)


def check_one_step(stage, shape):
  state, frozen = networks.init_stage(stage, shape=shape)
  step = jax.jit(make_train_step(stage), compiler_options=networks.FAST_COMPILE)
  new_state, metrics = step(state, frozen, networks.batch_of(0, shape=shape))
  for path, x in jax.tree_util.tree_leaves_with_path((metrics, new_state.params, new_state.method_state)):
    assert np.isfinite(np.asarray(x)).all(), jax.tree_util.keystr(path)
  assert jax.tree.structure(new_state) == jax.tree.structure(state)


QUICK = ("images of one channel", "convolutions to transformer")  # pairs that are traced by default
# Multi-view methods read logits alone: one pair suffices.
TRACED = [
  *(
    pytest.param(pair, SINGLE_VIEW, id=pair, marks=[] if pair in QUICK else pytest.mark.slow)
    for pair in PAIRS
  ),
  pytest.param("smallest", MULTI_VIEW, id="two views-smallest"),
]


@pytest.mark.parametrize(("pair", "names"), TRACED)
def test_every_method_can_be_traced_for_every_pair(pair, names):
  stage, shape = make_stage(pair, names)
  state, frozen = shapes_of(stage, shape)
  batch = networks.batch_of(0, shape=shape)
  new_state, metrics = jax.eval_shape(make_train_step(stage), state, frozen, batch)

  def specs(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

  assert specs(new_state) == specs(state)
  assert {f"distill/{name}" for name in names} <= set(metrics)


# All at once take minutes to compile. The tests of the contract check the gradients of each method alone.
@pytest.mark.parametrize(
  ("pair", "names"),
  [
    pytest.param("other family, one map more", SINGLE_VIEW, marks=pytest.mark.slow, id="one view"),
    pytest.param("smallest", MULTI_VIEW, id="two views"),
    pytest.param(
      "other family, one map more",
      ["crd", "fitnet", "kd", "ofd", "rkd", "vid"],
      marks=pytest.mark.slow,
      id="a few",
    ),
  ],
)
def test_joint_methods_take_a_step(pair, names):
  check_one_step(*make_stage(pair, names))


@pytest.mark.slow
def test_a_cohort_takes_a_step():
  """Two networks that teach each other."""
  members = {"first": "resnet8", "width": 0.25, "peer": "vgg8", "peer_width": 0.125}
  student = MODELS["cohort"](num_classes=networks.NUM_CLASSES, **members)
  stage = Stage(student, optimizer.sgd(0.01), terms=(Term("dml", 1.0, METHODS["dml"]()),))
  check_one_step(stage, (16, 16, 3))


@functools.cache
def outputs_of_pair(pair):
  """Outputs of a pair's random student, in training mode, and teacher for the views of a batch, and the batch."""
  stage, shape = make_stage(pair, MULTI_VIEW)
  batch = networks.batch_of(0, shape=shape)
  images = [view(None, batch) for view in stage.views]

  def forward(network, *, seed, train):
    variables = networks.random_variables(network, seed, shape)
    collections = [name for name in variables if name != "params"] if train else []

    def apply(variables, image):
      outputs, _ = network.apply(variables, image, train=train, mutable=collections)
      return outputs

    run = jax.jit(apply, compiler_options=networks.FAST_COMPILE)
    first, *others = (run(variables, image) for image in images)
    return first._replace(view_outputs=tuple(others))

  teacher = forward(stage.teachers[0], seed=1, train=False)
  return forward(stage.student, seed=0, train=True), teacher, batch


@pytest.mark.slow
@pytest.mark.parametrize("pair, name", [(pair, name) for pair in PAIRS for name in NAMES])
def test_every_loss_and_its_gradients_are_finite_for_every_pair(pair, name):
  student, teacher, batch = outputs_of_pair(pair)
  method = METHODS[name]()
  if not method.multi_view:
    student, teacher = student._replace(view_outputs=()), teacher._replace(view_outputs=())
  specs = jax.eval_shape(lambda: (student, (teacher,)))
  statistics = example_statistics(method, (teacher,), networks.LABELS)
  variables = init_method(method, jax.random.key(0), *specs, networks.LABELS, statistics)
  run = jax.jit(functools.partial(loss_and_gradients, method), compiler_options=networks.FAST_COMPILE)
  results = run(variables, student, (teacher,), batch)
  for path, x in jax.tree_util.tree_leaves_with_path(results):
    assert np.isfinite(np.asarray(x)).all(), jax.tree_util.keystr(path)
