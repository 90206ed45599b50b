"""Tests of losses/nd.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from method_examples import (
  apply,
  example_statistics,
  loss_and_gradients,
  make_example,
  shapes,
  training_labels,
)
from smskd_jax.losses import METHODS, contract, kd, mlkd, multi_teacher, nd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def reference(student, teacher, labels, means):
  """The formula, example by example, in NumPy."""
  values = []
  for s, t, y in zip(student, teacher, labels, strict=True):
    direction = means[y] / np.linalg.norm(means[y])
    values.append(1 - s @ direction / max(np.linalg.norm(s), np.linalg.norm(t)))
  return np.array(values)


def variables_of(method, student, teachers, labels):
  statistics = example_statistics(method, teachers, labels)
  return contract.init_method(
    method, jax.random.key(0), shapes(student), shapes(teachers), labels, statistics
  )


def project(variables, embedding):
  """The student's embedding after the plug-in's linear layer, in NumPy."""
  layer = jax.tree.map(np.asarray, variables.params["projection"]["projection"])
  return np.asarray(embedding) @ layer["kernel"] + layer["bias"]


def test_values_by_hand():
  student = np.array([[3.0, 0.0], [0.0, 2.0], [4.0, 3.0], [0.0, 0.0]])
  teacher = np.array([[5.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
  means = np.array([[10.0, 0.0], [0.0, 0.1]])
  # As short as 3 of 5; opposite to nothing; the cosine 4/5 of a longer one; no direction.
  loss = nd.loss(student, teacher, np.array([0, 1, 0, 0]), means)
  np.testing.assert_allclose(loss, [1 - 3 / 5, 0.0, 1 - 4 / 5, 1.0], atol=1e-12)


def test_equals_numpy():
  rng = np.random.default_rng(0)
  student, teacher, means = rng.normal(size=(9, 5)) * 2, rng.normal(size=(9, 5)), rng.normal(size=(4, 5))
  labels = rng.integers(0, 4, 9)
  loss = nd.loss(student, teacher, labels, means)
  np.testing.assert_allclose(loss, reference(student, teacher, labels, means), rtol=1e-12)


def test_a_longer_embedding_helps_up_to_the_teacher_s_length():
  teacher, means = np.array([[3.0, 4.0]]), np.array([[1.0, 1.0]])

  def value(length):
    return nd.loss(length * np.array([[1.0, 0.0]]), teacher, np.zeros(1, int), means)[0]

  assert value(1.0) > value(4.0) > value(5.0)
  np.testing.assert_allclose(value(50.0), value(5.0))


def test_a_class_without_images_and_embeddings_of_zero_are_finite():
  zero, means = np.zeros((2, 3)), np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
  labels = np.array([0, 1])
  value, gradient = jax.value_and_grad(lambda s: nd.loss(s, zero, labels, means).sum())(zero)
  assert value == 2 and not np.any(gradient)
  one = np.ones((2, 3))
  assert not np.any(jax.grad(lambda s: nd.loss(s, one, labels, means)[0])(one))


@pytest.mark.parametrize("wrapped", ["kd", "dkd", "dist", "reviewkd", "fitnet"])
def test_it_adds_its_term_to_the_method(wrapped):
  student, teachers, batch = make_example("kd", dtype=np.float64)
  inner = METHODS[wrapped](**({"student_layer": -1, "teacher_layer": -1} if wrapped == "fitnet" else {}))
  method = nd.method(inner, weight=0.5)
  variables = variables_of(method, student, teachers, training_labels())
  (loss, state), (by_params, *_) = loss_and_gradients(method, variables, student, teachers, batch)
  context = Context(batch, jax.random.key(1), jnp.float32(0.5))
  alone, inner_state = inner.apply(
    variables.params["method"], variables.state["method"], student, teachers, context
  )
  term = reference(
    project(variables, student.embedding),
    teachers[0].embedding,
    batch.label,
    np.asarray(state["class_means"]),
  )
  np.testing.assert_allclose(loss, alone + 0.5 * term, rtol=1e-6)
  assert shapes(state["method"]) == shapes(inner_state)
  assert np.any(by_params["projection"]["projection"]["kernel"]), "the linear layer learns"


def test_equal_widths_need_no_layer():
  student, teachers, _ = make_example("kd", dtype=np.float64)
  student = student._replace(embedding=teachers[0].embedding + 1)
  variables = variables_of(nd.method(kd.method()), student, teachers, training_labels())
  assert variables.params == {"projection": {}, "method": ()}


def test_the_class_means_are_those_of_the_training_set():
  rng = np.random.default_rng(0)
  teacher = Outputs(rng.normal(size=(20, 3)), rng.normal(size=(20, 4)), (), ())
  labels = np.arange(20, dtype=np.int32) % 2  # no image of the third class
  method = nd.method(kd.method())
  statistics = example_statistics(method, (teacher,), labels)
  means, nothing = statistics
  assert means.shape == (3, 4) and nothing == () and not np.any(means[2])
  student = Outputs(teacher.logits, teacher.embedding, (), ())
  aux = method.init(jax.random.key(0), shapes(student), (shapes(teacher),), labels, statistics)
  np.testing.assert_array_equal(aux.state["class_means"], means)


def test_only_the_wrapped_method_warms_up():
  student, teachers, batch = make_example("kd", dtype=np.float64)
  labels = training_labels()
  warm, cold = nd.method(kd.method(), warmup_epochs=20.0), nd.method(kd.method())
  variables = variables_of(cold, student, teachers, labels)

  def value(method, epoch):
    return method.apply(*variables, student, teachers, Context(batch, jax.random.key(1), epoch))[0]

  alone = kd.method().apply((), (), student, teachers, Context(batch))[0]
  for epoch, fraction in ((0.9, 0.0), (5.5, 0.25), (20.0, 1.0), (50.0, 1.0)):
    np.testing.assert_allclose(value(cold, epoch) - value(warm, epoch), (1 - fraction) * alone, atol=1e-12)


def test_it_is_the_mean_over_the_views_of_a_method_that_takes_all():
  student, teachers, batch = make_example("mlkd", dtype=np.float64)
  method = nd.method(mlkd.method())
  assert method.multi_view
  # Both views of the example have embeddings of their own width; here they are the first view's.
  student = student._replace(
    view_outputs=(student._replace(embedding=2 * student.embedding, view_outputs=()),)
  )
  teacher = teachers[0]._replace(view_outputs=(teachers[0]._replace(view_outputs=()),))
  variables = variables_of(method, student, (teacher,), training_labels())
  loss, state = apply(method, variables, student, (teacher,), batch)
  alone, _ = apply(mlkd.method(), variables._replace(params=(), state=()), student, (teacher,), batch)
  means = np.asarray(state["class_means"])
  terms = [
    reference(project(variables, x), teacher.embedding, batch.label, means)
    for x in (student.embedding, 2 * student.embedding)
  ]
  np.testing.assert_allclose(loss, alone + np.mean(terms, axis=0), rtol=1e-9)


def test_no_teacher_and_several_are_refused():
  student, (teacher,), _ = make_example("kd", dtype=np.float64)
  for teachers in ((), (teacher, teacher)):
    with pytest.raises(ValueError, match=f"^nd: needs exactly one teacher, got {len(teachers)}"):
      variables_of(nd.method(kd.method()), student, teachers, training_labels())


def test_around_several_teachers_each_has_class_means():
  student, (teacher,), batch = make_example("kd", dtype=np.float64)
  teachers = teacher, teacher._replace(embedding=teacher.embedding[:, :3])
  plugged = multi_teacher.method(nd.method(kd.method()))
  variables = variables_of(plugged, student, teachers, training_labels())
  assert [state["class_means"].shape for state in variables.state] == [(5, 8), (5, 3)]
  loss, _ = apply(plugged, variables, student, teachers, batch)
  assert np.isfinite(loss).all()
