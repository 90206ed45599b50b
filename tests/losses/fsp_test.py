"""Tests of losses/fsp.py."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import fsp
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(fsp.loss)


def arrays(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def network(seed, channels, sizes=(4, 4, 2)):
  features = tuple(arrays(seed + i, 2, h, h, c) for i, (h, c) in enumerate(zip(sizes, channels, strict=True)))
  return Outputs(None, None, features, features)


def started(student_outputs, teacher, **hyper_parameters):
  method = fsp.method(**hyper_parameters)
  return method, method.init(jax.random.key(0), *jax.eval_shape(lambda: (student_outputs, (teacher,))), None)


def flow(bottom, top):
  """The matrix of two maps of the same size, entry by entry."""
  c, d = bottom.shape[-1], top.shape[-1]
  entries = [[np.mean(bottom[..., i] * top[..., j], axis=(1, 2)) for j in range(d)] for i in range(c)]
  return np.moveaxis(np.array(entries), -1, 0)


def test_worked_by_hand():
  # Two positions: (1, 2) and (3, 4) have the inner product 11 / 2, (1, 1) and (1, 1) have 2 / 2.
  bottom, top = np.array([[[[1.0], [2.0]]]]), np.array([[[[3.0], [4.0]]]])
  one = np.ones_like(top)
  np.testing.assert_allclose(loss((bottom, top), (one, one)), [4.5**2])
  np.testing.assert_allclose(loss((bottom, top, bottom), (one, one, one)), [2 * 4.5**2])


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_formula_for_maps_of_any_size(seed):
  # What is compared is [c, d]: the networks' own sizes need not agree.
  student = network(seed, (3, 4, 2), (4, 2, 2)).features
  teacher = network(seed + 10, (3, 4, 2), (6, 6, 3)).features

  def average(x, n):
    return x.reshape(2, n, x.shape[1] // n, n, x.shape[2] // n, -1).mean((2, 4))

  student_flows = flow(average(student[0], 2), student[1]), flow(student[1], student[2])
  teacher_flows = flow(teacher[0], teacher[1]), flow(average(teacher[1], 3), teacher[2])
  pairs = zip(student_flows, teacher_flows, strict=True)
  expected = sum(np.mean((s - t) ** 2, axis=(1, 2)) for s, t in pairs)
  np.testing.assert_allclose(loss(student, teacher), expected)


def test_ignores_where_things_are():
  student, teacher = network(0, (3, 4, 2), (4, 4, 4)).features, network(5, (3, 4, 2)).features
  moved = tuple(jnp.roll(x[:, ::-1], 1, axis=2) for x in student)
  np.testing.assert_allclose(loss(moved, teacher), loss(student, teacher))


def test_gradient():
  student, teacher = network(0, (3, 4, 2)).features, network(5, (3, 4, 2)).features
  check_grads(lambda *s: loss(s, teacher), student, order=1, modes=["rev"])


def test_equal_channels_are_compared_as_they_are():
  student_outputs, teacher = network(0, (3, 4, 2)), network(5, (3, 4, 2, 7), (8, 4, 4, 2))
  for project in (True, False):
    method, aux = started(student_outputs, teacher, project=project)
    assert not jax.tree.leaves(aux)
    value, _ = method.apply(*aux, student_outputs, (teacher,), Context(None))
    np.testing.assert_allclose(value, loss(student_outputs.features, teacher.features[:3]))


def test_other_channels_are_projected_by_convolutions_that_learn():
  student_outputs, teacher = network(0, (3, 4, 2)), network(5, (3, 6, 5))
  method, aux = started(student_outputs, teacher)
  weights = {name: x["kernel"][0, 0] for name, x in aux.params.items()}
  assert {name: x.shape for name, x in weights.items()} == {"conv_1": (4, 6), "conv_2": (2, 5)}

  def mean_loss(params):
    value, _ = method.apply(params, aux.state, student_outputs, (teacher,), Context(None))
    return value.mean(), value

  gradient, value = jax.jit(jax.grad(mean_loss, has_aux=True))(aux.params)
  stem, middle, last = student_outputs.features
  projected = stem, middle @ weights["conv_1"], last @ weights["conv_2"]
  np.testing.assert_allclose(value, loss(projected, teacher.features))
  assert all(np.any(g) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
  "hyper_parameters, message",
  [
    (
      {"project": False},
      r"fsp: the student's layer 1 is \[4, 4, 4\], the teacher's layer 1 \[4, 4, 6\]; take maps of",
    ),
    ({"project": 1}, "fsp: project must be True or False, got 1"),
    (
      {"student_layers": (0,), "teacher_layers": (0,)},
      r"fsp: needs two feature maps or more of each network, got .*0, 0",
    ),
    (
      {"student_layers": (0, 3), "teacher_layers": (0, 1)},
      "fsp: layer 3 does not exist, the student has 3 feature maps",
    ),
  ],
)
def test_refuses(hyper_parameters, message):
  with pytest.raises(ValueError, match=message):
    started(network(0, (3, 4, 2)), network(5, (3, 6, 2)), **hyper_parameters)
