"""Runs with spot-adaptive distillation: metrics of the routes, and what is learned on CIFAR-100 (slow).

The teacher and the images of CIFAR-100 lie in the folder of `teachers_test.py`.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

import runs
from smskd_jax import data, import_torch
from smskd_jax.config import experiment as make_experiment
from smskd_jax.config import method, network, plugin, stage
from smskd_jax.engine import experiment
from teachers_test import FOLDER, STREAMLINED

TEACHER = FOLDER / "teachers" / "cifar100_resnet56.pth"
NUM_IMAGES, EPOCHS, BATCH_SIZE = 2048, 3, 64


def metrics_of(workdir, key):
  """Lines of metrics.jsonl of a stage."""
  path = workdir / "store" / key / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_reports_routes_and_the_loss_of_an_earlier_stage(tmp_path):
  config = runs.tiny()
  config.stages[1].methods = (method("at", plugins=(plugin("sakd"),)),)
  result = experiment.run(config, tmp_path / "run", cpu_devices=2)
  _, routed, later = result["stages"]
  names = {name for line in metrics_of(tmp_path / "run", routed["key"]) for name in line}
  assert {
    f"train/method/at/{name}" for name in ("routed_layer_1", "routed_logits", "policy_entropy")
  } <= names
  values = later["metrics"]["last"]
  assert np.isfinite(values["test/earlier_1_loss/at"])


@pytest.mark.slow
@pytest.mark.skipif(not TEACHER.is_file(), reason=f"no {TEACHER}")
def test_routes_differ_between_images_and_the_policy_becomes_certain(tmp_path):
  assert (
    import_torch.main([str(TEACHER), "--network=resnet56", f"--out={tmp_path / 'teacher'}", *STREAMLINED])
    == 0
  )
  unpacked = tmp_path / "cifar100.npz"
  subprocess.run([sys.executable, FOLDER / "unpack.py", "cifar100", unpacked], check=True)
  whole = data.load(f"npz:{unpacked}")
  rng = np.random.default_rng(0)
  arrays = {}
  for name, split, count in (("train", whole.train, NUM_IMAGES), ("test", whole.test, 1000)):
    chosen = rng.permutation(len(split.label))[:count]
    arrays |= {f"{name}_images": split.image[chosen], f"{name}_labels": split.label[chosen]}
  np.savez(tmp_path / "slice.npz", class_names=np.array(whole.class_names), **arrays)

  sakd = plugin("sakd", method_weight=1000.0, gamma=2.0)
  config = make_experiment(
    data={"source": f"npz:{tmp_path / 'slice.npz'}"},
    networks={
      "teacher": network("resnet56", variables=str(tmp_path / "teacher")),
      "student": network("resnet8"),
    },
    stages=(
      stage(
        "student",
        teachers=("teacher",),
        methods=(method("at", weight=1.0, plugins=(sakd,)),),
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        optimizer={"learning_rate": 0.05},
      ),
    ),
    log_every_steps=8,
  )
  result = experiment.run(config, tmp_path / "run", cpu_devices=1)

  lines = metrics_of(tmp_path / "run", result["stages"][0]["key"])
  steps = [line for line in lines if "train/method/at/policy_entropy" in line]

  def values(name):
    return [line[f"train/{name}"] for line in steps]

  # Measured: entropy 0.36 -> 0.01, task 4.64 -> 4.08, 5.3 % of the test images; first fractions 0.77, 0.20, 0.17, 0.79,
  # and nearly 1 at the end: the teacher's route has the smallest loss on its training images.
  entropy, task = values("method/at/policy_entropy"), values("task")
  first = [values(f"method/at/routed_{name}")[0] for name in ("layer_1", "layer_2", "layer_3", "logits")]
  assert all(0.05 < fraction < 0.95 for fraction in first) and np.ptp(first) > 0.1, first
  assert entropy[0] > 0.15 and entropy[-1] < entropy[0] / 2, entropy
  assert values("method/at/policy_loss")[-1] < 1, "routed through the teacher"
  assert task[-1] < task[0] - 0.3, task
  assert result["stages"][0]["metrics"]["last"]["test/accuracy"] > 0.03
