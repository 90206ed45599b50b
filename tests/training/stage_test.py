"""Tests of training/stage.py: the objective, term by term, and the step that minimises it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import networks
from smskd_jax.losses import kd, rkd
from smskd_jax.runtime import parallel
from smskd_jax.training.objective import NUM_WEIGHT_BINS, term_scale
from smskd_jax.training.stage import make_gradient_diagnostics, make_train_step, student_variables


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_objective_is_the_sum_of_its_terms_by_hand(float64):
  stage = networks.make_stage(("kd", 0.9), ("rkd", 2.0), reference=networks.REFERENCE_OPTIONS)._replace(
    task_weight=0.3
  )
  state, frozen = networks.init_stage(stage, dtype=np.float64)
  batch = networks.batch_of(0, dtype=np.float64)
  _, metrics = jax.jit(make_train_step(stage))(state, frozen, batch)

  training = jax.jit(functools.partial(stage.student.apply, train=True, mutable=["batch_stats"]))
  student, _ = training(student_variables(state), batch.image)
  teacher = jax.jit(stage.teachers[0].apply)(frozen.teachers[0], batch.image)
  reference = jax.jit(stage.student.apply)(frozen.reference, batch.image)
  rows, p = np.arange(16), softmax(np.asarray(student.logits))
  task = -np.log(p[rows, batch.label]).mean()
  weights = 1 - softmax(np.asarray(teacher.logits))[rows, batch.label]
  p_ref, p_student = softmax(np.asarray(reference.logits) / 2), softmax(np.asarray(student.logits) / 2)
  anchored = (weights * 4 * (p_ref * np.log(p_ref / p_student)).sum(-1)).mean()
  of_kd = kd.loss(student.logits, teacher.logits).mean()
  of_rkd = rkd.loss(student.embedding, teacher.embedding).mean()
  expected = {
    "task": task,
    "distill/kd": of_kd,
    "distill/rkd": of_rkd,
    "reference": anchored,
    "teacher_tcp": 1 - weights.mean(),
    "reference_tcp": softmax(np.asarray(reference.logits))[rows, batch.label].mean(),
    "reference_weight": weights.mean(),
    "reference_weight_of_right": (weights * (p.argmax(-1) == batch.label)).mean(),
    "loss": 0.3 * task + 0.9 * of_kd + 2.0 * of_rkd + 0.7 * anchored,
    "accuracy": (p.argmax(-1) == batch.label).mean(),
  }
  counts, _ = np.histogram(weights, NUM_WEIGHT_BINS, (0, 1))
  expected |= {f"reference_weight_share/{i}": count / 16 for i, count in enumerate(counts)}
  assert set(metrics) == {*expected, "gradient_norm"}
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-9, err_msg=name)


def test_without_a_reference_the_term_is_absent():
  state, frozen = networks.init_stage(stage := networks.make_stage(("kd", 1.0)))
  _, metrics = jax.eval_shape(make_train_step(stage), state, frozen, networks.batch_of(0))
  assert not {"reference", "teacher_tcp", "reference_tcp", "reference_weight"} & set(metrics)


def test_one_step_descends_along_the_gradient(float64):
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


def test_auxiliary_parameters_learn_and_the_frozen_do_not():
  stage = networks.make_stage(("fitnet", 1.0), reference=networks.REFERENCE_OPTIONS)
  state, frozen = networks.init_stage(stage)
  before = jax.tree.map(np.array, (state.params["methods"], frozen.teachers, frozen.reference))
  new_state, _ = jax.jit(make_train_step(stage))(state, frozen, networks.batch_of(0))
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), new_state.params["methods"], before[0])
  assert all(jax.tree.leaves(moved)) and jax.tree.leaves(moved)
  jax.tree.map(np.testing.assert_array_equal, (frozen.teachers, frozen.reference), before[1:])


def test_a_method_that_is_not_defined_for_the_pair_is_refused():
  stage = networks.make_stage(("kd", 1.0))
  with pytest.raises(ValueError, match="kd: needs exactly one teacher, got 2"):
    networks.init_stage(stage._replace(teachers=stage.teachers * 2))


def trajectory(num_devices, dtype, steps):
  """Losses over three stages, each from the variables that the one before left; and the last state."""
  devices, losses, variables, reference = jax.local_devices()[:num_devices], [], None, None
  for method, weight in (("fitnet", 1.0), ("rkd", 0.05), ("kd", 0.9)):
    settings = None if reference is None else networks.REFERENCE_OPTIONS | {"normalize": True}
    stage = networks.make_stage((method, weight), reference=settings)
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
def test_many_devices_train_as_one_does(num_devices, one_device_losses, float64):
  losses, state = trajectory(num_devices, np.float64, 20)
  np.testing.assert_allclose(losses, one_device_losses, rtol=1e-9)
  for leaf in jax.tree.leaves(state):
    replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    assert len(replicas) == num_devices
    for replica in replicas[1:]:
      np.testing.assert_array_equal(replica, replicas[0])


@pytest.mark.slow
def test_many_devices_train_as_one_does_in_float32():
  one, _ = trajectory(1, np.float32, 20)
  many, _ = trajectory(8, np.float32, 20)
  np.testing.assert_allclose(many[19::20], one[19::20], rtol=1e-3)


def flops(function, *arguments):
  return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_each_frozen_network_runs_one_forward_pass():
  """The FLOPs of the compiled step are those of its parts: none is done twice, and none is left out."""
  anchored = networks.make_stage(("kd", 1.0), reference=networks.REFERENCE_OPTIONS, width=1.0)
  plain = anchored._replace(teachers=(), terms=(), reference=None)
  shape, batch = (16, 16, 3), networks.batch_of(0, shape=(16, 16, 3))
  state, frozen = networks.init_stage(anchored, shape=shape)
  plain_state, plain_frozen = networks.init_stage(plain, shape=shape)
  forward = lambda network: lambda variables, image: network.apply(variables, image).logits
  parts = flops(make_train_step(plain), plain_state, plain_frozen, batch)
  parts += flops(forward(anchored.teachers[0]), frozen.teachers[0], batch.image)
  parts += flops(forward(anchored.student), frozen.reference, batch.image)
  whole = flops(make_train_step(anchored), state, frozen, batch)
  np.testing.assert_allclose(whole, parts, rtol=0.05)
  reference = flops(forward(anchored.student), frozen.reference, batch.image)
  assert reference > 0.1 * whole, "the bound would not notice a second forward pass"


def test_first_stage_has_no_reference_in_its_program():
  stage = networks.make_stage(("kd", 1.0))
  state, frozen = networks.init_stage(stage)
  assert frozen.reference is None
  anchored = networks.make_stage(("kd", 1.0), reference=networks.REFERENCE_OPTIONS)
  anchored_state, anchored_frozen = networks.init_stage(anchored)
  batch = networks.batch_of(0)
  without = jax.jit(make_train_step(stage)).lower(state, frozen, batch).as_text()
  with_it = jax.jit(make_train_step(anchored)).lower(anchored_state, anchored_frozen, batch).as_text()
  count = lambda text: text.count("stablehlo.convolution")
  convolutions = count(jax.jit(stage.student.apply).lower(anchored_frozen.reference, batch.image).as_text())
  assert count(with_it) == count(without) + convolutions


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
  assert all(
    np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get((variables, frozen.reference)))
  )


@pytest.mark.parametrize("step, expected", [(0, 1 / 4), (9, 1 / 4), (10, 2 / 4), (39, 1), (100, 1)])
def test_a_weight_warms_up_epoch_by_epoch(step, expected):
  stage = networks.make_stage(("kd", 8.0))
  stage = stage._replace(terms=(stage.terms[0]._replace(warmup_epochs=4.0),))
  np.testing.assert_allclose(term_scale(stage, 0, jnp.float32(step / 10)), expected)


def test_terms_take_turns():
  stage = networks.make_stage(("kd", 1.0), ("rkd", 1.0), ("logits_mse", 1.0))._replace(alternate_epochs=2)
  turns = [
    [float(term_scale(stage, i, jnp.float32(epoch))) for i in range(3)] for epoch in (0, 1.9, 2, 3.5, 4, 5, 6)
  ]
  assert [turn.index(1.0) for turn in turns] == [0, 0, 1, 1, 2, 2, 0]
  assert all(sum(turn) == 1 for turn in turns)


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


def test_the_probe_tells_what_pulls_on_the_learner(float64):
  stage = networks.make_stage(("kd", 0.9), ("rkd", 2.0), reference=networks.REFERENCE_OPTIONS)._replace(
    task_weight=0.3
  )
  state, frozen = networks.init_stage(stage, dtype=np.float64)
  batch = networks.batch_of(0, dtype=np.float64)
  found = jax.jit(make_gradient_diagnostics(stage))(state, frozen, batch)
  gradients = {}
  without = {"task": {"task_weight": 0.0}, "distill": {"terms": ()}, "reference": {"reference": None}}
  for name in without:
    others = [fields for other, fields in without.items() if other != name]
    alone = stage._replace(**{field: value for fields in others for field, value in fields.items()})
    params = state.params if name == "distill" else state.params | {"methods": ()}
    own = frozen if name == "reference" else frozen._replace(reference=None)
    at = state._replace(params=params, method_state=() if name != "distill" else state.method_state)
    rate = optax.sgd(1.0)
    made = alone._replace(optimizer=rate)
    after, _ = jax.jit(make_train_step(made))(at._replace(opt_state=rate.init(params)), own, batch)
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    gradients[name] = flat(state.params["student"]) - flat(after.params["student"])
  for name, gradient in gradients.items():
    np.testing.assert_allclose(found[f"gradient_norm/{name}"], np.linalg.norm(gradient), rtol=1e-7)
  for one, other in (("task", "distill"), ("task", "reference"), ("distill", "reference")):
    a, b = gradients[one], gradients[other]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(found[f"gradient_cosine/{one}_{other}"], cosine, rtol=1e-6)


def test_the_probe_of_a_stage_with_nothing_but_labels():
  stage = networks.make_stage()
  state, frozen = networks.init_stage(stage)
  assert set(jax.eval_shape(make_gradient_diagnostics(stage), state, frozen, networks.batch_of(0))) == {
    "gradient_norm/task"
  }


def test_the_warm_up_weighs_the_term(float64):
  warm = networks.make_stage(("kd", 0.9))
  (term,) = warm.terms
  warm = warm._replace(terms=(term._replace(warmup_epochs=4.0),), steps_per_epoch=2)
  state, frozen = networks.init_stage(warm, dtype=np.float64)
  step, batch = make_train_step(warm), networks.batch_of(0, dtype=np.float64)
  for i, part in ((0, 1 / 4), (2, 2 / 4), (50, 1)):
    _, metrics = jax.jit(step)(state._replace(step=jnp.int32(i)), frozen, batch)
    np.testing.assert_allclose(
      metrics["loss"], metrics["task"] + 0.9 * part * metrics["distill/kd"], rtol=1e-12
    )
