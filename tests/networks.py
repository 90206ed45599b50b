"""Small stages on random arrays, for the tests of training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.losses import METHODS
from smskd_jax.models import MODELS
from smskd_jax.training import optimizer
from smskd_jax.training.initialization import init_state, init_variables
from smskd_jax.training.reference import Reference
from smskd_jax.training.stage import Stage, Term
from smskd_jax.training.statistics import compute_statistics
from smskd_jax.types import Batch, Frozen
import tiny

NUM_CLASSES = 10
# Options of a reference term, none of them a default.
REFERENCE_OPTIONS = {
  "weight": 0.7,
  "divergence": "reference_to_student",
  "temperature": 2.0,
  "scale_by_temperature_squared": True,
  "weighting": "one_minus_teacher_tcp",
}
# Compiler options for programs that run once or twice on little data.
FAST_COMPILE = {"xla_backend_optimization_level": "0"}
NUM_EXAMPLES = 64
LABELS = np.arange(NUM_EXAMPLES, dtype=np.int32) % NUM_CLASSES  # of the whole training set


def cast(tree, dtype):
  """The tree with its floats in another type."""
  return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def batch_of(step, size=16, shape=(8, 8, 1), dtype=np.float32):
  """The random batch of a step; images are floats."""
  rng = np.random.default_rng(step)
  image = rng.normal(size=(size, *shape)).astype(dtype)
  label = rng.integers(0, NUM_CLASSES, size).astype(np.int32)
  return Batch(image, label, rng.permutation(NUM_EXAMPLES)[:size].astype(np.int32))


# Options of methods for which `tiny` networks, of one feature map, are too small.
METHOD_OPTIONS = {"fitnet": {"student_layer": -1, "teacher_layer": -1}}


def make_stage(*methods, reference=None, model="tiny", width=0.25, learning_rate=0.05):
  """A stage of a narrow student and a wider teacher, with methods (name, weight)."""
  make = {**MODELS, **tiny.MODELS}[model]
  return Stage(
    student=make(num_classes=NUM_CLASSES, width=width),
    optimizer=optimizer.sgd(learning_rate),
    teachers=(make(num_classes=NUM_CLASSES, width=0.5),) if methods else (),
    terms=tuple(
      Term(name, weight, METHODS[name](**METHOD_OPTIONS.get(name, {}))) for name, weight in methods
    ),
    reference=None if reference is None else Reference(**reference),
  )


@functools.cache
def _random_variables(network, seed, shape, dtype, x64):
  del x64  # part of the cache key
  image = jax.ShapeDtypeStruct((1, *shape), dtype)
  return cast(init_variables(network, jax.random.key(seed), image), dtype)


def random_variables(network, seed, shape=(8, 8, 1), dtype=np.float32):
  """Variables of a network, initialized once in a session."""
  return _random_variables(network, seed, shape, np.dtype(dtype), jax.config.jax_enable_x64)


def random_statistics(stage, teachers, shape, dtype):
  """Statistics of random training images; () where no method needs them."""
  if not any(term.method.statistics for term in stage.terms):
    return ()
  image = np.random.default_rng(5).normal(size=(NUM_EXAMPLES, *shape)).astype(dtype)
  return compute_statistics(stage, teachers, image, LABELS, batch_size=24)


def init_stage(stage, *, seed=0, shape=(8, 8, 1), dtype=np.float32, variables=None):
  """(state, frozen) of a stage with random variables, different for student and reference."""
  image = jax.ShapeDtypeStruct((1, *shape), dtype)
  teachers = tuple(random_variables(network, seed + 1, shape, dtype) for network in stage.teachers)
  variables = random_variables(stage.student, seed, shape, dtype) if variables is None else variables
  statistics = random_statistics(stage, teachers, shape, dtype)
  state = init_state(stage, jax.random.key(2), variables, teachers, image, LABELS, statistics=statistics)
  state = cast(state, dtype)
  reference = None if stage.reference is None else random_variables(stage.student, seed + 3, shape, dtype)
  return state, Frozen(jax.random.key(4), teachers, reference)
