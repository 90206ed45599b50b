"""Photographs decoded and cut a second, by what feeds a step: ours, and PyTorch's DataLoader where it is installed.

  python benchmarks/streaming.py --workdir=runs/streaming --out=benchmarks/results/streaming.json

The images are pieces of the two photographs that come with scikit-learn, about as large as ImageNet's are (500x375
pixels, JPEG of quality 92), in a folder with its layout. A random part of each is resized to 224x224, and batches of
uint8 come out: nothing trains. Sides:

  threads     ours as it is by default: a thread for each core
  processes   ours with as many workers as cores
  decode      Pillow alone in one thread, decoding and nothing else: what a core can do at most
  torch       torch.utils.data.DataLoader with as many workers as cores, and torchvision's RandomResizedCrop
  torch_0     the same without workers

They take turns, --rounds times; the first batches of each, in which workers start, are not counted. `*_of_torch` are
ratios of one turn.
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
  """A folder of so many photographs of each class."""
  rng = np.random.RandomState(0)
  for name in ("china.jpg", "flower.jpg"):
    photograph = Image.fromarray(load_sample_image(name))
    for part, of_class in (("train", count), ("val", 4)):
      folder = root / part / name.removesuffix(".jpg")
      folder.mkdir(parents=True, exist_ok=True)
      for i in range(of_class):
        width, height = rng.randint(400, 600), rng.randint(300, 420)
        left, top = rng.randint(0, 641 - width), rng.randint(0, 428 - height)
        piece = photograph.crop((left, top, left + width, top + height))
        piece.save(folder / f"{i}.JPEG", quality=92)
  return root


def smskd_batches(folder, args, workers):
  """Batches of ours."""
  train = data.load(f"folder:{folder}", streamed=True, image_size=IMAGE_SIZE).train
  steps = len(train.label) // args.batch_size
  drawing = batches.InputSpec(
    batches.labeled_subset(train), args.batch_size, 1000, steps, num_workers=workers
  )
  return (batch.image for batch in batches.iterate_batches(drawing, jax.random.key(0), 0))


def torch_batches(folder, args, workers):
  """Batches of PyTorch's."""
  import torch
  from torchvision import datasets, transforms

  torch.set_num_threads(1)
  cut = transforms.Compose([transforms.RandomResizedCrop(IMAGE_SIZE), transforms.PILToTensor()])
  found = datasets.ImageFolder(str(folder / "train"), cut)
  options = {"num_workers": workers, "persistent_workers": bool(workers), "drop_last": True}
  loader = torch.utils.data.DataLoader(found, args.batch_size, shuffle=True, **options)
  return (image for _ in itertools.count() for image, _ in loader)


def decode_batches(folder, args):
  """Batches that are decoded, and thrown away."""
  files = itertools.cycle(sorted((folder / "train").rglob("*.JPEG")))
  while True:
    for file in itertools.islice(files, args.batch_size):
      with Image.open(file) as image:
        image.convert("RGB")
    yield None


def images_per_second(made, args):
  """Images a second."""
  made = iter(made)
  for _ in itertools.islice(made, WARMUP_BATCHES):
    pass
  began = time.monotonic()
  for _ in itertools.islice(made, args.batches):
    pass
  seconds = time.monotonic() - began
  made.close()
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
  sides = {
    "threads": functools.partial(smskd_batches, folder, args, 0),
    "processes": functools.partial(smskd_batches, folder, args, cores),
    "decode": functools.partial(decode_batches, folder, args),
  }
  try:
    import torchvision

    versions = {"torchvision": torchvision.__version__}
    sides |= {
      "torch": functools.partial(torch_batches, folder, args, cores),
      "torch_0": functools.partial(torch_batches, folder, args, 0),
    }
  except ImportError:
    versions = {}
  found = {name: [] for name in sides}
  for _ in range(args.rounds):
    for name, make in sides.items():
      found[name].append(images_per_second(make(), args))
  files = list((folder / "train").rglob("*.JPEG"))
  result = {
    "cores": cores,
    "batch_size": args.batch_size,
    "bytes_an_image": statistics.mean(file.stat().st_size for file in files),
    "versions": versions | {"jax": jax.__version__, "pillow": Image.__version__},
    "images_a_second": {name: {"median": statistics.median(of), "all": of} for name, of in found.items()},
    "a_core": {
      name: statistics.median(of) / (1 if name in ("decode", "torch_0") else cores)
      for name, of in found.items()
    },
  }
  if "torch" in found:
    for name in ("threads", "processes"):
      pairs = [a / b for a, b in zip(found[name], found["torch"], strict=True)]
      result[f"{name}_of_torch"] = {"median": statistics.median(pairs), "all": pairs}
  print(json.dumps(result, indent=2))
  if args.out:
    write_json(args.out, result)


if __name__ == "__main__":
  main()
