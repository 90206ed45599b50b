"""The claim of the quickstart, on three seeds: minutes, so marked slow."""

import importlib.util

import numpy as np
import pytest

import runs
from smskd_jax.engine import experiment


@pytest.mark.slow
def test_the_student_of_three_stages_is_not_behind_the_one_that_learns_alone(tmp_path):
  spec = importlib.util.spec_from_file_location("quickstart", runs.ROOT / "configs" / "quickstart.py")
  quickstart = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(quickstart)
  gains = []
  for seed in range(3):
    config = quickstart.get_config()
    config.seed = seed
    result = experiment.run(config, tmp_path / str(seed), cpu_devices=2)
    accuracy = {s["name"]: s["metrics"]["last"]["test/accuracy"] for s in result["stages"]}
    # Where this was measured: 87, 69, 79 and 81 %. Another processor rounds differently.
    assert accuracy["teacher"] > 0.8 and accuracy["dkd"] > 0.76
    assert accuracy["dkd"] > accuracy["kd"] > accuracy["at"] + 0.02, "each stage helps"
    gains.append(accuracy["dkd"] - accuracy["alone"])
  assert np.mean(gains) > -0.01, gains  # +0.008, a mean of three whose standard error is about 0.01
