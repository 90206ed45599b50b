"""Logit standardization: the wrapped method reads z-scores of the logits.

Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, https://arxiv.org/abs/2403.01427

  z'_i = (z_i - mean_k z_i) / (std_k z_i + eps),    of the student and of every teacher

A plug-in: the mean and the standard deviation are over the classes of one example, so that the wrapped method compares
the shape of the logits and not their scale. Its temperature then divides z'; the published rows of KD take 2, with a
weight of 9.

Every method that reads logits can be wrapped. All other outputs of a network (its classifier, its peers) are unchanged.
Beside the plug-in ctkd this one has to be the outer one: a temperature that divides the logits before they are
standardised cancels.

Differences: where the logits of an example are all equal, z' is zero with a gradient of zero; the exact slope there
is 1 / eps, and the authors' code has NaN. The default `ddof=1` divides by k - 1 in the variance, as the authors' code
does; 0 divides by k. In that code multi-level logit distillation takes z' in its KL terms alone and the logits in the
others, where this plug-in gives all terms z', so that its published rows are not exactly those of this plug-in.
"""

import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics, reduction
from smskd_jax.types import Outputs


def standardize(logits: jax.Array, *, ddof: int = 1, eps: float = 1e-7) -> jax.Array:
  """Z-scores over the classes, per example.

  Args:
    logits: [b, k], with k > ddof.
    ddof: the variance divides by k - ddof.
    eps: added to the standard deviation; >= 0.

  Returns:
    [b, k], in float32 at least; zeros for an example whose logits are all equal.
  """
  logits = numerics.upcast(logits)
  # The mean of equal numbers is not exactly that number; that of zeros is.
  shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  centered = shifted - jnp.mean(shifted, axis=-1, keepdims=True)
  deviation = numerics.safe_norm(centered)[..., None] / (logits.shape[-1] - ddof) ** 0.5
  is_flat = deviation == 0
  return jnp.where(is_flat, 0.0, centered / jnp.where(is_flat, 1.0, deviation + eps))


def method(wrapped: contract.Method, /, *, ddof: int = 1, eps: float = 1e-7) -> contract.Method:
  """The wrapped method on standardised logits of the student and of all teachers."""
  errors.check_non_negative_integer("logit_standardization", ddof=ddof)
  errors.check_non_negative("logit_standardization", eps=eps)

  def standardized(networks: tuple[Outputs, ...]) -> tuple[Outputs, ...]:
    return contract.transform_logits(lambda logits: standardize(logits, ddof=ddof, eps=eps), networks)

  def init(key, student, teachers, labels, *statistics):
    for network in (student, *teachers):
      classes = network.logits.shape[-1]
      if classes <= ddof:
        raise ValueError(
          f"logit_standardization: the standard deviation of {classes} classes is not defined with ddof={ddof}"
        )
    student, *teachers = jax.eval_shape(standardized, (student, *teachers))
    return wrapped.init(key, student, tuple(teachers), labels, *statistics)

  def apply(params, state, student, teachers, context):
    student, *teachers = standardized((student, *teachers))
    return wrapped.apply(params, state, student, tuple(teachers), context, stop_teacher_gradient=False)

  statistics = wrapped.statistics
  if statistics is not None and "logits" in statistics.reads:
    statistics = reduction.map_teachers(statistics, standardized)
  return contract.wrap(wrapped, init, apply, transforms_logits=True, statistics=statistics)
