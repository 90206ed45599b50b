"""Tests of runtime/eval_outputs.py."""

import numpy as np

from smskd_jax.runtime.eval_outputs import PredictionsWriter, read


def test_evaluations_are_appended_and_cut_where_a_run_goes_on(tmp_path):
  path, n = tmp_path / "predictions.npz", 7
  choices = PredictionsWriter(path, last_step=-1)
  for step in (0, 10, 20):
    choices.write(step, {"test": np.full(n, step % 7), "validation": np.full(3, 1)})
  found = read(path)
  assert found["step"].tolist() == [0, 10, 20] and found["test"].shape == (3, n)
  assert found["test"].dtype == np.uint16
  PredictionsWriter(path, last_step=10).write(15, {"test": np.full(n, 5), "validation": np.full(3, 2)})
  found = read(path)
  assert found["step"].tolist() == [0, 10, 15] and found["test"][:, 0].tolist() == [0, 3, 5]
  PredictionsWriter(path, last_step=-1).write(0, {"test": np.zeros(n, int)})
  assert read(path)["step"].tolist() == [0]
