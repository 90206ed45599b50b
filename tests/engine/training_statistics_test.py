"""Tests of engine/training_statistics.py: runs with methods that need statistics of the teacher."""

import shutil

import jax
import numpy as np
import pytest

from engine.experiment_test import Crash, crash_after
import runs
from smskd_jax import data
from smskd_jax.config import method, plugin, resolve, stage
from smskd_jax.data import augment
from smskd_jax.engine import experiment, training_statistics
from smskd_jax.engine.plan import make_plans
from smskd_jax.errors import UserError
from smskd_jax.runtime import checkpoint, integrity
from smskd_jax.runtime.writer import read_metrics
from smskd_jax.training import cka
from smskd_jax.training.stage import frozen_outputs

METHODS = (
  method("kd", weight=0.5, plugins=(plugin("nd", weight=2.0),)),
  method("wkd_logit", weight=0.1, gamma=5.0),
)
IMAGES = 1438  # of the training set
STEPS = 11


def config(**fields):
  """A teacher of one epoch, and a student of one epoch with both kinds of statistics."""
  common = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
  student = {"teachers": ("teacher",), "methods": METHODS} | common | fields
  return runs.tiny(stages=(stage("teacher", **common), stage("student", **student)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("statistics")
  return folder, experiment.run(config(), folder, cpu_devices=2)


def with_teacher(finished, folder):
  """A folder whose store has the teacher of the finished run, and not its student."""
  key = finished[1]["stages"][0]["key"]
  shutil.copytree(finished[0] / "store" / key, folder / "store" / key)
  return folder


def losses(folder, result):
  lines = read_metrics(folder / "store" / result["stages"][1]["key"] / "metrics.jsonl")
  return [
    [line[f"train/{name}"] for name in ("distill/kd", "distill/wkd_logit")]
    for line in lines
    if "train/loss" in line
  ]


def count_passes(monkeypatch):
  """List of the stages whose statistics are computed from now on."""
  computed, compute = [], training_statistics.compute

  def counting(plan, *args):
    computed.append(plan.name)
    return compute(plan, *args)

  monkeypatch.setattr(training_statistics, "compute", counting)
  return computed


def test_statistics_are_those_of_the_teacher_s_outputs_without_augmentation(finished):
  folder, result = finished
  dataset, resolved = data.load(source="digits"), resolve(config())
  teacher = make_plans(resolved, dataset)[1].stage.teachers[0]
  variables = checkpoint.load_final(folder / "store", result["stages"][0]["key"])
  image = augment.normalize(dataset.train.image[:], mean=dataset.mean, std=dataset.std)
  embedding, label = np.asarray(frozen_outputs(teacher, variables, image).embedding), dataset.train.label
  means = [embedding[label == c].mean(0) for c in range(10)]
  count = np.bincount(label).min()
  rows = [embedding[label == c][:count] for c in range(10)]
  cost = [[1 - np.exp(cka.linear_cka(x, y) - 1) for y in rows] for x in rows]
  stored = integrity.read_arrays(folder / "store" / result["stages"][1]["key"] / "method_state.npz")
  by_shape = {x.shape: x for x in stored.values()}
  np.testing.assert_allclose(by_shape[10, embedding.shape[1]], means, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(by_shape[10, 10], cost, rtol=1e-3, atol=1e-4)


def test_one_pass_serves_all_methods_and_is_counted(finished):
  passes = [one["forward_passes"]["teachers"] for one in finished[1]["stages"]]
  assert passes == [0, STEPS * 128 + IMAGES]


def test_one_device_equals_two(finished, tmp_path):
  folder = with_teacher(finished, tmp_path)
  result = experiment.run(config(), folder, cpu_devices=1)
  np.testing.assert_allclose(losses(folder, result), losses(*finished), rtol=1e-4)


def test_a_crashed_run_goes_on_bit_for_bit_and_computes_statistics_once(finished, tmp_path, monkeypatch):
  folder, computed = with_teacher(finished, tmp_path), count_passes(monkeypatch)
  for steps in (2, 7):  # before the first checkpoint, and after it
    with monkeypatch.context() as patch:
      crash_after(patch, steps)
      with pytest.raises(Crash):
        experiment.run(config(), folder, cpu_devices=2)
  assert computed == ["student_kd+wkd_logit"] * 2
  experiment.run(config(), folder, cpu_devices=2)
  assert len(computed) == 2, "the checkpoint has them"
  assert runs.left_by(folder) == runs.left_by(finished[0])


def test_with_cached_teacher_outputs_the_run_is_the_same(finished, tmp_path):
  folder = with_teacher(finished, tmp_path)
  result = experiment.run(config(teacher_cache="float32"), folder, cpu_devices=2)
  np.testing.assert_allclose(losses(folder, result), losses(*finished), rtol=1e-4)
  # In an epoch no view of an image is sampled twice, so that a cache saves nothing.
  assert result["stages"][1]["forward_passes"]["teachers"] == STEPS * 128 + IMAGES


@pytest.mark.slow
def test_seeds_at_once_are_those_one_after_another(finished, tmp_path):
  configs = [config(), config()]
  configs[1].seed = 1
  folders = [tmp_path / str(seed) for seed in range(2)]
  pairs = list(zip(configs, folders, strict=True))
  results = experiment.run_seeds(pairs, store=tmp_path / "store", cpu_devices=2)
  assert [one["num_parallel_seeds"] for one in results[0]["stages"]] == [2, 2]
  np.testing.assert_allclose(losses(tmp_path, results[0]), losses(*finished), rtol=1e-3)
  assert {result["stages"][1]["forward_passes"]["teachers"] for result in results} == {STEPS * 128 + IMAGES}


def plans_of(*stages):
  return make_plans(resolve(runs.tiny(stages=stages)), data.load(source="digits"))


def test_the_pass_is_over_the_images_that_the_stage_trains_on():
  teacher, student = config(max_images=500).stages
  (_, plan) = plans_of(teacher, student)
  assert training_statistics.num_images(plan) == len(plan.input_spec.images.indices) < 510
  zeros = jax.tree.leaves(training_statistics.zeros(plan, data.load(source="digits")))
  assert [x.shape for x in zeros] == [(10, 16), (10, 10)] and not any(np.any(x) for x in zeros)


def test_a_stage_that_continues_another_takes_over_its_statistics():
  teacher, student = config().stages
  second = config(carry_over="all").stages[1]
  plans = plans_of(teacher, student, second)
  assert [training_statistics.num_images(plan) for plan in plans] == [0, IMAGES, 0]


def test_stages_without_statistics_cost_nothing():
  (_, plan) = plans_of(config().stages[0], config(methods=(method("kd"),)).stages[1])
  assert training_statistics.num_images(plan) == 0
  assert training_statistics.zeros(plan, data.load(source="digits")) == ()


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"teachers": ()}, r"stages\[1\].teachers: empty, but 'kd' needs a teacher"),
    (
      {"images": "unlabeled", "task_weight": 0.0},
      r"stages\[1\].images: 'unlabeled', but 'kd' needs the label of every image",
    ),
    (
      {"max_images": 12, "batch_size": 8},
      r"stages\[1\]: wkd_logit: CKA needs two images of each class .* has 1",
    ),
  ],
)
def test_stages_without_teacher_labels_or_images_are_refused(fields, message):
  changed = config(**fields)
  changed.data.unlabeled = "digits" if "images" in fields else ""
  with pytest.raises(UserError, match=message):
    make_plans(resolve(changed), data.load(source="digits"))
