"""Images per second that are decoded and cropped for training, by this package and by PyTorch's DataLoader.

  python benchmarks/streaming.py --workdir=runs/streaming --out=benchmarks/results/streaming.json

The images are pieces of scikit-learn's two photographs, about as large as those of ImageNet (500x375 pixels, JPEG of
quality 92), in a folder with ImageNet's layout. A random crop of each is resized to 224x224, and batched as uint8;
nothing is trained. Loaders:

  threads     this package's default: one thread per core
  processes   this package with as many workers as cores
  decode      Pillow in one thread, decoding alone: the upper bound for a core
  torch       torch.utils.data.DataLoader with as many workers as cores, and torchvision's RandomResizedCrop
  torch_0     torch without workers

Loaders alternate for --rounds rounds; the first batches of each, in which workers start, are not counted.
`*_of_torch` are ratios within a round. The loaders of PyTorch are left out if torchvision is not installed.
"""

import argparse
import functools
import itertools
import json
import os
from pathlib import Path
import statistics
import time

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from smskd_jax import data
from smskd_jax.runtime.store import write_json
from smskd_jax.training import batches

IMAGE_SIZE, WARMUP_BATCHES = 224, 3


def write_folder(root, count):
  """Writes a folder with `count` training images per class."""
  rng = np.random.RandomState(0)
  for name in ("china.jpg", "flower.jpg"):
    photograph = Image.fromarray(load_sample_image(name))
    for part, num_images in (("train", count), ("val", 4)):
      folder = root / part / name.removesuffix(".jpg")
      folder.mkdir(parents=True, exist_ok=True)
      for i in range(num_images):
        width, height = rng.randint(400, 600), rng.randint(300, 420)
        left, top = rng.randint(0, 641 - width), rng.randint(0, 428 - height)
        piece = photograph.crop((left, top, left + width, top + height))
        piece.save(folder / f"{i}.JPEG", quality=92)
  return root


def smskd_batches(folder, args, workers):
  """Batches of this package."""
  train = data.load(f"folder:{folder}", streamed=True, image_size=IMAGE_SIZE).train
  steps = len(train.label) // args.batch_size
  spec = batches.InputSpec(batches.labeled_subset(train), args.batch_size, 1000, steps, num_workers=workers)
  return (batch.image for batch in batches.iterate_batches(spec, jax.random.key(0), 0))


def torch_batches(folder, args, workers):
  """Batches of PyTorch's DataLoader."""
  import torch
  from torchvision import datasets, transforms

  torch.set_num_threads(1)
  cut = transforms.Compose([transforms.RandomResizedCrop(IMAGE_SIZE), transforms.PILToTensor()])
  images = datasets.ImageFolder(str(folder / "train"), cut)
  options = {"num_workers": workers, "persistent_workers": bool(workers), "drop_last": True}
  loader = torch.utils.data.DataLoader(images, args.batch_size, shuffle=True, **options)
  return (image for _ in itertools.count() for image, _ in loader)


def decode_batches(folder, args):
  """Decodes batches and discards them."""
  files = itertools.cycle(sorted((folder / "train").rglob("*.JPEG")))
  while True:
    for file in itertools.islice(files, args.batch_size):
      with Image.open(file) as image:
        image.convert("RGB")
    yield None


def images_per_second(loader, args):
  """Images per second of a loader."""
  iterator = iter(loader)
  for _ in itertools.islice(iterator, WARMUP_BATCHES):
    pass
  began = time.monotonic()
  for _ in itertools.islice(iterator, args.batches):
    pass
  seconds = time.monotonic() - began
  iterator.close()
  return args.batches * args.batch_size / seconds


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--out", type=Path)
  parser.add_argument("--images", type=int, default=512, help="of each class")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--batches", type=int, default=16)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  cores = len(os.sched_getaffinity(0))
  folder = args.workdir / "photographs"
  if not folder.exists():
    write_folder(folder, args.images)
  loaders = {
    "threads": functools.partial(smskd_batches, folder, args, 0),
    "processes": functools.partial(smskd_batches, folder, args, cores),
    "decode": functools.partial(decode_batches, folder, args),
  }
  try:
    import torchvision

    versions = {"torchvision": torchvision.__version__}
    loaders |= {
      "torch": functools.partial(torch_batches, folder, args, cores),
      "torch_0": functools.partial(torch_batches, folder, args, 0),
    }
  except ImportError:
    versions = {}
  rates = {name: [] for name in loaders}
  for _ in range(args.rounds):
    for name, make in loaders.items():
      rates[name].append(images_per_second(make(), args))
  files = list((folder / "train").rglob("*.JPEG"))
  result = {
    "cores": cores,
    "batch_size": args.batch_size,
    "bytes_per_image": statistics.mean(file.stat().st_size for file in files),
    "versions": versions | {"jax": jax.__version__, "pillow": Image.__version__},
    "images_per_second": {
      name: {"median": statistics.median(values), "all": values} for name, values in rates.items()
    },
    "per_core": {
      name: statistics.median(values) / (1 if name in ("decode", "torch_0") else cores)
      for name, values in rates.items()
    },
  }
  if "torch" in rates:
    for name in ("threads", "processes"):
      pairs = [a / b for a, b in zip(rates[name], rates["torch"], strict=True)]
      result[f"{name}_of_torch"] = {"median": statistics.median(pairs), "all": pairs}
  print(json.dumps(result, indent=2))
  if args.out:
    write_json(args.out, result)


if __name__ == "__main__":
  main()
