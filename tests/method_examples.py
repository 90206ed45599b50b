"""Small networks' outputs on which every distillation method is defined, and each method's compiled program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import networks
from smskd_jax.losses import METHODS
from smskd_jax.losses.contract import Context, init_method
from smskd_jax.losses.reduction import reduce_outputs
from smskd_jax.types import Batch, Head, Norm, Outputs

NUM_EXAMPLES = 50  # of the training set
TRAITS = {name: factory() for name, factory in METHODS.items()}
PARAMETERS = ("head", "norms")  # fields of Outputs without a row an example


def make_outputs(rng, b, k, channels, sizes):
  """Random outputs of a network with square maps of these channels and sizes."""

  def activation(x):
    return np.logaddexp(0, x)  # smooth, and no channel is zero everywhere

  features = tuple(rng.normal(size=(b, h, h, c)) for h, c in zip(sizes, channels, strict=True))
  norms = tuple(Norm(0.5 + rng.uniform(size=c), rng.normal(size=c)) for c in channels)
  head = Head(rng.normal(size=(channels[-1], k)), rng.normal(size=k))
  return Outputs(
    rng.normal(size=(b, k)),
    activation(features[-1]).mean((1, 2)),
    tuple(map(activation, features)),
    features,
    activation(features[-1]),
    head,
    norms,
  )


def training_labels(k=5):
  """Labels of the whole training set."""
  return np.random.default_rng(1).integers(0, k, NUM_EXAMPLES).astype(np.int32)


@functools.cache
def make_example(name, b=8, k=5, dtype=np.float32):
  """(student, teachers, batch): a student with a peer, and a teacher with more channels and one more map.

  For methods that relate views, both have a second view.
  """
  rng = np.random.default_rng(0)
  student = make_outputs(rng, b, k, (3, 4, 6), (8, 8, 4))
  student = student._replace(peer_outputs=(make_outputs(rng, b, k, (2,), (4,)),))
  teacher = make_outputs(rng, b, k, (5, 7, 9, 8), (8, 4, 4, 2))
  index = rng.permutation(NUM_EXAMPLES)[:b].astype(np.int32)
  if TRAITS[name].multi_view:
    # Some predictions of the first view have to be confident: uda uses no others.
    student = student._replace(logits=4 * student.logits, view_outputs=(make_outputs(rng, b, k, (2,), (4,)),))
    teacher = teacher._replace(view_outputs=(make_outputs(rng, b, k, (2,), (4,)),))
  student, teacher = jax.tree.map(lambda x: jnp.asarray(x, dtype), (student, teacher))
  label = jnp.asarray(training_labels(k)[index])
  return student, (teacher,), Batch(jnp.zeros((b, 8, 8, 3), jnp.uint8), label, jnp.asarray(index))


def shapes(tree):
  """Shapes and types of a tree of arrays."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def init_variables(name, student, teachers, k=5):
  """Variables of a method with its default hyper-parameters, from shapes and from `example_statistics`."""
  labels = training_labels(k)
  statistics = example_statistics(TRAITS[name], teachers, labels)
  return init_method(TRAITS[name], jax.random.key(0), shapes(student), shapes(teachers), labels, statistics)


def example_statistics(method, teachers, labels):
  """Statistics of random outputs of the teachers for the whole training set; () for methods without."""
  rng = np.random.default_rng(2)
  outputs = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=(len(labels), *x.shape[1:])), x.dtype), teachers
  )
  return reduce_outputs(method.statistics, outputs, labels)


@functools.cache
def example_variables(name, b=8, k=5, dtype=np.float32):
  """Variables of a method for `make_example` of the same arguments."""
  return init_variables(name, *make_example(name, b, k, dtype)[:2], k)


def apply(method, variables, student, teachers, batch, axis_name=None):
  """(loss [b], new state) of a method in a step."""
  context = Context(batch, jax.random.key(1), jnp.float32(0.5), axis_name)
  return method.apply(*variables, student, teachers, context)


def loss_and_gradients(method, variables, student, teachers, batch, axis_name=None):
  """(loss [b], new state), and gradients of the mean loss by the method's parameters, student and teachers."""

  def mean_loss(params, student, teachers):
    loss, state = apply(method, variables._replace(params=params), student, teachers, batch, axis_name)
    return loss.mean(), (loss, state)

  gradient = jax.value_and_grad(mean_loss, argnums=(0, 1, 2), has_aux=True)
  (_, results), gradients = gradient(variables.params, student, teachers)
  return results, gradients


TRACED = []  # names of methods, one entry for each trace of a program


@functools.cache
def program(name):
  """`loss_and_gradients` of a method, compiled once for all tests of a process."""

  def run(variables, student, teachers, batch):
    TRACED.append(name)
    return loss_and_gradients(TRAITS[name], variables, student, teachers, batch)

  return jax.jit(run, compiler_options=networks.FAST_COMPILE)


def map_rows(f, tree, otherwise=lambda x: x):
  """Applies f to arrays with a row an example, and `otherwise` to parameters."""

  def is_parameter(path):
    return any(getattr(key, "name", None) in PARAMETERS for key in path)

  return jax.tree_util.tree_map_with_path(lambda path, x: (otherwise if is_parameter(path) else f)(x), tree)
