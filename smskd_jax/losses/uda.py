"""Unsupervised data augmentation: an augmented image has the plain image's classes.

Xie, Dai, Hovy, Luong, Le, "Unsupervised Data Augmentation for Consistency Training", NeurIPS 2020,
https://arxiv.org/abs/1904.12848

  L_i = [max_c p_ic >= beta] KL(p_i^(1/tau) || q_i),   p = softmax(z_first view), q = softmax(z_other view)

p^(1/tau) is the distribution of z / tau, sharper than p where tau < 1; no gradient flows through it. No teacher is
needed: the method takes any number of them, and reads none. A stage has to make two views or more, the plain one first;
several others are averaged.

The defaults are the paper's for CIFAR-10: beta 0.8 and tau 0.4. The survey "The State of Knowledge Distillation for
Classification" (https://arxiv.org/abs/1912.10850) has a term of this kind in its public code and does not use it: the
divergence the other way round, KL(q_i || p_i), with neither beta nor tau, and with a gradient through both views.

Differences: the paper needs more than beta, where beta itself is enough here. Its signal annealing of the supervised
term is left out, and both terms read the same images here unless the stage has images without labels.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics


def loss(
  plain_logits: jax.Array, augmented_logits: jax.Array, *, temperature: float = 0.4, threshold: float = 0.8
) -> jax.Array:
  """Divergence of the augmented from the plain view; 0 where the plain view is unsure.

  Args:
    plain_logits: [b, k]; no gradient flows through them.
    augmented_logits: [b, k].
    temperature: tau > 0.
    threshold: beta, from 0 to 1.

  Returns:
    [b], in nats; >= 0.
  """
  chex.assert_rank([plain_logits, augmented_logits], 2)
  chex.assert_equal_shape([plain_logits, augmented_logits])
  plain = jax.lax.stop_gradient(numerics.upcast(plain_logits))
  log_q = jax.nn.log_softmax(numerics.upcast(augmented_logits))
  values = numerics.kl_divergence(jax.nn.log_softmax(plain / temperature), log_q)
  return jnp.where(jnp.max(jax.nn.softmax(plain), axis=-1) >= threshold, values, 0.0)


def method(*, temperature: float = 0.4, threshold: float = 0.8) -> contract.Method:
  """Consistency of a stage's other views with its first."""
  errors.check_positive("uda", temperature=temperature)
  errors.check_unit_interval("uda", threshold=threshold)

  def loss_fn(student, teachers, context):
    del teachers, context
    if not student.view_outputs:
      raise ValueError("uda: needs a stage of two views or more, as views=('crop_flip', 'autoaugment')")
    losses = [
      loss(student.logits, other.logits, temperature=temperature, threshold=threshold)
      for other in student.view_outputs
    ]
    return jnp.mean(jnp.stack(losses), axis=0)

  return contract.stateless(loss_fn, reads=(), student_reads=("logits",), multi_view=True, min_views=2)
