"""The networks of the survey "The State of Knowledge Distillation for Classification": its numbers of parameters."""

import pytest

from smskd_jax.models import MODELS, spec


@pytest.mark.parametrize(
  "name, options, parameters",
  [
    ("survey_resnet8", {}, 89_322),
    ("survey_resnet20", {}, 283_754),
    ("survey_resnet26", {}, 380_970),
    ("wrn_10_1", {}, 77_850),
    ("wrn_16_4", {}, 2_748_890),
    ("wrn", {"depth": 10, "factor": 1}, 77_850),
    ("ResNet18", {}, 11_173_962),
  ],
)
def test_parameters_of_table_2(name, options, parameters):
  assert spec.num_parameters(MODELS[name](num_classes=10, **options), (32, 32, 3)) == parameters


@pytest.mark.parametrize("options, message", [({"depth": 11}, "6n \\+ 4"), ({"factor": 0}, "factor must be")])
def test_wide_networks_refuse_what_does_not_exist(options, message):
  with pytest.raises(ValueError, match=message):
    MODELS["wrn"](num_classes=10, **options)
