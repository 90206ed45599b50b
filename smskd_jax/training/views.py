"""The views of a batch in a step: what is seen of each, and a method's term over all of them. Pure."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from smskd_jax.losses.contract import Context
from smskd_jax.training.targets import Targets
from smskd_jax.types import Outputs


class ViewInputs(NamedTuple):
  """A view of the batch, and what is fixed about it while the learner learns."""

  image: jax.Array  # [b, h, w, c]
  targets: Targets
  teachers: tuple[Outputs, ...]
  reference: Outputs | None
  labeled_fraction: jax.Array  # [], the share of the images of all devices that have a label


TermResult = tuple[jax.Array, Any]  # a method's loss [b], and what it remembers


def apply_per_view(
  apply: Callable[..., TermResult],
  method_state: Any,
  student_outputs: Sequence[Outputs],
  views: Sequence[ViewInputs],
  context: Context,
) -> TermResult:
  """A term of each view by itself, and the mean of them; what the method remembers goes from one to the next."""
  values = []
  for i, (learner, view) in enumerate(zip(student_outputs, views, strict=True)):
    key = context.key if i == 0 else jax.random.fold_in(context.key, i)
    of_view = _with_labels(context, view)._replace(key=key)
    value, method_state = apply(method_state, learner, view.teachers, of_view)
    values.append(value)
  return mean_arrays(values), method_state


def apply_all_views(
  apply: Callable[..., TermResult],
  method_state: Any,
  student_outputs: Sequence[Outputs],
  views: Sequence[ViewInputs],
  context: Context,
) -> TermResult:
  """A term of all views at once."""
  first, *others = student_outputs
  learner = first._replace(view_outputs=tuple(others))
  teachers = tuple(
    of_first._replace(view_outputs=tuple(of_others))
    for of_first, *of_others in zip(*(view.teachers for view in views), strict=True)
  )
  return apply(method_state, learner, teachers, _with_labels(context, views[0]))


def _with_labels(context: Context, view: ViewInputs) -> Context:
  """The context of a view: mixing images changes their labels."""
  return context._replace(batch=context.batch._replace(label=view.targets.label))


def sum_arrays(values: Sequence[jax.Array]) -> jax.Array:
  """The sum of one array or more."""
  first, *others = values
  return sum(others, first)


def mean_arrays(values: Sequence[jax.Array]) -> jax.Array:
  """The mean of a few arrays; of a single one, itself."""
  return values[0] if len(values) == 1 else sum_arrays(values) / len(values)
