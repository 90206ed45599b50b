"""PyTorch's side of benchmarks/gpu.py: reads requests and writes replies, one JSON object a line.

  {"do": "prepare", "kind", "pair", "batch_size", "dtype"}  compiles the training step of a case
  {"do": "measure", "dtype"}                                times the prepared step of a dtype, and forgets it
  {"do": "evaluate", "network", "dtype", "batch_size"}      images per second of an evaluation

A reply has the fields 'error' or 'skipped' instead of results. JAX makes plans and initial variables on the CPU, equal
to those of the other process.
"""

import importlib.util
import json
import os
import statistics
import sys

import gpu
import jax
import numpy as np
import startup
import step

from smskd_jax.models import MODELS, introspection
from smskd_jax.runtime import parallel
from smskd_jax.training import initialization

SIDES = {"eager": None, "compile": "default", "graphs": "reduce-overhead"}  # modes of torch.compile


class Server:
  """State between requests: the prepared steps."""

  def __init__(self, args):
    import torch

    self.args, self.dataset, self.sides = args, gpu.random_dataset(args), {}
    self.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as XLA's default
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True

  def prepare(self, kind, pair, batch_size, dtype):
    """First losses of the sides; the steps are compiled."""
    import torch_step

    plan, (state, frozen), batch = gpu.make_inputs(self.args, self.dataset, kind, pair, batch_size, "float32")
    if kind == "crd":  # the first step of the package sets the normalizers
      (method_state,) = state.method_state
      zeros = jax.tree.map(np.zeros_like, method_state.log_normalizers)
      state = state._replace(method_state=(method_state._replace(log_normalizers=zeros),))
    image = step.normalized(batch.image, self.dataset)
    options = {"channels_last": True, "device": self.device, "half": dtype == "bfloat16"}
    sides = self.sides[dtype] = {}
    for name, mode in SIDES.items():
      if mode == "reduce-overhead" and self.device != "cuda":
        continue
      try:
        side = torch_step.Step(plan, (state, frozen), image, batch, compile_mode=mode, **options)
        losses = [side.run() for _ in range(3)]
        sides[name] = side, {"first_loss": losses[0]}
      except Exception as error:
        sides[name] = None, {"error": f"{type(error).__name__}: {error}"[:1000]}
    return {}

  def measure(self, dtype):
    """Seconds per step and memory of each prepared side."""
    import torch

    sides, results = self.sides.pop(dtype), {}
    timed = {name: side for name, (side, _) in sides.items() if side is not None}
    turns = step.seconds_in_turns(timed, self.args.turns, self.args.turn_seconds)
    for name, (side, about) in sides.items():
      results[name] = about | ({"seconds": turns[name]} if side is not None else {})
      if side is not None and self.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        side.run()
        results[name]["process_memory_bytes"] = torch.cuda.max_memory_allocated()
    if not self.sides:
      torch._dynamo.reset()  # it compiles a method for a few objects only
    return {"sides": results}

  def evaluate(self, network, dtype, batch_size):
    """Images per second of an eager evaluation."""
    import torch
    import torch_job
    import torch_step

    module = MODELS[network](num_classes=len(self.dataset.class_names))
    spec = introspection.image_spec(self.dataset.image_shape)
    variables = jax.device_get(initialization.init_variables(module, jax.random.key(0), spec))
    layout, dataset = torch.channels_last, self.dataset
    model = torch_step.to_torch_network(module, variables, layout).to(self.device)
    image = torch.from_numpy(dataset.test.image)

    def normalize(image):
      return torch_job.normalize(image.to(self.device), dataset.mean, dataset.std, layout)

    def predict():
      with torch.autocast(self.device, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        return torch_job.logits(model, image, normalize, batch_size).float().cpu().numpy()

    predict()
    seconds = statistics.median(startup.seconds(predict) for _ in range(self.args.turns))
    return {"images_per_second": len(image) / seconds}


def main():
  _, args = gpu.parse()
  parallel.force_cpu()
  replies = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # compilers print, and standard output is for replies
  missing, server = importlib.util.find_spec("torch") is None, None
  for line in sys.stdin:
    request = json.loads(line)
    try:
      if missing:
        reply = {"skipped": "PyTorch is not installed"}
      else:
        import torch

        server = server or Server(args)
        reply = {"torch": torch.__version__} | getattr(server, request.pop("do"))(**request)
    except Exception as error:
      reply = {"error": f"{type(error).__name__}: {error}"[:2000]}
    replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
  main()
