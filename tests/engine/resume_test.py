"""Going on after files beside the checkpoints were damaged: no result depends on metrics.jsonl or predictions.npz."""

import shutil

import pytest

from engine.experiment_test import Crash, crash_after, script_validation
import runs
from runtime.integrity_test import DAMAGES
from smskd_jax.engine import experiment
from smskd_jax.runtime import integrity

VALIDATION = 0.1, 0.7, 0.6, 0.5  # by epoch: the best is long past when the run is stopped


def run(folder, monkeypatch, *, crash=None):
  config = runs.tiny(data={"source": "digits", "validation": 0.2})
  config.stages = config.stages[:1]
  config.stages[0].update(epochs=3, keep_checkpoint="validation")
  with monkeypatch.context() as patch:
    script_validation(patch, VALIDATION)
    if crash is not None:
      crash_after(patch, crash)
      with pytest.raises(Crash):
        experiment.run(config, folder, cpu_devices=2)
      return None
    return experiment.run(config, folder, cpu_devices=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A run that was never stopped, and one that was after its second epoch of eight steps."""
  whole, stopped = (tmp_path_factory.mktemp(name) / "run" for name in ("whole", "stopped"))
  with pytest.MonkeyPatch.context() as patch:
    result = run(whole, patch)
    run(stopped, patch, crash=19)
  assert result["stages"][0]["metrics"]["best_by_validation"]["step"] == 8
  return whole, stopped


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["metrics.jsonl", "predictions.npz"])
def test_what_lies_beside_the_checkpoints_decides_nothing(
  folders, tmp_path, monkeypatch, capsys, file, damage
):
  whole, stopped = folders
  shutil.copytree(stopped, tmp_path / "run")
  (path,) = (tmp_path / "run").glob(f"store/*/{file}")
  DAMAGES[damage](path)
  run(tmp_path / "run", monkeypatch)
  assert runs.left_by(tmp_path / "run") == runs.left_by(whole)
  out = capsys.readouterr().out
  assert f"{path} differs from its content at step 16" in out
  report = (tmp_path / "run" / "report.md").read_text()
  assert ("begins at step" in report) == (file == "metrics.jsonl")


def test_without_damage_it_is_told_of_none(folders, tmp_path, monkeypatch, capsys):
  whole, stopped = folders
  shutil.copytree(stopped, tmp_path / "run")
  run(tmp_path / "run", monkeypatch)
  assert runs.left_by(tmp_path / "run") == runs.left_by(whole)
  assert "differs from its content" not in capsys.readouterr().out
  (entry,) = (tmp_path / "run" / "store").iterdir()
  (other,) = (whole / "store").iterdir()
  assert (entry / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
  assert integrity.read_arrays(entry / "predictions.npz")["step"].tolist() == [0, 8, 16, 24]
