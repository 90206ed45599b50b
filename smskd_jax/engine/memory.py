"""Refusal of stages that need more memory than there is, before anything is allocated."""

from collections.abc import Iterable
import functools
import math
from typing import Any

import jax

from smskd_jax.data.dataset import Dataset
from smskd_jax.engine.plan import StagePlan, abstract_state
from smskd_jax.errors import UserError
from smskd_jax.models import introspection
from smskd_jax.runtime import console, parallel


def check(plans: Iterable[StagePlan], dataset: Dataset, devices: parallel.Devices) -> None:
  """Checks that the devices have memory for what every stage needs at least.

  Raises:
    UserError: the first stage that does not fit, with what it needs and what is free.
  """
  free = parallel.free_bytes(devices)
  if free is None:
    return
  for plan in plans:
    needed = needed_bytes(plan, dataset, len(devices))
    if sum(needed.values()) > free:
      parts = ", ".join(f"{console.format_si(size)}B for {what}" for what, size in needed.items() if size)
      total = console.format_si(sum(needed.values()))
      raise UserError(
        f"config.stages[{plan.stage_index}] ({plan.name}): needs {total}B of memory on a device or more ({parts}), but "
        f"{console.format_si(free)}B are free; use smaller networks, images or batches"
      )


def needed_bytes(plan: StagePlan, dataset: Dataset, num_devices: int) -> dict[str, int]:
  """The bytes that a training step holds on a device at least, by what they are for.

  Activations, on which compilers decide, are left out.
  """
  state, shape = abstract_state(plan, dataset), dataset.image_shape
  variables = functools.partial(introspection.num_bytes, shape=shape)
  learner, teachers = plan.stage.student, () if plan.stage.view_index_fn else plan.stage.teachers
  frozen = sum(map(variables, teachers)) + (variables(learner) if plan.stage.reference is not None else 0)
  images = -(-plan.loop_config.batch_size // num_devices) * len(plan.stage.views)
  return {
    "the network, its optimizer and its methods": _bytes(state),
    "gradients": 4 * introspection.num_parameters(learner, shape),
    "teachers and reference": frozen,
    "images": 4 * images * math.prod(shape),
  }


def _bytes(tree: Any) -> int:
  # Random keys have no size of their own.
  return sum(math.prod(x.shape) * getattr(x.dtype, "itemsize", 8) for x in jax.tree.leaves(tree))
