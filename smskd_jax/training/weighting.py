"""What scales the reference term, image by image. Pure.

The paper weights it by the teacher's true-class probability (TCP) and names other weightings as future work. Those here
are of what the networks say of an image; each is in [0, 1] but for `learned`. How they are to be read: a large weight
keeps the student where its reference is.

constant            1
one_minus_tcp       1 - TCP: our reading of the paper, less where the teacher is sure of the right class
tcp                 TCP: the opposite reading
shuffled            1 - TCP of another image of the batch: as many large and small weights, but on the wrong images
entropy             the teacher's entropy over log k
one_minus_margin    1 - (its largest probability - its second)
own_tcp             the reference's TCP: more where it was right
one_minus_own_tcp   less where it was right
disagreement        the total variation between teacher and reference
agreement           1 - that
learned             exp(-s_i), s_i = a + b TCP_i, a and b learned, and s_i added to the loss: without it the weights
                    would fall to zero. As Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh
                    Losses for Scene Geometry and Semantics", CVPR 2018, https://arxiv.org/abs/1705.07115, do for tasks.

b batch, k classes.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.losses.method import first_row, gather


class Evidence(NamedTuple):
  """What a weight may depend on."""

  tcp: jax.Array  # [b], the mean over teachers
  own_tcp: jax.Array  # [b], the reference's
  teacher: jax.Array  # [b, k], the mean of the teachers' probabilities
  reference: jax.Array  # [b, k], the reference's
  key: jax.Array  # the same on all devices
  axis_name: str | None = None


def _entropy(evidence: Evidence) -> jax.Array:
  p = evidence.teacher
  return -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny)), axis=-1) / jnp.log(p.shape[-1])


def _margin(evidence: Evidence) -> jax.Array:
  two, _ = jax.lax.top_k(evidence.teacher, 2)
  return two[:, 0] - two[:, 1]


def _disagreement(evidence: Evidence) -> jax.Array:
  return jnp.sum(jnp.abs(evidence.teacher - evidence.reference), axis=-1) / 2


def _shuffled(evidence: Evidence) -> jax.Array:
  everyone = gather(evidence.tcp, evidence.axis_name)
  order = jax.random.permutation(evidence.key, len(everyone))
  b = len(evidence.tcp)
  mine = jax.lax.dynamic_slice_in_dim(order, first_row(b, evidence.axis_name), b)
  return 1 - everyone[mine]


WEIGHTINGS: Mapping[str, Callable[[Evidence], jax.Array]] = MappingProxyType(
  {
    "constant": lambda evidence: jnp.ones_like(evidence.tcp),
    "one_minus_tcp": lambda evidence: 1 - evidence.tcp,
    "tcp": lambda evidence: evidence.tcp,
    "shuffled": _shuffled,
    "entropy": _entropy,
    "one_minus_margin": lambda evidence: 1 - _margin(evidence),
    "own_tcp": lambda evidence: evidence.own_tcp,
    "one_minus_own_tcp": lambda evidence: 1 - evidence.own_tcp,
    "disagreement": _disagreement,
    "agreement": lambda evidence: 1 - _disagreement(evidence),
    # Its parameters are the stage's: see `training/reference.py`.
    "learned": lambda evidence: jnp.ones_like(evidence.tcp),
  }
)
# Those that need no teacher.
WITHOUT_TEACHER = frozenset({"constant", "own_tcp", "one_minus_own_tcp"})
