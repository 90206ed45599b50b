"""Cost of each distillation loss, forward and backward, here and in plain PyTorch.

  python benchmarks/losses.py [--batch_size=64,256] [--unit=kd,at] [--out=benchmarks/results/losses.json]

The loss alone, of random outputs with the shapes of resnet32x4 -> resnet8x4 on 32x32 images of 100 classes: value, new
state, and the gradients by what it reads of the student and by what it learns. Each call is dispatched by itself, which
is most of the time of the smallest ones. Memory is what XLA needs beside the arguments: temporaries and results,
without the state, which is updated in place.

Where PyTorch is installed and the device is a CPU, benchmarks/torch_losses.py computes the same of the same numbers.
Value and gradients have to agree before anything is timed. The two run in turns of `--seconds`; the ratio of each pair
of turns is taken, and their median: below 1 ours is faster. The machine has to be idle: PyTorch's threads wait for each
other, and anything beside them slows it down far more than XLA.
"""

import argparse
import importlib.util
import json
import os
from pathlib import Path
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.losses import METHODS, Context, crd, ofd
from smskd_jax.losses.contract import init_method
from smskd_jax.losses.reduction import reduce_outputs
from smskd_jax.runtime import console
from smskd_jax.runtime.workdir import environment
from smskd_jax.types import Batch, Head, Norm, Outputs

has_torch = jax.default_backend() == "cpu" and importlib.util.find_spec("torch") is not None
if has_torch:
  import torch
  import torch_losses

NUM_EXAMPLES, NUM_CLASSES = 50000, 100
MAPS = ((32, 32), (32, 64), (16, 128), (8, 256))  # size and channels, stem first
TOLERANCE = 1e-3

# What a row compares; otherwise, the method with its defaults in both.
WHAT = {
  "crd": "our side draws the negatives, PyTorch is given them",
  "fsp": "PyTorch stores all products, as public code does",
  "ft": "the paraphraser learns in the same step",
  "kdsvd": "signs by the sums of the singular vectors",
  "mlkd": "one view, without the masks of public code",
  "nst": "PyTorch stores all products, as public code does",
  "fsp_by_matrices": "PyTorch by matrix products",
  "nst_by_matrices": "PyTorch by matrix products",
}


def network(rng, b):
  """Examples differ in the means of their channels too, as what networks say does."""

  def normal(*shape):
    return rng.standard_normal(shape, np.float32)

  preactivations = [normal(b, size, size, c) + normal(b, 1, 1, c) for size, c in MAPS]
  features = [np.maximum(x, 0) for x in preactivations]
  return Outputs(
    3 * normal(b, NUM_CLASSES),
    features[-1].mean((1, 2)),
    tuple(features),
    (features[0], *preactivations[1:]),
    features[-1],
    Head(normal(MAPS[-1][1], NUM_CLASSES), normal(NUM_CLASSES)),
    tuple(Norm(0.5 + rng.random(c, np.float32), normal(c)) for _, c in MAPS),
  )


def example(b):
  """(learner, teacher, batch), and the labels of the whole training set."""
  rng = np.random.default_rng(0)
  labels = rng.permutation(np.arange(NUM_EXAMPLES, dtype=np.int32) % NUM_CLASSES)
  index = rng.permutation(NUM_EXAMPLES)[:b].astype(np.int32)
  batch = Batch(np.zeros((b, 32, 32, 3), np.uint8), labels[index], index)
  return *jax.device_put((network(rng, b), network(rng, b), batch)), labels


class Ours:
  """A method, compiled.

  Attributes:
    value: of the loss.
    gradients: by the leaves of the learner's outputs; None where the loss does not read one.
    aux: what the method learns, and what it remembered when value and gradients were computed.
  """

  def __init__(self, name, learner, teacher, batch, labels):
    method, key = METHODS[name](), jax.random.key(1)
    leaves, structure = jax.tree.flatten(learner)

    def value_and_gradients(used, params, state, leaves, teacher, batch, key):
      def mean_loss(differentiated, params):
        mine = dict(enumerate(leaves)) | dict(zip(used, differentiated, strict=True))
        outputs = jax.tree.unflatten(structure, mine.values())
        loss, new = method.apply(params, state, outputs, (teacher,), Context(batch, key, jnp.float32(0.5)))
        return loss.mean(), new

      return jax.value_and_grad(mean_loss, (0, 1), has_aux=True)([leaves[i] for i in used], params)

    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (learner, teacher))
    # Of the outputs of one batch, as if it were a training set with two images of each class or more.
    pairs = np.arange(len(batch.label)) // 2 % NUM_CLASSES
    statistics = reduce_outputs(method.statistics, (teacher,), pairs)
    self.aux = init_method(method, jax.random.key(0), spec[0], (spec[1],), labels, statistics)
    run = jax.jit(value_and_gradients, static_argnums=0, donate_argnums=2)
    everything, self.arguments = tuple(range(len(leaves))), (leaves, teacher, batch, key)
    # The first of the two steps is for what is set in it and then stays, as the normalizers of crd.
    (_, state), _ = run(everything, *self.aux, *self.arguments)
    self.aux = self.aux._replace(state=jax.tree.map(np.array, state))
    (value, self.state), gradients = run(everything, *self.aux, *self.arguments)
    self.value = float(value)
    self.gradients = [np.asarray(x) if np.any(x) else None for x in gradients[0]]
    used = tuple(i for i, x in enumerate(self.gradients) if x is not None)
    self.compiled = run.lower(used, *self.aux, *self.arguments).compile()

  def step(self):
    """Computes all once, and changes the state."""
    (_, self.state), _ = jax.block_until_ready(self.compiled(self.aux.params, self.state, *self.arguments))


def tensor(x):
  """A copy of an array; a map [b, h, w, c] becomes [b, c, h, w]."""
  x = torch.from_numpy(np.array(x))
  return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x


def weight(x):
  """A copy of a parameter; a kernel [..., in, out] becomes [out, in, ...]."""
  x = torch.from_numpy(np.array(x))
  return (x.permute(3, 2, 0, 1) if x.ndim == 4 else x.t() if x.ndim == 2 else x).contiguous()


def array(x):
  """The other way round."""
  return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).detach().numpy()


class Theirs:
  """The same in PyTorch, from where `Ours` started; attributes as there."""

  def __init__(self, name, ours, learner, teacher, batch):
    rows, key = None, ours.arguments[-1]
    if name == "crd":
      drawn = crd.sample_indices(ours.aux.state.classes, batch, key, num_negatives=16384, positives="exact")
      rows = tensor(drawn).long()
    margins = [tensor(ofd.margin(*norm))[:, None, None] for norm in teacher.norms[1:]]
    student, teacher, state = (jax.tree.map(tensor, x) for x in (learner, teacher, ours.aux.state))
    params = jax.tree.map(weight, ours.aux.params)
    label, index = tensor(batch.label).long(), tensor(batch.index).long()
    given = torch_losses.Given(student, teacher, label, index, params, state, rows, margins)
    self.run = lambda: torch_losses.LOSSES[name](given)
    leaves = [x.requires_grad_() for x in jax.tree.leaves((student, params))]
    value = self.run()
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    self.value = value.item()
    self.gradients = [None if x is None else array(x) for x in gradients[: len(ours.gradients)]]
    self.used = [x for x, gradient in zip(leaves, gradients, strict=True) if gradient is not None]

  def step(self):
    """Computes all once, and changes the state."""
    torch.autograd.grad(self.run(), self.used)


def disagreement(ours, theirs):
  """In what value and gradients differ; an empty text where they agree."""
  if not abs(ours.value - theirs.value) <= TOLERANCE * abs(theirs.value):
    return f"the values differ: {ours.value:.6g}, in PyTorch {theirs.value:.6g}"
  for i, pair in enumerate(zip(ours.gradients, theirs.gradients, strict=True)):
    a, b = (np.zeros(()) if x is None else x for x in pair)
    if not np.linalg.norm(a - b) <= TOLERANCE * np.linalg.norm(b):
      return f"the gradients by leaf {i} of the outputs differ"
  return ""


def turn(step, calls=1):
  """Seconds a call, after one that is not counted."""
  step()
  began = time.perf_counter()
  for _ in range(calls):
    step()
  return (time.perf_counter() - began) / calls


def measure(steps, args):
  """Our milliseconds a call, those of PyTorch, and the ratio of turns."""
  once = [turn(step) for step in steps]
  calls = [max(1, round(args.seconds / seconds)) for seconds in once]
  repeats = min(args.repeats, max(3, round(args.limit / 2 / sum(once))))
  turns = [[turn(step, n) for step, n in zip(steps, calls, strict=True)] for _ in range(repeats)]
  median = [1e3 * statistics.median(seconds) for seconds in zip(*turns, strict=True)]
  row = {"milliseconds": median[0], "torch_milliseconds": None, "ratio": None, "repeats": repeats}
  if len(steps) == 1:
    return row
  lower, middle, upper = np.percentile([ours / theirs for ours, theirs in turns], (25, 50, 75)).tolist()
  return row | {"torch_milliseconds": median[1], "ratio": {"median": middle, "quartiles": [lower, upper]}}


def rows_of(name, b, args):
  """One row of the table, and another one where PyTorch has a second way."""
  learner, teacher, batch, labels = example(b)
  ours = Ours(name, learner, teacher, batch, labels)
  memory = ours.compiled.memory_analysis()
  beside = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  megabytes = {"megabytes": beside / 1e6, "argument_megabytes": memory.argument_size_in_bytes / 1e6}
  for way in [x for x in (name, f"{name}_by_matrices") if has_torch and x in torch_losses.LOSSES] or [None]:
    what, steps = WHAT.get(way or name, "the method with its defaults"), [ours.step]
    if way:
      theirs = Theirs(way, ours, learner, teacher, batch)
      differs = disagreement(ours, theirs)
      what, steps = (differs, steps) if differs else (what, [ours.step, theirs.step])
    row = {"method": name, "batch_size": b, "what": what, **measure(steps, args), **megabytes}
    yield row | {
      "load_average": os.getloadavg()[0],
      "git_revision": environment(jax.local_devices())["git_revision"],
    }


def table(rows):
  def number(x):
    return "" if x is None else f"{x:.3g}" if x < 100 else f"{x:.0f}"

  cells = []
  for row in rows:
    ratio = row["ratio"] or {"median": None, "quartiles": ()}
    numbers = (row["milliseconds"], row["torch_milliseconds"], ratio["median"], row["megabytes"])
    quartiles = " - ".join(map(number, ratio["quartiles"]))
    cells.append((row["method"], row["batch_size"], *map(number, numbers), quartiles, row["what"]))
  return console.format_table(("method", "batch", "ms", "PyTorch", "ratio", "MB", "quartiles", "what"), cells)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batch_size", default="64,256", help="joined by commas")
  parser.add_argument(
    "--unit", default="", help="methods, joined by commas; default: all of one view but dml"
  )
  parser.add_argument("--seconds", type=float, default=0.06, help="a turn")
  parser.add_argument("--repeats", type=int, default=15, help="turns of each")
  parser.add_argument("--limit", type=float, default=60, help="seconds a row, about")
  parser.add_argument("--out", type=Path, help="a JSON file for the table, written after each row")
  parser.add_argument(
    "--update", action="store_true", help="keep the rows of other methods that the file holds"
  )
  args = parser.parse_args()
  cores, devices = len(os.sched_getaffinity(0)), jax.local_devices()[:1]
  if has_torch:
    torch.set_num_threads(cores)
  alone = [name for name, make in METHODS.items() if make().min_views == 1 and name != "dml"]
  rows, names = [], args.unit.split(",") if args.unit else alone
  if args.update:
    rows = [row for row in json.loads(args.out.read_text())["losses"] if row["method"] not in names]
  # dml needs a cohort.
  for name in names:
    for b in map(int, args.batch_size.split(",")):
      for row in rows_of(name, b, args):
        rows = sorted([*rows, row], key=lambda row: row["method"])
        console.log(json.dumps(row))
        if args.out:
          version = torch.__version__ if has_torch else None
          result = {"cores": cores, "torch": version, "losses": rows, **environment(devices)}
          args.out.write_text(json.dumps(result, indent=2) + "\n")
  console.log(table(rows))


if __name__ == "__main__":
  main()
