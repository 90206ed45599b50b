"""Tests of runs on streamed images: order, crops, workers, processes, resuming, refusals."""

import hashlib
import signal

import jax
import numpy as np
import pytest

from photographs import write_folder
import runs
from smskd_jax import data
from smskd_jax.config import merge, resolve
from smskd_jax.engine import experiment
from smskd_jax.engine.plan import make_plans
from smskd_jax.errors import UserError
from smskd_jax.runtime import distributed, signals
from smskd_jax.runtime.writer import read_metrics
from smskd_jax.training import batches, loop
import streamed

EPOCHS, STEPS, SIZE = 3, 5, 32
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp("photographs"), streamed.COUNT)


@pytest.fixture(scope="module")
def train(folder):
  return data.load(f"folder:{folder}", streamed=True, image_size=16).train


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
  """Workdir and result of an uninterrupted run without workers."""
  workdir = tmp_path_factory.mktemp("streamed")
  return workdir, experiment.run(streamed.get_config(folder), workdir, cpu_devices=2)


def digest(some_batches):
  sha256 = hashlib.sha256()
  for batch in some_batches:
    for array in batch:
      sha256.update(np.ascontiguousarray(array).tobytes())
  return sha256.hexdigest()


def iterate(train, first_step=0, num_workers=0, local_indices=None):
  spec = batches.InputSpec(batches.labeled_subset(train), SIZE, EPOCHS, STEPS, num_workers=num_workers)
  return batches.iterate_batches(spec, KEY, first_step, local_indices=local_indices)


@pytest.fixture(scope="module")
def all_batches(train):
  return list(iterate(train))


def test_an_epoch_holds_each_image_once_with_a_new_crop_in_every_epoch(train, all_batches):
  index = np.stack([batch.index for batch in all_batches]).reshape(EPOCHS, STEPS * SIZE)
  assert all(len(set(epoch)) == STEPS * SIZE for epoch in index)
  crops = {}
  for batch in all_batches:
    for i, image, label in zip(batch.index, batch.image, batch.label, strict=True):
      assert label == train.label[i]
      crops.setdefault(int(i), set()).add(image.tobytes())
  repeated = [of_image for of_image in crops.values() if len(of_image) > 1]
  assert len(repeated) > 100 and sum(map(len, crops.values())) > 0.99 * index.size


@pytest.mark.parametrize(("first_step", "num_workers"), [(0, 0), (1, 0), (7, 0), (13, 0), (7, 2)])
def test_batches_do_not_depend_on_the_first_step_or_the_number_of_workers(
  train, all_batches, first_step, num_workers
):
  assert digest(iterate(train, first_step, num_workers)) == digest(all_batches[first_step:])


def test_two_processes_read_the_two_halves_of_each_batch(train, all_batches):
  halves = [iterate(train, 3, local_indices=local) for local in np.arange(SIZE).reshape(2, -1)]
  for *parts, batch in zip(*halves, all_batches[3:], strict=True):
    assert all(len(part.image) == SIZE // 2 for part in parts)
    for arrays, expected in zip(zip(*parts, strict=True), batch, strict=True):
      np.testing.assert_array_equal(np.concatenate(arrays), expected)


def test_a_run_stopped_within_an_epoch_resumes_bit_for_bit_with_another_number_of_workers(
  folder, finished, tmp_path, monkeypatch
):
  should_log = loop.LoopConfig.should_log

  def stop_at_seven(loop_config, step):
    if step == 7:  # the second step of the second epoch; the last regular checkpoint is of step 4
      signal.raise_signal(signal.SIGTERM)
    return should_log(loop_config, step)

  config = streamed.get_config(folder)
  with monkeypatch.context() as patch:
    patch.setattr(loop.LoopConfig, "should_log", stop_at_seven)
    with pytest.raises(signals.Interrupted, match="stopped at step 7 of 10"):
      experiment.run(config, tmp_path, cpu_devices=2)
  config.num_workers = 2
  experiment.run(config, tmp_path, cpu_devices=2)
  assert runs.left_by(tmp_path) == runs.left_by(finished[0])


@pytest.mark.slow
def test_streaming_square_images_equals_training_in_memory(tmp_path):
  """The crops are whole images, so that both runs train on equal batches."""
  folder = write_folder(tmp_path / "squares", streamed.COUNT, square=16, part="test")
  whole_images = {"min_crop_area": 1.0, "center_crop_fraction": 1.0}
  in_memory = streamed.get_config(folder, streamed=False, image_size=0)

  def load(*args, **options):
    return data.load(*args, **options)._replace(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))

  outcomes = []
  for name, config in (("streamed", streamed.get_config(folder, **whole_images)), ("memory", in_memory)):
    result = experiment.run(config, tmp_path / name, cpu_devices=2, load=load)
    stores = [tmp_path / name / "store" / stage["key"] for stage in result["stages"]]
    lines = [read_metrics(store / "metrics.jsonl") for store in stores]
    outcomes.append((list(runs.left_by(tmp_path / name)[1].values()), lines))
  assert outcomes[0] == outcomes[1]


@pytest.mark.slow
def test_two_processes_train_like_one(folder, finished, tmp_path):
  flags = (
    f"--config={runs.ROOT / 'tests' / 'streamed.py'}:{folder}",
    "--cpu_devices=1",
    "--config.num_workers=1",
  )
  ends = runs.end([runs.start(tmp_path, *flags, f"--distributed={how}") for how in runs.join(2)])
  assert [status for status, _, _ in ends] == [0, 0], ends
  for stage in finished[1]["stages"]:
    lines, expected = (
      read_metrics(where / "store" / stage["key"] / "metrics.jsonl") for where in (tmp_path, finished[0])
    )
    assert len(lines) == len(expected)
    for a, b in zip(lines, expected, strict=True):
      if "train/loss" in a:
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)


def test_processes_with_different_files_are_refused_before_anything_is_written(folder, tmp_path, monkeypatch):
  def gather(value):
    if not isinstance(value, dict) or "data" not in value:
      return [value]
    return [value, {"data": {"fingerprint": "of a folder that lacks a file"}}]

  monkeypatch.setattr(distributed, "all_gather_json", gather)
  with pytest.raises(UserError, match="process 1 is not like process 0: data.fingerprint is .* lacks a file"):
    experiment.run(streamed.get_config(folder), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_unlabeled_images_are_streamed_too(finished):
  assert finished[1]["stages"][1]["forward_passes"]["student"] == 2 * STEPS * (SIZE + 16)


def test_a_damaged_file_ends_the_run_with_its_name(tmp_path):
  folder = write_folder(tmp_path / "photographs", streamed.COUNT)
  file = folder / "train" / "n11939491" / "n11939491_7.JPEG"
  file.write_bytes(file.read_bytes()[:200] + bytes(file.stat().st_size - 200))
  with pytest.raises(UserError, match=f"data.source: cannot read {file}.*; replace or remove it"):
    experiment.run(streamed.get_config(folder), tmp_path / "run", cpu_devices=1)


def test_the_key_of_a_stage_depends_on_the_crops(folder):
  keys = set()
  for changes in ({}, {"image_size": 24}, {"min_crop_area": 0.25}, {"center_crop_fraction": 0.5}):
    config = resolve(streamed.get_config(folder, **changes))
    dataset = data.load(**merge.drop_keys(config["data"], "extra_tests"))
    keys.add(make_plans(config, dataset)[0].key)
  assert len(keys) == 4


@pytest.mark.parametrize(
  ("data_fields", "stage_fields", "message"),
  [
    ({"image_size": 0}, {}, "data.image_size: 0, but streamed images .* give it, as 224"),
    (
      {"source": "digits"},
      {},
      "data.streamed: True, but data.source 'digits' is read into memory.*folder:, tfds:",
    ),
    ({"min_crop_area": 0.0}, {}, r"config.data.min_crop_area: 0.0 is not in \(0, 1\]"),
    ({"center_crop_fraction": 1.5}, {}, r"config.data.center_crop_fraction: 1.5 is not in \(0, 1\]"),
    (
      {"extra_tests": ("corruptions:1",)},
      {},
      "config.data.extra_tests: .*data.streamed is True; leave extra_tests empty",
    ),
    (
      {},
      {"teacher_cache": "float32"},
      r"config.stages\[2\].teacher_cache: 'float32', but every step crops streamed images anew",
    ),
  ],
)
def test_invalid_streaming_configs_are_refused_before_anything_is_written(
  folder, data_fields, stage_fields, message, tmp_path
):
  config = streamed.get_config(folder, **data_fields)
  config.stages[2].update(stage_fields)
  with pytest.raises(UserError, match=message):
    experiment.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
