"""The reference term of SMSKD: a frozen copy of the student of an earlier stage anchors the student. Pure.

Tian, Huang, Tang, Yao, "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657

  stage 1       L = L_distill + lambda_c L_CE                                                        (Eq. 6)
  stage m > 1   L = L_distill + lambda_c L_CE + lambda_r mean_i w_i KL(p_student,i || p_reference,i)    (Eq. 7, 8)
  w_i = TCP_i = p_reference,i[y_i]                                                                    (Eq. 9)

The weight is large where the reference is confident and right: it does not hand on its own errors. The paper's
abstract speaks of the teacher's true-class probability; section 3.2 and Eq. 9 take the reference's, and so does the
default here (`teacher_tcp` is the other). The paper leaves open, and these are options with our choice as default: the
temperatures of the term and of TCP (1; the paper calls 1 usual, and fixes "the distillation temperature" at 4), mixed
images and images without a label (see `true_class_probability`), and the optimiser's state at a change of stage
(fresh).

b batch, k classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from smskd_jax.losses import numerics
from smskd_jax.losses.contract import pmean
from smskd_jax.training.weighting import LEARNED, WEIGHTINGS, WeightingInputs

STUDENT_TO_REFERENCE, REFERENCE_TO_STUDENT = "student_to_reference", "reference_to_student"
DIVERGENCES = (STUDENT_TO_REFERENCE, REFERENCE_TO_STUDENT)


class Reference(NamedTuple):
  """Options of the reference term. The defaults are the paper's."""

  weight: float = 0.5  # lambda_r
  divergence: str = STUDENT_TO_REFERENCE  # KL(student || reference), or KL(reference || student)
  temperature: float = 1.0  # tau, of both networks in the divergence
  scale_by_temperature_squared: bool = False  # multiply the divergence by tau^2, as KD does
  weighting: str = "reference_tcp"  # a name of training/weighting.py
  tcp_temperature: float = 1.0  # of the softmax in the weights
  normalize: bool = False  # divide the weights by their mean over the global batch


def conflicting_option(settings: Reference) -> str | None:
  """The first option that another one makes meaningless, as 'NAME: reason', or None."""
  if settings.scale_by_temperature_squared and settings.temperature == 1:
    return "scale_by_temperature_squared: True, but temperature is 1, whose square changes nothing; use False"
  if settings.weighting == "constant" and settings.tcp_temperature != 1:
    return (
      f"tcp_temperature: {settings.tcp_temperature}, but weighting 'constant' reads no probability; use 1.0"
    )
  if settings.normalize and settings.weighting in ("constant", LEARNED):
    return f"normalize: True, but weighting {settings.weighting!r} has no mean to divide by; use False"
  return None


def true_class_probability(
  logits: jax.Array, label: jax.Array, *, target: jax.Array | None = None, temperature: float = 1.0
) -> jax.Array:
  """Probability that logits give to the true class (TCP).

  Of a mixed image it is the mean over its classes, by their fractions; of an image without a label, the probability of
  the class with the largest logit. Both are our choice: the paper has neither.

  Corbiere et al., "Addressing Failure Prediction by Learning Model Confidence", NeurIPS 2019,
  https://arxiv.org/abs/1910.04851

  Args:
    logits: [b, k].
    label: [b], int; -1 where there is none.
    target: [b, k], the fractions of the classes in mixed images, or None.
    temperature: of the softmax.

  Returns:
    [b], in [0, 1].
  """
  chex.assert_rank([logits, label], [2, 1])
  probabilities = jax.nn.softmax(logits / temperature)
  if target is not None:
    return jnp.sum(target * probabilities, axis=-1)
  true_class = jnp.where(label < 0, jnp.argmax(logits, axis=-1), label)
  return jnp.take_along_axis(probabilities, true_class[:, None], axis=-1)[:, 0]


def weighting_inputs(
  settings: Reference,
  teachers: Sequence[jax.Array],
  reference: jax.Array,
  label: jax.Array,
  target: jax.Array | None,
  key: jax.Array,
  axis_name: str | None = None,
) -> WeightingInputs:
  """Probabilities that weightings depend on; XLA drops those that the chosen one does not read.

  Args:
    settings: of the stage.
    teachers: the logits of each, [b, k]; of several the means of TCP and of probabilities count. Without any, the
      reference's are put in their place: no weighting that is allowed then reads them.
    reference: its logits, [b, k].
    label: [b].
    target: [b, k], of mixed images, or None.
    key: the step's, the same on all devices.
    axis_name: the axis over which the batch is split.
  """
  temperature = settings.tcp_temperature

  def tcp(logits):
    return true_class_probability(logits, label, target=target, temperature=temperature)

  def mean_over_teachers(function):
    return jnp.mean(jnp.stack([function(logits) for logits in teachers or (reference,)]), axis=0)

  return WeightingInputs(
    teacher_tcp=mean_over_teachers(tcp),
    reference_tcp=tcp(reference),
    teacher=mean_over_teachers(lambda logits: jax.nn.softmax(logits / temperature)),
    reference=jax.nn.softmax(reference / temperature),
    key=key,
    axis_name=axis_name,
  )


def sample_weights(
  inputs: WeightingInputs, *, weighting: str = "reference_tcp", normalize: bool = False
) -> jax.Array:
  """Weight of each example in the reference term.

  Args:
    inputs: of the batch.
    weighting: a name of `WEIGHTINGS`.
    normalize: divide by the mean over the batch, so that it is 1. A batch of zero weights stays zero.

  Returns:
    [b].
  """
  weights = WEIGHTINGS[weighting](inputs)
  if not normalize:
    return weights
  return weights / jnp.maximum(pmean(jnp.mean(weights), inputs.axis_name), jnp.finfo(weights.dtype).tiny)


def init_params(settings: Reference | None) -> dict[str, jax.Array]:
  """Parameters of the weighting: none, but for the learned one, which starts at weight 1."""
  if settings is None or settings.weighting != LEARNED:
    return {}
  return {"a": jnp.zeros(()), "b": jnp.zeros(())}


def weighted_reference_loss(
  settings: Reference,
  params: Mapping[str, jax.Array],
  student: jax.Array,
  reference: jax.Array,
  inputs: WeightingInputs,
) -> tuple[jax.Array, jax.Array]:
  """The reference term before lambda_r and its weights, each [b].

  Args:
    settings: of the stage.
    params: of `init_params`, as they are now.
    student: logits, [b, k].
    reference: logits, [b, k].
    inputs: of the batch.
  """
  if settings.weighting == LEARNED:
    log_scale = params["a"] + params["b"] * inputs.teacher_tcp
    weights = jnp.exp(-log_scale)
  else:
    log_scale = jnp.zeros(())
    weights = sample_weights(inputs, weighting=settings.weighting, normalize=settings.normalize)
  values = weighted_divergence(
    student,
    reference,
    weights,
    divergence=settings.divergence,
    temperature=settings.temperature,
    scale_by_temperature_squared=settings.scale_by_temperature_squared,
  )
  return values + log_scale, weights


def weighted_divergence(
  student_logits: jax.Array,
  reference_logits: jax.Array,
  weights: jax.Array,
  *,
  divergence: str = STUDENT_TO_REFERENCE,
  temperature: float = 1.0,
  scale_by_temperature_squared: bool = False,
) -> jax.Array:
  """Weighted divergence between the softened probabilities of student and reference, per example (Eq. 8 and 9).

  Args:
    student_logits: [b, k].
    reference_logits: [b, k].
    weights: [b].
    divergence: one of `DIVERGENCES`; the network that is named first is the first argument of KL.
    temperature: tau.
    scale_by_temperature_squared: multiply by tau^2. The paper's Eq. 8 does not.

  Returns:
    [b], in nats.
  """
  chex.assert_rank([student_logits, reference_logits, weights], [2, 2, 1])
  chex.assert_equal_shape([student_logits, reference_logits])
  if divergence not in DIVERGENCES:
    raise ValueError(f"divergence: {divergence!r} is not one of {', '.join(DIVERGENCES)}")
  log_student, log_reference = (
    jax.nn.log_softmax(numerics.upcast(logits) / temperature) for logits in (student_logits, reference_logits)
  )
  pair = (log_student, log_reference)
  values = numerics.kl_divergence(*(pair if divergence == STUDENT_TO_REFERENCE else reversed(pair)))
  return weights * (temperature**2 * values if scale_by_temperature_squared else values)


def copy_variables(variables: Any) -> Any:
  """Copy of a network's variables. A step donates its state: without the copy, the reference would go with it."""
  return jax.tree.map(jnp.copy, variables)
