"""Real images for tests of augmentation and of image folders."""

import functools

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from smskd_jax import data


@functools.cache
def rgb(n=24, size=32):
  """Pieces of scikit-learn's two photographs, half of them subsampled: [n, size, size, 3]."""
  pieces = []
  for name in ("china.jpg", "flower.jpg"):
    photograph = load_sample_image(name)
    for view in (photograph[::5, ::5], photograph):
      h, w = (side // size for side in view.shape[:2])
      cut = (
        view[: h * size, : w * size].reshape(h, size, w, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
      )
      pieces.append(cut[np.linspace(0, len(cut) - 1, n // 4).astype(int)])
  return np.concatenate(pieces)


@functools.cache
def grey(n=24):
  """Images of Fashion-MNIST: [n, 28, 28, 1]."""
  return np.asarray(data.load("fashion_mnist_small").test.image[:n])


def write_folder(root, count, *, square=0, part="val"):
  """Writes pieces of scikit-learn's two photographs in the layout of ImageNet, one class for each photograph.

  Args:
    root: the folder to write.
    count: training images per class; a quarter as many are test images.
    square: side of all pieces, which are then PNG; 0: JPEG of many sizes, one of them grey and one CMYK.
    part: name of the folder of test images.
  """
  rng = np.random.RandomState(0)
  for name, wnid in (("china.jpg", "n03877845"), ("flower.jpg", "n11939491")):
    photograph = Image.fromarray(load_sample_image(name))
    for split, num_images in (("train", count), (part, count // 4)):
      folder = root / split / wnid
      folder.mkdir(parents=True)
      for i in range(num_images):
        width, height = (square, square) if square else rng.randint(40, 200, 2)
        left, top = rng.randint(0, photograph.width - width), rng.randint(0, photograph.height - height)
        piece = photograph.crop((left, top, left + width, top + height))
        mode = {0: "L", 1: "CMYK"}.get(i, "RGB") if not square else "RGB"
        piece.convert(mode).save(folder / f"{wnid}_{i}.{'png' if square else 'JPEG'}")
  return root
