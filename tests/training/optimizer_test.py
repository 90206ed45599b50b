"""Tests of training/optimizer.py: steps against the published update rules, in NumPy."""

import functools

import jax
import numpy as np
import optax
import pytest

import networks
from smskd_jax.training import optimizer
from smskd_jax.training.optimizer import OPTIMIZERS, SEPARATE_GRADIENT_OPTIMIZERS
from smskd_jax.training.stage import student_variables
from smskd_jax.training.train_step import make_train_step

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)}
GRADIENTS = [jax.tree.map(lambda x: RNG.normal(size=x.shape), PARAMS) for _ in range(6)]
SINGLE_GRADIENT = sorted(set(OPTIMIZERS) - SEPARATE_GRADIENT_OPTIMIZERS)


def rate(count):
  return 0.1 / (1 + count)


def train(transform, gradients=GRADIENTS):
  """The parameters after each step."""
  params, state, update = PARAMS, transform.init(PARAMS), jax.jit(transform.update)
  after = []
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    after.append(params)
  return after


def apply_rule(rule):
  """The parameters after each step of a rule.

  The rule is (parameter, gradient, memory, step from 1, rate) -> new parameter.
  """
  params, memory, after = PARAMS, {name: {} for name in PARAMS}, []
  for count, gradient in enumerate(GRADIENTS):
    params = {
      name: rule(params[name], gradient[name], memory[name], count + 1, rate(count)) for name in PARAMS
    }
    after.append(params)
  return after


def assert_equal(ours, theirs, rtol=1e-9):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol), ours, theirs)


def sgd(p, g, memory, count, rate, *, momentum, nesterov, decay):
  """torch.optim.SGD: g += decay p; v = momentum v + g; p -= rate v, or Nesterov's form."""
  g = g + decay * p
  memory["v"] = v = momentum * memory.get("v", 0) + g
  return p - rate * (g + momentum * v if nesterov else v)


def adam_direction(g, memory, count, b1, b2, eps):
  memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
  memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
  return memory["m"] / (1 - b1**count) / (np.sqrt(memory["v"] / (1 - b2**count)) + eps)


def adam(p, g, memory, count, rate, *, b1, b2, eps, decay):
  return p - rate * adam_direction(g + decay * p, memory, count, b1, b2, eps)


def adamw(p, g, memory, count, rate, *, b1, b2, eps, decay):
  return p - rate * (adam_direction(g, memory, count, b1, b2, eps) + decay * p)


def lars(p, g, memory, count, rate, *, momentum, nesterov, decay, trust):
  """Plain SGD for vectors.

  The momentum accumulates rate times gradient, as in the paper, unlike PyTorch's.
  """
  if p.ndim > 1:
    g = g + decay * p
    g = trust * np.linalg.norm(p) / np.linalg.norm(g) * g
  g = rate * g
  memory["v"] = v = momentum * memory.get("v", 0) + g
  return p - (g + momentum * v if nesterov else v)


def lamb(p, g, memory, count, rate, *, b1, b2, eps, decay):
  direction = adam_direction(g, memory, count, b1, b2, eps) + (decay * p if p.ndim > 1 else 0)
  return p - rate * np.linalg.norm(p) / np.linalg.norm(direction) * direction


BETAS = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}


@pytest.mark.parametrize(
  ("name", "options", "rule"),
  [
    (
      "sgd",
      {"momentum": 0.8, "weight_decay": 0.1},
      functools.partial(sgd, momentum=0.8, nesterov=False, decay=0.1),
    ),
    (
      "sgd",
      {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
      functools.partial(sgd, momentum=0.8, nesterov=True, decay=0.1),
    ),
    ("sgd", {}, functools.partial(sgd, momentum=0.9, nesterov=False, decay=5e-4)),
    ("adam", BETAS | {"weight_decay": 0.1}, functools.partial(adam, **BETAS, decay=0.1)),
    ("adam", {}, functools.partial(adam, b1=0.9, b2=0.999, eps=1e-8, decay=0)),
    ("adamw", BETAS | {"weight_decay": 0.1}, functools.partial(adamw, **BETAS, decay=0.1)),
    ("adamw", {}, functools.partial(adamw, b1=0.9, b2=0.999, eps=1e-8, decay=1e-2)),
    (
      "lars",
      {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "trust_coefficient": 0.2},
      functools.partial(lars, momentum=0.8, nesterov=True, decay=0.1, trust=0.2),
    ),
    ("lars", {}, functools.partial(lars, momentum=0.9, nesterov=False, decay=5e-4, trust=1e-3)),
    ("lamb", BETAS | {"weight_decay": 0.1}, functools.partial(lamb, **BETAS, decay=0.1)),
    ("lamb", {}, functools.partial(lamb, b1=0.9, b2=0.999, eps=1e-6, decay=1e-2)),
  ],
)
def test_steps_follow_the_published_rule(name, options, rule, float64):
  assert_equal(train(optimizer.make(name, rate, **options)), apply_rule(rule))


def norm(tree):
  """Global norm."""
  return np.sqrt(sum((x**2).sum() for x in tree.values()))


def test_the_global_norm_is_clipped_before_decay_and_momentum(float64):
  bound = float(np.median([norm(gradient) for gradient in GRADIENTS]))
  clipped = [
    {name: x * min(1, bound / norm(gradient)) for name, x in gradient.items()} for gradient in GRADIENTS
  ]
  ours = train(optimizer.make("sgd", rate, clip_norm=bound, weight_decay=0.1))
  assert_equal(ours, train(optimizer.sgd(rate, weight_decay=0.1), clipped))
  assert sum(norm(g) > bound for g in GRADIENTS) == 3


@pytest.mark.parametrize("name", SINGLE_GRADIENT)
def test_accumulation_updates_by_the_mean_gradient_at_the_rate_of_the_step(name):
  """Two updates of three steps each, at the rate of the first of the three steps."""
  ours = train(optimizer.make(name, rate, accumulate_steps=3, clip_norm=0.5))
  means = [jax.tree.map(lambda *x: sum(x) / 3, *GRADIENTS[i : i + 3]) for i in (0, 3)]
  theirs = train(optimizer.make(name, lambda count: rate(3 * count), clip_norm=0.5), means)
  assert all(norm(mean) > 0.5 for mean in means), "clipping the mean must have an effect"
  for i in (0, 1):
    jax.tree.map(np.testing.assert_array_equal, ours[i], jax.tree.map(np.float32, PARAMS))
  for i in (3, 4):
    jax.tree.map(np.testing.assert_array_equal, ours[i], ours[2])
  assert_equal([ours[2], ours[5]], theirs, rtol=1e-5)


def test_accumulated_batches_equal_the_joined_batch():
  """For least squares."""
  image, target = RNG.normal(size=(12, 3)), RNG.normal(size=(12, 2))

  def gradient(rows):
    error = image[rows] @ PARAMS["kernel"] + PARAMS["bias"] - target[rows]
    return {"kernel": 2 * image[rows].T @ error / len(rows), "bias": 2 * error.mean(0)}

  parts = [gradient(np.arange(i, i + 4)) for i in (0, 4, 8)]
  ours = train(optimizer.make("sgd", rate, accumulate_steps=3), parts)
  assert_equal(ours[-1:], train(optimizer.make("sgd", rate), [gradient(np.arange(12))]), rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "option", "value"),
  [
    ("sgd", "momentum", 1.0),
    ("lars", "momentum", -0.1),
    ("lars", "trust_coefficient", -1.0),
    *((name, option, 1.0) for name in ("adam", "adamw", "lamb") for option in ("b1", "b2")),
    *((name, "eps", -1e-8) for name in ("adam", "adamw", "lamb")),
    *((name, "weight_decay", -1.0) for name in SINGLE_GRADIENT),
    ("sgd", "weight_decay", float("nan")),
    ("sgd", "clip_norm", -1.0),
    ("sgd", "clip_norm", float("inf")),
    ("sgd", "accumulate_steps", 0),
  ],
)
def test_bad_options_are_refused(name, option, value):
  with pytest.raises(ValueError, match=f"^{option} must be .*, got {value}"):
    optimizer.make(name, rate, **{option: value})


@pytest.mark.parametrize("options", [{"clip_norm": 1.0}, {"accumulate_steps": 2}])
def test_dot_refuses_clipping_and_accumulation(options):
  with pytest.raises(ValueError, match="'dot' has two gradients"):
    optimizer.make("dot", rate, **options)


def test_dot_is_the_papers_rule(float64):
  rng = np.random.default_rng(0)
  params, rate, mu, delta, decay = {"w": rng.normal(size=3)}, 0.1, 0.9, 0.075, 5e-4
  transformation = optimizer.dot(rate, momentum=mu, delta=delta, weight_decay=decay)
  state, expected = transformation.init(params), params["w"].copy()
  v_task = v_distill = np.zeros(3)
  for _ in range(3):
    task, distill = rng.normal(size=(2, 3))
    updates, state = transformation.update({"w": task}, state, params, distill={"w": distill})
    params = optax.apply_updates(params, updates)
    v_task = (mu - delta) * v_task + task + decay * expected
    v_distill = (mu + delta) * v_distill + distill
    expected = expected - rate * (v_task + v_distill)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-12)


@pytest.mark.parametrize("missing", ["task", "distill"])
def test_dot_trains_a_parameter_with_one_gradient_by_sgd(missing, float64):
  rng = np.random.default_rng(1)
  params = sgd_params = {"w": rng.normal(size=3)}
  dot, sgd = optimizer.dot(0.1), optimizer.sgd(0.1)
  state, sgd_state = dot.init(params), sgd.init(sgd_params)
  for _ in range(3):
    gradient = {"w": rng.normal(size=3)}
    gradients = {"task": gradient, "distill": gradient} | {missing: {"w": np.zeros(3)}}
    updates, state = dot.update(gradients["task"], state, params, distill=gradients["distill"])
    params = optax.apply_updates(params, updates)
    updates, sgd_state = sgd.update(gradient, sgd_state, sgd_params)
    sgd_params = optax.apply_updates(sgd_params, updates)
    np.testing.assert_allclose(params["w"], sgd_params["w"], rtol=1e-12)


def test_dot_without_delta_is_sgd_on_the_whole_gradient(float64):
  """In a training step; with delta = 0 both momenta add up to the momentum of SGD."""
  stage = networks.make_stage(("kd", 0.9), ("fitnet", 2.0), learning_rate=0.1)
  dot_stage = stage._replace(optimizer=optimizer.dot(0.1, delta=0.0), separate_distill_gradient=True)

  def train_steps(stage):
    state, frozen = networks.init_stage(stage, dtype=np.float64)
    step = jax.jit(make_train_step(stage))
    for i in range(3):
      state, metrics = step(state, frozen, networks.batch_of(i, dtype=np.float64))
    return student_variables(state), metrics

  ours, theirs = train_steps(dot_stage), train_steps(stage)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, theirs)


@pytest.mark.parametrize(
  "options", [{"delta": 0.1}, {"delta": -0.1}, {"delta": 0.95}, {"weight_decay": -1.0}]
)
def test_dot_refuses(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    optimizer.dot(0.1, **options)
