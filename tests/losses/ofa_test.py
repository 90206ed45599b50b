"""Tests of losses/ofa.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import METHODS, ofa
from smskd_jax.losses.contract import Context
from smskd_jax.models import MODELS, introspection
from smskd_jax.types import Batch, Outputs

pytestmark = pytest.mark.usefixtures("float64")


def arrays(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def softmax(z):
  e = np.exp(z - z.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


def in_numpy(student, teacher, labels, gamma, temperature=1.0, modulate_all_classes=False):
  p, log_q = softmax(teacher / temperature), np.log(softmax(student / temperature))
  weights = p**gamma if modulate_all_classes else p.copy()
  rows = np.arange(len(labels))
  weights[rows, labels] = (1 + p[rows, labels]) ** gamma - 1
  return -(weights * log_q).sum(1)


def test_worked_by_hand():
  # p = (1/2, 1/2), q = (1/4, 3/4), label 0 and gamma 2: (1.5^2 - 1) log 4 + log(4/3) / 2.
  teacher, student = np.zeros((1, 2)), np.log([[0.25, 0.75]])
  expected = 1.25 * np.log(4) + 0.5 * np.log(4 / 3)
  np.testing.assert_allclose(ofa.loss(student, teacher, np.array([0]), gamma=2.0), [expected])
  all_classes = ofa.loss(student, teacher, np.array([0]), gamma=2.0, modulate_all_classes=True)
  np.testing.assert_allclose(all_classes, [1.25 * np.log(4) + 0.25 * np.log(4 / 3)])


@pytest.mark.parametrize(
  "gamma, temperature, everywhere", [(1.0, 1.0, False), (1.4, 2.0, False), (1.5, 3.0, True)]
)
def test_equals_numpy(gamma, temperature, everywhere):
  student, teacher, labels = arrays(0, 6, 5), arrays(1, 6, 5), np.array([0, 1, 2, 3, 4, 0])
  rows = ofa.loss(
    student, teacher, labels, gamma=gamma, temperature=temperature, modulate_all_classes=everywhere
  )
  np.testing.assert_allclose(
    rows, in_numpy(student, teacher, labels, gamma, temperature, everywhere), rtol=1e-10
  )


def test_gamma_of_one_is_the_cross_entropy_with_the_teacher():
  student, teacher, labels = arrays(0, 4, 5), arrays(1, 4, 5), np.array([0, 1, 2, 3])
  expected = -(softmax(teacher) * np.log(softmax(student))).sum(1)
  np.testing.assert_allclose(ofa.loss(student, teacher, labels), expected, rtol=1e-10)
  assert (ofa.loss(student, teacher, labels, gamma=1.3) > expected).all()


def spec(name, **options):
  return introspection.output_shapes(MODELS[name](num_classes=7, **options), (32, 32, 3))


def parameter_shapes(student, teacher, **options):
  method = METHODS["ofa"](**options)
  aux = jax.eval_shape(lambda key: method.init(key, student, (teacher,), None), jax.random.key(0))
  return jax.tree.map(lambda x: x.shape, aux.params)


def test_heads_of_convolutions_as_in_the_authors_code():
  """Blocks of stride 2 down to the last layer, channels doubled, the last as wide as the wider embedding."""
  heads = parameter_shapes(spec("resnet20"), spec("vit_tiny"))
  assert sorted(heads) == ["head0", "head1", "head2"]
  widths = [[heads["head0"][f"block{i}"]["pointwise1"]["kernel"] for i in range(2)]]
  widths += [heads["head1"]["block0"]["pointwise1"]["kernel"], heads["head2"]["conv"]["kernel"]]
  assert widths == [[(1, 1, 16, 32), (1, 1, 32, 192)], (1, 1, 32, 192), (1, 1, 64, 192)]
  assert heads["head0"]["block0"]["depthwise0"]["kernel"] == (3, 3, 1, 16)
  assert {heads[name]["linear"]["kernel"] for name in heads} == {(192, 7)}


def test_heads_of_attention_as_in_the_authors_code():
  heads = parameter_shapes(spec("vit_tiny"), spec("resnet20"))
  blocks = [sum(name.startswith("block") for name in heads[f"head{k}"]) for k in range(4)]
  assert blocks == [3, 2, 1, 1] and {heads[f"head{k}"]["linear"]["kernel"] for k in range(4)} == {(192, 7)}
  assert not any(name.startswith("merge") for name in heads["head0"])  # 8x8 tokens
  large = introspection.output_shapes(MODELS["vit_tiny"](num_classes=7, patch_size=8), (224, 224, 3))
  heads = parameter_shapes(large, spec("resnet20"))  # 28x28 tokens are merged to 14x14 and 7x7
  assert [heads["head3"][f"merge{i}"]["kernel"] for i in (1, 2)] == [(768, 192)] * 2


def outputs(seed, sizes=(4, 2), channels=(4, 6), k=5, b=3):
  features = tuple(arrays(seed + i, b, s, s, c) for i, (s, c) in enumerate(zip(sizes, channels, strict=True)))
  return Outputs(arrays(seed + 20, b, k), arrays(seed + 21, b, 8), features, features)


def run(method, student, teacher, aux=None):
  labels = np.array([0, 1, 2])
  if aux is None:
    aux = method.init(jax.random.key(0), *jax.eval_shape(lambda: (student, (teacher,))), None)
  context = Context(Batch(None, labels, labels))
  return aux, *method.apply(*aux, student, (teacher,), context)


def test_the_whole_is_the_loss_of_the_logits_and_of_the_last_layer_in_numpy():
  method = ofa.method(gamma=1.2, logits_weight=0.5, feature_weight=2.0, layers=(-1,))
  student, teacher = outputs(0), outputs(40)
  aux, rows, _ = run(method, student, teacher)
  head = jax.tree.map(np.asarray, aux.params["head0"])
  x = student.features[-1] @ head["conv"]["kernel"][0, 0] + head["conv"]["bias"]
  z = x.mean((1, 2)) @ head["linear"]["kernel"] + head["linear"]["bias"]
  terms = [in_numpy(logits, teacher.logits, [0, 1, 2], 1.2) for logits in (student.logits, z)]
  np.testing.assert_allclose(rows, 0.5 * terms[0] + 2 * terms[1], rtol=1e-9)


def test_a_teacher_without_embedding_and_maps_is_enough_after_the_start():
  """As from a teacher cache."""
  method, student, teacher = ofa.method(layers=(0, 1)), outputs(0), outputs(40)
  aux, rows, _ = run(method, student, teacher)
  cached = Outputs(teacher.logits, None, (), ())
  np.testing.assert_array_equal(run(method, student, cached, aux)[1], rows)


@pytest.mark.parametrize("sizes, channels", [((4, 2), (4, 6)), ((2, 2), (8, 8))])
def test_heads_learn_and_the_student_learns_through_them(sizes, channels):
  method, student, teacher = ofa.method(layers=(0, 1)), outputs(0, sizes, channels), outputs(40)
  aux, rows, state = run(method, student, teacher)

  @jax.jit
  def mean_loss(params, features):
    return run(method, student._replace(features=features), teacher, (params, state))[1].mean()

  by_params, by_features = jax.jit(jax.grad(mean_loss, argnums=(0, 1)))(aux.params, student.features)
  assert all(np.any(x) for x in jax.tree.leaves(by_features))
  assert np.any(by_params["head0"]["linear"]["kernel"]) and np.any(by_params["head1"]["linear"]["kernel"])
  stepped = jax.tree.map(lambda p, g: p - 0.01 * g, aux.params, by_params)
  assert mean_loss(stepped, student.features) < rows.mean()


@pytest.mark.parametrize(
  "options, sizes, channels, message",
  [
    (
      {},
      (4,),
      (4,),
      r"needs feature maps after the stem, the student has 1; name its layers, as layers=\(0,\)",
    ),
    ({"layers": (2,)}, (4, 2), (4, 6), "layer 2 does not exist, the student has 2 feature maps"),
    (
      {"heads": "attention"},
      (4, 2),
      (4, 6),
      "channels that 4 divides, the student's map has 6; use heads='conv",
    ),
  ],
)
def test_students_without_such_maps_are_refused(options, sizes, channels, message):
  student, teacher = outputs(0, sizes, channels), outputs(40)
  with pytest.raises(ValueError, match=f"^ofa: .*{message}"):
    ofa.method(**options).init(jax.random.key(0), student, (teacher,), None)
