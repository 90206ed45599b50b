"""Deep mutual learning: networks that train together match each other's probabilities.

Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, https://arxiv.org/abs/1706.00384

  L_i = sum_m 1/(M - 1) sum_{n != m} T^2 KL(sg p_n,i || p_m,i)

p_m is the softmax of the logits, divided by T, of member m of a cohort of M, and sg stops the gradient: each member
learns from the others, none learns to be easy to match. With the cross-entropy of every member, which the stage adds,
weight 1 and T = 1 it is the sum of the members' objectives in the paper.

Differences: the paper updates the members in turns, each after the updates of the members before, and its code
draws a new batch for each; here all are updated at once, by the same batch and one optimiser. For M > 2 that code sums
over the others; the paper and this module average. The temperature is an addition.
"""

from collections.abc import Sequence
import itertools

import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, kd


def loss(logits: Sequence[jax.Array], *, temperature: float = 1.0) -> jax.Array:
  """Sum over the members of a cohort of the mean divergence from the others, per example.

  Args:
    logits: of each of at least two members, [b, k].
    temperature: T > 0.

  Returns:
    [b], in nats times T^2; zero where all members agree.
  """
  pairs = itertools.permutations(logits, 2)
  terms = [kd.loss(own, jax.lax.stop_gradient(other), temperature=temperature) for own, other in pairs]
  return jnp.sum(jnp.stack(terms), axis=0) / (len(logits) - 1)


def method(*, temperature: float = 1.0) -> contract.Method:
  """DML of the members of the student, a network `cohort`; teachers are not read."""
  errors.check_positive("dml", temperature=temperature)

  def check(student, teachers):
    del teachers
    if not student.peer_outputs:
      raise ValueError("dml: the student has no peers; make it network('cohort', first=..., peer=...)")
    classes = [member.logits.shape[-1] for member in (student, *student.peer_outputs)]
    if len(set(classes)) > 1:
      raise ValueError(f"dml: the members of the cohort must have the same classes, got {classes}")

  def loss_fn(student, teachers, context):
    del teachers, context
    return loss([member.logits for member in (student, *student.peer_outputs)], temperature=temperature)

  return contract.stateless(loss_fn, check, reads=(), student_reads=("logits", "peer_outputs"))
