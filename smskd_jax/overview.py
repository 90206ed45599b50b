"""What will run and how long it will take, in words."""

from collections.abc import Iterator, Sequence
from pathlib import Path
import time

from flax import linen as nn

from smskd_jax.data.dataset import Dataset
from smskd_jax.models import spec
from smskd_jax.plan import Plan
from smskd_jax.runtime import console, parallel
from smskd_jax.runtime.store import Entry


def of(plans: Sequence[Plan], dataset: Dataset, devices: parallel.Devices, store: Path) -> str:
  """The data, the networks and the stages, as tables."""
  splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
  sizes = ", ".join(f"{len(split.label):,} {name}" for name, split in splits.items() if split is not None)
  shape = "x".join(map(str, dataset.image_shape))
  where = f"{len(devices)} x {devices[0].device_kind}"
  header = ("stage", "learner", "methods", "reference", "epochs", "steps", "key", "")
  return "\n\n".join(
    (
      f"{dataset.name}: {sizes} images of {shape} in {len(dataset.class_names)} classes, on {where}",
      console.table(("network", "parameters", "FLOPs/image"), _network_rows(plans, dataset)),
      console.table(header, (_stage_row(plan, store) for plan in plans)) + "\n",
    )
  )


# The peak of a chip in bfloat16, in operations a second, as its maker publishes it.
PEAKS = {"TPU v5e": 197e12, "A100": 312e12, "H100": 989e12}


def cost(plans: Sequence[Plan], dataset: Dataset, store: Path) -> str:
  """What training the stages that are not in the store computes, and the hours of one chip that this would take.

  At a tenth of the chip's peak, which is a guess: small networks on small images reach less, large ones more. Measure
  with --profile, and scale.
  """
  missing = [plan for plan in plans if Entry(store, plan.key).result() is None]
  flops = sum(step_flops(plan, dataset) * plan.budget.steps for plan in missing)
  if not missing:
    return "to train: nothing; all stages are in the store"
  hours = ", ".join(f"{flops / peak / 0.1 / 3600:.2g} of {name}" for name, peak in PEAKS.items())
  return f"to train: {console.quantity(flops)}FLOP; at a tenth of a chip's peak, device-hours: {hours}"


class Estimate:
  """How long a run will take, from its first steps: the time of a stage goes with its FLOPs."""

  AFTER = 20  # steps, or as many more as are one program; the first ones are not counted: they are compiled

  def __init__(self, plans: Sequence[Plan], dataset: Dataset):
    """Counts the FLOPs of all stages."""
    self._flops = [step_flops(plan, dataset) for plan in plans]
    self._plans = plans
    self._began: dict[int, tuple[int, float]] = {}  # by stage: the first step that was told of, and when
    self._told = False

  def step(self, plan: Plan, step: int) -> None:
    """Takes notice that so many steps of a stage are done; tells the estimate once."""
    first, began = self._began.setdefault(plan.place, (step, time.monotonic()))
    if not self._told and step - first >= self.AFTER - 1:
      self._told = True
      seconds = (time.monotonic() - began) / (step - first)
      rest = (
        sum(self._flops[p.place] * p.budget.steps for p in self._plans[plan.place + 1 :])
        / self._flops[plan.place]
      )
      of_stage = seconds * (plan.budget.steps - step)
      told = f"about {console.duration(of_stage)} for this stage"
      if rest:
        told += f", {console.duration(of_stage + seconds * rest)} for all that are not in the store"
      console.say(f"{plan.name}: {told}")


def step_flops(plan: Plan, dataset: Dataset) -> float:
  """Of a training step: the learner's backward pass costs about two forward passes; frozen networks have none."""
  shape = dataset.image_shape
  learner = spec.forward_flops(plan.stage.learner, shape)
  run = () if plan.stage.number else plan.stage.teachers  # what is kept of them costs nothing
  frozen = sum(spec.forward_flops(network, shape) for network in run)
  of_image = 3 * learner + frozen + (learner if plan.stage.reference is not None else 0)
  return of_image * plan.budget.batch_size * len(plan.stage.views)


def _network_rows(plans: Sequence[Plan], dataset: Dataset) -> Iterator[tuple[str, ...]]:
  networks: dict[str, nn.Module] = {}
  for plan in plans:
    networks |= zip(plan.config["teachers"], plan.stage.teachers, strict=True)
    networks[plan.config["learner"]] = plan.stage.learner
  for name, network in networks.items():
    parameters = spec.num_parameters(network, dataset.image_shape)
    yield name, f"{parameters:,}", console.quantity(spec.forward_flops(network, dataset.image_shape))


def _stage_row(plan: Plan, store: Path) -> tuple[object, ...]:
  methods = " + ".join(method["name"] for method in plan.config["methods"]) or "-"
  anchor = plan.config["reference"]["stage"]
  return (
    plan.name,
    plan.config["learner"],
    methods,
    "-" if anchor == "none" else anchor,
    plan.budget.epochs,
    plan.budget.steps,
    plan.key,
    "in the store" if Entry(store, plan.key).result() else "",
  )
