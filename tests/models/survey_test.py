"""The networks of the survey "The State of Knowledge Distillation for Classification": its numbers of parameters."""

import jax
import numpy as np
import pytest

from smskd_jax.models import MODELS, introspection


@pytest.mark.parametrize(
  "name, options, parameters",
  [
    ("survey_resnet8", {}, 89_322),
    ("survey_resnet20", {}, 283_754),
    ("survey_resnet26", {}, 380_970),
    ("wrn_10_1", {}, 77_850),
    ("wrn_16_4", {}, 2_748_890),
    ("wrn", {"depth": 10, "factor": 1}, 77_850),
    ("survey_resnet10", {}, 4_903_242),
    ("survey_resnet18", {}, 11_173_962),
  ],
)
def test_parameters_of_table_2(name, options, parameters):
  assert introspection.num_parameters(MODELS[name](num_classes=10, **options), (32, 32, 3)) == parameters


@pytest.mark.parametrize("options, message", [({"depth": 11}, "6n \\+ 4"), ({"factor": 0}, "factor must be")])
def test_wide_networks_refuse_what_does_not_exist(options, message):
  with pytest.raises(ValueError, match=message):
    MODELS["wrn"](num_classes=10, **options)


def test_no_relu_between_the_blocks_of_a_stage():
  """If the second block adds nothing, the block group's end before its ReLU is what the second block was given."""
  image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
  least = {}
  for name in ("survey_resnet18", "ResNet18"):
    network = MODELS[name](num_classes=2, width=0.125)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
      lambda x, rng=rng: rng.uniform(-0.5, 0.5, x.shape).astype(np.float32),
      introspection.variable_shapes(network, (8, 8, 3)),
    )
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])
    second_norm = variables["params"]["layer1_1"]["bn2"]
    variables["params"]["layer1_1"]["bn2"] = jax.tree.map(np.zeros_like, second_norm)
    outputs = network.apply(variables, image)
    least[name] = outputs.preactivations[1].min()
    np.testing.assert_array_equal(outputs.features[1], jax.nn.relu(outputs.preactivations[1]))
  assert least["survey_resnet18"] < 0 <= least["ResNet18"]
