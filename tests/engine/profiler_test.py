"""Tests of engine/profiler.py: what a profiled run says of its steps, and that it trains as any other."""

import json

import jax
import pytest

import runs
from smskd_jax.config import stage
from smskd_jax.engine import experiment, profiler
from smskd_jax.runtime import checkpoint


def config():
  return runs.tiny(
    stages=(stage("teacher", epochs=2, batch_size=128, augment={"crop_flip": {"padding": 1}}),)
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("profiling")
  return folder, {n: experiment.run(config(), folder / str(n), cpu_devices=2, profile=n) for n in (0, 4)}


def test_a_profiled_run_is_the_run(finished):
  folder, results = finished
  digests = [
    checkpoint.tree_digest(
      checkpoint.load_variables(folder / str(n) / "store" / of["stages"][0]["key"] / "final")
    )
    for n, of in results.items()
  ]
  assert digests[0] == digests[1]
  assert not (folder / "0" / "profile").exists()


def test_a_profile_has_a_trace_and_counts_what_all_devices_do(finished, tmp_path):
  folder, _ = finished
  where = folder / "4" / "profile" / "teacher"
  assert list(where.rglob("*.xplane.pb"))
  found = json.loads((where / "profile.json").read_text())
  assert found["images"] == 128 and found["seconds"] > 0 and min(found["ceilings"].values()) > 1e8
  experiment.run(config(), tmp_path, cpu_devices=1, profile=1)
  alone = json.loads((tmp_path / "profile" / "teacher" / "profile.json").read_text())
  assert alone["flops"] == pytest.approx(found["flops"], rel=0.05)
  assert alone["memory"] > found["memory"]


def test_a_table_relates_a_step_to_what_the_machine_can_do():
  ceilings = profiler.HardwarePeaks(4e9, 8e9)
  row = profiler.table({"kd": profiler.Profile(0.5, 64, 1e9, 3e9, 10**6, ceilings)}).splitlines()[-1]
  assert row.split() == ["kd", "500.0", "128", "1", "G", "2", "G", "50%", "3", "G", "6", "G", "75%", "1", "M"]
  assert profiler.measure_peaks(jax.local_devices()[:1], repeats=1).flops > 1e8
