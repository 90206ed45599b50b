"""JPEG copies of CIFAR-10 (quality 75), for tests and benchmarks beside this checkout.

The copies are 27 to 33 dB from the originals, so no number measured on them may be called plain CIFAR-10.
They come sorted by class. Another JPEG decoder may round a pixel differently, and so has another fingerprint.
"""

import io
import itertools
import pathlib

import numpy as np

from smskd_jax.data import npz
from smskd_jax.data.dataset import RawSplits, Split
from smskd_jax.errors import UserError

BESIDE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"  # the folder beside the checkout

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10_jpeg(argument: str, folder: str) -> RawSplits:
  """The 50,000 + 10,000 images of [32, 32, 3], from cifar10_jpeg.npz in `folder` or beside the checkout."""
  del argument
  path = pathlib.Path(folder or BESIDE) / "cifar10_jpeg.npz"
  if not path.is_file():
    raise UserError(f"data.folder: no cifar10_jpeg.npz in {path.parent}; name the folder that holds it")
  keys = ("data", "length", "label", "train")
  data, length, label, train = npz.read_arrays(path, keys, where="data.folder").values()
  try:
    image = decode(data.tobytes(), length)
  except (OSError, ValueError) as error:
    raise UserError(f"data.folder: cannot decode the images of {path} ({error}); copy it again") from None
  return RawSplits(Split(image[train], label[train]), Split(image[~train], label[~train]), CLASS_NAMES)


def decode(data: bytes, length: np.ndarray) -> np.ndarray:
  """Decodes JPEG images that lie end to end.

  Args:
    data: all files, one after the other.
    length: [n], bytes of each.

  Returns:
    [n, h, w, 3], uint8.
  """
  from PIL import Image

  # One after the other: at this size the time goes to Python, and threads were measured no faster.
  end = np.cumsum(length, dtype=np.int64).tolist()
  files = (io.BytesIO(data[start:stop]) for start, stop in itertools.pairwise([0, *end]))
  return np.stack([np.asarray(Image.open(file)) for file in files])
