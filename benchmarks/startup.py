"""Measures evaluation, process start, time to the first step, and compilation.

  python benchmarks/startup.py [--parts=evaluation,start,first_step,compile] [--out=benchmarks/results/startup.json]

  evaluation  images per second of a network on test images, from uint8 to logits on the host: this package, and PyTorch
              (`eval`, `no_grad`) with NCHW and channels-last maps; all cores, in turns; ratios of seconds to `nchw`
              turn by turn, so that ratios below 1 are faster than PyTorch
  start       seconds of new processes that import or print --help, of an empty process, and of `import torch`
  first_step  seconds from the start of a process to the first logged training step of configs/quickstart.py, including
              one evaluation of the test set, with an empty (cold) and a filled (warm) compilation cache. PyTorch has no
              counterpart, because its time depends on the script
  compile     seconds to trace, lower and compile the step of each kind of stage (cold), or to read it from the
              compilation cache (warm). Eager PyTorch compiles nothing

Evaluation and compilation run in this process, the other parts in new processes. The machine must be idle.
"""

import argparse
import functools
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache
import numpy as np
import step

from smskd_jax import data
from smskd_jax.data import augment
from smskd_jax.models import MODELS, introspection
from smskd_jax.runtime import compilation_cache, console, parallel
from smskd_jax.runtime.store import write_json
from smskd_jax.runtime.workdir import environment
from smskd_jax.runtime.writer import read_metrics
from smskd_jax.training import evaluate, initialization
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Batch

ROOT = Path(__file__).resolve().parents[1]
# New processes find this checkout, installed or not.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))}
STARTS = {
  "nothing": ("-c", "pass"),
  "import smskd_jax": ("-c", "import smskd_jax"),
  "smskd_jax.main --help": ("-m", "smskd_jax.main", "--help"),
  "import smskd_jax.engine.experiment": ("-c", "import smskd_jax.engine.experiment"),
  "import torch": ("-c", "import torch"),
}
EVALUATION_BATCH = 500  # the default of `evaluate.batch_size`
KINDS = {  # of a stage's step -> what benchmarks/step.py calls it, and whether the teacher's answers are kept
  "kd": ("kd", "off"),
  "rkd": ("rkd", "off"),
  "crd": ("crd", "off"),
  "smskd": ("smskd", "off"),
  "smskd cached": ("smskd", "float32"),
}


def spread(values):
  lower, middle, upper = np.percentile(values, (25, 50, 75)).tolist()
  return {"median": middle, "quartiles": [lower, upper]}


def our_evaluation(network, variables, dataset, devices, batch_size):
  """A function from images [n, h, w, c], uint8, to logits, as in smskd_jax/engine/evaluator.py."""
  normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
  compiled = parallel.compile_predict(evaluate.make_predict(network, normalize), devices)
  variables = parallel.replicate(variables, devices)

  def logits(image):
    def predict(indices):
      outputs = compiled(variables, image[parallel.shard(indices, devices)])
      return jax.tree.map(lambda x: parallel.unshard(x, devices), outputs)

    return evaluate.map_in_batches(predict, len(image), batch_size)

  return logits


def torch_evaluation(network, variables, dataset, size, layout):
  """The same in PyTorch."""
  import torch  # here, because other benchmarks use this file without PyTorch
  import torch_job
  import torch_step

  made = torch_step.to_torch_network(network, variables, layout)
  normalize = functools.partial(torch_job.normalize, mean=dataset.mean, std=dataset.std, layout=layout)
  return lambda image: torch_job.logits(made, torch.from_numpy(image), normalize, size).numpy()


def evaluation(args, dataset, devices):
  """Of each network, by side."""
  import torch

  image = dataset.test.image[evaluate.evenly_spaced(args.images, len(dataset.test.image))]
  size = min(EVALUATION_BATCH, len(image)) // len(devices) * len(devices)
  found = {}
  for name in args.networks.split(","):
    network = MODELS[name](num_classes=len(dataset.class_names))
    image_spec = introspection.image_spec(dataset.image_shape)
    of = (
      network,
      jax.device_get(initialization.init_variables(network, jax.random.key(0), image_spec)),
      dataset,
    )
    sides = {
      "ours": our_evaluation(*of, devices, size),
      "nchw": torch_evaluation(*of, size, torch.contiguous_format),
      "channels_last": torch_evaluation(*of, size, torch.channels_last),
    }
    said = {side: say(image) for side, say in sides.items()}  # compiles ours, and warms all
    for side, logits in said.items():
      if np.abs(logits - said["nchw"]).max() > 1e-3 * np.abs(said["nchw"]).max():
        raise SystemExit(f"{name}: the logits of {side} are not those of nchw")
    turns = [{side: seconds(say, image) for side, say in sides.items()} for _ in range(args.repeats)]
    found[name] = {
      side: {
        "images_a_second": len(image) / statistics.median(turn[side] for turn in turns),
        "ratio": spread([turn[side] / turn["nchw"] for turn in turns]),
      }
      for side in sides
    }
  return found


def seconds(call, *args):
  began = time.perf_counter()
  call(*args)
  return time.perf_counter() - began


def start(args, dataset, devices):
  """Of each kind of process, and how it compares to importing PyTorch."""
  del dataset, devices
  run = functools.partial(subprocess.run, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)

  def turn():
    return {name: seconds(run, [sys.executable, *of]) for name, of in STARTS.items()}

  turns = [turn() for _ in range(args.starts + 1)]
  of_each = {name: [turn[name] for turn in turns[1:]] for name in STARTS}  # the first may write bytecode
  torch_alone = statistics.median(of_each["import torch"])
  return {name: spread(of) | {"ratio": statistics.median(of) / torch_alone} for name, of in of_each.items()}


def until_first_step(programs_folder, folder):
  """Seconds from the start of a run until the line of its first step is written; then the run is ended."""
  command = [sys.executable, "-m", "smskd_jax.main", f"--config={ROOT / 'configs' / 'quickstart.py'}"]
  command += [f"--workdir={folder}", f"--compilation_cache={programs_folder}", "--config.log_every_steps=1"]
  with open(folder.with_suffix(".log"), "w") as log:
    began = time.perf_counter()
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
      while not any(
        line["step"] for path in folder.glob("store/*/metrics.jsonl") for line in read_metrics(path)
      ):
        if process.poll() is not None:
          raise SystemExit(f"the quickstart ended before its first step:\n{Path(log.name).read_text()}")
        time.sleep(0.02)
      return time.perf_counter() - began
    finally:
      process.kill()
      process.wait()


def first_step(args, dataset, devices):
  """Cold and warm, in pairs."""
  del dataset, devices
  found = {"cold": [], "warm": []}
  for _ in range(args.first_steps):
    with tempfile.TemporaryDirectory() as folder:
      for kind, of_kind in found.items():
        of_kind.append(until_first_step(Path(folder) / "programs", Path(folder) / kind))
  return {kind: {"median": statistics.median(of), "of_each": of} for kind, of in found.items()}


def compile_once(plan, begin, batch, devices):
  """Seconds to trace and lower a step, and then to compile it or to read it."""
  jax.clear_caches()
  jax_cache.reset_cache()  # else the folder of the first program stays that of all
  pure = make_train_step(plan.stage, parallel.AXIS)
  began = time.perf_counter()
  lowered = parallel.compile_step(pure, devices).lower(*begin, batch)
  between = time.perf_counter()
  lowered.compile()
  return between - began, time.perf_counter() - between


def compile_kinds(args, dataset, devices):
  """Of each kind of stage of the pair: cold and warm, in pairs."""
  index = np.arange(args.batch_size, dtype=np.int32)
  batch = Batch(dataset.train.image[index], dataset.train.label[index], index)
  split, image = parallel.shard(batch, devices), augment.normalize(batch.image, dataset.mean, dataset.std)
  found, folder = {}, tempfile.TemporaryDirectory()
  for name, (kind, cache) in KINDS.items():
    plan = step.make_plan(
      f"{kind}:{args.teacher}:{args.student}",
      dataset,
      batch_size=args.batch_size,
      cache=cache,
      source=args.data,
      image_size=args.image_size,
    )
    state, frozen = step.init_train_state(plan, dataset)
    if cache != "off":
      frozen = step.cache_teacher(plan, frozen, np.asarray(image), dataset)
    begin = parallel.replicate((state, frozen), devices)
    taken = {"lower": [], "cold": [], "warm": []}
    for _ in range(args.compiles):
      compilation_cache.enable(tempfile.mkdtemp(dir=folder.name))
      for which in ("cold", "warm"):
        lower, compiled = compile_once(plan, begin, split, devices)
        taken["lower"].append(lower)
        taken[which].append(compiled)
    found[name] = {which: statistics.median(of) for which, of in taken.items()}
  folder.cleanup()
  return found


COLUMNS = {"start": ("median", "ratio"), "first_step": ("median",), "compile": ("lower", "cold", "warm")}
PARTS = {"start": start, "first_step": first_step, "evaluation": evaluation, "compile": compile_kinds}


def table(part, found):
  """Of one part; what each of its columns is."""
  if part == "evaluation":

    def shown(of):
      return f"{of['images_a_second']:.0f} ({of['ratio']['median']:.2f})"

    rows = [(name, *(shown(of) for of in sides.values())) for name, sides in found.items()]
    return console.format_table(("images a second (ratio of seconds)", "ours", "nchw", "channels_last"), rows)
  columns = COLUMNS[part]
  rows = [(name, *(f"{of[column]:.2f}" for column in columns)) for name, of in found.items()]
  return console.format_table((f"{part}, seconds", *columns), rows)


def main():
  import torch

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--parts", default=",".join(PARTS), help="joined by commas")
  parser.add_argument("--data", default="cifar10")
  parser.add_argument("--folder", default="")
  parser.add_argument("--image_size", type=int, default=0)
  parser.add_argument("--networks", default="resnet56,resnet32x4", help="to evaluate, joined by commas")
  parser.add_argument("--images", type=int, default=1000, help="to evaluate them on")
  parser.add_argument("--repeats", type=int, default=5, help="turns of each side of an evaluation")
  parser.add_argument("--starts", type=int, default=5, help="of each kind of process")
  parser.add_argument("--first_steps", type=int, default=3, help="pairs, cold and warm")
  parser.add_argument("--teacher", default="resnet56", help="of the steps to compile")
  parser.add_argument("--student", default="resnet20")
  parser.add_argument("--batch_size", type=int, default=64, help="of the steps to compile")
  parser.add_argument("--compiles", type=int, default=1, help="pairs of each kind, cold and warm")
  parser.add_argument("--out", type=Path, help="a JSON file for the result, written after each part")
  args = parser.parse_args()
  devices, cores = parallel.select_devices([args.batch_size]), len(os.sched_getaffinity(0))
  torch.set_num_threads(cores)
  dataset = data.load(args.data, folder=args.folder, image_size=args.image_size)
  settings = {name: value for name, value in vars(args).items() if name not in ("out", "folder")}
  about = {"settings": settings, "cores": cores, "torch": torch.__version__, **environment(devices)}
  found = {}
  for part in args.parts.split(","):
    found[part] = PARTS[part](args, dataset, devices)
    console.log(f"{table(part, found[part])}\n")
    if args.out:
      write_json(args.out, found | about)


if __name__ == "__main__":
  main()
