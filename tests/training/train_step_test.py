"""Tests of training/train_step.py: the objective, term by term, and its minimization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import networks
from smskd_jax.layers import convolution
from smskd_jax.losses import kd, rkd
from smskd_jax.runtime import parallel
from smskd_jax.training.reference import NUM_WEIGHT_BINS
from smskd_jax.training.stage import student_variables
from smskd_jax.training.train_step import make_gradient_diagnostics, make_train_step

ALL_TERMS = networks.make_stage(("kd", 0.9), ("rkd", 2.0), reference=networks.REFERENCE_OPTIONS)._replace(
  task_weight=0.3
)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_the_objective_is_the_weighted_sum_of_its_terms(float64):
  stage, batch = ALL_TERMS, networks.batch_of(0, dtype=np.float64)
  state, frozen = networks.init_stage(stage, dtype=np.float64)
  _, metrics = jax.jit(make_train_step(stage))(state, frozen, batch)

  train_mode = jax.jit(functools.partial(stage.student.apply, train=True, mutable=["batch_stats"]))
  student, _ = train_mode(student_variables(state), batch.image)
  teacher = jax.jit(stage.teachers[0].apply)(frozen.teachers[0], batch.image)
  reference = jax.jit(stage.student.apply)(frozen.reference, batch.image)
  rows, p = np.arange(16), softmax(np.asarray(student.logits))
  task = -np.log(p[rows, batch.label]).mean()
  weights = 1 - softmax(np.asarray(teacher.logits))[rows, batch.label]
  p_reference, p_student = (softmax(np.asarray(x.logits) / 2) for x in (reference, student))
  reference_loss = (weights * 4 * (p_reference * np.log(p_reference / p_student)).sum(-1)).mean()
  kd_loss = kd.loss(student.logits, teacher.logits).mean()
  rkd_loss = rkd.loss(student.embedding, teacher.embedding).mean()
  expected = {
    "task": task,
    "distill/kd": kd_loss,
    "distill/rkd": rkd_loss,
    "reference": reference_loss,
    "teacher_tcp": 1 - weights.mean(),
    "reference_tcp": softmax(np.asarray(reference.logits))[rows, batch.label].mean(),
    "reference_weight": weights.mean(),
    "reference_weight_if_correct": (weights * (p.argmax(-1) == batch.label)).mean(),
    "loss": 0.3 * task + 0.9 * kd_loss + 2.0 * rkd_loss + 0.7 * reference_loss,
    "accuracy": (p.argmax(-1) == batch.label).mean(),
  }
  counts, _ = np.histogram(weights, NUM_WEIGHT_BINS, (0, 1))
  expected |= {f"reference_weight_fraction/{i}": count / 16 for i, count in enumerate(counts)}
  assert set(metrics) == {*expected, "gradient_norm"}
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-9, err_msg=name)


def test_without_a_reference_its_metrics_are_absent():
  state, frozen = networks.init_stage(stage := networks.make_stage(("kd", 1.0)))
  _, metrics = jax.eval_shape(make_train_step(stage), state, frozen, networks.batch_of(0))
  assert not {"reference", "teacher_tcp", "reference_tcp", "reference_weight"} & set(metrics)


def test_a_step_is_sgd_on_the_gradient_of_the_loss(float64):
  stage = networks.make_stage(learning_rate=0.1)
  state, frozen = networks.init_stage(stage, dtype=np.float64)
  batch = networks.batch_of(0, dtype=np.float64)

  def loss(params):
    variables = {"params": params, **state.model_state}
    outputs, _ = stage.student.apply(variables, batch.image, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, batch.label).mean()

  gradient = jax.jit(jax.grad(loss))(state.params["student"])
  new_state, metrics = jax.jit(make_train_step(stage))(state, frozen, batch)
  expected = jax.tree.map(lambda p, g: p - 0.1 * (g + 5e-4 * p), state.params["student"], gradient)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), new_state.params["student"], expected
  )
  np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradient), rtol=1e-9)
  assert new_state.step == 1


def test_method_parameters_train_and_frozen_networks_do_not():
  stage = networks.make_stage(("fitnet", 1.0), reference=networks.REFERENCE_OPTIONS)
  state, frozen = networks.init_stage(stage)
  before = jax.tree.map(np.array, (state.params["methods"], frozen.teachers, frozen.reference))
  new_state, _ = jax.jit(make_train_step(stage))(state, frozen, networks.batch_of(0))
  changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), new_state.params["methods"], before[0])
  assert all(jax.tree.leaves(changed)) and jax.tree.leaves(changed)
  jax.tree.map(np.testing.assert_array_equal, (frozen.teachers, frozen.reference), before[1:])


def test_a_method_that_is_not_defined_for_the_networks_is_refused():
  stage = networks.make_stage(("kd", 1.0))
  with pytest.raises(ValueError, match="kd: needs exactly one teacher, got 2"):
    networks.init_stage(stage._replace(teachers=stage.teachers * 2))


def trajectory(num_devices, dtype, steps):
  """Losses over three consecutive stages, and the last state."""
  devices, losses, variables, reference = jax.local_devices()[:num_devices], [], None, None
  for method, weight in (("fitnet", 1.0), ("rkd", 0.05), ("kd", 0.9)):
    options = None if reference is None else networks.REFERENCE_OPTIONS | {"normalize": True}
    stage = networks.make_stage((method, weight), reference=options)
    state, frozen = networks.init_stage(stage, dtype=dtype, variables=variables)
    frozen = parallel.replicate(frozen._replace(reference=reference), devices)
    state = parallel.replicate(state, devices)
    traces, pure = [], make_train_step(stage, parallel.AXIS)
    step = parallel.compile_step(
      lambda *a, pure=pure, traces=traces: (traces.append(1), pure(*a))[1], devices
    )
    for i in range(steps):
      state, metrics = step(state, frozen, parallel.shard(networks.batch_of(i, dtype=dtype), devices))
      losses.append(float(metrics["loss"]))
    assert len(traces) == 1, "compiled more than once"
    variables = reference = jax.device_get(student_variables(state))
  return losses, state


@pytest.fixture(scope="module")
def one_device_losses():
  with jax.enable_x64(True):
    return trajectory(1, np.float64, 20)[0]


@pytest.mark.parametrize(
  "num_devices", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 8]
)
def test_many_devices_train_as_one_device(num_devices, one_device_losses, float64):
  losses, state = trajectory(num_devices, np.float64, 20)
  np.testing.assert_allclose(losses, one_device_losses, rtol=1e-9)
  for leaf in jax.tree.leaves(state):
    replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    assert len(replicas) == num_devices
    for replica in replicas[1:]:
      np.testing.assert_array_equal(replica, replicas[0])


@pytest.mark.slow
def test_many_devices_train_as_one_device_in_float32():
  one, _ = trajectory(1, np.float32, 20)
  many, _ = trajectory(8, np.float32, 20)
  np.testing.assert_allclose(many[19::20], one[19::20], rtol=1e-3)


def flops(function, *arguments):
  with convolution.use_xla_convolution():  # XLA counts no operations of oneDNN's
    return jax.jit(lambda *a: function(*a)).lower(*arguments).compile().cost_analysis()["flops"]


def test_each_frozen_network_runs_one_forward_pass():
  """The FLOPs of the compiled step are those of its parts, each once."""
  stage = networks.make_stage(("kd", 1.0), reference=networks.REFERENCE_OPTIONS, model="small", width=1.0)
  plain = stage._replace(teachers=(), terms=(), reference=None)
  shape, batch = (16, 16, 3), networks.batch_of(0, shape=(16, 16, 3))
  state, frozen = networks.init_stage(stage, shape=shape)
  plain_state, plain_frozen = networks.init_stage(plain, shape=shape)

  def forward(network):
    return lambda variables, image: network.apply(variables, image).logits

  parts = flops(make_train_step(plain), plain_state, plain_frozen, batch)
  parts += flops(forward(stage.teachers[0]), frozen.teachers[0], batch.image)
  reference = flops(forward(stage.student), frozen.reference, batch.image)
  whole = flops(make_train_step(stage), state, frozen, batch)
  np.testing.assert_allclose(whole, parts + reference, rtol=0.05)
  assert reference > 0.1 * whole, "the tolerance would hide a second forward pass"


def test_a_stage_without_a_reference_has_none_in_its_program():
  stage = networks.make_stage(("kd", 1.0))
  state, frozen = networks.init_stage(stage)
  assert frozen.reference is None
  with_reference = networks.make_stage(("kd", 1.0), reference=networks.REFERENCE_OPTIONS)
  reference_state, reference_frozen = networks.init_stage(with_reference)
  batch = networks.batch_of(0)

  def convolutions(function, *arguments):
    with convolution.use_xla_convolution():
      return jax.jit(lambda *a: function(*a)).lower(*arguments).as_text().count("stablehlo.convolution")

  without = convolutions(make_train_step(stage), state, frozen, batch)
  forward = convolutions(stage.student.apply, reference_frozen.reference, batch.image)
  assert (
    convolutions(make_train_step(with_reference), reference_state, reference_frozen, batch)
    == without + forward
  )


def test_a_reference_survives_the_donation_of_the_state():
  stage = networks.make_stage(("kd", 1.0), reference=networks.REFERENCE_OPTIONS)
  state, frozen = networks.init_stage(stage)
  devices = jax.local_devices()[:2]
  variables = jax.tree.map(jnp.asarray, student_variables(state))
  state, _ = networks.init_stage(stage, variables=variables)
  frozen = parallel.replicate(frozen._replace(reference=variables), devices)
  state = parallel.replicate(state, devices)
  step = parallel.compile_step(make_train_step(stage, parallel.AXIS), devices)
  for i in range(2):
    state, _ = step(state, frozen, parallel.shard(networks.batch_of(i), devices))
  for leaf in jax.tree.leaves(jax.device_get((variables, frozen.reference))):
    assert np.isfinite(leaf).all()


def test_only_the_term_whose_turn_it_is_counts(float64):
  stage = networks.make_stage(("kd", 0.9), ("logits_mse", 2.0))._replace(
    alternate_epochs=1, steps_per_epoch=2
  )
  state, frozen = networks.init_stage(stage, dtype=np.float64)
  step, batch = jax.jit(make_train_step(stage)), networks.batch_of(0, dtype=np.float64)
  for i, name, weight in ((0, "kd", 0.9), (3, "logits_mse", 2.0), (4, "kd", 0.9)):
    _, metrics = step(state._replace(step=jnp.int32(i)), frozen, batch)
    expected = metrics["task"] + weight * metrics[f"distill/{name}"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-12)


def test_the_warm_up_scales_the_term(float64):
  stage = networks.make_stage(("kd", 0.9))
  (term,) = stage.terms
  stage = stage._replace(terms=(term._replace(warmup_epochs=4.0),), steps_per_epoch=2)
  state, frozen = networks.init_stage(stage, dtype=np.float64)
  step, batch = jax.jit(make_train_step(stage)), networks.batch_of(0, dtype=np.float64)
  for i, scale in ((0, 1 / 4), (2, 2 / 4), (50, 1)):
    _, metrics = step(state._replace(step=jnp.int32(i)), frozen, batch)
    expected = metrics["task"] + 0.9 * scale * metrics["distill/kd"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-12)


def gradient_of_part(name, state, frozen, batch):
  """The student's gradient of one part of the objective, by a step of SGD of rate 1."""
  without = {"task": {"task_weight": 0.0}, "distill": {"terms": ()}, "reference": {"reference": None}}
  fields = {}
  for other in without.keys() - {name}:
    fields |= without[other]
  sgd = optax.sgd(1.0)
  stage = ALL_TERMS._replace(**fields, optimizer=sgd)
  params = state.params if name == "distill" else state.params | {"methods": ()}
  state = state._replace(
    params=params, method_state=state.method_state if name == "distill" else (), opt_state=sgd.init(params)
  )
  frozen = frozen if name == "reference" else frozen._replace(reference=None)
  after, _ = jax.jit(make_train_step(stage))(state, frozen, batch)
  flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.params["student"])]) for s in (state, after)]
  return flat[0] - flat[1]


def test_gradient_diagnostics_are_norms_and_cosines_of_the_parts_gradients(float64):
  state, frozen = networks.init_stage(ALL_TERMS, dtype=np.float64)
  batch = networks.batch_of(0, dtype=np.float64)
  metrics = jax.jit(make_gradient_diagnostics(ALL_TERMS))(state, frozen, batch)
  gradients = {
    name: gradient_of_part(name, state, frozen, batch) for name in ("task", "distill", "reference")
  }
  for name, gradient in gradients.items():
    np.testing.assert_allclose(metrics[f"gradient_norm/{name}"], np.linalg.norm(gradient), rtol=1e-7)
  for one, other in (("task", "distill"), ("task", "reference"), ("distill", "reference")):
    a, b = gradients[one], gradients[other]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(metrics[f"gradient_cosine/{one}_{other}"], cosine, rtol=1e-6)


def test_gradient_diagnostics_of_a_stage_with_labels_alone():
  stage = networks.make_stage()
  state, frozen = networks.init_stage(stage)
  metrics = jax.eval_shape(make_gradient_diagnostics(stage), state, frozen, networks.batch_of(0))
  assert set(metrics) == {"gradient_norm/task"}
