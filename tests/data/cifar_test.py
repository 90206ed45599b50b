"""Tests of data/cifar.py, on archives of random images in the official layout."""

import hashlib
import importlib.util
import io
import pathlib
import tarfile
from types import MappingProxyType

import numpy as np
import pytest

from smskd_jax import data
from smskd_jax.data import cifar

NAMES = {"cifar10": [f"ten_{i}" for i in range(10)], "cifar100": [f"hundred_{i}" for i in range(100)]}
EXAMPLES_PER_FILE = {"cifar10": 20, "cifar100": 200}


def examples(name, seed):
  """Random images and labels of one file, with every class in it."""
  n, classes = EXAMPLES_PER_FILE[name], len(NAMES[name])
  image = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)
  return image, (np.arange(n) % classes).astype(np.uint8)


def pack(image, label, coarse):
  planes = image.transpose(0, 3, 1, 2).reshape(len(image), -1)
  front = [label[:, None] // 5, label[:, None]] if coarse else [label[:, None]]
  return np.concatenate([*front, planes], axis=1).tobytes()


def write(name, path):
  archive = cifar.ARCHIVES[name]
  files = {
    file: pack(*examples(name, seed), coarse=name == "cifar100")
    for seed, file in enumerate((*archive.train_files, *archive.test_files))
  }
  # Order, and an empty last line, as in the official archives; README.html is there to be passed over.
  files |= {archive.class_names_file: ("\n".join(NAMES[name]) + "\n\n").encode(), "README.html": b"<html>"}
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w:gz") as tar:
    directory = tarfile.TarInfo(archive.folder)
    directory.type = tarfile.DIRTYPE
    tar.addfile(directory)
    for file, content in files.items():
      member = tarfile.TarInfo(f"{archive.folder}/{file}")
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))


@pytest.fixture(params=["cifar10", "cifar100"])
def name(request):
  return request.param


@pytest.fixture
def trust(monkeypatch):
  """Takes a file's checksum for the registered one."""

  def register(name, path):
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    archives = cifar.ARCHIVES | {name: cifar.ARCHIVES[name]._replace(sha256=sha256)}
    monkeypatch.setattr(cifar, "ARCHIVES", MappingProxyType(archives))

  return register


@pytest.mark.parametrize("place", ["", "downloads/manual"])
def test_reads_what_was_packed(name, place, tmp_path, trust):
  path = tmp_path / place / cifar.ARCHIVES[name].filename
  write(name, path)
  trust(name, path)
  loaded = data.load(name, folder=str(tmp_path))
  files = len(cifar.ARCHIVES[name].train_files)
  image, label = zip(*(examples(name, seed) for seed in range(files + 1)), strict=True)
  np.testing.assert_array_equal(loaded.train.image, np.concatenate(image[:-1]))
  np.testing.assert_array_equal(loaded.train.label, np.concatenate(label[:-1]))
  np.testing.assert_array_equal(loaded.test.image, image[-1])
  assert loaded.class_names == tuple(NAMES[name])
  assert (loaded.mean, loaded.std) == cifar.ARCHIVES[name].channel_stats


def test_default_folder_is_data(name, tmp_path, trust, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "data" / cifar.ARCHIVES[name].filename
  write(name, path)
  trust(name, path)
  assert len(data.load(name).test.image) == EXAMPLES_PER_FILE[name]


def test_refuses_an_absent_archive(name, refuses):
  refuses(
    name,
    f"data.folder: no {cifar.ARCHIVES[name].filename} in data",
    "download https://www.cs.toronto.edu/~kriz/",
  )


def test_refuses_a_wrong_checksum(name, tmp_path, refuses):
  write(name, tmp_path / cifar.ARCHIVES[name].filename)
  refuses(name, "data.folder: ", "SHA-256", cifar.ARCHIVES[name].sha256, "again", folder=str(tmp_path))


def test_refuses_a_truncated_archive(name, tmp_path, trust, refuses):
  path = tmp_path / cifar.ARCHIVES[name].filename
  write(name, path)
  trust(name, path)
  path.write_bytes(path.read_bytes()[:-1000])
  refuses(name, f"data.folder: {path} has SHA-256", "incomplete", folder=str(tmp_path))


def test_checksums_are_those_on_record_with_tfds(name):
  spec = importlib.util.find_spec("tensorflow_datasets")
  record = pathlib.Path(spec.origin).parent / "url_checksums" / f"{name}.txt"
  assert f"{cifar.ARCHIVES[name].sha256}\t{cifar.ARCHIVES[name].filename}" in record.read_text()
