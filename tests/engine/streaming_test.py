"""Tests of runs on streamed images: which images come, what they are, and that nothing else makes a difference."""

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
  """A run that nothing has interrupted, with no workers."""
  workdir = tmp_path_factory.mktemp("streamed")
  return workdir, experiment.run(streamed.get_config(folder), workdir, cpu_devices=2)


def digest(some):
  found = hashlib.sha256()
  for batch in some:
    for array in batch:
      found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()


def draw(train, first=0, workers=0, own=None):
  drawing = batches.InputSpec(batches.labeled_subset(train), SIZE, EPOCHS, STEPS, num_workers=workers)
  return batches.iterate_batches(drawing, KEY, first, local_indices=own)


@pytest.fixture(scope="module")
def whole(train):
  return list(draw(train))


def test_an_epoch_sees_each_image_once_and_another_part_of_it_each_time(train, whole):
  index = np.stack([batch.index for batch in whole]).reshape(EPOCHS, STEPS * SIZE)
  assert all(len(set(epoch)) == STEPS * SIZE for epoch in index)
  shown = {}
  for batch in whole:
    for i, image, label in zip(batch.index, batch.image, batch.label, strict=True):
      assert label == train.label[i]
      shown.setdefault(int(i), set()).add(image.tobytes())
  twice = [parts for parts in shown.values() if len(parts) > 1]
  assert len(twice) > 100 and sum(map(len, shown.values())) > 0.99 * index.size


@pytest.mark.parametrize("workers", [0, 4])
def test_the_images_of_three_epochs_do_not_depend_on_who_decodes_them(train, whole, workers):
  assert digest(draw(train, workers=workers)) == digest(whole)


@pytest.mark.parametrize(("first", "workers"), [(1, 0), (7, 0), (13, 0), (7, 4)])
def test_within_an_epoch_they_go_on_as_they_would_have(train, whole, first, workers):
  assert digest(draw(train, first, workers)) == digest(whole[first:])


@pytest.mark.parametrize("workers", [0, 4])
def test_two_processes_read_half_of_each_batch_and_together_the_batch(train, whole, workers):
  halves = [draw(train, 3, workers, own) for own in np.arange(SIZE).reshape(2, -1)]
  for *parts, batch in zip(*halves, whole[3:], strict=True):
    assert all(len(part.image) == SIZE // 2 for part in parts)
    for arrays, expected in zip(zip(*parts, strict=True), batch, strict=True):
      np.testing.assert_array_equal(np.concatenate(arrays), expected)


def test_a_run_stopped_within_an_epoch_goes_on_bit_for_bit_whoever_decodes(
  folder, finished, tmp_path, monkeypatch
):
  logs = loop.LoopConfig.should_log

  def stop_at_seven(budget, step):
    if step == 7:  # the second of its second epoch; the last checkpoint would be of step 4
      signal.raise_signal(signal.SIGTERM)
    return logs(budget, step)

  config = streamed.get_config(folder)
  with monkeypatch.context() as patch:
    patch.setattr(loop.LoopConfig, "should_log", stop_at_seven)
    with pytest.raises(signals.Interrupted, match="stopped at step 7 of 10"):
      experiment.run(config, tmp_path, cpu_devices=2)
  config.num_workers = 2
  experiment.run(config, tmp_path, cpu_devices=2)
  assert runs.left_by(tmp_path) == runs.left_by(finished[0])


def test_on_images_that_fit_it_is_the_run_on_images_in_memory(tmp_path):
  """Squares of one size of which the whole is taken: what is drawn, stage by stage, is the same."""
  folder = write_folder(tmp_path / "squares", streamed.COUNT, square=16, part="test")
  of_data = {"min_crop_area": 1.0, "center_crop_fraction": 1.0}
  in_memory = streamed.get_config(folder, streamed=False, image_size=0)

  def load(*args, **options):
    found = data.load(*args, **options)
    return found._replace(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))

  found = []
  for name, config in (("streamed", streamed.get_config(folder, **of_data)), ("memory", in_memory)):
    result = experiment.run(config, tmp_path / name, cpu_devices=2, load=load)
    stores = [tmp_path / name / "store" / stage["key"] for stage in result["stages"]]
    lines = [read_metrics(store / "metrics.jsonl") for store in stores]
    found.append((list(runs.left_by(tmp_path / name)[1].values()), lines))
  assert found[0] == found[1]


def test_two_processes_give_the_run_of_one(folder, finished, tmp_path):
  flags = (
    f"--config={runs.ROOT / 'tests' / 'streamed.py'}:{folder}",
    "--cpu_devices=1",
    "--config.num_workers=1",
  )
  ends = runs.end([runs.start(tmp_path, *flags, f"--distributed={how}") for how in runs.join(2)])
  assert [status for status, _, _ in ends] == [0, 0], ends
  of_one = finished[1]["stages"]
  for stage in of_one:
    lines, expected = (
      read_metrics(where / "store" / stage["key"] / "metrics.jsonl") for where in (tmp_path, finished[0])
    )
    assert len(lines) == len(expected)
    for a, b in zip(lines, expected, strict=True):
      if "train/loss" in a:
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)


def test_processes_that_see_other_files_are_refused_before_anything_is_written(folder, tmp_path, monkeypatch):
  def gather(own):
    if not isinstance(own, dict) or "data" not in own:
      return [own]
    return [own, {"data": {"fingerprint": "of a folder that lacks a file"}}]

  monkeypatch.setattr(distributed, "all_gather_json", gather)
  with pytest.raises(UserError, match="process 1 is not like process 0: data.fingerprint is .* lacks a file"):
    experiment.run(streamed.get_config(folder), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_images_without_labels_are_streamed_too(folder, tmp_path):
  config = streamed.get_config(folder, unlabeled=f"folder:{folder}")
  config.stages[1].unlabeled_batch_size = 16
  config.stages = config.stages[:2]
  result = experiment.run(config, tmp_path, cpu_devices=1)
  assert result["stages"][1]["forward_passes"]["student"] == 2 * STEPS * (SIZE + 16)


def test_a_file_that_is_damaged_meanwhile_ends_it_with_its_name(tmp_path):
  folder = write_folder(tmp_path / "photographs", streamed.COUNT)
  file = folder / "train" / "n11939491" / "n11939491_7.JPEG"
  file.write_bytes(file.read_bytes()[:200] + bytes(file.stat().st_size - 200))
  with pytest.raises(UserError, match=f"data.source: cannot read {file}.*; replace or remove it"):
    experiment.run(streamed.get_config(folder), tmp_path / "run", cpu_devices=1)


def test_the_key_knows_how_images_are_cut(folder):
  keys = set()
  for of_data in ({}, {"image_size": 24}, {"min_crop_area": 0.25}, {"center_crop_fraction": 0.5}):
    config = resolve(streamed.get_config(folder, **of_data))
    dataset = data.load(**merge.drop_keys(config["data"], "extra_tests"))
    keys.add(make_plans(config, dataset)[0].key)
  assert len(keys) == 4


@pytest.mark.parametrize(
  ("of_data", "of_stage", "message"),
  [
    ({"image_size": 0}, {}, "data.image_size: 0, but streamed images .* give it, as 224"),
    (
      {"source": "digits"},
      {},
      "data.streamed: True, but data.source 'digits' is read into memory.*folder:, tfds:",
    ),
    ({"min_crop_area": 0.0}, {}, r"config.data.min_crop_area: 0.0 is not in \(0, 1\]"),
    ({"center_crop_fraction": 1.5}, {}, r"config.data.center_crop_fraction: 1.5 is not in \(0, 1\]"),
    ({"extra_tests": ("corruptions:1",)}, {}, "config.data.extra_tests: .* streamed; leave it empty"),
    (
      {},
      {"teacher_cache": "float32"},
      r"config.stages\[2\].teacher_cache: 'float32', but of streamed images",
    ),
  ],
)
def test_what_cannot_be_streamed_is_refused_before_anything_is_written(
  folder, of_data, of_stage, message, tmp_path
):
  config = streamed.get_config(folder, **of_data)
  config.stages[2].update(of_stage)
  with pytest.raises(UserError, match=message):
    experiment.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
