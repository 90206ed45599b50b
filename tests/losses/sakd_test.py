"""Tests of losses/sakd.py: routes, gradients, the policy's loss, and steps of training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from smskd_jax.data import mixing
from smskd_jax.losses import METHODS, PLUGINS, contract, kd, sakd
from smskd_jax.losses.contract import Context
from smskd_jax.runtime import parallel
from smskd_jax.training import optimizer, targets
from smskd_jax.training.initialization import check_term
from smskd_jax.training.stage import Stage, Term, make_segments, raw_student_variables
from smskd_jax.training.train_step import make_train_step
import tiny

SMALLER = {
  "cc": {"dimension": 4},
  "crd": {"num_negatives": 8, "dimension": 4},
  "fitnet": {"student_layer": 1, "teacher_layer": 1},
}
STUDENT, TEACHER = tiny.Small(networks.NUM_CLASSES, 0.125), tiny.Small(networks.NUM_CLASSES, 0.25)
K = 3  # spots of AT around these networks: two feature layers and the logits


def make_method(name="at", **options):
  return sakd.method(METHODS[name](**SMALLER.get(name, {})), **options)


def make_stage(*methods, **fields):
  terms = tuple(Term(f"method_{i}", 1.0, method) for i, method in enumerate(methods))
  return Stage(STUDENT, optimizer.sgd(0.05), teachers=(TEACHER,), terms=terms, **fields)


def compiled(stage):
  return jax.jit(make_train_step(stage), compiler_options=networks.FAST_COMPILE)


class Example:
  """A method's inputs for a batch, and its loss as a function of parameters and outputs of the student."""

  def __init__(self, method, dtype=np.float64):
    self.method, self.stage = method, make_stage(method)
    self.state, frozen = networks.init_stage(self.stage, dtype=dtype)
    self.batch = networks.batch_of(0, dtype=dtype)
    variables = raw_student_variables(self.state)
    forward = jax.jit(lambda network, v, x: network.apply(v, x), static_argnums=0)
    self.student = forward(STUDENT, variables, self.batch.image)
    self.teacher = forward(TEACHER, frozen.teachers[0], self.batch.image)
    self.segments = make_segments(self.stage, variables, frozen.teachers, self.batch.image)
    self.params, self.method_state = self.state.params["methods"][0], self.state.method_state[0]

  @functools.partial(jax.jit, static_argnums=0)
  def __call__(self, params, student):
    context = Context(self.batch, jax.random.key(5), 0.5, segments=self.segments)
    return self.method.apply(params, self.method_state, student, (self.teacher,), context)

  @functools.partial(jax.jit, static_argnums=0)
  def gradients(self, params, student):
    return jax.grad(lambda *inputs: self(*inputs)[0].mean(), argnums=(0, 1))(params, student)


def with_policy(params, on):
  """The parameters with a policy that has every spot on, or off, for all images."""
  bias = jnp.tile(jnp.array([1e3, -1e3] if on else [-1e3, 1e3]), K)
  return {**params, "policy": {"linear": {**params["policy"]["linear"], "bias": bias}}}


def log_loss(logits, label):
  return -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(label)), label]


def test_with_all_spots_on_the_loss_is_that_of_both_methods_and_the_teacher(float64):
  example = Example(make_method(method_weight=1000.0, kd_weight=0.9, policy_weight=0.25, gamma=2.0))
  loss, state = example(with_policy(example.params, True), example.student)
  at = METHODS["at"]().apply((), (), example.student, (example.teacher,), Context(example.batch))[0]
  both = 1000 * at + 0.9 * kd.loss(example.student.logits, example.teacher.logits)
  routed, own = (log_loss(x.logits, example.batch.label) for x in (example.teacher, example.student))
  policy = (2.0 if routed.mean() > own.mean() else 0.5) * routed
  np.testing.assert_allclose(loss, both + 0.25 * policy, rtol=1e-9)
  metrics = example.method.metrics(state)
  assert {name: float(x) for name, x in metrics.items() if name.startswith("routed")} == {
    "routed_layer_1": 1.0,
    "routed_layer_2": 1.0,
    "routed_logits": 1.0,
  }
  np.testing.assert_allclose(metrics["policy_loss"], policy.mean(), rtol=1e-9)
  np.testing.assert_allclose(metrics["policy_entropy"], 0, atol=1e-12)


def test_with_all_spots_off_the_student_is_not_taught(float64):
  example = Example(make_method(policy_weight=0.25))
  loss, state = example(with_policy(example.params, False), example.student)
  own = log_loss(example.student.logits, example.batch.label)  # the routed pass is the student's
  np.testing.assert_allclose(loss, 0.25 * (own + 16 / 2), rtol=1e-9)
  assert not any(x for name, x in example.method.metrics(state).items() if name.startswith("routed"))


def test_routes_mix_both_networks_as_in_the_paper(float64):
  """With linear segments and adapters, by hand: each image takes its own route through spots of unequal depth."""
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(4, 3, 3)), rng.normal(size=(5, 3, 3))
  to_teacher, to_student = rng.normal(size=(2, 2, 3, 3))

  def linear(weights):
    return tuple(lambda x, w=w: x @ w for w in weights)

  image, actions = rng.normal(size=(6, 3)), rng.integers(0, 2, (6, K)).astype(float)
  ends = [(1, 2), (3, 4)]
  modules = [sakd.Adapters(sakd.LinearAdapter(3), sakd.LinearAdapter(3))] * 2
  params = tuple(
    sakd.Adapters(*({"linear": {"kernel": w[i], "bias": jnp.zeros(3)}} for w in (to_teacher, to_student)))
    for i in range(2)
  )
  variables = sakd.MethodVariables(params, (sakd.Adapters({}, {}),) * 2)
  segments = sakd.Segments(image, linear(student), (linear(teacher),))
  actual, _ = sakd.routed_logits(segments, ends, modules, variables, actions)

  for row, (x, action) in enumerate(zip(image, actions, strict=True)):
    s, t = x @ student[0], x @ teacher[0] @ teacher[1]
    for i, (ahead_s, ahead_t) in enumerate([(student[1:3], teacher[2:4]), (student[3:], teacher[4:])]):
      s, t = (t @ to_student[i], t) if action[i] else (s, s @ to_teacher[i])
      s, t = functools.reduce(np.matmul, ahead_s, s), functools.reduce(np.matmul, ahead_t, t)
    np.testing.assert_allclose(actual[row], t if action[2] else s, rtol=1e-6)


def test_actions_follow_the_policy_and_their_gradient_is_that_of_the_softmax(float64):
  logits = jnp.tile(jnp.array([[[1.0, 0.0], [-2.0, 1.0]]]), (4000, 1, 1))
  key, index = jax.random.key(0), jnp.arange(4000)
  sample = jax.jit(functools.partial(sakd.sample_actions, tau=5.0))
  actions = sample(logits, key, index)
  assert set(np.unique(actions)) == {0.0, 1.0}
  probability = jax.nn.softmax(logits[0])[:, 0]
  np.testing.assert_allclose(actions.mean(0), probability, atol=4 * np.sqrt(0.25 / 4000))
  np.testing.assert_array_equal(sample(logits[:9], key, index[:9][::-1])[::-1], actions[:9])

  noise = jax.vmap(lambda i: jax.random.gumbel(jax.random.fold_in(key, i), (2, 2), logits.dtype))(index[:3])

  def soft(logits):
    return jax.nn.softmax((logits + noise) / 5.0)[..., 0].sum()

  gradient = jax.grad(lambda x: sample(x, key, index[:3]).sum())(logits[:3])
  np.testing.assert_allclose(gradient, jax.grad(soft)(logits[:3]), rtol=1e-9)


def test_the_loss_of_the_policy_by_hand(float64):
  z = np.log(np.array([[0.5, 0.5], [0.8, 0.2], [0.1, 0.9], [0.25, 0.75]]))
  label, action = np.array([0, 0, 1, 0]), np.array([1.0, 0, 0, 0])
  routed = np.array([np.log(2), -np.log(0.8), -np.log(0.9), np.log(4)])
  worse = np.log(np.array([[1e-9, 1 - 1e-9], [1e-9, 1 - 1e-9], [1 - 1e-9, 1e-9], [1e-9, 1 - 1e-9]]))
  pull = 4 * (0.5 - 0.25)
  for student, factor in ((worse, 0.5), (10 * np.eye(2)[label], 2.0), (z, 1.0)):
    actual = sakd.policy_loss(z, student, label, action, gamma=2.0)
    np.testing.assert_allclose(actual, factor * routed + pull, rtol=1e-9)
  np.testing.assert_allclose(sakd.policy_loss(z, z, label, 1 - action), routed, rtol=1e-9)


def test_each_part_is_trained_by_its_own_loss(float64):
  """The policy and adapters by the routed pass alone, the student and its regressors by the wrapped method and KD."""
  options = {"method_weight": 0.0, "kd_weight": 0.0}
  example = Example(make_method("fitnet", **options))
  by_params, by_student = example.gradients(example.params, example.student)
  assert not any(np.any(x) for x in jax.tree.leaves((by_params["methods"], by_student)))
  assert np.any(by_params["policy"]["linear"]["kernel"]) and np.any(by_params["policy"]["linear"]["bias"])
  assert all(np.any(x["conv"]["kernel"]) for x in by_params["adapters"][0])

  taught = Example(make_method("fitnet"))
  taught_params, taught_student = taught.gradients(taught.params, taught.student)
  for name in ("policy", "adapters"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15),
      taught_params[name],
      by_params[name],
    )
  assert np.any(taught_params["methods"][0]["conv"]["kernel"])
  assert np.any(taught_student.logits) and np.any(taught_student.features[1])
  assert not np.any(taught_student.embedding), "the policy's input is a constant"


def test_gradients_of_adapters_regressors_and_student(float64):
  """Against differences: for fixed actions the loss is smooth in these."""
  example = Example(make_method("fitnet", method_weight=2.0))
  point = ({name: example.params[name] for name in ("adapters", "methods")}, example.student)

  def loss(point):
    params, student = point
    return example({**example.params, **params}, student)[0].mean()

  by_params, by_student = example.gradients(example.params, example.student)
  gradient = ({name: by_params[name] for name in point[0]}, by_student)
  rng = np.random.default_rng(0)
  direction = jax.tree.map(lambda x: rng.normal(size=x.shape), point)
  direction = (
    direction[0],
    direction[1]._replace(embedding=0 * direction[1].embedding),
  )  # read by the policy
  ahead, behind = (loss(jax.tree.map(lambda x, d, h=h: x + h * d, point, direction)) for h in (1e-6, -1e-6))
  slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))
  np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-4, atol=1e-6)


def test_bias_of_the_policy():
  method = make_method(initial_bias=10.0)
  spec = jax.eval_shape(lambda: TEACHER.init_with_output(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))[0])
  bias = method.init(jax.random.key(0), spec, (spec,), None).params["policy"]["linear"]["bias"].reshape(K, 2)
  assert (bias[:, 0] > 9).all() and (abs(bias[:, 1]) < 1).all()


@pytest.mark.parametrize("name", sakd.WRAPPED)
def test_every_wrapped_method_takes_steps(name):
  stage = make_stage(make_method(name))
  state, frozen = networks.init_stage(stage)
  step = compiled(stage)
  for i in range(2):
    new, metrics = step(state, frozen, networks.batch_of(i))
    assert jax.tree.structure(new) == jax.tree.structure(state)
    state = new
  for x in jax.tree.leaves((state.params, state.method_state, metrics)):
    assert np.isfinite(np.asarray(x, np.float64)).all()
  assert {"method/method_0/routed_logits", "method/method_0/policy_entropy"} <= set(metrics)


def trajectory(num_devices):
  """Metrics of three steps, and the state after them, with a loss of relations and two views."""
  views = (lambda key, batch: batch.image, lambda key, batch: batch.image[:, :, ::-1])
  stage = make_stage(make_method("rkd", gamma=2.0), make_method("fitnet"), views=views)
  devices = jax.local_devices()[:num_devices]
  state, frozen = parallel.replicate(networks.init_stage(stage, dtype=np.float64), devices)
  step, lines = parallel.compile_step(make_train_step(stage, parallel.AXIS), devices), []
  for i in range(3):
    batch = parallel.shard(networks.batch_of(i, dtype=np.float64), devices)
    state, metrics = step(state, frozen, batch)
    lines.append(jax.device_get(metrics))
  return lines, jax.device_get(state)


def test_many_devices_train_as_one_device(float64):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10), trajectory(4), trajectory(1)
  )


def test_seeds_at_once_are_those_one_by_one(float64):
  stage, batch = make_stage(make_method("fitnet")), networks.batch_of(0, dtype=np.float64)
  seeds = [networks.init_stage(stage, seed=10 * seed, dtype=np.float64) for seed in range(2)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
  together = jax.jit(jax.vmap(make_train_step(stage), in_axes=(0, 0, None)))(*stacked, batch)
  for i, seed in enumerate(seeds):
    alone = jax.jit(make_train_step(stage))(*seed, batch)
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-8, atol=1e-11), together, alone
    )


def test_mixed_images_and_several_teachers_take_a_step():
  def mix(key, image, label, axis_name):
    image, soft = mixing.mixup(
      key, image, targets.soft_labels(targets.Targets(label), networks.NUM_CLASSES), axis_name
    )
    return image, targets.Targets(jnp.argmax(soft, -1), soft)

  method = PLUGINS["multi_teacher"](make_method("pkt"))
  stage = make_stage(method, mix=mix)._replace(teachers=(TEACHER, STUDENT))
  state, frozen = networks.init_stage(stage)
  state, metrics = compiled(stage)(state, frozen, networks.batch_of(0))
  assert np.isfinite(metrics["loss"]) and not any(name.startswith("method/") for name in metrics)


@pytest.mark.parametrize("scale", [0.0, 1e3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_finite_at_extremes(dtype, scale):
  example = Example(make_method("rkd"), np.float32)
  student = jax.tree.map(lambda x: (scale * x).astype(dtype), example.student)
  loss, _ = example(example.params, student)
  gradients = example.gradients(example.params, student)
  assert loss.dtype == jnp.float32
  for x in jax.tree.leaves((loss, gradients)):
    assert np.isfinite(np.asarray(x, np.float64)).all()


def test_the_contract_holds_on_shapes():
  stage = make_stage(make_method("vid"))
  image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
  variables = [networks.random_variables(network, 0) for network in (STUDENT, TEACHER)]
  check_term(stage, 0, variables[0], (variables[1],), image, networks.LABELS)


def test_what_cannot_be_wrapped_or_routed_is_refused():
  with pytest.raises(ValueError, match="sakd: wraps methods that compare .*: at, cc, .*, vid; this one"):
    sakd.method(METHODS["kd"]())
  stage = make_stage(sakd.method(METHODS["at"](student_layers=(2, 1), teacher_layers=(1, 2))))
  with pytest.raises(
    ValueError, match="sakd: the wrapped method must name layers from the first to the last"
  ):
    networks.init_stage(stage)
  stage = make_stage(make_method("pkt"))
  with pytest.raises(ValueError, match="sakd: needs exactly one teacher, got 2"):
    networks.init_stage(stage._replace(teachers=(TEACHER, TEACHER)))
  with pytest.raises(ValueError, match="sakd: the student has 10 classes, the teacher 7"):
    networks.init_stage(stage._replace(teachers=(tiny.Small(7, 0.25),)))


class Bypassed(tiny.Small):
  """Logits that do not depend on the feature layers alone."""

  def __call__(self, image, *, train=False, axis_name=None):
    outputs = super().__call__(image, train=train, axis_name=axis_name)
    return outputs._replace(logits=outputs.logits + image.mean((1, 2, 3))[:, None])


def test_a_network_that_cannot_be_cut_is_refused():
  student = Bypassed(networks.NUM_CLASSES, 0.125)
  stage = make_stage(make_method("pkt"))._replace(student=student)
  message = (
    "the student, which cannot be cut at the embedding: another path leads from the images to the logits"
  )
  with pytest.raises(ValueError, match=message):
    networks.init_stage(stage)


def test_other_methods_get_no_segments():
  contexts = []

  def loss(student, teachers, context):
    contexts.append(context)
    return student.logits[:, 0]

  stage = make_stage(contract.stateless(loss, reads=("logits",)))
  state, frozen = networks.init_stage(stage)
  jax.eval_shape(make_train_step(stage), state, frozen, networks.batch_of(0))
  assert contexts[0].segments is None and contexts[0].mask is None
