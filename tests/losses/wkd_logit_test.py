"""Tests of losses/wkd_logit.py."""

import jax
import numpy as np
import pytest

from method_examples import example_statistics, make_example, shapes, training_labels
from smskd_jax.losses import contract, wkd_logit
from smskd_jax.losses.contract import Context
from smskd_jax.losses.reduction import reduce_outputs
from smskd_jax.training import cka
from smskd_jax.types import Head, Outputs

pytestmark = pytest.mark.usefixtures("float64")


def softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


def reference(student, teacher, y, cost, gamma, temperature, r, iterations):
  """The loss of one example in NumPy, with a cost matrix that has no row and column of the label."""
  others = np.arange(len(student)) != y
  p, q = (softmax(z[others] / temperature) for z in (student, teacher))
  c = np.maximum(cost, 0)[np.ix_(others, others)] + 1e-8
  kernel, u = np.exp(-c / r), np.full(len(p), 1 / len(p))
  for _ in range(iterations):
    v = q / (kernel.T @ u + 1e-8)
    u = p / (kernel @ v + 1e-8)
  by_label = -softmax(teacher)[y] * np.log(softmax(student)[y])
  return by_label + gamma * (u[:, None] * kernel * v[None, :] * c).sum()


def network(rng, b, k=4, d=5):
  """Outputs of random logits and embeddings, and a classifier."""
  head = Head(rng.normal(size=(d, k)), np.zeros(k))
  return Outputs(rng.normal(size=(b, k)), rng.normal(size=(b, d)), (), (), head=head)


def test_values_by_hand():
  # All of the mass moves from class 1 to class 2, which costs 0.3; the label is class 0.
  student, teacher = np.array([[0.0, 40.0, 0.0]]), np.array([[0.0, 0.0, 40.0]])
  cost = np.array([[0.0, 9.0, 9.0], [9.0, 0.0, 0.3], [9.0, 0.4, 0.0]])
  moved = wkd_logit.wkd_transport(student, teacher, cost, np.array([0]), temperature=1.0)
  np.testing.assert_allclose(moved, [0.3], rtol=1e-4)
  np.testing.assert_allclose(
    wkd_logit.wkd_transport(teacher, student, cost, np.array([0]), temperature=1.0), [0.4], rtol=1e-4
  )
  np.testing.assert_allclose(
    wkd_logit.wkd_transport(student, student, cost, np.array([0]), temperature=1.0), [0.0], atol=1e-6
  )
  halves = np.zeros((1, 2))
  label = -0.5 * np.log(0.5)  # with one class besides the label, nothing moves
  np.testing.assert_allclose(
    wkd_logit.loss(halves, halves, np.array([1]), np.ones((2, 2)) * 0), [label], atol=1e-5
  )


def test_a_distance_is_the_exact_one_of_a_small_regularization():
  """On a line of classes the exact distance is the sum of the differences of the cumulative probabilities."""
  rng = np.random.default_rng(0)
  p, q = (np.stack([softmax(z) for z in rng.normal(size=(5, 3))]) for _ in range(2))
  cost = np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0))) / 5
  exact = np.abs(np.cumsum(p - q, axis=1)).sum(1) / 5
  found = wkd_logit.sinkhorn_distance(p, q, cost, np.ones((5, 3)), regularization=0.025, iterations=300)
  np.testing.assert_allclose(found, exact, rtol=2e-2)


def test_equals_numpy():
  rng = np.random.default_rng(0)
  student, teacher = 3 * rng.normal(size=(6, 7)), 3 * rng.normal(size=(6, 7))
  labels, cost = rng.integers(0, 7, 6), rng.uniform(-0.1, 1, size=(7, 7))
  options = {"gamma": 30.0, "temperature": 2.0, "regularization": 0.1, "iterations": 4}
  loss = wkd_logit.loss(student, teacher, labels, cost, **options)
  expected = [
    reference(s, t, y, cost, 30.0, 2.0, 0.1, 4) for s, t, y in zip(student, teacher, labels, strict=True)
  ]
  np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_cka_of_classes_equals_cka_of_pairs():
  outputs = np.random.default_rng(0).normal(size=(4, 21, 3)) ** 3
  outputs[3] = 2.0  # a class of equal outputs: not defined
  found = wkd_logit.class_cka(outputs)
  for i in range(3):
    for j in range(3):
      np.testing.assert_allclose(found[i, j], cka.linear_cka(outputs[i], outputs[j]), rtol=1e-9)
  np.testing.assert_array_equal(found[3], [0, 0, 0, 1])


@pytest.mark.parametrize("cost, output", [("cka", "embedding"), ("cka_logits", "logits")])
def test_statistics_pair_the_nth_images_of_the_classes(cost, output):
  """In batches, with classes of 5, 3, 7 and no images: three of each count, in the order of the training set."""
  rng = np.random.default_rng(0)
  labels = rng.permutation(np.repeat([0, 1, 2], [5, 3, 7])).astype(np.int32)
  teacher = network(rng, len(labels))
  reduction = wkd_logit.method(cost=cost).statistics
  assert reduction.reads == {output}
  accumulator = reduction.init((shapes(teacher),), labels)
  for start in range(0, len(labels), 4):
    read = {output: getattr(teacher, output)[start : start + 4]}
    batch = Outputs((), (), (), ())._replace(**read)
    accumulator = reduction.update(accumulator, (batch,), labels[start : start + 4])
  rows = np.stack([getattr(teacher, output)[labels == c][:3] for c in range(3)])
  expected = [[cka.linear_cka(x, y) for y in rows] for x in rows]
  found = reduction.finish(accumulator)
  np.testing.assert_allclose(found[:3, :3], expected, rtol=1e-9)
  np.testing.assert_array_equal(found[3], [0, 0, 0, 1])
  np.testing.assert_allclose(reduce_outputs(reduction, (teacher,), labels), found, rtol=1e-12)


def test_the_method_takes_the_cost_that_it_is_asked_for():
  rng = np.random.default_rng(0)
  student, teacher, labels = network(rng, 8), network(rng, 8), np.arange(8, dtype=np.int32) % 4
  batch = make_example("kd")[2]._replace(label=labels)
  matrix = rng.uniform(size=(4, 4))
  similarity = wkd_logit.class_cka(np.stack([teacher.embedding[labels == c] for c in range(4)]))
  weights = teacher.head.kernel / np.linalg.norm(teacher.head.kernel, axis=0)
  costs = {
    "cka": 1 - np.exp(-2 * (1 - similarity)),
    "classifier": 1 - np.exp(-2 * (1 - weights.T @ weights)),
    "matrix": matrix,
  }
  for name, cost in costs.items():
    own = {"cost_matrix": tuple(map(tuple, matrix.tolist()))} if name == "matrix" else {"cost": name}
    method = wkd_logit.method(gamma=3.0, sharpen=2.0, **own)
    statistics = reduce_outputs(method.statistics, (teacher,), labels)
    assert (method.statistics is not None) == (name == "cka")
    aux = contract.init_method(
      method, jax.random.key(0), shapes(student), (shapes(teacher),), labels, statistics
    )
    loss, state = method.apply(*aux, student, (teacher,), Context(batch))
    np.testing.assert_allclose(
      loss, wkd_logit.loss(student.logits, teacher.logits, labels, cost, gamma=3.0), rtol=1e-9, err_msg=name
    )
    assert jax.tree.structure(state) == jax.tree.structure(aux.state)
    assert bool(jax.tree.leaves(aux.state)) == bool(method.learns) == (name != "classifier")
  assert wkd_logit.method(cost="classifier").reads == {"logits", "head"}


def test_an_array_is_a_matrix_too():
  method = wkd_logit.method(cost_matrix=np.eye(5))
  student, teachers, _ = make_example("kd", dtype=np.float64)
  aux = method.init(jax.random.key(0), shapes(student), shapes(teachers), None)
  np.testing.assert_array_equal(aux.state, np.eye(5))


def test_pairs_without_a_cost_are_refused():
  student, teachers, _ = make_example("kd", dtype=np.float64)
  with pytest.raises(ValueError, match=r"^wkd_logit: cost_matrix has 3 rows, the networks have 5 classes"):
    wkd_logit.method(cost_matrix=np.eye(3)).init(jax.random.key(0), student, teachers, None)
  with pytest.raises(ValueError, match=r"^wkd_logit: the teacher does not give Outputs.head"):
    wkd_logit.method(cost="classifier").init(
      jax.random.key(0), student, (teachers[0]._replace(head=None),), None
    )
  labels = training_labels()
  labels[labels == 3] = 2
  labels[7] = 3
  with pytest.raises(ValueError, match=r"^wkd_logit: CKA needs two images of each class .*, class 3 has 1"):
    example_statistics(wkd_logit.method(), teachers, labels)


def test_the_weight_of_the_transport_falls_by_half_a_cosine():
  def factor(epoch):
    return float(wkd_logit.cosine_decay(epoch, start=150, end=240))

  # Constant within an epoch; the 150th is the last with the whole weight, the 240th has none.
  assert [factor(epoch) for epoch in (0.0, 149.9)] == [1.0, 1.0] and factor(239.5) == 0.0
  np.testing.assert_allclose([factor(194.0), factor(194.9)], 0.5 * (1 + np.cos(np.pi * 45 / 90)), atol=1e-12)
  assert wkd_logit.cosine_decay(3.0, start=0, end=0) == 1.0

  student, teachers, batch = make_example("kd", dtype=np.float64)
  method = wkd_logit.method(cost_matrix=1 - np.eye(5), gamma=5.0, decay_start_epoch=1.0, decay_end_epoch=3.0)
  aux = method.init(jax.random.key(0), student, teachers, None)
  values = [
    method.apply(*aux, student, teachers, Context(batch, epoch=epoch))[0] for epoch in (0.0, 1.0, 2.0)
  ]
  np.testing.assert_allclose(values[1] - values[2], values[0] - values[1], rtol=1e-9)
  assert np.all(values[0] > values[2])


def test_memory_of_a_step_at_256_images_and_100_classes():
  logits, labels = jax.ShapeDtypeStruct((256, 100), np.float32), jax.ShapeDtypeStruct((256,), np.int32)
  cost = jax.ShapeDtypeStruct((100, 100), np.float32)

  def step(student, teacher, labels, cost):
    return jax.value_and_grad(lambda s: wkd_logit.loss(s, teacher, labels, cost).mean())(student)

  memory = jax.jit(step).lower(logits, logits, labels, cost).compile().memory_analysis()
  needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
  assert needed < 2**25, "far below 1 GiB: no matrix for each example"
