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

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from smskd_jax.losses import kd
from smskd_jax.losses.method import mean


class Reference(NamedTuple):
  """How a stage is anchored."""

  weight: float = 1.0  # lambda_r
  temperature: float = 4.0  # tau
  weighting: str = "one_minus_tcp"  # a name of WEIGHTINGS
  tcp_temperature: float = 1.0
  normalize: bool = False  # divide the weights by their mean over the global batch


def true_class_probability(logits: jax.Array, label: jax.Array, *, temperature: float = 1.0) -> jax.Array:
  """The probability that logits give to the label.

  Corbiere et al., "Addressing Failure Prediction by Learning Model Confidence", NeurIPS 2019,
  https://arxiv.org/abs/1910.04851

  Args:
    logits: [b, k].
    label: [b], int.
    temperature: of the softmax.

  Returns:
    [b], in [0, 1].
  """
  chex.assert_rank([logits, label], [2, 1])
  probabilities = jax.nn.softmax(logits / temperature)
  return jnp.take_along_axis(probabilities, label[:, None], axis=-1)[:, 0]


WEIGHTINGS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
  {
    "constant": jnp.ones_like,
    "one_minus_tcp": lambda tcp: 1 - tcp,
    "tcp": lambda tcp: tcp,
  }
)


def sample_weights(
  tcp: jax.Array, *, weighting: str = "one_minus_tcp", normalize: bool = False, axis_name: str | None = None
) -> jax.Array:
  """The weight of each example in the reference term.

  Args:
    tcp: [b], the teacher's true-class probability.
    weighting: a name of `WEIGHTINGS`.
    normalize: divide by the mean over the batch, so that it is 1. A batch of zero weights stays zero.
    axis_name: the axis over which the batch is split.

  Returns:
    [b].
  """
  weights = WEIGHTINGS[weighting](tcp)
  if not normalize:
    return weights
  return weights / jnp.maximum(mean(jnp.mean(weights), axis_name), jnp.finfo(weights.dtype).tiny)


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
