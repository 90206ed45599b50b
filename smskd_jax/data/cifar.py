"""CIFAR-10 and CIFAR-100 from the official binary archives, read where they are.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html

An example is its label (CIFAR-100: the coarse label, then the fine one) and 3 * 32 * 32 bytes: the red, the
green and the blue plane, row by row.
"""

import hashlib
import pathlib
import tarfile
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from smskd_jax.data.dataset import ChannelStats, RawSplits, Split
from smskd_jax.errors import UserError

IMAGE_BYTES = 3 * 32 * 32


class Archive(NamedTuple):
  """Where things are in one of the two archives."""

  filename: str
  sha256: str  # as TensorFlow Datasets has it on record
  folder: str  # inside the archive, as all that follows
  train_files: tuple[str, ...]
  test_files: tuple[str, ...]
  class_names_file: str
  label_bytes: int  # bytes of labels before each image; the last one is ours
  channel_stats: ChannelStats  # the literature's, to four digits; per pixel, not the mean of each image's std


ARCHIVES = MappingProxyType(
  {
    "cifar10": Archive(
      "cifar-10-binary.tar.gz",
      "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
      "cifar-10-batches-bin",
      tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
      ("test_batch.bin",),
      "batches.meta.txt",
      1,
      ChannelStats((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    "cifar100": Archive(
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
  """The 50,000 + 10,000 images of [32, 32, 3] in 10 classes."""
  del argument
  return _read_archive(ARCHIVES["cifar10"], folder)


def read_cifar100(argument: str, folder: str) -> RawSplits:
  """The 50,000 + 10,000 images of [32, 32, 3], with the 100 fine labels."""
  del argument
  return _read_archive(ARCHIVES["cifar100"], folder)


def _read_archive(archive: Archive, folder: str) -> RawSplits:
  members = _read_members(_find_verified(archive, pathlib.Path(folder or "data")))
  train, test = (
    _parse_split(b"".join(members[f"{archive.folder}/{file}"] for file in files), archive.label_bytes)
    for files in (archive.train_files, archive.test_files)
  )
  names = members[f"{archive.folder}/{archive.class_names_file}"].decode().split()
  return RawSplits(train, test, tuple(names), archive.channel_stats)


def _find_verified(archive: Archive, folder: pathlib.Path) -> pathlib.Path:
  """The archive's path, once its checksum is known to be right."""
  # TensorFlow Datasets looks in downloads/manual of its data_dir, so one copy serves both.
  candidates = [folder / archive.filename, folder / "downloads" / "manual" / archive.filename]
  path = next((candidate for candidate in candidates if candidate.is_file()), None)
  url = f"https://www.cs.toronto.edu/~kriz/{archive.filename}"
  if path is None:
    raise UserError(
      f"data.folder: no {archive.filename} in {folder} or its downloads/manual; download {url} into it"
    )
  with path.open("rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
  if found != archive.sha256:
    raise UserError(
      f"data.folder: {path} has SHA-256 {found}, not {archive.sha256}: it is incomplete or another file; "
      f"download {url} again"
    )
  return path


def _read_members(path: pathlib.Path) -> dict[str, bytes]:
  """The contents of every file in the archive, by name."""
  with tarfile.open(path, "r|gz") as tar:  # a stream: one pass through the compressed bytes
    files = ((member.name, tar.extractfile(member)) for member in tar)
    return {name: file.read() for name, file in files if file is not None}  # None for a folder


def _parse_split(raw: bytes, label_bytes: int) -> Split:
  rows = np.frombuffer(raw, np.uint8).reshape(-1, label_bytes + IMAGE_BYTES)
  image = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return Split(np.ascontiguousarray(image), rows[:, label_bytes - 1])
