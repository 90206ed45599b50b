"""Check, before anything is allocated, that the devices have memory for every stage."""

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
  """Checks that the devices have memory for the least that every stage needs.

  Raises:
    UserError: the first stage that does not fit, with the bytes that it needs and that are free.
  """
  free = parallel.free_bytes(devices)
  if free is None:
    return
  for plan in plans:
    needed = needed_bytes(plan, dataset, len(devices))
    if sum(needed.values()) > free:
      parts = ", ".join(
        f"{console.format_si(size)}B for {purpose}" for purpose, size in needed.items() if size
      )
      total = console.format_si(sum(needed.values()))
      raise UserError(
        f"config.stages[{plan.stage_index}] ({plan.name}): needs {total}B of memory on a device or more ({parts}), but "
        f"{console.format_si(free)}B are free; use smaller networks, images or batches"
      )


def needed_bytes(plan: StagePlan, dataset: Dataset, num_devices: int) -> dict[str, int]:
  """Least bytes that a training step holds on a device, by purpose.

  Activations are left out, because the compiler decides how many are kept.
  """
  state, shape = abstract_state(plan, dataset), dataset.image_shape
  variables = functools.partial(introspection.num_bytes, shape=shape)
  student, teachers = plan.stage.student, () if plan.stage.view_index_fn else plan.stage.teachers
  frozen = sum(map(variables, teachers)) + (variables(student) if plan.stage.reference is not None else 0)
  images = -(-plan.loop_config.batch_size // num_devices) * len(plan.stage.views)
  return {
    "the network, its optimizer and its methods": _bytes(state),
    "gradients": 4 * introspection.num_parameters(student, shape),
    "teachers and reference": frozen,
    "images": 4 * images * math.prod(shape),
  }


def _bytes(tree: Any) -> int:
  # Random keys have no size of their own.
  return sum(math.prod(x.shape) * getattr(x.dtype, "itemsize", 8) for x in jax.tree.leaves(tree))
