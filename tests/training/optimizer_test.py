"""Tests of training/optimizer.py: steps against the published update rules, in NumPy."""

import functools

import jax
import numpy as np
import optax
import pytest

from smskd_jax.training import optimizer
from smskd_jax.training.optimizer import OPTIMIZERS, SEPARATE_GRADIENT_OPTIMIZERS

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)}
GRADIENTS = [jax.tree.map(lambda x: RNG.normal(size=x.shape), PARAMS) for _ in range(6)]
OF_ONE_GRADIENT = sorted(set(OPTIMIZERS) - SEPARATE_GRADIENT_OPTIMIZERS)


def rate(count):
  return 0.1 / (1 + count)


def trained(transform, gradients=GRADIENTS):
  """The parameters after each step."""
  params, state, update = PARAMS, transform.init(PARAMS), jax.jit(transform.update)
  after = []
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    after.append(params)
  return after


def by_hand(rule):
  """The same by a rule: (parameter, gradient, what it remembers, the count of steps, rate) -> new parameter."""
  params, memory, after = PARAMS, {name: {} for name in PARAMS}, []
  for count, gradient in enumerate(GRADIENTS):
    of_each = {name: (params[name], gradient[name], memory[name]) for name in PARAMS}
    params = {name: rule(*mine, count + 1, rate(count)) for name, mine in of_each.items()}
    after.append(params)
  return after


def assert_equal(ours, theirs, rtol=1e-9):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol), ours, theirs)


def sgd(p, g, memory, count, rate, *, momentum, nesterov, decay):
  """torch.optim.SGD: g += decay p; v = momentum v + g; p -= rate (g + momentum v if nesterov else v)."""
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
  """Of vectors plain SGD. The rate is in the momentum, as in the paper, and not behind it, as PyTorch's."""
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
def test_steps_are_those_of_the_rule(name, options, rule, float64):
  assert_equal(trained(optimizer.make(name, rate, **options)), by_hand(rule))


def norm(tree):
  return np.sqrt(sum((x**2).sum() for x in tree.values()))


def test_the_whole_gradient_is_clipped_before_decay_and_momentum(float64):
  bound = float(np.median([norm(gradient) for gradient in GRADIENTS]))
  scale = lambda factor, gradient: jax.tree.map(lambda x: factor * x, gradient)
  clipped = [scale(min(1, bound / norm(gradient)), gradient) for gradient in GRADIENTS]
  ours = trained(optimizer.make("sgd", rate, clip_norm=bound, weight_decay=0.1))
  assert_equal(ours, trained(optimizer.sgd(rate, weight_decay=0.1), clipped))
  assert sum(norm(g) > bound for g in GRADIENTS) == 3


@pytest.mark.parametrize("name", OF_ONE_GRADIENT)
def test_accumulation_waits_and_then_takes_the_mean_at_the_rate_of_the_step(name):
  """Two updates of three steps each; the rate is that of the first of the three, in steps of the stage."""
  ours = trained(optimizer.make(name, rate, accumulate_steps=3, clip_norm=0.5))
  means = [jax.tree.map(lambda *x: sum(x) / 3, *GRADIENTS[i : i + 3]) for i in (0, 3)]
  theirs = trained(optimizer.make(name, lambda count: rate(3 * count), clip_norm=0.5), means)
  assert all(norm(mean) > 0.5 for mean in means), "the clipping of the mean would not show"
  for i in (0, 1):
    jax.tree.map(np.testing.assert_array_equal, ours[i], jax.tree.map(np.float32, PARAMS))
  for i in (3, 4):
    jax.tree.map(np.testing.assert_array_equal, ours[i], ours[2])
  assert_equal([ours[2], ours[5]], theirs, rtol=1e-5)


def test_accumulated_batches_are_the_joined_one():
  """Least squares."""
  image, target = RNG.normal(size=(12, 3)), RNG.normal(size=(12, 2))

  def gradient(rows):
    error = image[rows] @ PARAMS["kernel"] + PARAMS["bias"] - target[rows]
    return {"kernel": 2 * image[rows].T @ error / len(rows), "bias": 2 * error.mean(0)}

  parts = [gradient(np.arange(i, i + 4)) for i in (0, 4, 8)]
  ours = trained(optimizer.make("sgd", rate, accumulate_steps=3), parts)
  assert_equal(ours[-1:], trained(optimizer.make("sgd", rate), [gradient(np.arange(12))]), rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "option", "value"),
  [
    ("sgd", "momentum", 1.0),
    ("lars", "momentum", -0.1),
    ("lars", "trust_coefficient", -1.0),
    *((name, option, 1.0) for name in ("adam", "adamw", "lamb") for option in ("b1", "b2")),
    *((name, "eps", -1e-8) for name in ("adam", "adamw", "lamb")),
    *((name, "weight_decay", -1.0) for name in OF_ONE_GRADIENT),
    ("sgd", "weight_decay", float("nan")),
    ("sgd", "clip_norm", -1.0),
    ("sgd", "clip_norm", float("inf")),
    ("sgd", "accumulate_steps", 0),
  ],
)
def test_bad_settings(name, option, value):
  with pytest.raises(ValueError, match=f"^{option}: {value} is not "):
    optimizer.make(name, rate, **{option: value})


@pytest.mark.parametrize("options", [{"clip_norm": 1.0}, {"accumulate_steps": 2}])
def test_two_gradients_are_neither_clipped_nor_accumulated(options):
  with pytest.raises(ValueError, match="'dot' has two gradients"):
    optimizer.make("dot", rate, **options)
