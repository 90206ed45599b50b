"""Fashion-MNIST from its IDX files.

Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
2017, https://arxiv.org/abs/1708.07747
"""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from smskd_jax.data.dataset import RawSplits, Split
from smskd_jax.errors import UserError

DEBIAN_FOLDER = (
  "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts the files
)

CLASS_NAMES = (
  "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_fashion_mnist(argument: str, folder: str) -> RawSplits:
  """The 60,000 + 10,000 images of [28, 28], from `folder` or, where it is empty, from Debian's package."""
  del argument
  path = pathlib.Path(folder or DEBIAN_FOLDER)
  return RawSplits(_read_split(path, "train"), _read_split(path, "t10k"), CLASS_NAMES)


def _read_split(folder: pathlib.Path, stem: str) -> Split:
  image, label = (read_idx(folder / f"{stem}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
  return Split(image, label)


def read_idx(path: pathlib.Path) -> np.ndarray:
  """The array of unsigned bytes in a gzipped IDX file.

  The format: two zero bytes, a type code (8 for unsigned bytes), the number of dimensions, each dimension as
  a big-endian uint32, the values.
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
