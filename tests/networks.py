"""Small stages on random arrays, for the tests of what trains them."""

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.losses import METHODS
from smskd_jax.models import MODELS
from smskd_jax.training import optimizer
from smskd_jax.training.initialization import init_state, init_variables
from smskd_jax.training.reference import Reference
from smskd_jax.training.stage import Stage, Term
from smskd_jax.types import Batch, Frozen
import tiny

NUM_CLASSES = 10
# A reference term of which no option is the default.
REFERENCE_OPTIONS = {
  "weight": 0.7,
  "divergence": "reference_to_student",
  "temperature": 2.0,
  "scale_by_temperature_squared": True,
  "weighting": "one_minus_teacher_tcp",
}
# For programs that run once or twice on little data, where compiling is what takes time.
FAST_COMPILE = {"xla_backend_optimization_level": "0"}
NUM_EXAMPLES = 64
LABELS = np.arange(NUM_EXAMPLES, dtype=np.int32) % NUM_CLASSES  # of the whole training set


def cast(tree, dtype):
  """The tree with its floats in another type."""
  return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def batch_of(step, size=16, shape=(8, 8, 1), dtype=np.float32):
  """The random batch of a step; images are floats already."""
  rng = np.random.default_rng(step)
  image = rng.normal(size=(size, *shape)).astype(dtype)
  label = rng.integers(0, NUM_CLASSES, size).astype(np.int32)
  return Batch(image, label, rng.permutation(NUM_EXAMPLES)[:size].astype(np.int32))


def make_stage(*methods, reference=None, model="small", width=0.25, learning_rate=0.05):
  """A stage of a thin student and a wider teacher."""
  of = {**MODELS, **tiny.MODELS}[model]
  teacher = (of(num_classes=NUM_CLASSES, width=0.5),) if methods else ()
  return Stage(
    student=of(num_classes=NUM_CLASSES, width=width),
    optimizer=optimizer.sgd(learning_rate),
    teachers=teacher,
    terms=tuple(Term(name, weight, METHODS[name]()) for name, weight in methods),
    reference=None if reference is None else Reference(**reference),
  )


def init_stage(stage, *, seed=0, shape=(8, 8, 1), dtype=np.float32, variables=None):
  """(state, frozen) of a stage on random weights; an anchored stage's reference differs from its student."""
  image = jax.ShapeDtypeStruct((1, *shape), dtype)
  fresh = lambda network, i: cast(init_variables(network, jax.random.key(seed + i), image), dtype)
  teachers = tuple(fresh(network, 1) for network in stage.teachers)
  variables = fresh(stage.student, 0) if variables is None else variables
  state = cast(init_state(stage, jax.random.key(2), variables, teachers, image, LABELS), dtype)
  reference = None if stage.reference is None else fresh(stage.student, 3)
  return state, Frozen(jax.random.key(4), teachers, reference)
