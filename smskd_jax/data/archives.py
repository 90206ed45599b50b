"""Standard data sets, read from the files that their authors publish.

  digits               scikit-learn's 8x8 handwritten digits; the smallest set, for unit tests
  fashion_mnist        four gzipped IDX files
  cifar10, cifar100    the official binary archive, unopened
  tiny_imagenet        the folder tiny-imagenet-200, as its archive unpacks

Each reader takes (what follows the colon of the source's name, `data.folder`) and returns unchecked arrays.
"""

import gzip
import hashlib
import math
import pathlib
import struct
import tarfile
from types import MappingProxyType
from typing import NamedTuple
import zlib

import numpy as np

from smskd_jax.data import image_folder
from smskd_jax.data.dataset import ChannelStats, RawSplits, Split, stratified_mask
from smskd_jax.errors import UserError

# --- digits ---


def read_digits(argument: str, folder: str) -> RawSplits:
  """The 1,797 digits that come with scikit-learn: [8, 8] images.

  Their 17 grey levels are scaled to 0..255.

  Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
  https://doi.org/10.24432/C50P49

  scikit-learn has only the test part of that set, without the writers. The split is therefore this package's: a fifth
  of each class for testing, drawn with a fixed seed.
  """
  del argument, folder
  from sklearn.datasets import load_digits

  bunch = load_digits()
  image = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
  label = bunch.target
  test = stratified_mask(label, 0.2, seed=0)
  names = tuple(str(name) for name in bunch.target_names)
  return RawSplits(Split(image[~test], label[~test]), Split(image[test], label[test]), names)


# --- Fashion-MNIST ---

DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist

FASHION_MNIST_CLASSES = (
  "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_fashion_mnist(argument: str, folder: str) -> RawSplits:
  """The 60,000 + 10,000 images of [28, 28].

  The files are those of `folder` or, by default, of Debian's package.

  Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017,
  https://arxiv.org/abs/1708.07747
  """
  del argument
  path = pathlib.Path(folder or DEBIAN_FOLDER)
  train, test = (
    Split(*(read_idx(path / f"{stem}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")))
    for stem in ("train", "t10k")
  )
  return RawSplits(train, test, FASHION_MNIST_CLASSES)


def read_idx(path: pathlib.Path) -> np.ndarray:
  """Reads the array of unsigned bytes in a gzipped IDX file.

  Format: two zero bytes, a type code (8: unsigned bytes), the number of dimensions, each dimension as a big-endian
  uint32, the values.

  Raises:
    UserError: the file is absent, damaged or another kind of file.
  """
  raw = _decompress(path)
  rank = raw[3] if len(raw) > 3 and raw[:3] == b"\0\0\x08" else -1
  start = 4 + 4 * rank
  if rank < 1 or len(raw) < start:
    raise UserError(f"data.folder: {path} is not an IDX file of bytes; download it again")
  shape = struct.unpack(f">{rank}I", raw[4:start])
  if len(raw) != start + math.prod(shape):
    raise UserError(
      f"data.folder: {path} is {len(raw)} bytes long, not {start + math.prod(shape)}; download it again"
    )
  return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _decompress(path: pathlib.Path) -> bytes:
  try:
    with gzip.open(path, "rb") as file:
      return file.read()
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(
      f"data.folder: no file {path}; apt-get install dataset-fashion-mnist, or name a folder that holds "
      "Fashion-MNIST's four .gz files"
    ) from None
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"data.folder: cannot unpack {path} ({error}); download it again") from None


# --- CIFAR ---
#
# An example is its label (CIFAR-100: the coarse label, then the fine label) and 3 * 32 * 32 bytes: the red, the green
# and the blue plane, row by row.

CIFAR_IMAGE_BYTES = 3 * 32 * 32


class CifarArchive(NamedTuple):
  """Layout of one of the two official archives."""

  filename: str
  sha256: str  # equals the checksum in TensorFlow Datasets
  folder: str  # inside the archive; all files below lie there
  train_files: tuple[str, ...]
  test_files: tuple[str, ...]
  class_names_file: str
  label_bytes: int  # before each image; the last is the label used here
  channel_stats: (
    ChannelStats  # the literature's, to four digits; std over pixels, not the mean of each image's std
  )


CIFAR_ARCHIVES = MappingProxyType(
  {
    "cifar10": CifarArchive(
      "cifar-10-binary.tar.gz",
      "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
      "cifar-10-batches-bin",
      tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
      ("test_batch.bin",),
      "batches.meta.txt",
      1,
      ChannelStats((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    "cifar100": CifarArchive(
      "cifar-100-binary.tar.gz",
      "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
      "cifar-100-binary",
      ("train.bin",),
      ("test.bin",),
      "fine_label_names.txt",
      2,
      ChannelStats((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ),
  }
)


def read_cifar10(argument: str, folder: str) -> RawSplits:
  """The 50,000 + 10,000 images of [32, 32, 3] in 10 classes.

  Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, https://www.cs.toronto.edu/~kriz/cifar.html
  """
  del argument
  return _read_cifar(CIFAR_ARCHIVES["cifar10"], folder)


def read_cifar100(argument: str, folder: str) -> RawSplits:
  """The 50,000 + 10,000 images of [32, 32, 3], with the 100 fine labels.

  Source: as `read_cifar10`.
  """
  del argument
  return _read_cifar(CIFAR_ARCHIVES["cifar100"], folder)


def _read_cifar(archive: CifarArchive, folder: str) -> RawSplits:
  path = _find_verified(archive, pathlib.Path(folder or "data"))
  with tarfile.open(path, "r|gz") as tar:  # a stream: one pass through the compressed bytes
    members = {member.name: file.read() for member in tar if (file := tar.extractfile(member)) is not None}
  train, test = (
    _parse_cifar(b"".join(members[f"{archive.folder}/{file}"] for file in files), archive.label_bytes)
    for files in (archive.train_files, archive.test_files)
  )
  names = members[f"{archive.folder}/{archive.class_names_file}"].decode().split()
  return RawSplits(train, test, tuple(names), archive.channel_stats)


def _find_verified(archive: CifarArchive, folder: pathlib.Path) -> pathlib.Path:
  """Path of the archive, after its checksum has been verified."""
  # TensorFlow Datasets looks in downloads/manual of its data_dir, so one copy serves both.
  candidates = [folder / archive.filename, folder / "downloads" / "manual" / archive.filename]
  path = next((candidate for candidate in candidates if candidate.is_file()), None)
  url = f"https://www.cs.toronto.edu/~kriz/{archive.filename}"
  if path is None:
    raise UserError(
      f"data.folder: no {archive.filename} in {folder} or its downloads/manual; download {url} into it"
    )
  with path.open("rb") as file:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
  if sha256 != archive.sha256:
    raise UserError(
      f"data.folder: {path} has SHA-256 {sha256}, not {archive.sha256}: it is incomplete or another file; "
      f"download {url} again"
    )
  return path


def _parse_cifar(raw: bytes, label_bytes: int) -> Split:
  rows = np.frombuffer(raw, np.uint8).reshape(-1, label_bytes + CIFAR_IMAGE_BYTES)
  image = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return Split(np.ascontiguousarray(image), rows[:, label_bytes - 1])


# --- Tiny-ImageNet ---

_TINY_IMAGENET = "data.source: 'tiny_imagenet'"  # the beginning of errors


def read_tiny_imagenet(argument: str, folder: str) -> RawSplits:
  """200 classes of [64, 64, 3] images, 100,000 + 10,000.

  The sorted names of the folders in train are the classes.

  Le, Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015,
  http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf

    FOLDER/tiny-imagenet-200/train/CLASS/images/*.JPEG
    FOLDER/tiny-imagenet-200/val/images/*.JPEG and val/val_annotations.txt: file, class, box

  The test set has no labels: as in the literature, the validation images serve as the test set.
  """
  del argument
  root = pathlib.Path(folder or "data") / "tiny-imagenet-200"
  if not (root / "train").is_dir():
    raise UserError(
      f"{_TINY_IMAGENET}: no folder {root / 'train'}; unpack tiny-imagenet-200.zip in data.folder, {root.parent}"
    )
  class_names = tuple(sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir()))
  class_index = {name: k for k, name in enumerate(class_names)}
  train = [
    (path, class_index[name])
    for name in class_names
    for path in sorted((root / "train" / name).rglob("*.JPEG"))
  ]
  annotations = _read_annotations(root, class_index)
  test = [(root / "val" / "images" / file, class_index[name]) for file, name in annotations]
  for part, examples in (("train", train), ("val", test)):
    if not examples:
      raise UserError(f"{_TINY_IMAGENET}: no image in {root / part}; unpack the archive again")
  paths, labels = zip(*train, *test, strict=True)
  image, label = image_folder.read_images(list(paths), _TINY_IMAGENET), np.array(labels)
  n = len(train)
  return RawSplits(Split(image[:n], label[:n]), Split(image[n:], label[n:]), class_names)


def _read_annotations(root: pathlib.Path, class_index: dict[str, int]) -> list[tuple[str, str]]:
  """File and class of every validation image, sorted by file name."""
  path = root / "val" / "val_annotations.txt"
  if not path.is_file():
    raise UserError(
      f"{_TINY_IMAGENET}: no file {path}, which has the classes of the test images; unpack the archive again"
    )
  annotations = []
  for i, line in enumerate(path.read_text().splitlines(), start=1):
    parts = line.split("\t")
    if len(parts) < 2 or parts[1] not in class_index:
      raise UserError(
        f"{_TINY_IMAGENET}: line {i} of {path} is not FILE, tab, CLASS, with a class of train: {line[:40]!r}"
      )
    annotations.append((parts[0], parts[1]))
  return sorted(annotations)
