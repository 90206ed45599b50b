"""What SMSKD adds to KD: a frozen copy of the student of an earlier stage anchors what was learned.

Tian, Huang, Tang, Yao, "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657

  L_stage = L_distill + lambda_c L_CE
            + lambda_r mean_i w_i tau^2 KL(softmax(z_reference,i / tau) || softmax(z_student,i / tau))
  w_i = 1 - TCP_i,   TCP_i = softmax(z_teacher,i)[y_i]

The form of the last term and of its weight is our reading: the paper says that the reference loss is weighted per
sample by the teacher's true-class probability, and third parties report that confident samples get less. Where the
teacher is sure, the student is free to move; where it is not, it keeps what it had.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from smskd_jax.losses import kd
from smskd_jax.losses.method import mean
from smskd_jax.training.weighting import WEIGHTINGS, Evidence


class Reference(NamedTuple):
  """How a stage is anchored."""

  weight: float = 1.0  # lambda_r
  temperature: float = 4.0  # tau
  weighting: str = "one_minus_tcp"  # a name of training/weighting.py
  tcp_temperature: float = 1.0
  normalize: bool = False  # divide the weights by their mean over the global batch


def true_class_probability(
  logits: jax.Array, label: jax.Array, *, target: jax.Array | None = None, temperature: float = 1.0
) -> jax.Array:
  """The probability that logits give to what is right.

  That is the label. Of a mixed image it is the mean over its classes, by their shares; of an image without a label, the
  probability of the class that the logits put first. Both are our reading: the paper knows neither.

  Corbiere et al., "Addressing Failure Prediction by Learning Model Confidence", NeurIPS 2019,
  https://arxiv.org/abs/1910.04851

  Args:
    logits: [b, k].
    label: [b], int; -1 where there is none.
    target: [b, k], the shares of the classes in mixed images, or None.
    temperature: of the softmax.

  Returns:
    [b], in [0, 1].
  """
  chex.assert_rank([logits, label], [2, 1])
  probabilities = jax.nn.softmax(logits / temperature)
  if target is not None:
    return jnp.sum(target * probabilities, axis=-1)
  right = jnp.where(label < 0, jnp.argmax(logits, axis=-1), label)
  return jnp.take_along_axis(probabilities, right[:, None], axis=-1)[:, 0]


def gather_evidence(
  settings: Reference,
  teachers: Sequence[jax.Array],
  reference: jax.Array,
  label: jax.Array,
  target: jax.Array | None,
  key: jax.Array,
  axis_name: str | None = None,
) -> Evidence:
  """What weights may depend on; XLA drops what the weighting does not read.

  Args:
    settings: of the stage.
    teachers: the logits of each, [b, k]; of several the means of TCP and of probabilities count. Without any, the
      reference stands in: no weighting that is allowed then reads it.
    reference: its logits, [b, k].
    label: [b].
    target: [b, k], of mixed images, or None.
    key: the step's, the same on all devices.
    axis_name: the axis over which the batch is split.
  """
  temperature = settings.tcp_temperature
  tcp = lambda logits: true_class_probability(logits, label, target=target, temperature=temperature)
  of_each = teachers or (reference,)
  mean_of = lambda values: jnp.mean(jnp.stack(values), axis=0)
  return Evidence(
    tcp=mean_of([tcp(logits) for logits in of_each]),
    own_tcp=tcp(reference),
    teacher=mean_of([jax.nn.softmax(logits / temperature) for logits in of_each]),
    reference=jax.nn.softmax(reference / temperature),
    key=key,
    axis_name=axis_name,
  )


def sample_weights(
  evidence: Evidence, *, weighting: str = "one_minus_tcp", normalize: bool = False
) -> jax.Array:
  """The weight of each example in the reference term.

  Args:
    evidence: of the batch.
    weighting: a name of `WEIGHTINGS`.
    normalize: divide by the mean over the batch, so that it is 1. A batch of zero weights stays zero.

  Returns:
    [b].
  """
  weights = WEIGHTINGS[weighting](evidence)
  if not normalize:
    return weights
  return weights / jnp.maximum(mean(jnp.mean(weights), evidence.axis_name), jnp.finfo(weights.dtype).tiny)


def init_params(settings: Reference | None) -> dict[str, jax.Array]:
  """What the weighting learns: nothing, but for `learned`, which starts at weight 1."""
  if settings is None or settings.weighting != "learned":
    return {}
  return {"a": jnp.zeros(()), "b": jnp.zeros(())}


def term(
  settings: Reference,
  params: Mapping[str, jax.Array],
  student: jax.Array,
  reference: jax.Array,
  evidence: Evidence,
) -> tuple[jax.Array, jax.Array]:
  """The reference term and its weights, each [b].

  Args:
    settings: of the stage.
    params: of `init_params`, as they are now.
    student: logits, [b, k].
    reference: logits, [b, k].
    evidence: of the batch.
  """
  if settings.weighting != "learned":
    weights = sample_weights(evidence, weighting=settings.weighting, normalize=settings.normalize)
    return loss(student, reference, weights, temperature=settings.temperature), weights
  log_scale = params["a"] + params["b"] * evidence.tcp
  weights = jnp.exp(-log_scale)
  return loss(student, reference, weights, temperature=settings.temperature) + log_scale, weights


def loss(
  student_logits: jax.Array, reference_logits: jax.Array, weights: jax.Array, *, temperature: float = 4.0
) -> jax.Array:
  """The weighted divergence of the student from its reference, per example.

  Args:
    student_logits: [b, k].
    reference_logits: [b, k].
    weights: [b].
    temperature: tau.

  Returns:
    [b], in nats.
  """
  chex.assert_rank(weights, 1)
  return weights * kd.loss(student_logits, reference_logits, temperature=temperature)


def snapshot(variables: Any) -> Any:
  """A copy of a network's variables. A step donates its state: without the copy, the reference would go with it."""
  return jax.tree.map(jnp.copy, variables)
