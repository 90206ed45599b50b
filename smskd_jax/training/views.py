"""The views of a batch in a step: what is seen of each, and a method's term over all of them. Pure."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from smskd_jax.losses.contract import Context
from smskd_jax.state import Outputs
from smskd_jax.training.task import Answer


class Seen(NamedTuple):
  """A view of the batch, and what is fixed about it while the learner learns."""

  image: jax.Array  # [b, h, w, c]
  answer: Answer
  teachers: tuple[Outputs, ...]
  reference: Outputs | None
  labeled: jax.Array  # [], the share of the images of all devices that have a label


Term = tuple[jax.Array, Any]  # a method's loss [b], and what it remembers


def of_each(
  apply: Callable[..., Term],
  aux_state: Any,
  learners: Sequence[Outputs],
  seen: Sequence[Seen],
  context: Context,
) -> Term:
  """A term of each view by itself, and the mean of them; what the method remembers goes from one to the next."""
  values = []
  for i, (learner, view) in enumerate(zip(learners, seen, strict=True)):
    key = context.key if i == 0 else jax.random.fold_in(context.key, i)
    of_view = _with_labels(context, view)._replace(key=key)
    value, aux_state = apply(aux_state, learner, view.teachers, of_view)
    values.append(value)
  return mean_of(values), aux_state


def of_all(
  apply: Callable[..., Term],
  aux_state: Any,
  learners: Sequence[Outputs],
  seen: Sequence[Seen],
  context: Context,
) -> Term:
  """A term of all views at once."""
  first, *others = learners
  learner = first._replace(other_views=tuple(others))
  teachers = tuple(
    of_first._replace(other_views=tuple(of_others))
    for of_first, *of_others in zip(*(view.teachers for view in seen), strict=True)
  )
  return apply(aux_state, learner, teachers, _with_labels(context, seen[0]))


def _with_labels(context: Context, view: Seen) -> Context:
  """The context of a view: mixing images changes their labels."""
  return context._replace(batch=context.batch._replace(label=view.answer.label))


def sum_of(values: Sequence[jax.Array]) -> jax.Array:
  """The sum of one array or more."""
  first, *others = values
  return sum(others, first)


def mean_of(values: Sequence[jax.Array]) -> jax.Array:
  """The mean of a few arrays; of a single one, itself."""
  return values[0] if len(values) == 1 else sum_of(values) / len(values)
