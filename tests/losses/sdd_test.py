"""Tests of losses/sdd.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from method_examples import make_example
from smskd_jax.losses import contract, dkd, kd, nkd, sdd
from smskd_jax.types import Batch, Head, Outputs

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(sdd.loss, static_argnames=("inner", "public_code"))
region_logits = jax.jit(sdd.region_logits, static_argnames=("scales", "public_code"))
INNER = {
  "kd": lambda s, t, y: kd.loss(s, t, temperature=3.0),
  "dkd": lambda s, t, y: dkd.loss(s, t, y, alpha=0.5, beta=2.0, temperature=3.0),
  "nkd": lambda s, t, y: nkd.loss(s, t, y, gamma=0.7, temperature=3.0),
}
OPTIONS = {"alpha": 0.5, "beta": 2.0, "gamma": 0.7, "temperature": 3.0}


def networks(seed=0, b=6, r=5, k=4):
  rng = np.random.default_rng(seed)
  return (*rng.normal(size=(2, b, r, k)), rng.integers(0, k, b))


def last_map(seed=0, b=2, size=8, d=3, k=4):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(b, size, size, d)), rng.normal(size=(d, k)), rng.normal(size=k)


def test_regions_worked_by_hand():
  feature = np.arange(4.0).reshape(1, 2, 2, 1)
  logits = region_logits(feature, np.array([[1.0, -2.0]]), np.array([0.0, 10.0]), scales=(1, 2))
  means = np.array([1.5, 0, 1, 2, 3])
  np.testing.assert_allclose(logits, np.stack([means, 10 - 2 * means], axis=-1)[None])


@pytest.mark.parametrize("public_code", [False, True])
def test_regions_are_means_of_logits(public_code):
  """With a map of 8 x 8 the authors' 4 x 4 map changes nothing."""
  feature, kernel, bias = last_map()
  of_positions = feature @ kernel + bias
  expected = [
    of_positions[:, i : i + size, j : j + size].mean((1, 2))
    for size in (8, 4, 2)
    for i in range(0, 8, size)
    for j in range(0, 8, size)
  ]
  logits = region_logits(feature, kernel, bias, public_code=public_code)
  np.testing.assert_allclose(logits, np.stack(expected, axis=1), rtol=1e-10)


def test_region_0_is_the_whole_map_but_for_overlapping_cells_of_the_public_code():
  feature, kernel, bias = last_map(size=7)
  whole = feature.mean((1, 2)) @ kernel + bias
  np.testing.assert_allclose(region_logits(feature, kernel, bias)[:, 0], whole, rtol=1e-10)
  assert (np.abs(region_logits(feature, kernel, bias, public_code=True)[:, 0] - whole) > 1e-3).any()


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("public_code", [False, True])
def test_equals_the_formula(inner, public_code):
  student, teacher, labels = networks()
  expected = np.zeros(6)
  for i, y in enumerate(labels):
    predicted = teacher[i].argmax(axis=1)
    for r in range(5):
      differs = (predicted[r] == y) != (predicted[0] == y) if public_code else predicted[r] != predicted[0]
      value = INNER[inner](student[i, r : r + 1], teacher[i, r : r + 1], labels[i : i + 1])[0]
      expected[i] += (4.0 if differs else 1.0) * value
  rows = loss(
    student, teacher, labels, inner=inner, complementary_weight=4.0, public_code=public_code, **OPTIONS
  )
  np.testing.assert_allclose(rows, expected / (5 if public_code else 1), rtol=1e-10)


def test_two_different_wrong_classes_are_complementary_in_the_paper_alone():
  teacher, label = 9 * np.eye(4)[None, [1, 1, 2, 0]], np.array([0])
  np.testing.assert_array_equal(sdd.is_complementary(teacher), [[False, False, True, True]])
  public = sdd.is_complementary(teacher, label, public_code=True)
  np.testing.assert_array_equal(public, [[False, False, False, True]])


def test_with_the_whole_map_alone_it_is_the_inner_loss():
  student, teacher, labels = networks(r=1)
  for inner, of_logits in INNER.items():
    rows = loss(student, teacher, labels, inner=inner, **OPTIONS)
    np.testing.assert_allclose(rows, of_logits(student[:, 0], teacher[:, 0], labels), rtol=1e-10)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("public_code", [False, True])
def test_the_method_reads_both_classifiers_and_trains_the_student_s(inner, public_code):
  student, teachers, batch = make_example("sdd", dtype=np.float64)
  method = sdd.method(inner=inner, scales=(1, 2), public_code=public_code, **OPTIONS)
  assert method.needs_labels == (inner != "kd" or public_code)

  def total(head):
    rows, _ = method.apply(
      (), (), student._replace(head=head), teachers, contract.Context(batch._replace(label=labels))
    )
    return rows.mean(), rows

  labels = batch.label if method.needs_labels else None
  gradient, rows = jax.grad(total, has_aux=True)(student.head)
  assert np.any(gradient.kernel) and np.any(gradient.bias)
  logits = (
    sdd.region_logits(x.final_map, *x.head, scales=(1, 2), public_code=public_code)
    for x in (student, teachers[0])
  )
  expected = loss(*logits, batch.label, inner=inner, public_code=public_code, **OPTIONS)
  np.testing.assert_allclose(rows, expected, rtol=1e-10)


def test_missing_labels_and_missing_outputs_are_refused():
  student, teacher, _ = networks()
  for options, message in (
    ({"inner": "dkd"}, "sdd: inner='dkd' needs labels"),
    ({"inner": "nkd"}, "sdd: inner='nkd' needs labels"),
    ({"public_code": True}, "sdd: public_code=True needs labels"),
  ):
    with pytest.raises(ValueError, match=message):
      sdd.loss(student, teacher, **options)
  student, (teacher,), _ = make_example("sdd")
  for output in ("final_map", "head"):
    with pytest.raises(ValueError, match=f"sdd: the student does not give Outputs.{output}"):
      sdd.method().init(None, student._replace(**{output: None}), (teacher,), None)
    with pytest.raises(ValueError, match=f"sdd: the teacher does not give Outputs.{output}"):
      sdd.method().init(None, student, (teacher._replace(**{output: None}),), None)


@pytest.mark.parametrize("inner", INNER)
def test_memory_of_a_large_batch_of_many_classes_is_below_a_gibibyte(inner):
  """Value and gradients for resnet32x4 -> resnet8x4 or larger maps, 256 images and 100 classes."""
  b, k = 256, 100

  def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)

  def outputs(size, d):
    final_map, head = shape(b, size, size, d), Head(shape(d, k), shape(k))
    return Outputs(shape(b, k), shape(b, d), (final_map,), (final_map,), final_map, head)

  def mean_loss(final_map, head, student, teacher, label):
    student = student._replace(final_map=final_map, head=head)
    context = contract.Context(Batch(label, label, label))
    return sdd.method(inner=inner).apply((), (), student, (teacher,), context)[0].mean()

  student, teacher = outputs(8, 256), outputs(8, 256)
  gradient = jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1)))
  label = jax.ShapeDtypeStruct((b,), jnp.int32)
  analysis = (
    gradient.lower(student.final_map, student.head, student, teacher, label).compile().memory_analysis()
  )
  used = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
  assert 4 * b * 8 * 8 * 256 < used < 2**30  # more than the gradient of the map
