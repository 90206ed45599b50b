"""PyTorch side of benchmarks/end_to_end.py: eager steps on batches that are cropped and flipped as tensors.

The steps are those of benchmarks/torch_step.py. Public code has a DataLoader whose workers crop one PIL image at a
time; here one indexing operation crops and flips a whole batch, in less than a hundredth of the time of a step.
"""

import copy
import functools
import time

import torch
import torch_step


def normalize(image, mean, std, layout):
  """Normalises uint8 [b, h, w, c] to float32 [b, c, h, w] in a memory format."""
  mean, std = (torch.tensor(x, device=image.device) for x in (mean, std))
  return image.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2).contiguous(memory_format=layout)


class Images:
  """Data set in memory, and normalised batches."""

  def __init__(self, dataset, padding, layout):
    """Pads the training images with zeros."""
    self.shape = dataset.image_shape
    border = (0, 0, padding, padding, padding, padding)
    self.train = torch.nn.functional.pad(torch.from_numpy(dataset.train.image), border)
    self.test = torch.from_numpy(dataset.test.image)
    self.label, self.test_label = (torch.from_numpy(s.label).long() for s in (dataset.train, dataset.test))
    self.normalize = functools.partial(normalize, mean=dataset.mean, std=dataset.std, layout=layout)

  def random_crops(self, rows):
    """Random crops of the padded training images at `rows`, half of them flipped."""
    height, width, _ = self.shape

    def positions(padded, size):
      return torch.randint(padded - size + 1, (len(rows), 1)) + torch.arange(size)

    y, x = positions(self.train.shape[1], height), positions(self.train.shape[2], width)
    x = torch.where(torch.rand(len(rows), 1) < 0.5, x.flip(1), x)
    return self.normalize(self.train[rows[:, None, None], y[:, :, None], x[:, None, :]])


class Stage(torch_step.Step):
  """A stage with the settings of one of this package's plans, on networks of PyTorch."""

  def __init__(self, plan, student, teacher):
    """Copies the student as the reference if the stage has a reference term."""
    self.student, self.teacher = student, teacher
    self.read_objective(plan)
    self.reference = None if plan.stage.reference is None else copy.deepcopy(student).eval()
    self.aux = self.state = self.rows = None  # of methods with parameters or memory
    options = plan.config["optimizer"]
    self.optimizer = torch.optim.SGD(
      student.parameters(),
      options["learning_rate"],
      options["momentum"],
      weight_decay=options["weight_decay"],
    )
    self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, plan.loop_config.num_steps)

  def train_step(self, image, label, index):
    """Trains on a batch; returns the loss."""
    self.image, self.label, self.index = image, label, index
    loss = self.run()
    self.schedule.step()
    return loss


def warm_up():
  """Makes a small step: PyTorch imports its compiler with the first one, and imports are not part of the time."""
  x = torch.zeros(1, requires_grad=True)
  optimizer = torch.optim.SGD([x], 0.1, 0.9)
  x.sum().backward()
  optimizer.step()


def logits(network, image, normalize, batch_size):
  """Logits [n, k] of uint8 images [n, h, w, c]."""
  network.eval()
  with torch.no_grad():
    return torch.cat([network(normalize(batch))[0] for batch in image.split(batch_size)])


def accuracy(network, images, batch_size):
  """Test accuracy of a network, in [0, 1]."""
  predicted = logits(network, images.test, images.normalize, batch_size)
  return (predicted.argmax(1) == images.test_label).double().mean().item()


def train(plan, student, teacher, images, batch_size):
  """Trains one stage; returns the number of steps and the accuracies of its evaluations."""
  stage, config, losses, accuracies = Stage(plan, student, teacher), plan.loop_config, [], []
  rows = torch.from_numpy(plan.input_spec.images.indices).long()
  for epoch in range(1, config.epochs + 1):
    student.train()
    order = rows[torch.randperm(len(rows))]
    for batch in order.split(config.batch_size)[: config.steps_per_epoch]:
      losses.append(stage.train_step(images.random_crops(batch), images.label[batch], batch))
    if config.should_evaluate(epoch * config.steps_per_epoch):
      accuracies.append(accuracy(student, images, batch_size))
  return len(losses), accuracies


def run(plans, dataset, teacher, student, folder, *, seed, padding, batch_size, channels_last):
  """Runs all stages.

  Args:
    plans: plans of this package for the stages.
    dataset: data set of this package.
    teacher: variables of the teacher in this package.
    student: initial variables of the student in this package.
    folder: folder for the network after each stage.
    seed: seed of PyTorch.
    padding: padding of the crops.
    batch_size: batch size of evaluations.
    channels_last: True: the memory format channels_last; False: the usual one.

  Returns:
    The fields of `end_to_end.run_smskd`.
  """
  start_time = time.monotonic()
  folder.mkdir(parents=True)
  torch.manual_seed(seed)
  layout = torch.channels_last if channels_last else torch.contiguous_format
  images, first = Images(dataset, padding, layout), plans[0].stage
  teacher = torch_step.to_torch_network(first.teachers[0], teacher, layout).eval()
  student = torch_step.to_torch_network(first.student, student, layout)
  result = {name: [] for name in ("stages", "steps", "tests", "teacher_forward_passes")}
  result["teacher_accuracy"] = accuracy(teacher, images, batch_size)
  for i, plan in enumerate(plans):
    stage_start = time.monotonic()
    steps, accuracies = train(plan, student, teacher, images, batch_size)
    torch.save(student.state_dict(), folder / f"stage{i}.pt")
    result["stages"].append(time.monotonic() - stage_start)
    result["steps"].append(steps)
    result["teacher_forward_passes"].append(steps * plan.loop_config.batch_size)
    result["tests"].append(len(accuracies))
  return result | {"accuracy": accuracies[-1], "seconds": time.monotonic() - start_time}
