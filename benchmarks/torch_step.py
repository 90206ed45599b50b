"""Training steps of benchmarks/step.py in plain PyTorch, eager as in public code, or compiled.

The CIFAR ResNets have RepDistiller's parameter names, so that our variables can be loaded; the distillation terms are
those of benchmarks/torch_losses.py. As a program it is a process of benchmarks/step.py: it reads a case, then names of
sides with numbers of steps, and writes the last loss and the seconds per step.
"""

import os
import pickle
import sys
import time

import jax
import numpy as np
import torch
from torch import nn
import torch.nn.functional as F
import torch_losses

from smskd_jax.losses import crd
from smskd_jax.models import torch_weights
from smskd_jax.types import Outputs


class Block(nn.Module):
  """Two convolutions and a shortcut."""

  def __init__(self, inputs, channels, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(channels)
    self.downsample = None
    if stride != 1 or inputs != channels:
      self.downsample = nn.Sequential(
        nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
      )

  def forward(self, x):  # noqa: D102
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
  """A CIFAR ResNet: images [b, c, h, w] -> logits and embedding."""

  def __init__(self, blocks, channels, num_classes):
    super().__init__()
    self.conv1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(channels[0])
    for i, (inputs, outputs) in enumerate(zip(channels[:-1], channels[1:], strict=True), start=1):
      strides = [1 if i == 1 else 2] + [1] * (blocks - 1)
      each = [Block(inputs if j == 0 else outputs, outputs, stride) for j, stride in enumerate(strides)]
      setattr(self, f"layer{i}", nn.Sequential(*each))
    self.fc = nn.Linear(channels[-1], num_classes)

  def forward(self, x):  # noqa: D102
    x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
    embedding = x.mean((2, 3))
    return self.fc(embedding), embedding


def to_torch_network(network, variables, memory_format):
  """The PyTorch form of a Flax network and its variables."""
  module = ResNet(network.blocks, network.channels, network.num_classes)
  module.load_state_dict({k: torch.from_numpy(x) for k, x in torch_weights.to_torch(variables).items()})
  return module.to(memory_format=memory_format)


class Step:
  """A training step in PyTorch: `run()` trains one step and returns the loss."""

  half = False

  def __init__(
    self, plan, inputs, image, batch, *, channels_last, device="cpu", half=False, compile_mode=None
  ):
    """Takes the plan, (state, frozen) on the host, normalized images [b, h, w, c], the batch.

    Args:
      plan: of this package; networks in float32.
      inputs: (state, frozen) on the host.
      image: normalized, [b, h, w, c].
      batch: on the host.
      channels_last: memory format of maps and kernels.
      device: of PyTorch.
      half: automatic mixed precision in bfloat16.
      compile_mode: of `torch.compile`, for everything up to the loss; None: eager.
    """
    state, frozen = inputs
    layout = torch.channels_last if channels_last else torch.contiguous_format
    self.half = half

    def load(network, variables):
      return to_torch_network(network, variables, layout).to(device)

    self.student = load(plan.stage.student, {"params": state.params["student"], **state.model_state})
    self.teacher = load(plan.stage.teachers[0], frozen.teachers[0]).eval()
    self.reference = None
    if frozen.reference is not None:
      self.reference = load(plan.stage.student, frozen.reference).eval()
    image = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
    label, index = (torch.from_numpy(np.array(x)).long() for x in (batch.label, batch.index))
    self.image, self.label, self.index = image.to(device), label.to(device), index.to(device)
    self.read_objective(plan)
    method_state, self.rows = state.method_state[0], None
    if self.name == "crd":
      indices = crd.sample_indices(
        method_state.classes, batch, jax.random.key(1), num_negatives=16384, positives="exact"
      )
      self.rows = torch.from_numpy(np.array(indices)).long().to(device)
    self.state = jax.tree.map(lambda x: torch.from_numpy(np.array(x)).to(device), method_state)
    self.aux = jax.tree.map(lambda x: self.parameter(x, device), state.params["methods"][0])
    options = plan.config["optimizer"]
    self.optimizer = torch.optim.SGD(
      [*self.student.parameters(), *jax.tree.leaves(self.aux)],
      options["learning_rate"],
      options["momentum"],
      weight_decay=options["weight_decay"],
      fused=True if device == "cuda" else None,
    )
    if compile_mode is not None:
      self.compute_loss = torch.compile(self.compute_loss, mode=compile_mode)

  def read_objective(self, plan):
    """Reads terms and weights as plain numbers, which `torch.compile` takes for constants."""
    (term,) = plan.config["methods"]
    self.name, self.weight, self.task_weight = term["name"], term["weight"], plan.stage.task_weight
    self.reference_weight = 0.0 if plan.stage.reference is None else plan.stage.reference.weight

  @staticmethod
  def parameter(x, device="cpu"):
    """A parameter of an array; kernels are transposed from [in, out] to [out, in]."""
    x = torch.from_numpy(np.array(x))
    return nn.Parameter((x.t() if x.ndim == 2 else x).contiguous().to(device))

  def compute_loss(self):
    """The objective of the step's batch."""
    with torch.autocast(self.image.device.type, dtype=torch.bfloat16, enabled=self.half):
      with torch.no_grad():
        teacher = self.teacher(self.image)
        reference = None if self.reference is None else self.reference(self.image)[0]
      student = self.student(self.image)
      outputs = [Outputs(logits, embedding, (), ()) for logits, embedding in (student, teacher)]
      inputs = torch_losses.Given(*outputs, self.label, self.index, self.aux, self.state, self.rows, [])
      loss = self.task_weight * F.cross_entropy(student[0], self.label)
      loss = loss + self.weight * torch_losses.LOSSES[self.name](inputs)
      if reference is not None:
        loss = loss + self.reference_term(student[0], reference)
      return loss

  def launch(self):
    """Starts one step; returns its loss, a tensor."""
    loss = self.compute_loss()
    self.optimizer.zero_grad()
    loss.backward()
    self.optimizer.step()
    return loss.detach()

  def wait(self):
    """Waits for all steps."""
    if self.image.device.type == "cuda":
      torch.cuda.synchronize()

  def run(self):
    """Trains one step and returns the loss as a number, which waits for the step to end."""
    return self.launch().item()

  def reference_term(self, student, reference):
    """SMSKD, Eq. 7 to 9: KL(student || reference), weighted by the reference's TCP."""
    log_p, log_q = F.log_softmax(student, 1), F.log_softmax(reference, 1)
    tcp = log_q.exp().gather(1, self.label[:, None])[:, 0]
    return self.reference_weight * (tcp * (log_p.exp() * (log_p - log_q)).sum(1)).mean()


def main():
  """Times the steps of a case until its input ends."""
  import step

  from smskd_jax import data

  replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print
  case, options, inputs, image, batch = pickle.load(sys.stdin.buffer)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  plan = step.make_plan(case, data.load(options["source"]), **options)
  sides = {
    name: Step(plan, inputs, image, batch, channels_last=name == "channels_last") for name in step.TORCH_SIDES
  }
  reply = str(torch.__version__)
  while True:
    pickle.dump(reply, replies)
    replies.flush()
    try:
      name, steps = pickle.load(sys.stdin.buffer)
    except EOFError:
      return
    began = time.perf_counter()
    for _ in range(steps):
      loss = sides[name].run()
    reply = (loss, (time.perf_counter() - began) / steps)


if __name__ == "__main__":
  main()
