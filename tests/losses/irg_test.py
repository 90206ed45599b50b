"""Tests of losses/irg.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import irg
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")
edges, transformation = jax.jit(irg.edges), jax.jit(irg.transformation)
loss = jax.jit(irg.loss)


def network(seed, b=5, sizes=((4, 3), (2, 6)), d=6):
  rng = np.random.default_rng(seed)
  features = tuple(rng.normal(size=(b, h, h, c)) for h, c in sizes)
  return Outputs(rng.normal(size=(b, 7)), rng.normal(size=(b, d)), features, features)


def arguments(student, teacher):
  return (
    *(student.logits, teacher.logits, student.embedding, teacher.embedding),
    *(student.features, teacher.features),
  )


def test_edges_worked_by_hand():
  # Points 0, 1 and 3 on a line: squared distances 1, 9 and 4, of which 9 is the largest.
  expected = np.array([[0, 1, 9], [1, 0, 4], [9, 4, 0]]) / 9
  np.testing.assert_allclose(edges(np.array([[0.0], [1.0], [3.0]])), expected, atol=1e-15)


def test_transformation_worked_by_hand():
  # 2x2 positions of one channel average to 2 and 1; channels (1, 3) and (0, 0) to 2 and 0: distances 0 and 1.
  first = np.array([[1.0, 2.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]]).reshape(2, 2, 2, 1)
  second = np.array([[1.0, 3.0], [0.0, 0.0]]).reshape(2, 1, 1, 2)
  np.testing.assert_allclose(transformation(first, second), [0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_equals_numpy(seed):
  student, teacher = network(seed), network(seed + 10, sizes=((4, 5), (4, 10)), d=9)

  def edges(x):
    x = x.reshape(5, -1)
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)
    return distance / distance.max()

  def transformation(f, g):
    while f.shape[1] > g.shape[1]:
      f = (f[:, ::2, ::2] + f[:, 1::2, ::2] + f[:, ::2, 1::2] + f[:, 1::2, 1::2]) / 4
    distance = ((f - (g[..., ::2] + g[..., 1::2]) / 2) ** 2).sum((1, 2, 3))
    return distance / distance.max()

  vertices = ((student.logits - teacher.logits) ** 2).mean()
  nodes = zip((*student.features, student.embedding), (*teacher.features, teacher.embedding), strict=True)
  edge_error = np.mean([(edges(s) - edges(t)) ** 2 for s, t in nodes])
  moved = ((transformation(*student.features) - transformation(*teacher.features)) ** 2).mean()
  rows = loss(*arguments(student, teacher))
  assert rows.shape == (5,)
  np.testing.assert_allclose(rows.mean(), 0.1 * vertices + 5 * edge_error + 5 * moved, rtol=1e-9)


def test_ignores_scale_translation_and_rotation_of_what_it_relates():
  student, teacher = network(0), network(1)
  rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
  moved = student._replace(
    embedding=3 * student.embedding @ rotation + 5, features=tuple(1e-3 * x for x in student.features)
  )
  np.testing.assert_allclose(loss(*arguments(moved, teacher)), loss(*arguments(student, teacher)), rtol=1e-8)
  np.testing.assert_allclose(loss(*arguments(teacher, teacher)), 0, atol=1e-25)


def test_each_weight_has_its_term():
  student, teacher = network(0), network(1)
  names = ("vertex_weight", "edge_weight", "transformation_weight")
  zero = dict.fromkeys(names, 0.0)
  terms = [loss(*arguments(student, teacher), **zero | {name: 1.0}) for name in names]
  total = loss(*arguments(student, teacher))
  np.testing.assert_allclose(0.1 * terms[0] + 5 * terms[1] + 5 * terms[2], total)
  assert all(np.all(x > 0) for x in terms)


def test_edges_keep_their_digits_far_from_the_origin_in_float32():
  x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
  shifted = x + np.float32(512)  # exact to 6e-5, its squares to 0.06
  np.testing.assert_allclose(edges(shifted), edges(shifted.astype(float)), atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_equal_examples_have_no_edges_and_no_gradient(scale):
  rng = np.random.default_rng(0)
  equal = np.repeat(scale * rng.normal(size=(1, 1000)), 3, axis=0).astype(np.float32)
  teacher = rng.normal(size=(3, 5)).astype(np.float32)

  def difference(x):
    return jnp.square(irg.edges(x) - irg.edges(teacher)).sum()

  np.testing.assert_array_equal(edges(equal), 0)
  np.testing.assert_array_equal(jax.jit(jax.grad(difference))(equal), 0)


def test_memory_of_a_large_batch():
  # The last two maps of ResNet-32x4, all pairs of whose differences would be 8 GiB and 4 GiB for each network.
  def shape(*dimensions):
    return jax.ShapeDtypeStruct((256, *dimensions), jnp.float32)

  features = (shape(16, 16, 128), shape(8, 8, 256))

  def mean(*arrays):
    return irg.loss(*arrays).mean()

  gradient = jax.jit(jax.value_and_grad(mean, argnums=(0, 2, 4)))
  inputs = (shape(100), shape(100), shape(256), shape(256), features, features)
  memory = gradient.lower(*inputs).compile().memory_analysis()
  assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**30


@pytest.mark.parametrize(
  "options, message",
  [
    ({"student_layers": (-3, -1)}, "irg: layer -3 does not exist, the student has 2 feature maps"),
    (
      {"student_layers": (0,), "teacher_layers": (0,)},
      "irg: needs two layers or more of each network, got one pair",
    ),
    (
      {"student_layers": (), "teacher_layers": ()},
      "irg: needs two layers or more of each network, got one pair",
    ),
    ({"teacher_layers": (0, 1, 2)}, "irg: student_layers and teacher_layers must have one length"),
    ({"vertex_weight": -1.0}, "irg: vertex_weight must be a number >= 0, got -1.0"),
    ({"edge_weight": True}, "irg: edge_weight must be a number >= 0, got True"),
    ({"transformation_weight": float("nan")}, "irg: transformation_weight must be a number >= 0, got nan"),
  ],
)
def test_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    irg.method(**options).init(jax.random.key(0), network(0), (network(1),), None)
