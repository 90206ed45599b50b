"""Tests of data/archives.py, on small sets in the published layouts."""

import gzip
import hashlib
import importlib.util
import io
import pathlib
import struct
import tarfile
from types import MappingProxyType

import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits

from smskd_jax import data
from smskd_jax.data import archives

# --- digits ---


def test_digits_holds_every_image_once():
  loaded = data.load("digits")
  assert loaded.train.image.shape == (1438, 8, 8, 1) and loaded.test.image.shape == (359, 8, 8, 1)
  ours = np.concatenate([loaded.train.image, loaded.test.image]).reshape(-1, 64)
  theirs = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
  np.testing.assert_array_equal(np.sort(ours.view("V64").ravel()), np.sort(theirs.view("V64").ravel()))
  assert ours.min() == 0 and ours.max() == 255 and loaded.class_names == tuple("0123456789")


def test_digits_split_is_stratified():
  loaded = data.load("digits")
  counts = [np.bincount(split.label) for split in (loaded.train, loaded.test)]
  np.testing.assert_allclose(counts[1] / (counts[0] + counts[1]), 0.2, atol=0.003)


def test_digits_labels_match_their_images():
  # The nearest training image is nearly always of the same class; with shuffled labels, one time in ten.
  train, test = data.load("digits")[1:4:2]
  a, b = (split.image.reshape(-1, 64).astype(np.float32) for split in (train, test))
  nearest = (np.square(a).sum(1) - 2 * b @ a.T).argmin(1)
  assert np.mean(train.label[nearest] == test.label) > 0.95


# --- Fashion-MNIST ---

needs_debian = pytest.mark.skipif(
  not pathlib.Path(archives.DEBIAN_FOLDER).is_dir(), reason="no Debian package dataset-fashion-mnist"
)


@pytest.fixture
def idx_folder(tmp_path):
  rng = np.random.default_rng(0)
  for stem, n in (("train", 40), ("t10k", 20)):
    arrays = {
      "images-idx3": rng.integers(0, 256, (n, 28, 28), np.uint8),
      "labels-idx1": (np.arange(n) % 10).astype(np.uint8),
    }
    for kind, array in arrays.items():
      header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
      (tmp_path / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
  return tmp_path


@needs_debian
def test_fashion_mnist_of_debian():
  loaded = data.load("fashion_mnist")
  assert loaded.train.image.shape == (60_000, 28, 28, 1) and loaded.test.image.shape == (10_000, 28, 28, 1)
  assert np.bincount(loaded.train.label).tolist() == [6000] * 10
  np.testing.assert_allclose([*loaded.mean, *loaded.std], [0.2860, 0.3530], atol=5e-5)
  assert loaded.class_names[9] == "Ankle boot" and loaded.train.label[0] == 9
  # An ankle boot has its sole at the bottom: the image is neither transposed nor upside down.
  assert loaded.train.image[0, 20:].mean() > 4 * loaded.train.image[0, :8].mean()


def test_fashion_mnist_from_a_folder(idx_folder):
  loaded = data.load("fashion_mnist", folder=str(idx_folder))
  expected = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
  np.testing.assert_array_equal(loaded.train.image[..., 0], expected)
  assert loaded.test.label.tolist() == [*range(10), *range(10)]


def test_fashion_mnist_refuses_missing_files(tmp_path, refuses, monkeypatch):
  where = str(tmp_path / "nowhere")
  refuses("fashion_mnist", "data.folder: no file", where, "dataset-fashion-mnist", folder=where)
  monkeypatch.setattr(archives, "DEBIAN_FOLDER", where)
  refuses("fashion_mnist", "data.folder: no file", "apt-get install")


@pytest.mark.parametrize(
  ("damage", "part"),
  [
    (lambda raw: raw[: len(raw) // 2], "cannot unpack"),
    (lambda raw: raw[:30] + bytes(40) + raw[70:], "cannot unpack"),
    (lambda raw: b"not gzip at all", "cannot unpack"),
    (lambda raw: b"", "is not an IDX file"),
    (lambda raw: gzip.compress(b"\0\0\x0d\x01\0\0\0\x01abcd"), "is not an IDX file"),
    (lambda raw: gzip.compress(b"\0\0\x08\x03\0\0"), "is not an IDX file"),
    (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), "bytes long, not 31376; download it again"),
  ],
)
def test_fashion_mnist_refuses_damaged_files(damage, part, idx_folder, refuses):
  path = idx_folder / "train-images-idx3-ubyte.gz"
  path.write_bytes(damage(path.read_bytes()))
  refuses("fashion_mnist", "data.folder: ", path.name, part, "download it again", folder=str(idx_folder))


# --- CIFAR ---

CLASS_NAMES = {"cifar10": [f"ten_{i}" for i in range(10)], "cifar100": [f"hundred_{i}" for i in range(100)]}
EXAMPLES_PER_FILE = {"cifar10": 20, "cifar100": 200}


def examples(name, seed):
  """Random images and labels of one file, with every class."""
  n, classes = EXAMPLES_PER_FILE[name], len(CLASS_NAMES[name])
  image = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)
  return image, (np.arange(n) % classes).astype(np.uint8)


def pack(image, label, has_coarse_label):
  planes = image.transpose(0, 3, 1, 2).reshape(len(image), -1)
  labels = [label[:, None] // 5, label[:, None]] if has_coarse_label else [label[:, None]]
  return np.concatenate([*labels, planes], axis=1).tobytes()


def write_cifar(name, path):
  archive = archives.CIFAR_ARCHIVES[name]
  files = {
    file: pack(*examples(name, seed), has_coarse_label=name == "cifar100")
    for seed, file in enumerate((*archive.train_files, *archive.test_files))
  }
  # Order, and an empty last line, as in the official archives; README.html must be ignored.
  files |= {
    archive.class_names_file: ("\n".join(CLASS_NAMES[name]) + "\n\n").encode(),
    "README.html": b"<html>",
  }
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
  """Registers the checksum of a file as the official one."""

  def register(name, path):
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    changed = archives.CIFAR_ARCHIVES | {name: archives.CIFAR_ARCHIVES[name]._replace(sha256=sha256)}
    monkeypatch.setattr(archives, "CIFAR_ARCHIVES", MappingProxyType(changed))

  return register


@pytest.mark.parametrize("subfolder", ["", "downloads/manual"])
def test_cifar_reads_the_packed_examples(name, subfolder, tmp_path, trust):
  archive = archives.CIFAR_ARCHIVES[name]
  path = tmp_path / subfolder / archive.filename
  write_cifar(name, path)
  trust(name, path)
  loaded = data.load(name, folder=str(tmp_path))
  image, label = zip(*(examples(name, seed) for seed in range(len(archive.train_files) + 1)), strict=True)
  np.testing.assert_array_equal(loaded.train.image, np.concatenate(image[:-1]))
  np.testing.assert_array_equal(loaded.train.label, np.concatenate(label[:-1]))
  np.testing.assert_array_equal(loaded.test.image, image[-1])
  assert loaded.class_names == tuple(CLASS_NAMES[name])
  assert (loaded.mean, loaded.std) == archive.channel_stats


def test_cifar_default_folder_is_data(name, tmp_path, trust, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "data" / archives.CIFAR_ARCHIVES[name].filename
  write_cifar(name, path)
  trust(name, path)
  assert len(data.load(name).test.image) == EXAMPLES_PER_FILE[name]


def test_cifar_refuses_an_absent_archive(name, refuses):
  filename = archives.CIFAR_ARCHIVES[name].filename
  refuses(name, f"data.folder: no {filename} in data", "download https://www.cs.toronto.edu/~kriz/")


def test_cifar_refuses_a_wrong_checksum(name, tmp_path, trust, refuses):
  archive = archives.CIFAR_ARCHIVES[name]
  path = tmp_path / archive.filename
  write_cifar(name, path)
  refuses(name, "data.folder: ", "SHA-256", archive.sha256, "again", folder=str(tmp_path))
  trust(name, path)
  path.write_bytes(path.read_bytes()[:-1000])
  refuses(name, f"data.folder: {path} has SHA-256", "incomplete", folder=str(tmp_path))


def test_cifar_channel_stats_equal_those_of_the_images(name):
  # Over all pixels of the official training images; the literature's rounded values differ by up to 0.0002.
  measured = {
    "cifar10": ((0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
    "cifar100": ((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
  }
  np.testing.assert_allclose(archives.CIFAR_ARCHIVES[name].channel_stats, measured[name], atol=2e-4)


def test_cifar_checksums_equal_those_of_tfds(name):
  spec = importlib.util.find_spec("tensorflow_datasets")
  record = pathlib.Path(spec.origin).parent / "url_checksums" / f"{name}.txt"
  archive = archives.CIFAR_ARCHIVES[name]
  assert f"{archive.sha256}\t{archive.filename}" in record.read_text()


# --- Tiny-ImageNet ---


@pytest.fixture
def tiny_imagenet(tmp_path):
  """Two classes; one training image is grey, as some in the archive."""
  rng, root = np.random.default_rng(0), tmp_path / "tiny-imagenet-200"

  def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, quality=95)

  for wnid in ("n02", "n01"):
    for i in range(2):
      shape = (64, 64) if wnid == "n02" and i == 1 else (64, 64, 3)
      save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", np.full(shape, rng.integers(256), np.uint8))
  for i, value in enumerate((10, 200, 90)):
    save(root / "val" / "images" / f"val_{i}.JPEG", np.full((64, 64, 3), value, np.uint8))
  (root / "val" / "val_annotations.txt").write_text(
    "val_2.JPEG\tn01\t0\t0\t9\t9\nval_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n"
  )
  return tmp_path


def test_tiny_imagenet_layout(tiny_imagenet):
  loaded = data.load("tiny_imagenet", folder=str(tiny_imagenet))
  assert loaded.class_names == ("n01", "n02") and loaded.image_shape == (64, 64, 3)
  assert loaded.train.label.tolist() == [0, 0, 1, 1] and loaded.test.label.tolist() == [1, 0, 0]
  np.testing.assert_allclose(loaded.test.image[:].mean(axis=(1, 2, 3)), [10, 200, 90], atol=1)


@pytest.mark.parametrize(
  ("damage", "part"),
  [
    (lambda root: (root / "val/val_annotations.txt").unlink(), "val_annotations.txt, which has the classes"),
    (lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG n01\n"), "txt is not FILE, tab"),
    (lambda root: (root / "val/val_annotations.txt").write_text(""), "no image in "),
    (lambda root: (root / "val/images/val_1.JPEG").write_bytes(b"no image"), "val_1.JPEG"),
    (lambda root: root.rename(root.parent / "elsewhere"), "unpack tiny-imagenet-200.zip in data.folder"),
  ],
)  # fmt: skip
def test_tiny_imagenet_refuses_damaged_files(tiny_imagenet, damage, part, refuses):
  damage(tiny_imagenet / "tiny-imagenet-200")
  refuses("tiny_imagenet", "data.source: 'tiny_imagenet'", part, folder=str(tiny_imagenet))
