"""Tests of data/tfds.py: reading without TensorFlow, streaming, and refusals."""

import json
import os
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets

from smskd_jax import data
from smskd_jax.data import tfds as tfds_reader
from smskd_jax.errors import UserError
from smskd_jax.training import batches

NUM_EXAMPLES = {"train": 300, "test": 100}
NAMES = ["cat", "dog", "owl"]


def examples(split):
  """Images [n, 9, 8, 3] and labels [n] of a split."""
  n = NUM_EXAMPLES[split]
  return np.random.default_rng(n).integers(0, 256, (n, 9, 8, 3), np.uint8), np.arange(n) % 3


class SmskdRoundTrip(tensorflow_datasets.core.GeneratorBasedBuilder):
  """Random images of three classes."""

  VERSION = tensorflow_datasets.core.Version("1.0.0")
  SUPPORTED_VERSIONS = [tensorflow_datasets.core.Version("1.10.0")]

  def _info(self):
    features = {
      "image": tensorflow_datasets.features.Image(shape=(9, 8, 3)),
      "label": tensorflow_datasets.features.ClassLabel(names=NAMES),
    }
    return tensorflow_datasets.core.DatasetInfo(
      builder=self, features=tensorflow_datasets.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in NUM_EXAMPLES}

  def _generate_examples(self, split):
    for i, (image, label) in enumerate(zip(*examples(split), strict=True)):
      yield i, {"image": Image.fromarray(image), "label": int(label)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A data_dir with the set above as array_record."""
  folder = tmp_path_factory.mktemp("tfds")
  tensorflow_datasets.disable_progress_bar()
  builder = SmskdRoundTrip(data_dir=folder, file_format="array_record")
  builder.download_and_prepare()
  return folder


@pytest.fixture
def data_dir(prepared, tmp_path):
  """A copy of `prepared` that tests may damage."""
  shutil.copytree(prepared, tmp_path / "tfds")
  return tmp_path / "tfds"


def in_order(split):
  """Indices that sort the images; TFDS shuffles examples."""
  return np.lexsort(split.image.reshape(len(split.image), -1).T)


@pytest.mark.parametrize("name", ["smskd_round_trip", "smskd_round_trip:1.0.0"])
def test_round_trip(name, prepared, capfd):
  loaded = data.load(f"tfds:{name}", folder=str(prepared))
  assert loaded.class_names == tuple(NAMES)
  for split in NUM_EXAMPLES:
    found, expected = getattr(loaded, split), data.Split(*examples(split))
    np.testing.assert_array_equal(found.image[in_order(found)], expected.image[in_order(expected)])
    np.testing.assert_array_equal(found.label[in_order(found)], expected.label[in_order(expected)])
  assert capfd.readouterr() == ("", "")


def stream(folder):
  return data.load(
    "tfds:smskd_round_trip", folder=str(folder), streamed=True, image_size=8, center_crop_fraction=1.0
  )


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """The user's cache folder."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache"


def test_streamed_examples_equal_those_in_memory(prepared, cache, capfd):
  loaded, in_memory = stream(prepared), data.load("tfds:smskd_round_trip", folder=str(prepared))
  assert loaded.class_names == in_memory.class_names and loaded.image_shape == (8, 8, 3)
  for split in NUM_EXAMPLES:
    found, expected = getattr(loaded, split), getattr(in_memory, split)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.image[:], expected.image[:, :8])  # of 9 pixels: round(0.5) is 0
  assert capfd.readouterr() == ("", "")


def test_labels_of_streamed_examples_are_cached(prepared, cache, monkeypatch):
  first = stream(prepared)
  assert len(list(cache.rglob("*.npy"))) == 2
  monkeypatch.setattr(tfds_reader, "_iterate_in_batches", None)
  again = stream(prepared)
  np.testing.assert_array_equal(again.train.label, first.train.label)
  assert again.fingerprint == first.fingerprint
  for file in cache.rglob("*.npy"):
    file.write_bytes(b"")
  with pytest.raises(TypeError):  # what is damaged is read again
    stream(prepared)


def test_worker_processes_read_equal_examples(prepared, cache):
  train = stream(prepared).train
  drawing = batches.InputSpec(batches.labeled_subset(train), 50, 1, 6)
  ours, theirs = (
    list(batches.iterate_batches(drawing._replace(num_workers=workers), jax.random.key(0), 0))
    for workers in (0, 1)
  )
  assert len(ours) == 6
  for one, other in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(one.image, other.image)


def test_streaming_refuses_missing_records(data_dir, cache, refuses):
  for path in (data_dir / "smskd_round_trip" / "1.0.0").glob("*-train.*"):
    path.unlink()
  options = {"streamed": True, "image_size": 8, "folder": str(data_dir)}
  refuses("tfds:smskd_round_trip", "cannot read split train", "prepare it again", **options)


def test_streaming_refuses_a_damaged_record(data_dir, cache):
  train = stream(data_dir).train
  for path in (data_dir / "smskd_round_trip" / "1.0.0").glob("*-train.*"):
    path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(UserError, match="data.source: cannot read example 3 of split train"):
    train.image[3:4]


def test_streaming_refuses_a_set_that_is_not_prepared(tmp_path, refuses):
  options = {"streamed": True, "image_size": 8, "folder": str(tmp_path)}
  refuses("tfds:cifar10", f"is not prepared in {tmp_path}", **options)


def test_data_dir_from_the_environment(prepared, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
  assert len(data.load("tfds:smskd_round_trip").train.image) == 300


def test_newest_version_is_taken(data_dir):
  versions = data_dir / "smskd_round_trip"
  shutil.copytree(versions / "1.0.0", versions / "1.10.0")
  shutil.copytree(versions / "1.0.0", versions / "1.9.0")
  (versions / "1.10.0" / "label.labels.txt").write_text("ten\neleven\ntwelve\n")
  assert data.load("tfds:smskd_round_trip", folder=str(data_dir)).class_names[0] == "ten"
  assert data.load("tfds:smskd_round_trip:1.9.0", folder=str(data_dir)).class_names[0] == "cat"


def test_validation_replaces_a_missing_test_split(data_dir):
  folder = data_dir / "smskd_round_trip" / "1.0.0"
  for path in folder.iterdir():
    if "-test." in path.name:
      path.rename(folder / path.name.replace("-test.", "-validation."))
  rewrite(folder / "dataset_info.json", '"test"', '"validation"')
  assert len(data.load("tfds:smskd_round_trip", folder=str(data_dir)).test.image) == 100


def test_mock_data_needs_nothing_prepared():
  with tensorflow_datasets.testing.mock_data(num_examples=12):
    loaded = data.load("tfds:cifar100")
  assert loaded.train.image.shape == (12, 32, 32, 3) and len(loaded.class_names) == 100
  assert loaded.train.label.dtype == np.int32


def rewrite(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))


def test_refuses_tfrecord(data_dir, refuses, capfd):
  info = data_dir / "smskd_round_trip" / "1.0.0" / "dataset_info.json"
  rewrite(info, '"array_record"', '"tfrecord"')
  assert json.loads(info.read_text())["fileFormat"] == "tfrecord"
  refuses(
    "tfds:smskd_round_trip", "is stored as tfrecord", "file_format='array_record'", folder=str(data_dir)
  )
  assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", ["", "{}}", "[]"])
def test_refuses_a_damaged_info(content, data_dir, refuses):
  (data_dir / "smskd_round_trip" / "1.0.0" / "dataset_info.json").write_text(content)
  refuses("tfds:smskd_round_trip", "cannot read", "prepare it again", folder=str(data_dir))


def test_refuses_missing_records(data_dir, refuses, capfd):
  for path in (data_dir / "smskd_round_trip" / "1.0.0").glob("*-train.*"):
    path.unlink()
  refuses("tfds:smskd_round_trip", "cannot read split train", folder=str(data_dir))


def test_refuses_other_splits(data_dir, refuses):
  rewrite(data_dir / "smskd_round_trip" / "1.0.0" / "dataset_info.json", '"test"', '"extra"')
  refuses("tfds:smskd_round_trip", "has the splits", "extra", "test or validation", folder=str(data_dir))


def test_refuses_other_features(data_dir, refuses):
  rewrite(data_dir / "smskd_round_trip" / "1.0.0" / "features.json", '"label"', '"target"')
  refuses("tfds:smskd_round_trip", "has no feature 'label'", "target", folder=str(data_dir))


def test_suggests_the_nearest_prepared_set(prepared, refuses):
  parts = ("did you mean 'smskd_round_trip'?", "(there: smskd_round_trip)")
  refuses("tfds:smskd_roundtrip", "is not prepared in", *parts, folder=str(prepared))
  refuses("tfds:smskd_round_trip:2.0.0", "is not prepared in", *parts, folder=str(prepared))


@pytest.mark.parametrize("name", ["huggingface:mnist", "a b", "cifar10/x/y", "../x", "cifar10:1"])
def test_refuses_an_invalid_name(name, refuses):
  refuses(f"tfds:{name}", f"data.source: 'tfds:{name}' is not a name of TFDS")


def test_refuses_without_the_library(monkeypatch, refuses):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  refuses("tfds:cifar10", "needs TensorFlow Datasets; pip install tensorflow-datasets")


@pytest.mark.parametrize("name", ["cifar10", "no_such_set"])
def test_refuses_within_two_seconds_if_nothing_is_prepared(name, tmp_path, refuses, capfd):
  start = time.monotonic()
  refuses(f"tfds:{name}", f"is not prepared in {tmp_path} (there: nothing)", "data_dir", folder=str(tmp_path))
  assert time.monotonic() - start < 2
  assert capfd.readouterr() == ("", "")


def test_refuses_without_importing_tfds(tmp_path):
  # In a process of its own, where nobody has paid for the import of TFDS before.
  code = f"""
import sys, time
from smskd_jax import data, errors
start = time.monotonic()
try:
  data.load("tfds:cifar10", folder={str(tmp_path)!r})
except errors.UserError:
  print(time.monotonic() - start < 2, "tensorflow_datasets" in sys.modules)
"""
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
  )
  assert result.stdout.split() == ["True", "False"] and not result.stderr
