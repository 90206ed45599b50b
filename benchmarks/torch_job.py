"""The job of benchmarks/end_to_end.py in plain PyTorch: eager steps over batches cropped and mirrored as tensors.

The steps are those of benchmarks/torch_step.py. Public code has a DataLoader with workers that crop one PIL image at a
time; here a whole batch is cropped and mirrored by one look-up, which costs less than a hundredth of a step.
"""

import copy
import functools
import time

import torch
import torch_step


def normalize(image, mean, std, layout):
  """uint8 [b, h, w, c] as floats [b, c, h, w], in the memory format of the networks."""
  floats = image.float().div_(255).sub_(torch.tensor(mean)).div_(torch.tensor(std))
  return floats.permute(0, 3, 1, 2).contiguous(memory_format=layout)


class Images:
  """A data set in memory, and batches of it as networks see them."""

  def __init__(self, dataset, padding, layout):
    """Pads the training images by zeros, once."""
    self.shape = dataset.image_shape
    border = (0, 0, padding, padding, padding, padding)
    self.train = torch.nn.functional.pad(torch.from_numpy(dataset.train.image), border)
    self.test = torch.from_numpy(dataset.test.image)
    self.label, self.test_label = (torch.from_numpy(s.label).long() for s in (dataset.train, dataset.test))
    self.normalize = functools.partial(normalize, mean=dataset.mean, std=dataset.std, layout=layout)

  def random_crops(self, rows):
    """Random crops of the padded training images, half of them mirrored."""
    height, width, _ = self.shape

    def corner(padded, size):
      return torch.randint(padded - size + 1, (len(rows), 1)) + torch.arange(size)

    y, x = corner(self.train.shape[1], height), corner(self.train.shape[2], width)
    x = torch.where(torch.rand(len(rows), 1) < 0.5, x.flip(1), x)
    return self.normalize(self.train[rows[:, None, None], y[:, :, None], x[:, None, :]])


class Stage(torch_step.Step):
  """A stage of ours, begun with networks of PyTorch: `learn` trains once."""

  def __init__(self, plan, student, teacher):
    """Takes our plan. The student as it is now anchors a stage that has a reference."""
    self.stage, self.student, self.teacher = plan.stage, student, teacher
    self.reference = None if plan.stage.reference is None else copy.deepcopy(student).eval()
    (self.term,) = plan.config["methods"]
    self.aux = self.state = self.rows = None  # of methods that learn or remember
    of = plan.config["optimizer"]
    self.optimizer = torch.optim.SGD(
      student.parameters(), of["learning_rate"], of["momentum"], weight_decay=of["weight_decay"]
    )
    self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, plan.loop_config.num_steps)

  def train_step(self, image, label, index):
    """One step on a batch; the loss as a number."""
    self.image, self.label, self.index = image, label, index
    loss = self.run()
    self.schedule.step()
    return loss


def warm_up():
  """Takes a small step: PyTorch imports its compiler with the first, and imports are not counted."""
  x = torch.zeros(1, requires_grad=True)
  optimizer = torch.optim.SGD([x], 0.1, 0.9)
  x.sum().backward()
  optimizer.step()


def logits(network, image, normalize, batch_size):
  """What a network says of images, uint8 [n, h, w, c]: [n, k]."""
  network.eval()
  with torch.no_grad():
    return torch.cat([network(normalize(batch))[0] for batch in image.split(batch_size)])


def accuracy(network, images, batch_size):
  """The share of the test images that a network gets right."""
  said = logits(network, images.test, images.normalize, batch_size)
  return (said.argmax(1) == images.test_label).double().mean().item()


def train(plan, student, teacher, images, batch_size):
  """One stage: (steps, the accuracies of its evaluations)."""
  stage, budget, losses, tested = Stage(plan, student, teacher), plan.loop_config, [], []
  rows = torch.from_numpy(plan.input_spec.images.indices).long()
  for epoch in range(1, budget.epochs + 1):
    student.train()
    order = rows[torch.randperm(len(rows))]
    for drawn in order.split(budget.batch_size)[: budget.steps_per_epoch]:
      losses.append(stage.train_step(images.view(drawn), images.label[drawn], drawn))
    if budget.evaluates(epoch * budget.steps_per_epoch):
      tested.append(accuracy(student, images, batch_size))
  return len(losses), tested


def run(plans, dataset, teacher, student, folder, *, seed, padding, batch_size, channels_last):
  """A whole job.

  Args:
    plans: ours, of its stages.
    dataset: ours.
    teacher: our variables.
    student: our variables, which it begins with.
    folder: gets what each stage leaves.
    seed: of PyTorch.
    padding: of the crops.
    batch_size: of evaluations.
    channels_last: the memory format of maps, or PyTorch's usual one.

  Returns:
    What `job.ours` returns.
  """
  began = time.monotonic()
  folder.mkdir(parents=True)
  torch.manual_seed(seed)
  layout = torch.channels_last if channels_last else torch.contiguous_format
  images, first = Images(dataset, padding, layout), plans[0].stage
  teacher = torch_step.loaded(first.teachers[0], teacher, layout).eval()
  student = torch_step.loaded(first.student, student, layout)
  found = {name: [] for name in ("stages", "steps", "tests", "teacher_forward_passes")}
  found["teacher_accuracy"] = accuracy(teacher, images, batch_size)
  for i, plan in enumerate(plans):
    of_stage = time.monotonic()
    steps, tested = train(plan, student, teacher, images, batch_size)
    torch.save(student.state_dict(), folder / f"stage{i}.pt")
    found["stages"].append(time.monotonic() - of_stage)
    found["steps"].append(steps)
    found["teacher_forward_passes"].append(steps * plan.loop_config.batch_size)
    found["tests"].append(len(tested))
  return found | {"accuracy": tested[-1], "seconds": time.monotonic() - began}
