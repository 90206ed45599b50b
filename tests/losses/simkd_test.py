"""Tests of losses/simkd.py, alone and with the network that it is made for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from smskd_jax.losses import simkd
from smskd_jax.losses.contract import Context
from smskd_jax.models import MODELS
from smskd_jax.models import simkd as simkd_network
from smskd_jax.runtime import parallel
from smskd_jax.training import optimizer
from smskd_jax.training.initialization import init_state
from smskd_jax.training.stage import Stage, Term, student_variables
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import FrozenHead, Head, Outputs
import tiny

pytestmark = pytest.mark.usefixtures("float64")

# Compiled in haste, because each program runs once.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def maps(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def outputs(final_map, k=5, head=Head):
  d = final_map.shape[-1]
  return Outputs(maps(7, final_map.shape[0], k), None, (), (), final_map, head(maps(8, d, k), maps(9, k)))


def begin(method, student_outputs, teacher):
  """The MethodVariables of a pair, from shapes."""
  shapes = jax.eval_shape(lambda: (student_outputs, (teacher,)))
  return quick(lambda key: method.init(key, *shapes, None))(jax.random.key(0))


def test_worked_by_hand():
  student = np.array([[[[1.0], [3.0]]], [[[0.0], [0.0]]]])
  np.testing.assert_allclose(simkd.loss(student, np.zeros_like(student)), [5, 0])
  # Of a map of another size the mean is compared: 2 with 0, and 0 with 0.
  np.testing.assert_allclose(simkd.loss(student, np.zeros((2, 3, 1, 1))), [4, 0])
  np.testing.assert_allclose(simkd.loss(np.zeros((2, 3, 1, 1)), student), [4, 0])


def normalized(x):
  y = (x - x.mean((0, 1, 2), keepdims=True)) / np.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
  return np.maximum(y, 0)


def convolve(x, kernel):
  """A 3x3 convolution of [b, h, w, c], padded by 1, in plain NumPy."""
  _, h, w, _ = x.shape
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))


@pytest.mark.parametrize("seed", range(3))
def test_any_other_learner_gets_a_projector_that_is_this_one_in_numpy(seed):
  student, teacher = maps(seed, 4, 5, 4, 3), maps(seed + 3, 4, 5, 4, 6)
  method = simkd.method(factor=3.0)
  aux = begin(method, outputs(student), outputs(teacher))
  kernels = {name: np.asarray(x["kernel"]) for name, x in aux.params.items() if "kernel" in x}
  assert {name: x.shape[2:] for name, x in kernels.items()} == {
    "conv1": (3, 2),
    "conv2": (2, 2),
    "conv3": (2, 6),
  }
  run = quick(lambda aux: method.apply(*aux, outputs(student), (outputs(teacher),), Context(None)))
  rows, state = run(aux)
  x = normalized(np.asarray(student) @ kernels["conv1"][0, 0])
  x = normalized(convolve(x, kernels["conv2"]))
  last = x @ kernels["conv3"][0, 0]
  np.testing.assert_allclose(rows, np.square(normalized(last) - teacher).mean((1, 2, 3)), rtol=1e-9)
  np.testing.assert_allclose(state["bn3"]["mean"], 0.1 * last.mean((0, 1, 2)), rtol=1e-9)


def test_that_projector_learns_even_where_the_channels_agree():
  student, teacher = maps(0, 4, 4, 4, 6), jnp.abs(maps(1, 4, 2, 2, 6))
  method = simkd.method()
  aux = begin(method, outputs(student), outputs(teacher))

  @quick
  def gradient(params):
    def loss(p):
      return method.apply(p, aux.state, outputs(student), (outputs(teacher),), Context(None))[0].mean()

    return jax.value_and_grad(loss)(params)

  before, by_params = gradient(aux.params)
  assert len(jax.tree.leaves(by_params)) == 9 and all((x != 0).any() for x in jax.tree.leaves(by_params))
  after, _ = gradient(jax.tree.map(lambda p, g: p - 0.1 * g, aux.params, by_params))
  assert after < before


def test_adopts_nothing_without_a_place_for_it():
  variables = {"params": {"fc": {"kernel": maps(0, 6, 5)}}}
  assert simkd.init_student(variables, (outputs(maps(1, 1, 2, 2, 6)),)) is variables


def test_adopts_copies():
  teacher = outputs(maps(1, 1, 2, 2, 6))
  head = {"kernel": jnp.zeros((6, 5)), "bias": jnp.zeros(5)}
  adopted = simkd.init_student({"params": {}, "head": head}, (teacher,))
  for name, x in adopted["head"].items():
    np.testing.assert_array_equal(x, getattr(teacher.head, name))
    assert x.unsafe_buffer_pointer() != getattr(teacher.head, name).unsafe_buffer_pointer()
  assert not head["kernel"].any()


@pytest.mark.parametrize("shape", [(7, 5), (6, 4)], ids=["embedding", "classes"])
def test_refuses_a_teacher_whose_classifier_does_not_fit(shape):
  d, k = shape
  teacher = outputs(maps(1, 1, 2, 2, d), k)
  message = (
    rf"simkd: the student is made for a classifier of shape \[6, 5\], the teacher's has \[{d}, {k}\]; give "
  )
  with pytest.raises(ValueError, match=message):
    begin(simkd.method(), outputs(maps(0, 1, 2, 2, 6), head=FrozenHead), teacher)
  with pytest.raises(ValueError, match=message):
    simkd.init_student(
      {"params": {}, "head": {"kernel": jnp.zeros((6, 5)), "bias": jnp.zeros(5)}}, (teacher,)
    )


@pytest.mark.parametrize(
  "field, head", [("final_map", Head), ("final_map", FrozenHead), ("head", FrozenHead)]
)
def test_refuses_a_teacher_that_does_not_give_what_is_needed(field, head):
  student_outputs = outputs(maps(0, 1, 2, 2, 6), head=head)
  with pytest.raises(ValueError, match=f"simkd: the teacher does not give Outputs.{field}"):
    begin(simkd.method(), student_outputs, student_outputs._replace(**{field: None}))


def make_stage():
  """A student that reuses the classifier of a wider teacher."""
  options = {"num_classes": networks.NUM_CLASSES, "body": "tiny", "teacher": "tiny", "teacher_width": 2.0}
  return Stage(
    student=simkd_network.make(tiny.MODELS, **options),
    optimizer=optimizer.sgd(0.05),
    teachers=(tiny.make(num_classes=networks.NUM_CLASSES, width=2.0),),
    terms=(Term("simkd", 1.0, simkd.method()),),
    task_weight=0.0,
  )


@pytest.fixture(scope="module")
def trained():
  """(losses, the last state, the first one, what is frozen) of a few steps on one batch."""
  with jax.enable_x64(True):
    stage, batch, losses = make_stage(), networks.batch_of(0, dtype=np.float64), []
    first, frozen = networks.init_stage(stage, dtype=np.float64)
    state, step = first, quick(make_train_step(stage))
    for _ in range(5):
      state, metrics = step(state, frozen, batch)
      losses.append(float(metrics["distill/simkd"]))
      assert float(metrics["loss"]) == losses[-1]
  return losses, state, jax.device_get(first), jax.device_get(frozen)


def test_the_student_learns_and_the_classifier_stays_the_teachers(trained):
  losses, last, first, frozen = trained
  assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
  for state in (first, last):
    jax.tree.map(np.testing.assert_array_equal, state.model_state["head"], frozen.teachers[0]["params"]["fc"])
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.params["student"], last.params["student"])
  assert all(jax.tree.leaves(moved["projector"])) and moved["body"]["conv"]["kernel"]
  assert not jax.tree.leaves(last.params["methods"]), "a second projector"


def test_the_student_predicts_by_the_teachers_classifier(trained):
  _, last, _, frozen = trained
  image = networks.batch_of(1, dtype=np.float64).image
  predicted = quick(make_stage().student.apply)(student_variables(last), image)
  fc = frozen.teachers[0]["params"]["fc"]
  expected = np.asarray(predicted.final_map).mean((1, 2)) @ fc["kernel"] + np.asarray(fc["bias"])[None]
  assert expected.any()
  np.testing.assert_allclose(predicted.logits, expected, rtol=1e-9)


def test_four_devices_train_as_one_does(trained):
  losses, last, state, frozen = trained
  devices = jax.local_devices()[:4]
  batch = parallel.shard(networks.batch_of(0, dtype=np.float64), devices)
  state, frozen = parallel.replicate(state, devices), parallel.replicate(frozen, devices)
  step = parallel.compile_step(make_train_step(make_stage(), parallel.AXIS), devices)
  for loss in losses:
    state, metrics = step(state, frozen, batch)
    np.testing.assert_allclose(metrics["distill/simkd"], loss, rtol=1e-9)
  jax.tree.map(np.testing.assert_array_equal, state.model_state["head"], last.model_state["head"])


def test_a_stage_of_the_zoos_networks_can_be_planned_without_running_it():
  teacher_options = {"teacher": "vgg8", "teacher_width": 0.125}
  student_outputs = simkd_network.make(MODELS, num_classes=10, body="resnet8", width=0.25, **teacher_options)
  teacher = MODELS["vgg8"](num_classes=10, width=0.125)
  stage = make_stage()._replace(student=student_outputs, teachers=(teacher,))
  image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
  shapes = [jax.eval_shape(network.init, jax.random.key(0), image) for network in (student_outputs, teacher)]

  def begin(key, variables, teacher_options):
    return init_state(stage, key, variables, (teacher_options,), image, networks.LABELS)

  state = jax.eval_shape(begin, jax.random.key(0), *shapes)
  assert jax.tree.map(jnp.shape, state.model_state["head"]) == {"kernel": (64, 10), "bias": (10,)}
