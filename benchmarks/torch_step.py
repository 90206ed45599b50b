"""The steps of benchmarks/step.py once more, in plain PyTorch: eager, with autograd, as public code trains.

The CIFAR ResNets have the names of RepDistiller's parameters, so that ours can be loaded; the distillation terms are
those of benchmarks/torch_losses.py.
"""

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
  """Two convolutions and what goes past them."""

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
  """Logits and pooled embedding of images [b, c, h, w]."""

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
    pooled = x.mean((2, 3))
    return self.fc(pooled), pooled


def loaded(network, variables, memory_format):
  """Our network, with our variables."""
  made = ResNet(network.blocks, network.channels, network.num_classes)
  made.load_state_dict({k: torch.from_numpy(x) for k, x in torch_weights.to_torch(variables).items()})
  return made.to(memory_format=memory_format)


class Step:
  """A step from where ours starts: `run()` trains once and returns the loss."""

  def __init__(self, plan, start, image, batch, *, channels_last):
    """Takes our plan, (state, frozen) of host arrays, normalised images [b, h, w, c] and the batch."""
    state, frozen = start
    layout = torch.channels_last if channels_last else torch.contiguous_format
    variables = {"params": state.params["student"], **state.model_state}
    self.stage = plan.stage
    self.student = loaded(plan.stage.student, variables, layout)
    self.teacher = loaded(plan.stage.teachers[0], frozen.teachers[0], layout).eval()
    self.reference = None
    if frozen.reference is not None:
      self.reference = loaded(plan.stage.student, frozen.reference, layout).eval()
    self.image = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
    self.label, self.index = (torch.from_numpy(np.array(x)).long() for x in (batch.label, batch.index))
    (self.term,) = plan.config["methods"]
    ours, self.rows = state.method_state[0], None
    if self.term["name"] == "crd":
      drawn = crd.sample_indices(
        ours.classes, batch, jax.random.key(1), num_negatives=16384, positives="exact"
      )
      self.rows = torch.from_numpy(np.array(drawn)).long()
    self.state = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), ours)
    self.aux = jax.tree.map(self.parameter, state.params["methods"][0])
    of = plan.config["optimizer"]
    self.optimizer = torch.optim.SGD(
      [*self.student.parameters(), *jax.tree.leaves(self.aux)],
      of["learning_rate"],
      of["momentum"],
      weight_decay=of["weight_decay"],
    )

  @staticmethod
  def parameter(x):
    """A kernel [in, out] becomes [out, in]."""
    x = torch.from_numpy(np.array(x))
    return nn.Parameter((x.t() if x.ndim == 2 else x).contiguous())

  def run(self):
    """The loss as a number: asking for it waits for the step, as ours is waited for."""
    with torch.no_grad():
      teacher = self.teacher(self.image)
      reference = None if self.reference is None else self.reference(self.image)[0]
    student = self.student(self.image)
    said = [Outputs(logits, pooled, (), ()) for logits, pooled in (student, teacher)]
    given = torch_losses.Given(*said, self.label, self.index, self.aux, self.state, self.rows, [])
    loss = self.stage.task_weight * F.cross_entropy(student[0], self.label)
    loss = loss + self.term["weight"] * torch_losses.LOSSES[self.term["name"]](given)
    if reference is not None:
      loss = loss + self.reference_term(student[0], reference)
    self.optimizer.zero_grad()
    loss.backward()
    self.optimizer.step()
    return loss.item()

  def reference_term(self, student, reference):
    """Eq. 7 to 9 of SMSKD: KL(student || reference), weighted by the reference's true-class probability."""
    log_p, log_q = F.log_softmax(student, 1), F.log_softmax(reference, 1)
    tcp = log_q.exp().gather(1, self.label[:, None])[:, 0]
    return self.stage.reference.weight * (tcp * (log_p.exp() * (log_p - log_q)).sum(1)).mean()
