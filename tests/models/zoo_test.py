"""Contract of every network of the zoo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marks
from smskd_jax.models import MODELS
from smskd_jax.types import Outputs

SMALL = ["resnet8", "vgg8"]  # where running the network is needed
# All the code of all families, and what the height of the first layer is of the image's.
STRIDES = {
  "resnet14": 1,
  "resnet8x4": 1,
  "vgg8": 1,
  "vgg11": 1,
  "ResNet18": 1,
  "ResNet50": 1,
  "wrn_16_2": 1,
  "MobileNetV2": 2,
  "ShuffleV1": 1,
  "ShuffleV2": 1,
  "survey_resnet8": 1,
  "survey_resnet18": 1,
  "survey_resnet20": 1,
  "imagenet_resnet18": 2,
  "imagenet_resnet50": 2,
  "imagenet_mobilenet_v1": 4,
  "imagenet_mobilenet_v2": 2,
  "vit_tiny": 4,
  "mixer_tiny": 4,
}
QUICK = ["resnet14", "vgg8", "wrn_16_2", "ShuffleV2", "MobileNetV2", "vit_tiny"]  # one of each kind of block
TOKENS = ["vit_tiny", "mixer_tiny"]  # have neither batch norm nor free image sizes


def images(b):
  return np.random.default_rng(b).normal(size=(b, 12, 12, 3)).astype(np.float32)


def network_and_variables(name, **options):
  """A small network with weights from NumPy, because to compile an initialisation takes long."""
  network = MODELS[name](num_classes=5, width=0.25, **options)
  shapes = jax.eval_shape(network.init, jax.random.key(0), images(1))
  rng = np.random.default_rng(0)
  draw = {
    "params": lambda x: 0.3 * rng.normal(size=x.shape).astype(x.dtype),
    "batch_stats": lambda x: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype),
  }
  return network, {collection: jax.tree.map(draw[collection], tree) for collection, tree in shapes.items()}


def test_the_table_cannot_be_changed():
  with pytest.raises(TypeError):
    MODELS["mine"] = MODELS["resnet8"]


@pytest.mark.parametrize("shape", [(8, 8, 3), (28, 28, 1), (33, 33, 3), (9, 17, 1)])
@pytest.mark.parametrize("name", marks.quick(STRIDES, QUICK))
def test_any_image(name, shape):
  network = MODELS[name](num_classes=5)
  image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  if name in TOKENS and shape[0] % 4:
    with pytest.raises(ValueError, match="do not divide into patches of 4x4"):
      jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    return
  outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
  assert set(variables) == ({"params"} if name in TOKENS else {"params", "batch_stats"})
  assert isinstance(outputs, Outputs)
  assert outputs.logits.shape == (2, 5)
  assert outputs.embedding.shape == (2, outputs.final_map.shape[-1])
  assert outputs.features[0].shape[1:3] == tuple(-(-size // STRIDES[name]) for size in shape[:2])
  sizes = [x.shape[1] for x in outputs.features]
  assert sizes == sorted(sizes, reverse=True) and sizes[-1] >= 1
  assert len(outputs.preactivations) == len(outputs.features) == len(outputs.norms) >= 4
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(outputs))


@pytest.mark.parametrize("name", marks.quick(STRIDES, QUICK))
def test_bfloat16_is_what_maps_are_computed_in_and_nothing_is_kept_in(name):
  network = MODELS[name](num_classes=5, dtype="bfloat16")
  outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images(2))
  assert {x.dtype for x in (*outputs.features, *outputs.preactivations, outputs.final_map)} == {
    jnp.dtype(jnp.bfloat16)
  }
  assert {x.dtype for x in (outputs.logits, outputs.embedding, *outputs.head)} == {jnp.dtype(jnp.float32)}
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", marks.quick(["resnet8", "vit_tiny"], ["resnet8"]))
def test_bfloat16_says_nearly_the_same(name):
  network, variables = network_and_variables(name)
  half, _ = network_and_variables(name, dtype="bfloat16")
  one, other = (jax.jit(x.apply)(variables, images(3)).logits for x in (network, half))
  assert (one != other).any()
  np.testing.assert_allclose(one, other, rtol=0, atol=0.05 * np.abs(one).max())


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(
  "options, field",
  [
    ({"width": 0.0}, "width"),
    ({"width": -1.0}, "width"),
    ({"width": float("nan")}, "width"),
    ({"width": float("inf")}, "width"),
    ({"width": "2"}, "width"),
    ({"num_classes": 0}, "num_classes"),
    ({"num_classes": 2.5}, "num_classes"),
    ({"num_classes": True}, "num_classes"),
    ({"dtype": "float16"}, "dtype"),
    ({"dtype": None}, "dtype"),
  ],
)
def test_refuses_bad_options(name, options, field):
  with pytest.raises(ValueError, match=rf"^\w+: {field} must be (a positive|one of) .*, got ") as error:
    MODELS[name](**{"num_classes": 5} | options)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SMALL)
def test_width_scales_every_layer(name):
  def statistics(width):
    network = MODELS[name](num_classes=5, width=width)
    return jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0), images(2))["batch_stats"])

  for full, half in zip(statistics(1.0), statistics(0.5), strict=True):
    assert half.shape[0] * 2 == full.shape[0]


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_consistent(name):
  network, variables = network_and_variables(name)
  outputs = jax.jit(network.apply)(variables, images(3))
  for feature, preactivation in zip(outputs.features, outputs.preactivations, strict=True):
    np.testing.assert_array_equal(feature, jax.nn.relu(preactivation))
  for preactivation in outputs.preactivations[1:]:
    assert (preactivation < 0).any()
  np.testing.assert_allclose(outputs.embedding, outputs.features[-1].mean((1, 2)), rtol=1e-5, atol=1e-6)
  classifier = variables["params"]["fc" if "fc" in variables["params"] else "classifier"]
  expected = outputs.embedding @ classifier["kernel"] + classifier["bias"][None]
  np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_training_remembers_statistics_and_evaluation_does_not(name):
  network, variables = network_and_variables(name)
  apply = jax.jit(network.apply, static_argnames=("train", "mutable"))
  _, evaluated = apply(variables, images(4), mutable="batch_stats")
  _, trained = apply(variables, images(4), train=True, mutable="batch_stats")
  for before, kept, moved in zip(
    *(jax.tree.leaves(x["batch_stats"]) for x in (variables, evaluated, trained)), strict=True
  ):
    np.testing.assert_array_equal(before, kept)
    assert (np.asarray(before) != np.asarray(moved)).any()


@pytest.mark.parametrize("name", marks.quick(STRIDES, QUICK))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types_are_not_promoted_beyond_the_parameters(name, dtype):
  # Even where float64 is allowed; and bfloat16 images are computed in the parameters' type.
  network, variables = network_and_variables(name)
  with jax.enable_x64(True):
    image = jax.ShapeDtypeStruct((2, 12, 12, 3), dtype)

    def train(x):
      return network.apply(variables, x, train=True, mutable=["batch_stats"])

    results = jax.eval_shape(train, image), jax.eval_shape(network.init, jax.random.key(0), image)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(results))


@pytest.mark.parametrize("name", marks.quick(SMALL, ["resnet8"]))
def test_statistics_span_the_devices(name):
  if jax.device_count() < 4:
    pytest.skip("needs 4 devices")
  with jax.enable_x64(True):
    image = images(8).astype(np.float64)
    network, variables = network_and_variables(name)
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)

    def train(image, axis_name=None):
      outputs, state = network.apply(
        variables, image, train=True, axis_name=axis_name, mutable=["batch_stats"]
      )
      return outputs._replace(head=None, norms=()), state  # which are parameters

    outputs, state = jax.jit(train)(image)
    for n in (2, 4):
      on_each = jax.pmap(lambda x: train(x, "batch"), axis_name="batch", devices=jax.devices()[:n])
      shards, states = on_each(image.reshape(n, -1, *image.shape[1:]))
      for one, many in zip(jax.tree.leaves(outputs), jax.tree.leaves(shards), strict=True):
        np.testing.assert_allclose(many.reshape(one.shape), one, rtol=1e-12, atol=1e-12)
      for one, many in zip(jax.tree.leaves(state), jax.tree.leaves(states), strict=True):
        np.testing.assert_allclose(many, np.broadcast_to(one, many.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_head_and_unpooled_map_explain_the_logits(name):
  network, variables = network_and_variables(name)
  outputs = jax.jit(network.apply)(variables, images(4))
  np.testing.assert_allclose(outputs.final_map.mean((1, 2)), outputs.embedding, rtol=1e-5)
  pooled, (kernel, bias) = np.asarray(outputs.embedding), map(np.asarray, outputs.head)
  logits = pooled @ kernel + bias
  np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_norms_are_those_before_the_activation(name):
  network, variables = network_and_variables(name)
  outputs = jax.eval_shape(network.apply, variables, images(4))
  assert [norm.scale.shape[0] for norm in outputs.norms] == [x.shape[-1] for x in outputs.preactivations]
