"""Reference term of SMSKD: weighted divergence from a frozen copy of an earlier student.

Tian, Huang, Tang, Yao, "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657

  stage 1       L = L_distill + lambda_c L_CE                                                        (Eq. 6)
  stage m > 1   L = L_distill + lambda_c L_CE + lambda_r mean_i w_i KL(p_student,i || p_reference,i)    (Eq. 7, 8)
  w_i = TCP_i = p_reference,i[y_i]                                                                    (Eq. 9)

The weight is large where the reference is confident and right, so that the reference does not pass on its errors. The
paper's abstract speaks of the teacher's true-class probability (TCP), its section 3.2 and Eq. 9 of the reference's,
which is the default here (`teacher_tcp` is the other). The paper leaves open, and options choose: the temperatures of
the term and of TCP (default 1; the paper calls 1 usual, and fixes "the distillation temperature" at 4), mixed images
and images without a label (see `true_class_probability`), and the optimizer's state at a change of stage (default: a
new state).

Weightings, by name. The paper names others than its own as future work; all but the learned one are in [0, 1].

constant                            1
reference_tcp                       the reference's TCP, Eq. 9
one_minus_reference_tcp             1 - the reference's TCP
shuffled_reference_tcp              the reference's TCP of another image of the batch: the same weights, on wrong images
teacher_tcp                         the teacher's TCP, as in the paper's abstract
one_minus_teacher_tcp               1 - the teacher's TCP: the default of versions before 0.2
shuffled_one_minus_teacher_tcp      1 - the teacher's TCP of another image of the batch
teacher_entropy                     the teacher's entropy / log k
one_minus_teacher_margin            1 - (the teacher's largest probability - its second largest)
teacher_reference_disagreement      total variation between teacher and reference
teacher_reference_agreement         1 - total variation between teacher and reference
learned_teacher_tcp                 exp(-s_i), s_i = a + b TCP_i of the teacher, with a and b learned, and s_i added to
                                    the loss, because the weights would fall to zero otherwise. Kendall, Gal, Cipolla,
                                    "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
                                    Semantics", CVPR 2018, https://arxiv.org/abs/1705.07115, do so for tasks.

b batch, k classes.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from smskd_jax.losses import numerics
from smskd_jax.losses.contract import gather, local_offset, pmean
from smskd_jax.training.targets import Targets

STUDENT_TO_REFERENCE, REFERENCE_TO_STUDENT = "student_to_reference", "reference_to_student"
DIVERGENCES = (STUDENT_TO_REFERENCE, REFERENCE_TO_STUDENT)
LEARNED = "learned_teacher_tcp"
NUM_WEIGHT_BINS = 10  # of the reported histogram of weights over [0, 1]; greater weights are in the last bin


class Reference(NamedTuple):
  """Options of the reference term. The defaults are the paper's."""

  weight: float = 0.5  # lambda_r
  divergence: str = STUDENT_TO_REFERENCE  # KL(student || reference), or KL(reference || student)
  temperature: float = 1.0  # tau, of both networks in the divergence
  scale_by_temperature_squared: bool = False  # multiply the divergence by tau^2, as KD does
  weighting: str = "reference_tcp"  # a name of `WEIGHTINGS`
  tcp_temperature: float = 1.0  # of the softmax in the weights
  normalize: bool = False  # divide the weights by their mean over the global batch


class WeightingInputs(NamedTuple):
  """Probabilities from which a weighting computes its weights."""

  teacher_tcp: jax.Array  # [b], mean over teachers
  reference_tcp: jax.Array  # [b]
  teacher_probs: jax.Array  # [b, k], mean over teachers
  reference_probs: jax.Array  # [b, k]
  key: jax.Array  # the same on all devices
  axis_name: str | None = None


def conflicting_option(config: Reference) -> str | None:
  """The first option that another option makes meaningless, as 'NAME: reason', or None."""
  if config.scale_by_temperature_squared and config.temperature == 1:
    return "scale_by_temperature_squared: True, but temperature is 1, whose square changes nothing; use False"
  if config.weighting == "constant" and config.tcp_temperature != 1:
    return (
      f"tcp_temperature: {config.tcp_temperature}, but weighting 'constant' reads no probability; use 1.0"
    )
  if config.normalize and config.weighting in ("constant", LEARNED):
    return f"normalize: True, but weighting {config.weighting!r} has no mean to divide by; use False"
  return None


def init_params(config: Reference | None) -> dict[str, jax.Array]:
  """Parameters of the learned weighting, a = b = 0, a weight of 1; none of the others."""
  if config is None or config.weighting != LEARNED:
    return {}
  return {"a": jnp.zeros(()), "b": jnp.zeros(())}


def copy_variables(variables: Any) -> Any:
  """Copy of a network's variables, because the training step donates their buffers."""
  return jax.tree.map(jnp.copy, variables)


def loss_and_statistics(
  config: Reference,
  params: Mapping[str, jax.Array],
  student_logits: jax.Array,
  reference_logits: jax.Array,
  label: jax.Array,
  inputs: WeightingInputs,
) -> dict[str, jax.Array]:
  """Mean of the reference loss before lambda_r, and statistics of its weights.

  Args:
    config: options of the term.
    params: parameters of the weighting, as of `init_params`.
    student_logits: [b, k].
    reference_logits: [b, k].
    label: [b], int.
    inputs: of `weighting_inputs`.

  Returns:
    Scalars by name: 'reference', the loss; the means of 'reference_tcp', 'reference_weight' and
    'reference_weight_if_correct' (with zero where the student is wrong); and for weights that differ between images
    'reference_weight_fraction/I', the fraction of weights in the I-th tenth of [0, 1].
  """
  values, weights = weighted_reference_loss(config, params, student_logits, reference_logits, inputs)
  weights = jax.lax.stop_gradient(weights)
  correct = jnp.argmax(student_logits, axis=-1) == label
  metrics = {
    "reference": jnp.mean(values),
    "reference_tcp": jnp.mean(inputs.reference_tcp),
    "reference_weight": jnp.mean(weights),
    "reference_weight_if_correct": jnp.mean(jnp.where(correct, weights, 0)),
  }
  if config.weighting != "constant":
    bins = jnp.clip(jnp.floor(weights * NUM_WEIGHT_BINS), 0, NUM_WEIGHT_BINS - 1)
    for i in range(NUM_WEIGHT_BINS):
      metrics[f"reference_weight_fraction/{i}"] = jnp.mean(bins == i, dtype=weights.dtype)
  return metrics


def weighted_reference_loss(
  config: Reference,
  params: Mapping[str, jax.Array],
  student_logits: jax.Array,
  reference_logits: jax.Array,
  inputs: WeightingInputs,
) -> tuple[jax.Array, jax.Array]:
  """Reference loss before lambda_r, and its weights, each [b].

  Args:
    config: options of the term.
    params: parameters of the weighting, as of `init_params`.
    student_logits: [b, k].
    reference_logits: [b, k].
    inputs: of `weighting_inputs`.
  """
  if config.weighting == LEARNED:
    log_scale = params["a"] + params["b"] * inputs.teacher_tcp
    weights = jnp.exp(-log_scale)
  else:
    log_scale = jnp.zeros(())
    weights = sample_weights(inputs, weighting=config.weighting, normalize=config.normalize)
  values = weighted_divergence(
    student_logits,
    reference_logits,
    weights,
    divergence=config.divergence,
    temperature=config.temperature,
    scale_by_temperature_squared=config.scale_by_temperature_squared,
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
  """Weighted divergence between student and reference, per example (Eq. 8 and 9).

  Args:
    student_logits: [b, k].
    reference_logits: [b, k].
    weights: [b].
    divergence: one of `DIVERGENCES`; the first-named network is the first argument of KL.
    temperature: tau.
    scale_by_temperature_squared: multiply by tau^2. The paper's Eq. 8 does not.

  Returns:
    [b], in nats.

  Raises:
    ValueError: an unknown divergence.
  """
  chex.assert_rank([student_logits, reference_logits, weights], [2, 2, 1])
  chex.assert_equal_shape([student_logits, reference_logits])
  if divergence not in DIVERGENCES:
    raise ValueError(f"divergence: {divergence!r} is not one of {', '.join(DIVERGENCES)}")
  log_student, log_reference = (
    jax.nn.log_softmax(numerics.upcast(logits) / temperature) for logits in (student_logits, reference_logits)
  )
  if divergence == STUDENT_TO_REFERENCE:
    values = numerics.kl_divergence(log_student, log_reference)
  else:
    values = numerics.kl_divergence(log_reference, log_student)
  return weights * (temperature**2 * values if scale_by_temperature_squared else values)


def weighting_inputs(
  config: Reference,
  teachers: Sequence[jax.Array],
  reference: jax.Array,
  targets: Targets,
  key: jax.Array,
  axis_name: str | None = None,
) -> WeightingInputs:
  """Probabilities from which weightings compute weights; XLA drops unused ones.

  Args:
    config: options of the term.
    teachers: logits of each teacher, [b, k]. Without teachers the reference's logits take their place; the weightings
      that validation then allows, `TEACHER_FREE`, do not read them.
    reference: logits of the reference, [b, k].
    targets: of the batch.
    key: the same on all devices.
    axis_name: axis of devices over which the batch is split.
  """
  temperature = config.tcp_temperature

  def tcp(logits: jax.Array) -> jax.Array:
    return true_class_probability(
      logits, targets.label, soft_label=targets.soft_label, temperature=temperature
    )

  def probs(logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits / temperature)

  def mean_over_teachers(function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return jnp.mean(jnp.stack([function(logits) for logits in teachers or (reference,)]), axis=0)

  return WeightingInputs(
    teacher_tcp=mean_over_teachers(tcp),
    reference_tcp=tcp(reference),
    teacher_probs=mean_over_teachers(probs),
    reference_probs=probs(reference),
    key=key,
    axis_name=axis_name,
  )


def true_class_probability(
  logits: jax.Array, label: jax.Array, *, soft_label: jax.Array | None = None, temperature: float = 1.0
) -> jax.Array:
  """Probability of the true class (TCP).

  Corbiere et al., "Addressing Failure Prediction by Learning Model Confidence", NeurIPS 2019,
  https://arxiv.org/abs/1910.04851

  Differences, for cases that the SMSKD paper does not treat: of a mixed image TCP is the mean over its classes,
  weighted by their fractions; of an image without a label, the largest probability.

  Args:
    logits: [b, k].
    label: [b], int; -1 for an image without a label.
    soft_label: [b, k], the fractions of the classes in mixed images, or None.
    temperature: of the softmax.

  Returns:
    [b], in [0, 1].
  """
  chex.assert_rank([logits, label], [2, 1])
  probabilities = jax.nn.softmax(logits / temperature)
  if soft_label is not None:
    return jnp.sum(soft_label * probabilities, axis=-1)
  true_class = jnp.where(label < 0, jnp.argmax(logits, axis=-1), label)
  return jnp.take_along_axis(probabilities, true_class[:, None], axis=-1)[:, 0]


def sample_weights(
  inputs: WeightingInputs, *, weighting: str = "reference_tcp", normalize: bool = False
) -> jax.Array:
  """Weights of the examples in the reference term, [b].

  Args:
    inputs: of `weighting_inputs`.
    weighting: a name of `WEIGHTINGS`.
    normalize: divide by the mean over the global batch. Weights that are all zero stay zero.
  """
  weights = WEIGHTINGS[weighting](inputs)
  if not normalize:
    return weights
  return weights / jnp.maximum(pmean(jnp.mean(weights), inputs.axis_name), jnp.finfo(weights.dtype).tiny)


def _teacher_entropy(inputs: WeightingInputs) -> jax.Array:
  p = inputs.teacher_probs
  return -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny)), axis=-1) / jnp.log(p.shape[-1])


def _teacher_margin(inputs: WeightingInputs) -> jax.Array:
  top_two, _ = jax.lax.top_k(inputs.teacher_probs, 2)
  return top_two[:, 0] - top_two[:, 1]


def _disagreement(inputs: WeightingInputs) -> jax.Array:
  return jnp.sum(jnp.abs(inputs.teacher_probs - inputs.reference_probs), axis=-1) / 2


def _shuffle(values: jax.Array, inputs: WeightingInputs) -> jax.Array:
  """Values [b] in a random order of the global batch, for any number of devices."""
  global_values = gather(values, inputs.axis_name)
  order = jax.random.permutation(inputs.key, len(global_values))
  b = len(values)
  return global_values[jax.lax.dynamic_slice_in_dim(order, local_offset(b, inputs.axis_name), b)]


WEIGHTINGS: Mapping[str, Callable[[WeightingInputs], jax.Array]] = MappingProxyType(
  {
    "constant": lambda inputs: jnp.ones_like(inputs.reference_tcp),
    "reference_tcp": lambda inputs: inputs.reference_tcp,
    "one_minus_reference_tcp": lambda inputs: 1 - inputs.reference_tcp,
    "shuffled_reference_tcp": lambda inputs: _shuffle(inputs.reference_tcp, inputs),
    "teacher_tcp": lambda inputs: inputs.teacher_tcp,
    "one_minus_teacher_tcp": lambda inputs: 1 - inputs.teacher_tcp,
    "shuffled_one_minus_teacher_tcp": lambda inputs: _shuffle(1 - inputs.teacher_tcp, inputs),
    "teacher_entropy": _teacher_entropy,
    "one_minus_teacher_margin": lambda inputs: 1 - _teacher_margin(inputs),
    "teacher_reference_disagreement": _disagreement,
    "teacher_reference_agreement": lambda inputs: 1 - _disagreement(inputs),
    LEARNED: lambda inputs: jnp.ones_like(inputs.teacher_tcp),
  }
)
# Weightings that read no teacher.
TEACHER_FREE = frozenset({"constant", "reference_tcp", "one_minus_reference_tcp", "shuffled_reference_tcp"})
