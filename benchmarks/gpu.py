"""Measures everything that only a GPU can show, in one command of limited time.

  python benchmarks/gpu.py --out=FILE_OR_FOLDER [--minutes=9]

Groups of cases, the most important ones first:

  steps       training steps of KD, SMSKD (KD with the reference term), CRD and RKD of both pairs, batches of 64 and
              1024, float32 and bfloat16; ours with 1 and 16 steps a call, and PyTorch with channels-last maps: eager,
              `torch.compile`, and `torch.compile` with CUDA graphs (mode reduce-overhead), with automatic mixed
              precision in bfloat16 for bfloat16, and TF32 products as XLA's default for float32
  cached      the KD step with cached teacher outputs (`teacher_cache`)
  run         a whole run by `python -m smskd_jax.main`, on images that come with the package
  seeds       several seeds in one program (`--parallel_seeds`) beside one seed, 16 steps a call
  evaluation  images per second from uint8 to logits on the host

Time per step is the median of turns, in which the sides alternate; the batch lies on the device (`seeds`: on the host,
as in a run). Images are random and have the shape of CIFAR-100, 50,000 of them (CRD's memory has as many rows). The
fraction of the peak is that of the model's operations, a forward pass of every frozen network and three of the student
(losses are left out), relative to the measured rate of a large matrix product and to the data sheet, where the card is
known. PyTorch has a process of its own (benchmarks/torch_process.py), which is idle while ours is timed. Both sides
start from equal variables, so that the first losses must agree in float32 up to rounding (but for CRD).

Time. Compilation is most of it: a program takes 10 to 40 seconds on a GPU. Programs of a group (two precisions, two
numbers of steps) compile in threads, at the same time as PyTorch's, and share persistent caches of programs and of
autotuning (--cache keeps them for a later call); timing takes 0.2 seconds a turn and side, 5 turns: about 10 seconds a
group. Expect 25 to 45 seconds for a group of steps, so that about twelve groups fit into nine minutes. A group is
skipped, with the reason in the file, if the remaining time is less than the longest group of its kind took. The file is
written after every group, a group that fails leaves its error there, and the next one begins.
"""

import argparse
from collections.abc import Callable, Mapping
import concurrent.futures
import contextlib
import functools
import itertools
import json
import os
from pathlib import Path
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from typing import Any, NamedTuple

import jax
import numpy as np
import seeds
import startup
import step

from smskd_jax.data.dataset import RawSplits, Split, validate_and_build
from smskd_jax.engine import profiler
from smskd_jax.models import MODELS, introspection
from smskd_jax.runtime import compilation_cache, console, parallel
from smskd_jax.runtime.store import write_json
from smskd_jax.runtime.workdir import environment
from smskd_jax.training import initialization
from smskd_jax.training.loop import SeedParallelTrainer, SingleTrainer
from smskd_jax.types import Batch

START = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
# FLOP/s of dense matrix products by data sheet: float32 (as TF32, where the card has it) and bfloat16. The first name
# that the device's name contains counts.
DATA_SHEET = {
  "H100 PCIe": {"float32": 378e12, "bfloat16": 756e12},
  "H100 NVL": {"float32": 417.5e12, "bfloat16": 835.5e12},
  "H100": {"float32": 494.7e12, "bfloat16": 989.4e12},
  "H200": {"float32": 494.7e12, "bfloat16": 989.4e12},
  "A100": {"float32": 156e12, "bfloat16": 312e12},
  "L40S": {"float32": 183e12, "bfloat16": 362e12},
  "L4": {"float32": 60e12, "bfloat16": 121e12},
  "V100": {"float32": 15.7e12},
  "T4": {"float32": 8.1e12},
}
# Seconds that a group is expected to take before one of its kind has been measured.
EXPECTED = {"peaks": 15, "steps": 45, "run": 60, "seeds": 60, "evaluation": 30}


class Group(NamedTuple):
  """Cases that are measured together."""

  kind: str  # groups of a kind take equally long
  name: str
  measure: Callable[[], Any]  # returns what the JSON file holds under `name`


def run_groups(groups, end, write, clock=time.monotonic):
  """Measures the groups in order, as far as the time allows.

  Args:
    groups: to measure.
    end: of the time, on the clock.
    write: receives everything so far after each group.
    clock: seconds.

  Returns:
    {'results', 'skipped', 'errors', 'seconds'}, each by the names of the groups.
  """
  report: dict[str, dict[str, Any]] = {"results": {}, "skipped": {}, "errors": {}, "seconds": {}}
  longest: dict[str, float] = {}
  for group in groups:
    needed, left = longest.get(group.kind, EXPECTED[group.kind]), end - clock()
    if left < needed:
      report["skipped"][group.name] = f"takes about {needed:.0f} s, and {max(left, 0):.0f} s are left"
      write(report)
      continue
    began = clock()
    try:
      report["results"][group.name] = group.measure()
    except Exception as error:
      traceback.print_exc()
      report["errors"][group.name] = f"{type(error).__name__}: {error}"[:2000]
    seconds = report["seconds"][group.name] = clock() - began
    longest[group.kind] = max(longest.get(group.kind, 0.0), seconds)
    console.log(f"{group.name}: {seconds:.0f} s{', failed' if group.name in report['errors'] else ''}")
    write(report)
  return report


# --- Inputs that both processes make ---


def random_dataset(args):
  """Random images of CIFAR-100's shape."""
  rng = np.random.default_rng(0)

  def split(count):
    shape = (count, args.image_size, args.image_size, 3)
    return Split(rng.integers(0, 256, shape, np.uint8), np.arange(count, dtype=np.int32) % 100)

  return validate_and_build("random", RawSplits(split(args.images), split(args.test_images)))


def make_inputs(args, dataset, kind, pair, batch_size, dtype, cache="off"):
  """(plan, (state, frozen) on the host, batch) of a case."""
  plan = step.make_plan(
    f"{kind}:{pair}", dataset, batch_size=batch_size, cache=cache, dtype=dtype, source="cifar100"
  )
  index = np.arange(batch_size, dtype=np.int32)
  batch = Batch(dataset.train.image[index], dataset.train.label[index], index)
  return plan, step.init_train_state(plan, dataset), batch


# --- PyTorch's process ---


class TorchProcess:
  """Process of benchmarks/torch_process.py.

  It starts with the first request, and again after a failure.
  """

  def __init__(self, python, arguments, end):
    self._command = [python, str(ROOT / "benchmarks" / "torch_process.py"), *arguments]
    self._end, self._process, self._replies = end, None, queue.SimpleQueue()
    self.version = None
    self.reason = "" if python else "--torch_python is empty"  # PyTorch is missing; '': it is not

  def send(self, **request):
    """Sends a request; `receive` returns the reply."""
    if self._process is None:
      paths = filter(None, (str(ROOT), os.getenv("PYTHONPATH")))
      env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
      pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
      self._process = subprocess.Popen(self._command, env=env, text=True, bufsize=1, **pipes)
      self._replies = queue.SimpleQueue()
      threading.Thread(target=self._read, args=(self._process.stdout, self._replies), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(request) + "\n")

  @staticmethod
  def _read(lines, replies):
    """Passes on the lines of the process, and None at its end."""
    with lines:
      for line in lines:
        replies.put(line)
    replies.put(None)

  def receive(self):
    """The reply to the oldest request, as a dict; {'error'} or {'skipped'} if there is none."""
    line, problem = None, "PyTorch's process ended"
    if self._process is not None:
      try:
        line = self._replies.get(timeout=max(1.0, self._end - time.monotonic()))
      except queue.Empty:
        problem = "no reply before the end of the time"
    if line is None:
      self.close()
      return {"error": problem}
    reply = json.loads(line)
    self.version, self.reason = reply.get("torch", self.version), reply.get("skipped", self.reason)
    return reply

  def close(self):
    """Ends the process."""
    if self._process is not None:
      self._process.kill()
      self._process.wait()
      with contextlib.suppress(BrokenPipeError):
        self._process.stdin.close()
      self._process = None


# --- Groups ---


class Measurement:
  """What all groups share."""

  def __init__(self, args, devices, torch_process):
    self.args, self.devices, self.torch = args, devices, torch_process
    self.dataset = random_dataset(args)
    self.measured_peaks = {}  # FLOP/s by dtype
    kind = devices[0].device_kind
    self.data_sheet = next((peaks for name, peaks in DATA_SHEET.items() if name in kind), {})

  def peaks(self):
    """Peak rates of the devices."""
    result = {"data_sheet_flops": self.data_sheet}
    for dtype in self.args.dtypes:
      peaks = profiler.measure_peaks(self.devices, dtype=dtype, matrix_size=self.args.matrix_size)
      self.measured_peaks[dtype], result["measured_bytes"] = peaks.flops, peaks.bytes
    return result | {"measured_flops": self.measured_peaks}

  def steps(self, kind, pair, batch_size, cache="off"):
    """Rows of a case, one for each dtype."""
    cases = {dtype: (kind, pair, batch_size, dtype, cache) for dtype in self.args.dtypes}
    compare = not (self.torch.reason or cache != "off")
    for dtype in cases if compare else ():
      self.torch.send(do="prepare", kind=kind, pair=pair, batch_size=batch_size, dtype=dtype)
    sides = self._compile(cases)
    replies = {dtype: self.torch.receive() for dtype in cases} if compare else {}
    timed = {name: side for name, side in sides.items() if not isinstance(side, str)}
    turns = step.seconds_in_turns(timed, self.args.turns, self.args.turn_seconds)
    rows = []
    for dtype, case in cases.items():
      plan = make_plan_of(self, case)
      row = {"case": f"{kind}:{pair}", "batch_size": batch_size, "dtype": dtype, "teacher_cache": cache}
      for count in self.args.steps_per_call:
        name = f"ours_{count}"
        side = sides[name, dtype]
        if isinstance(side, str):
          row[name] = {"error": side}
          continue
        per_step = [seconds / count for seconds in turns[name, dtype]]
        row[name] = self.describe(per_step, batch_size, model_flops(plan, self.dataset), dtype) | side.about
      rows.append(row | self._torch_sides(plan, dtype, replies))
    return rows

  def _compile(self, cases):
    """Compiled training steps by (name, dtype), or the text of an error."""
    inputs = {dtype: self._inputs(*case) for dtype, case in cases.items()}

    def compile_step(count, dtype):
      side = step.TrainStep(*inputs[dtype], self.devices, count)
      began = time.perf_counter()
      side.compile()
      seconds, memory = time.perf_counter() - began, profiler.memory_bytes(side.compiled)
      side.about = {"compile_seconds": seconds, "memory_bytes": memory, "first_loss": side.run()}
      return side

    jobs = list(itertools.product(self.args.steps_per_call, cases))
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
      futures = [pool.submit(compile_step, *job) for job in jobs]
    errors = [future.exception() for future in futures]
    return {
      (f"ours_{count}", dtype): future.result() if error is None else f"{type(error).__name__}: {error}"
      for (count, dtype), future, error in zip(jobs, futures, errors, strict=True)
    }

  def _inputs(self, kind, pair, batch_size, dtype, cache):
    plan, (state, frozen), batch = make_inputs(self.args, self.dataset, kind, pair, batch_size, dtype, cache)
    if cache != "off":
      image = step.normalized(batch.image, self.dataset)
      frozen = step.cache_teacher(plan, frozen, image, self.dataset)
    return plan, (state, frozen), batch

  def _torch_sides(self, plan, dtype, replies):
    """PyTorch's sides of a row: measured now, because ours is idle."""
    reply = replies.get(dtype, {"skipped": self.torch.reason or "PyTorch has no teacher cache"})
    if "error" not in reply and "skipped" not in reply:
      self.torch.send(do="measure", dtype=dtype)
      reply = self.torch.receive()
    if "sides" not in reply:
      return {"torch": reply}
    flops, batch_size = model_flops(plan, self.dataset), plan.loop_config.batch_size
    return {
      f"torch_{name}": side
      if "error" in side
      else self.describe(side.pop("seconds"), batch_size, flops, dtype) | side
      for name, side in reply["sides"].items()
    }

  def describe(self, seconds, images, flops, dtype):
    """Numbers of a side from the seconds per step of its turns."""
    median = statistics.median(seconds)
    row = {
      "milliseconds": 1e3 * median,
      "quartiles": (1e3 * np.percentile(seconds, (25, 75))).tolist(),
      "images_per_second": images / median,
    }
    peaks = {"measured": self.measured_peaks.get(dtype), "data_sheet": self.data_sheet.get(dtype)}
    return row | {f"of_{name}_peak": flops / median / peak for name, peak in peaks.items() if peak}

  def parallel_seeds(self, kind, pair, batch_size):
    """Time per step of all seeds at once, by the number of seeds."""
    count, dtype = max(self.args.steps_per_call), self.args.dtypes[0]
    plan, _, _ = make_inputs(self.args, self.dataset, kind, pair, batch_size, dtype)

    states, batches = seeds.make_seeds(plan, self.dataset, max(self.args.seeds))

    def compile_seeds(num_seeds):
      side = SeedSteps(plan.stage, self.devices, states[:num_seeds], batches[:num_seeds], count)
      began = time.perf_counter()
      side.launch()
      side.wait()
      return side, time.perf_counter() - began

    with concurrent.futures.ThreadPoolExecutor(len(self.args.seeds)) as pool:
      compiled = dict(zip(self.args.seeds, pool.map(compile_seeds, self.args.seeds), strict=True))
    sides = {num_seeds: side for num_seeds, (side, _) in compiled.items()}
    turns = step.seconds_in_turns(sides, self.args.turns, self.args.turn_seconds)
    rows = []
    for num_seeds, seconds in turns.items():
      images, flops = num_seeds * batch_size, num_seeds * model_flops(plan, self.dataset)
      row = self.describe([x / count for x in seconds], images, flops, dtype)
      row |= {"case": f"{kind}:{pair}", "seeds": num_seeds, "batch_size": batch_size, "dtype": dtype}
      row["milliseconds_of_a_seed"] = row["milliseconds"] / num_seeds
      rows.append(row | {"steps_per_call": count, "compile_seconds": compiled[num_seeds][1]})
    return rows

  def evaluation(self, pair):
    """Images per second of both networks of a pair."""
    image, rows = self.dataset.test.image, []
    batch_size = min(startup.EVALUATION_BATCH, len(image)) // len(self.devices) * len(self.devices)
    spec = introspection.image_spec(self.dataset.image_shape)
    for name, dtype in itertools.product(dict.fromkeys(pair.split(":")), self.args.dtypes):
      network = MODELS[name](num_classes=len(self.dataset.class_names), dtype=dtype)
      variables = jax.device_get(initialization.init_variables(network, jax.random.key(0), spec))
      predict = startup.our_evaluation(network, variables, self.dataset, self.devices, batch_size)
      predict(image)  # compiles
      seconds = [startup.seconds(predict, image) for _ in range(self.args.turns)]
      row = {"network": name, "dtype": dtype, "batch_size": batch_size}
      row["ours_images_per_second"] = len(image) / statistics.median(seconds)
      if not self.torch.reason:
        self.torch.send(do="evaluate", network=name, dtype=dtype, batch_size=batch_size)
        row["torch"] = self.torch.receive()
      rows.append(row)
    return rows

  def whole_run(self, folder, end):
    """Seconds and accuracies of a run in a new process."""
    command = [sys.executable, "-m", "smskd_jax.main", f"--config={self.args.run}", f"--workdir={folder}"]
    if self.args.cache:
      command.append(f"--compilation_cache={self.args.cache}")
    paths = filter(None, (str(ROOT), os.getenv("PYTHONPATH")))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    limit, began = max(1.0, end - time.monotonic()), time.monotonic()
    done = subprocess.run(command, env=env, timeout=limit, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
      raise RuntimeError(f"the run ended with status {done.returncode}: {done.stderr[-1500:]}")
    result = json.loads((Path(folder) / "result.json").read_text())
    names = ("name", "steps", "seconds", "seconds_by_phase")
    stages = [
      {name: stage[name] for name in names} | {"test/accuracy": stage["metrics"]["last"]["test/accuracy"]}
      for stage in result["stages"]
    ]
    return {"config": self.args.run, "seconds": seconds, "stages": stages}


class SeedSteps:
  """The program of several seeds, or of one, with the interface of `step.TrainStep`."""

  def __init__(self, stage, devices, states, batches, steps_per_call):
    self._batches, self._metrics = [batches] * steps_per_call, {}
    if len(states) > 1:
      self._trainer = SeedParallelTrainer(stage, devices, states)
    else:
      inputs = parallel.replicate((states[0].state, states[0].frozen), devices)
      self._trainer = SingleTrainer(stage, devices, *inputs)

  def launch(self):
    """Starts one call."""
    self._metrics = self._trainer.train(self._batches)

  def wait(self):
    """Waits for all calls."""
    jax.block_until_ready(self._metrics)


def make_plan_of(measurement, case):
  """Plan of a case."""
  kind, pair, batch_size, dtype, cache = case
  return step.make_plan(
    f"{kind}:{pair}",
    measurement.dataset,
    batch_size=batch_size,
    cache=cache,
    dtype=dtype,
    source="cifar100",
  )


def model_flops(plan, dataset):
  """Operations of a step: three forward passes of the student, one of each frozen network."""
  flops = functools.partial(introspection.forward_flops, shape=dataset.image_shape)
  total = 3 * flops(plan.stage.student)
  if not plan.stage.view_index_fn:
    total += sum(map(flops, plan.stage.teachers))
  if plan.stage.reference is not None:
    total += flops(plan.stage.student)
  return total * plan.loop_config.batch_size


def make_groups(measurement, folder, end):
  """All groups, the most important ones first."""
  args = measurement.args
  small, large = args.batch_sizes[0], args.batch_sizes[1:]

  def steps(kinds, batch_sizes, cache="off"):
    for kind, batch_size, pair in itertools.product(kinds, batch_sizes, args.pairs):
      name = f"{'steps' if cache == 'off' else 'cached'} {kind}:{pair} {batch_size}"
      yield Group("steps", name, functools.partial(measurement.steps, kind, pair, batch_size, cache))

  pair = args.pairs[0]
  yield Group("peaks", "peaks", measurement.peaks)
  yield from steps(args.kinds[:1], [small])
  if args.run:
    yield Group("run", "run", functools.partial(measurement.whole_run, folder, end))
  if args.seeds:
    seed_kind = "smskd" if "smskd" in args.kinds else args.kinds[0]
    measure = functools.partial(measurement.parallel_seeds, seed_kind, pair, small)
    yield Group("seeds", f"seeds {seed_kind}:{pair} {small}", measure)
  yield from steps(args.kinds[:1], large)
  yield from steps(args.kinds[1:2], [small])
  yield from steps(args.kinds[:1], [small], "float32")
  for pair in args.pairs:
    yield Group("evaluation", f"evaluation {pair}", functools.partial(measurement.evaluation, pair))
  yield from steps(args.kinds[2:], [small])
  yield from steps(args.kinds[1:], large)


def table(results: Mapping[str, Any]) -> str:
  """Milliseconds of the steps, and images per second of the fastest side of ours."""
  rows = [row for name, group in results.items() if name.startswith(("steps", "cached")) for row in group]
  sides = sorted(
    {name for row in rows for name, value in row.items() if name.startswith(("ours_", "torch_"))}
  )

  def cell(side):
    peak = side.get("of_measured_peak")
    if "milliseconds" not in side:
      return "-"
    return f"{side['milliseconds']:.2f}" + ("" if peak is None else f" ({peak:.0%})")

  cells = [
    (row["case"], str(row["batch_size"]), row["dtype"], row["teacher_cache"])
    + tuple(cell(row.get(side, {})) for side in sides)
    for row in rows
  ]
  return console.format_table(("case", "batch", "dtype", "cache", *sides), cells)


def parse(argv=None):
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

  def names(text):
    return text.split(",") if text else []

  def numbers(text):
    return [int(number) for number in names(text)]

  parser.add_argument("--out", type=Path, required=True, help="a JSON file, or a folder for gpu.json")
  parser.add_argument("--minutes", type=float, default=9, help="from the start of the process")
  parser.add_argument("--kinds", type=names, default="kd,smskd,crd,rkd", help="of steps, joined by commas")
  parser.add_argument("--pairs", type=names, default="resnet56:resnet20,resnet32x4:resnet8x4")
  parser.add_argument("--batch_sizes", type=numbers, default="64,1024", help="the most important one first")
  parser.add_argument("--dtypes", type=names, default="float32,bfloat16")
  parser.add_argument("--steps_per_call", type=numbers, default="1,16")
  parser.add_argument("--seeds", type=numbers, default="1,3,5,10", help="seeds at once")
  parser.add_argument("--run", default=str(ROOT / "configs" / "quickstart.py"), help="config; '': no run")
  parser.add_argument("--images", type=int, default=50000, help="training images")
  parser.add_argument("--test_images", type=int, default=10000)
  parser.add_argument("--image_size", type=int, default=32)
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--turn_seconds", type=float, default=0.2)
  parser.add_argument("--matrix_size", type=int, default=0, help="of the measured peak; 0: by the platform")
  parser.add_argument("--cache", default="", help="folder of compiled programs; default: a temporary one")
  parser.add_argument("--torch_python", default=sys.executable, help="Python with PyTorch; '': no PyTorch")
  return parser, parser.parse_args(argv)


def main():
  parser, args = parse()
  # PyTorch's process and the run need memory of the same card.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  out = args.out / "gpu.json" if args.out.is_dir() or not args.out.suffix else args.out
  devices = parallel.select_devices(args.batch_sizes, cpu_devices=1)[:1]
  end = START + 60 * args.minutes
  settings = {name: value for name, value in vars(args).items() if name not in ("out", "cache")}
  settings = {name: str(value) for name, value in settings.items() if name != "torch_python"}
  names = [f"--{name}={getattr(args, name)}" for name in ("images", "test_images", "image_size")]
  names += [f"--turns={args.turns}", f"--turn_seconds={args.turn_seconds}", f"--out={out}"]
  process = TorchProcess(args.torch_python, names, end)

  def write(report):
    about = {"settings": settings, "torch": process.version, "total_seconds": time.monotonic() - START}
    write_json(out, report | about | environment(devices))

  with tempfile.TemporaryDirectory() as folder:
    args.cache = args.cache or f"{folder}/programs"
    compilation_cache.enable(args.cache)
    try:
      groups = make_groups(Measurement(args, devices, process), f"{folder}/run", end)
      report = run_groups(groups, end, write)
    finally:
      process.close()
  console.log(f"milliseconds per step (fraction of the measured peak)\n\n{table(report['results'])}")
  for name, reason in (report["skipped"] | report["errors"]).items():
    console.log(f"{name}: {reason}")


if __name__ == "__main__":
  main()
