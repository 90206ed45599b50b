"""Tables of what will run, and its cost."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from flax import linen as nn
import numpy as np

from smskd_jax.data.dataset import Dataset, Split
from smskd_jax.engine import estimates
from smskd_jax.engine.plan import StagePlan
from smskd_jax.errors import join_names
from smskd_jax.models import introspection
from smskd_jax.runtime import console, parallel
from smskd_jax.runtime.store import StageEntry


def describe(plans: Sequence[StagePlan], dataset: Dataset, devices: parallel.Devices, store: Path) -> str:
  """The data, the networks and the stages, as tables."""
  sizes = ", ".join(f"{len(split.label):,} {name}" for name, split in _splits(dataset).items())
  shape = "x".join(map(str, dataset.image_shape))
  where = f"{len(devices)} x {devices[0].device_kind}"
  header = ("stage", "network", "methods", "reference", "epochs", "steps", "key", "")
  return "\n\n".join(
    (
      f"{dataset.name}: {sizes} images of {shape} in {len(dataset.class_names)} classes, on {where}"
      f"{missing_classes(dataset)}",
      console.format_table(("network", "parameters", "FLOPs/image"), _network_rows(plans, dataset)),
      console.format_table(header, (_stage_row(plan, store) for plan in plans)) + "\n",
    )
  )


def missing_classes(dataset: Dataset) -> str:
  """A line for each set of images that lacks some of the classes; '' where none does."""
  lines = []
  for name, split in _splits(dataset).items():
    missing = np.setdiff1d(np.arange(len(dataset.class_names)), split.label)
    if missing.size:
      names = join_names(dataset.class_names[k] for k in missing)
      lines.append(f"\nno {name} images of {missing.size} of the classes: {names}")
  return "".join(lines)


def _splits(dataset: Dataset) -> dict[str, Split]:
  splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
  return {name: split for name, split in splits.items() if split is not None}


# Peak FLOP/s of a chip in bfloat16, from its data sheet.
PEAKS = {"TPU v5e": 197e12, "A100": 312e12, "H100": 989e12}
# The fraction of the peak that is assumed. Small networks on small images reach less, large ones more.
PEAK_FRACTION = 0.1
MIN_HOURS = 0.1  # of which device-hours on other chips are shown


def estimate_cost(
  plans: Sequence[StagePlan], dataset: Dataset, devices: parallel.Devices, store: Path
) -> str:
  """FLOPs of the stages that are not in the store, their estimated time here, and device-hours on other chips."""
  works = {plan.key: estimates.stage_work(plan, dataset) for plan in plans}
  missing = [plan for plan in plans if StageEntry(store, plan.key).state() != "in the store"]
  if not missing:
    return "to train: nothing; all stages are in the store"
  speed = estimates.stored_speed(works, store, devices) or estimates.timed_speed(missing, dataset, devices)
  seconds = sum(speed.seconds(works[plan.key]) for plan in missing) if speed else None
  here = f"{len(devices)} x {devices[0].device_kind}"
  flops = sum(sum(works[plan.key]) for plan in missing)
  words = f"to train: {console.format_si(flops)}FLOP; {estimates.format_estimate(seconds)} on {here}"
  hours = {name: flops / peak / PEAK_FRACTION / 3600 for name, peak in PEAKS.items()}
  if max(hours.values()) >= MIN_HOURS:
    others = ", ".join(f"{value:.2g} of {name}" for name, value in hours.items())
    words += f"; at {PEAK_FRACTION:.0%} of a chip's peak, estimated device-hours: {others}"
  return words


def _network_rows(plans: Sequence[StagePlan], dataset: Dataset) -> Iterator[tuple[str, ...]]:
  networks: dict[str, nn.Module] = {}
  for plan in plans:
    networks |= zip(plan.config["teachers"], plan.stage.teachers, strict=True)
    networks[plan.config["network"]] = plan.stage.student
  for name, network in networks.items():
    parameters = introspection.num_parameters(network, dataset.image_shape)
    yield (
      name,
      f"{parameters:,}",
      console.format_si(introspection.forward_flops(network, dataset.image_shape)),
    )


def _stage_row(plan: StagePlan, store: Path) -> tuple[object, ...]:
  methods = " + ".join(method["name"] for method in plan.config["methods"]) or "-"
  anchor = plan.config["reference"]["stage"]
  return (
    plan.name,
    plan.config["network"],
    methods,
    "-" if anchor == "none" else anchor,
    plan.loop_config.epochs,
    plan.loop_config.num_steps,
    plan.key,
    StageEntry(store, plan.key).state(),
  )
