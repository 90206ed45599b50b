"""Multiple teachers: the mean of the wrapped method's losses over several teachers.

Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, https://arxiv.org/abs/1912.10850

  L_i = sum_m w_im L_i(student, teacher_m),    sum_m w_im = 1
  w_im = 1 / M                                 (weighting "equal")
  w_im = a_m / sum_l a_l                       (weighting "accuracy")
  w_im = p_m,i[y_i] / sum_l p_l,i[y_i]         (weighting "tcp")

A plug-in, for methods that take one teacher. M is the number of teachers. Around KD, with equal weights, it is the
survey's "MKD", whose public code averages the divergences from the softened probabilities of the teachers. Their
gradient is that of the divergence from the mean of these probabilities, as in distilling an ensemble.

The other weights, and other wrapped methods than KD, are additions. a_m is the accuracy of teacher m on the labeled
images of the batch on all devices; weights are equal if all accuracies are zero. p_m,i is its softmax at
T = 1, y_i the label; an image without a label (-1) has equal weights. Of a mixed image y_i is the label of its larger
part. Weights are constants: no gradient flows through them. `weights` gives the weight of each teacher, in any
unit, as (2.0, 1.0), with weighting "equal". A method that takes all views of a stage at once has one weight for all:
that of the first.

Differences: around a method with parameters or memory, every teacher has parts of its own (regressors, memory banks),
initialised with a key of its own. A method that takes over a part of its teacher before the first step is refused with
more than one teacher. Published close to "tcp" is Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge
Distillation", ICASSP 2022, https://arxiv.org/abs/2201.00007, with w_im = (1 - p_m,i[y_i]^-1 / sum_l p_l,i[y_i]^-1) /
(M - 1), which is the same for two teachers and never above 1 / (M - 1) for more.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics, reduction
from smskd_jax.types import MethodVariables, Outputs

WEIGHTINGS = ("equal", "accuracy", "tcp")


def weighted_mean(losses: Sequence[jax.Array], weights: jax.Array | None = None) -> jax.Array:
  """The mean over teachers.

  Args:
    losses: m of them, at least one, each [b].
    weights: of each teacher, [m, 1], or of each teacher for each example, [m, b]; they sum to 1 over teachers. None
      for equal ones.

  Returns:
    [b].
  """
  rows = jnp.stack(losses)
  if weights is None:
    return jnp.mean(rows, axis=0)
  chex.assert_equal_rank([rows, weights])
  return jnp.sum(weights.astype(rows.dtype) * rows, axis=0)


def accuracy_weights(
  teacher_logits: Sequence[jax.Array], labels: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
  """Weights in proportion to each teacher's accuracy on the batch of all devices.

  Args:
    teacher_logits: of each of m teachers, [b, k].
    labels: [b]; -1 where there is none, which no teacher predicts.
    axis_name: the axis of devices that the batch is spread over.

  Returns:
    [m, 1]; equal ones if all accuracies are zero.
  """
  dtype = numerics.upcast(teacher_logits[0]).dtype
  accuracies = [jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=dtype) for logits in teacher_logits]
  right = contract.pmean(jnp.stack(accuracies), axis_name)
  total = jnp.sum(right)
  return jnp.where(total == 0, 1 / len(accuracies), numerics.safe_divide(right, total))[:, None]


def tcp_weights(teacher_logits: Sequence[jax.Array], labels: jax.Array) -> jax.Array:
  """Weights in proportion to each teacher's probability of the true class, for each example.

  Args:
    teacher_logits: of each of m teachers, [b, k].
    labels: [b]; -1 where there is none.

  Returns:
    [m, b]; equal ones for an example without a label.
  """
  known = jnp.maximum(labels, 0)
  log_probabilities = [
    numerics.gather_label(jax.nn.log_softmax(numerics.upcast(logits)), known) for logits in teacher_logits
  ]
  # As a softmax over teachers, which no small probability makes 0 / 0.
  weights = jax.nn.softmax(jnp.stack(log_probabilities), axis=0)
  return jnp.where(labels[None, :] < 0, 1 / len(log_probabilities), weights)


def method(
  wrapped: contract.Method, /, *, weighting: str = "equal", weights: tuple[float, ...] = ()
) -> contract.Method:
  """Mean of the wrapped method's losses over the teachers; one entry of variables each."""
  _check_weights(weighting, weights)

  def init(key, student, teachers, labels, *statistics):
    _check_teachers(wrapped, weighting, weights, student, teachers)
    variables = [
      wrapped.init(jax.random.fold_in(key, i), student, (teacher,), labels, *(each[i] for each in statistics))
      for i, teacher in enumerate(teachers)
    ]
    return MethodVariables(params=tuple(v.params for v in variables), state=tuple(v.state for v in variables))

  def weigh(teachers, context):
    logits = [teacher.logits for teacher in teachers]
    if weighting == "accuracy":
      return accuracy_weights(logits, context.batch.label, axis_name=context.axis_name)
    if weighting == "tcp":
      return tcp_weights(logits, context.batch.label)
    return jnp.array([[weight / sum(weights)] for weight in weights]) if weights else None

  def apply(params, state, student, teachers, context):
    results = []
    for i, teacher in enumerate(teachers):
      own = context._replace(key=jax.random.fold_in(context.key, i))
      if context.segments is not None:
        own_teacher = context.segments.teachers[i : i + 1]
        own = own._replace(segments=context.segments._replace(teachers=own_teacher))
      results.append(
        wrapped.apply(params[i], state[i], student, (teacher,), own, stop_teacher_gradient=False)
      )
    losses, states = zip(*results, strict=True)
    return weighted_mean(losses, jax.lax.stop_gradient(weigh(teachers, context))), states

  reads = wrapped.reads if weighting == "equal" else wrapped.reads | {"logits"}
  statistics = wrapped.statistics and reduction.for_each_teacher(wrapped.statistics)
  return contract.wrap(wrapped, init, apply, reads=reads, statistics=statistics)


def _check_weights(weighting: str, weights: tuple[float, ...]) -> None:
  """Raises ValueError for weights that are not defined."""
  errors.check_choice("multi_teacher", WEIGHTINGS, weighting=weighting)
  if not isinstance(weights, tuple):
    raise ValueError(f"multi_teacher: weights must be a tuple of numbers, one a teacher, got {weights!r}")
  for weight in weights:
    errors.check_non_negative("multi_teacher", weights=weight)
  if weights and not any(weights):
    raise ValueError("multi_teacher: weights must not all be zero")
  if weights and weighting != "equal":
    raise ValueError(
      f"multi_teacher: weights and weighting={weighting!r} contradict each other; leave one out"
    )


def _check_teachers(
  wrapped: contract.Method,
  weighting: str,
  weights: tuple[float, ...],
  student: Outputs,
  teachers: tuple[Outputs, ...],
) -> None:
  """Raises ValueError for teachers that do not fit the method or its weights."""
  if not teachers:
    raise ValueError("multi_teacher: needs at least one teacher, got 0; name it in the stage's teachers")
  if wrapped.init_student is not None and len(teachers) > 1:
    raise ValueError(
      f"multi_teacher: the wrapped method takes over a part of its teacher and needs exactly one, got {len(teachers)}"
    )
  if weights and len(weights) != len(teachers):
    raise ValueError(f"multi_teacher: weights must be one a teacher, got {len(weights)} for {len(teachers)}")
  if weighting != "equal":
    for teacher in teachers:
      contract.check_same_classes("multi_teacher", student, teacher)
