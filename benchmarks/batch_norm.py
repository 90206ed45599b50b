"""Speed of the written-out gradient of batch norm: a network's training step with it and with Flax's own.

  python benchmarks/batch_norm.py [--model=resnet14] [--size=28] [--batch_size=64] [--out=FILE]

Both steps run in one process, in turns of a few steps; the ratio of each pair of turns is taken, and their median.
"""

import argparse
import json
from pathlib import Path
import statistics
import time
from unittest import mock

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.layers import basic as layers
from smskd_jax.models import MODELS
from smskd_jax.runtime import parallel
from smskd_jax.runtime.workdir import environment
from smskd_jax.training import optimizer
from smskd_jax.training.initialization import init_state, init_variables
from smskd_jax.training.stage import Stage
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Batch, Frozen


def flax_norm(*, name, train, axis_name):
  return nn.BatchNorm(
    use_running_average=not train, momentum=0.9, axis_name=axis_name if train else None, name=name
  )


def make_turn(args, devices, norm):
  """A function that trains a few steps and returns the seconds of each; compiled with `norm` in the network."""
  network = MODELS[args.model](num_classes=10)
  image = jax.ShapeDtypeStruct((1, args.size, args.size, 3), jnp.float32)
  stage = Stage(network, optimizer.sgd(0.05))
  with mock.patch.object(layers, "norm", norm):
    variables = init_variables(network, jax.random.key(0), image)
    state = init_state(stage, jax.random.key(0), variables, (), image, np.zeros(1, np.int32))
    state = parallel.replicate(state, devices)
    frozen = parallel.replicate(Frozen(jax.random.key(1), (), None), devices)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.batch_size, *image.shape[1:])).astype(np.float32)
    indices = np.arange(args.batch_size, dtype=np.int32)
    batch = parallel.shard(Batch(images, indices % 10, indices), devices)
    step = parallel.compile_step(make_train_step(stage, parallel.AXIS), devices)
    state, _ = jax.block_until_ready(step(state, frozen, batch))

  def turn():
    nonlocal state
    began = time.perf_counter()
    for _ in range(args.steps):
      state, metrics = step(state, frozen, batch)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - began) / args.steps

  return turn


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", default="resnet14")
  parser.add_argument("--size", type=int, default=28)
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--steps", type=int, default=5, help="a turn")
  parser.add_argument("--turns", type=int, default=15)
  parser.add_argument("--out", type=Path, help="a JSON file for the result")
  args = parser.parse_args()
  devices = parallel.select_devices([args.batch_size])
  turns = {
    "smskd_jax": make_turn(args, devices, layers.norm),
    "flax": make_turn(args, devices, flax_norm),
  }
  seconds: dict[str, list[float]] = {name: [] for name in turns}
  for _ in range(args.turns):
    for name, turn in turns.items():
      seconds[name].append(turn())
  ratios = [ours / flax for ours, flax in zip(seconds["smskd_jax"], seconds["flax"], strict=True)]
  result = {
    "model": args.model,
    "image": [args.size, args.size, 3],
    "batch_size": args.batch_size,
    "milliseconds_a_step": {name: 1e3 * statistics.median(s) for name, s in seconds.items()},
    "ratio_to_flax": {"median": statistics.median(ratios), "quartiles": statistics.quantiles(ratios)[::2]},
    **environment(devices),
  }
  print(json.dumps(result, indent=2))
  if args.out:
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
