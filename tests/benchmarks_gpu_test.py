"""Tests of benchmarks/gpu.py at tiny sizes on a CPU."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest

import runs

TINY = {
  "pairs": "resnet8:resnet8",
  "kinds": "kd",
  "batch_sizes": 8,
  "dtypes": "float32",
  "steps_per_call": 2,
  "seeds": 2,
  "images": 32,
  "test_images": 16,
  "image_size": 8,
  "turns": 2,
  "turn_seconds": 0.01,
  "matrix_size": 64,
  "torch_python": "",
  "run": "tests/smoke.py",
}


@pytest.fixture(scope="module")
def gpu():
  folder = str(runs.ROOT / "benchmarks")
  sys.path.insert(0, folder)  # as for a script of this folder
  try:
    spec = importlib.util.spec_from_file_location("gpu", f"{folder}/gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module
    spec.loader.exec_module(module)
    yield module
  finally:
    sys.path.remove(folder)
    del sys.modules["gpu"]


@pytest.mark.slow
def test_all_groups_are_measured(tmp_path):
  paths = map(str, (runs.ROOT, runs.ROOT / "tests"))  # for networks of `tests/smoke.py`
  env = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
  command = [sys.executable, "benchmarks/gpu.py", f"--out={tmp_path}"]
  command += [f"--{name}={value}" for name, value in TINY.items()]
  done = subprocess.run(command, cwd=runs.ROOT, env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "gpu.json").read_text())
  assert not found["errors"] and not found["skipped"]
  results = found["results"]
  assert [name.split()[0] for name in results] == ["peaks", "steps", "run", "seeds", "cached", "evaluation"]
  (plain,), (cached,) = results["steps kd:resnet8:resnet8 8"], results["cached kd:resnet8:resnet8 8"]
  for row in (plain, cached):
    side = row["ours_2"]
    assert side["milliseconds"] > 0 and side["memory_bytes"] > 0 and side["compile_seconds"] > 0
    assert side["images_per_second"] == pytest.approx(8e3 / side["milliseconds"])
  assert cached["ours_2"]["first_loss"] == pytest.approx(plain["ours_2"]["first_loss"], rel=1e-5)
  assert plain["torch"] == {"skipped": "--torch_python is empty"}
  assert results["seeds kd:resnet8:resnet8 8"][0]["seeds"] == 2
  assert results["run"]["stages"][-1]["steps"] > 0
  assert results["evaluation resnet8:resnet8"][0]["ours_images_per_second"] > 0


def test_fractions_of_the_peak_count_the_operations_of_a_step(gpu):
  measurement = gpu.Measurement.__new__(gpu.Measurement)
  measurement.measured_peaks, measurement.data_sheet = {"float32": 4e9}, {"float32": 8e9}
  row = measurement.describe([0.5, 0.5], 64, 1e9, "float32")
  assert row["of_measured_peak"] == 0.5 and row["of_data_sheet_peak"] == 0.25 and row["milliseconds"] == 500
  assert "of_measured_peak" not in measurement.describe([0.5], 64, 1e9, "bfloat16")


def test_groups_without_time_are_skipped_and_errors_do_not_end_the_others(gpu):
  now, written = [0.0], []

  def take(seconds):
    now[0] += seconds
    return seconds

  def fail():
    raise ValueError("no such pair")

  groups = [
    gpu.Group("peaks", "first", lambda: take(5)),
    gpu.Group("steps", "broken", fail),
    gpu.Group("steps", "slow", lambda: take(70)),
    gpu.Group("steps", "too late", lambda: take(70)),
    gpu.Group("evaluation", "short", lambda: take(10)),
  ]
  report = gpu.run_groups(
    groups, 120.0, lambda report: written.append(len(report["results"])), lambda: now[0]
  )
  assert report["results"] == {"first": 5, "slow": 70, "short": 10}
  assert report["errors"] == {"broken": "ValueError: no such pair"}
  assert report["skipped"] == {"too late": "takes about 70 s, and 45 s are left"}
  assert written == [1, 1, 2, 2, 3], "everything so far is written after each group"


def test_a_reply_that_does_not_come_is_an_error(gpu):
  process = gpu.TorchProcess(sys.executable, (), -math.inf)
  process._command = [sys.executable, "-c", "import sys; sys.stdin.readline()"]
  process.send(do="measure")
  assert "error" in process.receive()
  assert process._process is None, "a new process serves the next request"
