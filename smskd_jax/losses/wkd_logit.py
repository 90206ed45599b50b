"""WKD-L: Wasserstein distance of the softened predictions, with costs between classes.

Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024,
https://arxiv.org/abs/2412.08139

  L_i = -p_t[y] log p_s[y] + gamma W_i,    p_s and p_t at T = 1
  W_i = sum_kl P_kl C_kl,    P = diag(u) exp(-C / r) diag(v)
  v = q_t / (exp(-C / r)' u + 1e-8),  u = q_s / (exp(-C / r) v + 1e-8),    repeated, from u = 1 / (K - 1)
  C_kl = 1 - exp(-sharpen (1 - similarity_kl))

y is the label, K the number of classes; q_s and q_t are the softmax at T over the classes other than y. P moves the
student's probabilities to the teacher's; the gradient is that of all repetitions of Sinkhorn's algorithm.

`cost` names the similarity of two classes. "cka" is the paper's: linear CKA of the teacher's embeddings of both
classes, where the n-th training image of a class is paired with the n-th image of the other; classes have as many
images as the smallest one. It is computed once, before the first step. "cka_logits" takes logits in place of
embeddings, as the authors' code does for ImageNet. "classifier" is the cosine of the rows of the teacher's
classifier, as the code's alternative, and needs no training images. `cost_matrix` gives C itself.

The authors' code lets gamma fall to zero by half a cosine, from epoch 150 of 240 on CIFAR-100 and during all 100
epochs on ImageNet; `decay_start_epoch` and `decay_end_epoch` do so, and by default there is no decay. Defaults are
the code's for resnet32x4 -> resnet8x4.

Differences: the code for CIFAR-100 has another CKA than the paper, of all positions of the last maps in place of
embeddings; its results are not exactly those of "cka". The order of images within a class is that of the training
set, where the code shuffles ImageNet. A class without training images is equally far from all others, and the cost
from a class to itself is exactly 0, which the code leaves to rounding. Both networks' probability of the label's
class are zero in the transport, in place of a matrix of its own without the label for each example: the same, with a
matrix less for each example.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax import errors
from smskd_jax.losses import contract, numerics
from smskd_jax.losses.reduction import Reduction
from smskd_jax.types import MethodVariables, Outputs

COSTS = ("cka", "cka_logits", "classifier")
_EPS = 1e-8  # the code's, in both divisions and in the cost
_CHUNK = 16  # rows of the kernels that `class_cka` has in memory at once


def class_cka(class_outputs: jax.Array) -> jax.Array:
  """Linear CKA of each pair of classes, from outputs for equally many images of each class.

  Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019.

  Args:
    class_outputs: [k, m, d]; the i-th images of two classes are paired.

  Returns:
    [k, k], from 0 to 1; 0 for a class whose outputs are all equal, and 1 on the diagonal.
  """
  chex.assert_rank(class_outputs, 3)
  x = numerics.upcast(class_outputs)
  x = numerics.normalize_scale(x - x[:, :1])  # exactly zero where all outputs are equal
  x = numerics.normalize_scale(x - jnp.mean(x, axis=1, keepdims=True))
  k, m, d = x.shape
  x = jnp.pad(x, ((0, 0), (0, -m % _CHUNK), (0, 0)))  # zeros add nothing
  rows = jnp.moveaxis(x.reshape(k, -1, _CHUNK, d), 1, 0)

  def add_rows(products, chunk):
    kernels = jnp.einsum("kcd,kmd->kcm", chunk, x, precision="highest").reshape(k, -1)
    return products + jnp.matmul(kernels, kernels.T, precision="highest"), None

  products, _ = jax.lax.scan(add_rows, jnp.zeros((k, k), x.dtype), rows)
  norms = jnp.sqrt(jnp.diagonal(products))
  similarity = numerics.safe_divide(products, norms[:, None] * norms[None, :])
  return jnp.where(jnp.eye(k, dtype=bool), 1.0, similarity)


def classifier_cosine(kernel: jax.Array) -> jax.Array:
  """Cosine of each pair of classes' weights: [k, k] of a kernel [d, k]."""
  chex.assert_rank(kernel, 2)
  columns = numerics.normalize_scale(numerics.upcast(kernel).T)
  unit = numerics.safe_divide(columns, numerics.safe_norm(columns)[:, None])
  cosine = jnp.matmul(unit, unit.T, precision="highest")
  return jnp.where(jnp.eye(len(unit), dtype=bool), 1.0, cosine)


def class_cost(similarity: jax.Array, *, sharpen: float = 1.0) -> jax.Array:
  """C = 1 - exp(-sharpen (1 - similarity)), [k, k]."""
  return 1.0 - jnp.exp(-sharpen * (1.0 - similarity))


def sinkhorn_distance(
  source: jax.Array,
  target: jax.Array,
  cost: jax.Array,
  support: jax.Array,
  *,
  regularization: float = 0.05,
  iterations: int = 10,
) -> jax.Array:
  """Cost of the regularized transport between two distributions of each example.

  Args:
    source: [b, k], rows sum to 1.
    target: [b, k], rows sum to 1.
    cost: [k, k], from classes of `source` to classes of `target`; negative costs count as zero.
    support: [b, k], 1 for the classes that take part; the others have probability 0 in both distributions.
    regularization: r > 0; the smaller, the nearer to the exact distance.
    iterations: number of repetitions.

  Returns:
    [b].
  """
  chex.assert_rank([source, target, support, cost], 2)
  chex.assert_equal_shape([source, target, support])
  cost = jnp.maximum(cost, 0.0) + _EPS
  kernel = jnp.exp(-cost / regularization)
  u = numerics.safe_divide(support, jnp.sum(support, axis=-1, keepdims=True))

  def product(x, matrix):
    return jnp.matmul(x, matrix, precision="highest")

  for _ in range(iterations):
    v = target / (product(u, kernel) + _EPS)
    u = source / (product(v, kernel.T) + _EPS)
  return jnp.sum(u * product(v, (kernel * cost).T), axis=-1)


def wkd_transport(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  cost: jax.Array,
  labels: jax.Array | None = None,
  *,
  temperature: float = 8.0,
  regularization: float = 0.05,
  iterations: int = 10,
) -> jax.Array:
  """Wasserstein distance between softened predictions, of all classes or all but the label.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    cost: [k, k], from the student's classes to the teacher's.
    labels: [b]; None for all classes.
    temperature: T > 0.
    regularization: as of `sinkhorn_distance`.
    iterations: as of `sinkhorn_distance`.

  Returns:
    [b].
  """
  chex.assert_rank([student_logits, teacher_logits, cost], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_shape(cost, (student_logits.shape[-1],) * 2)
  student, teacher = (
    numerics.upcast(student_logits) / temperature,
    numerics.upcast(teacher_logits) / temperature,
  )
  mask = jnp.ones(student.shape, bool)
  if labels is not None:
    chex.assert_shape(labels, (len(student),))
    mask = ~numerics.class_mask(labels[:, None], student.shape[-1])
  support = mask.astype(student.dtype)
  return sinkhorn_distance(
    support * jnp.exp(numerics.log_softmax_within(student, mask)),
    support * jnp.exp(numerics.log_softmax_within(teacher, mask)),
    numerics.upcast(cost),
    support,
    regularization=regularization,
    iterations=iterations,
  )


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  cost: jax.Array,
  *,
  gamma: jax.Array | float = 600.0,
  temperature: float = 8.0,
  regularization: float = 0.05,
  iterations: int = 10,
) -> jax.Array:
  """The label's part at T = 1, and gamma times the transport among the other classes.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    labels: [b].
    cost: [k, k].
    gamma: weight of the transport, [].
    temperature: of the transport.
    regularization: as of `sinkhorn_distance`.
    iterations: as of `sinkhorn_distance`.

  Returns:
    [b].
  """
  transport = wkd_transport(
    student_logits,
    teacher_logits,
    cost,
    labels,
    temperature=temperature,
    regularization=regularization,
    iterations=iterations,
  )
  log_s, log_t = (jax.nn.log_softmax(numerics.upcast(z)) for z in (student_logits, teacher_logits))
  by_label = -jnp.exp(numerics.gather_label(log_t, labels)) * numerics.gather_label(log_s, labels)
  return by_label + gamma * transport


def cosine_decay(epoch: jax.Array | float, *, start: float, end: float) -> jax.Array | float:
  """Factor of a weight: 1, then half a cosine to 0, constant within an epoch.

  `end` 0 means no decay.

  Args:
    epoch: [], the epochs so far, with their fraction.
    start: number of the last epoch with factor 1, counted from 1.
    end: number of the epoch with factor 0.
  """
  if not end:
    return 1.0
  fraction = jnp.clip((jnp.floor(jnp.asarray(epoch, float)) + 1.0 - start) / (end - start), 0.0, 1.0)
  return 0.5 * (1.0 + jnp.cos(jnp.pi * fraction))


def check_decay(owner: str, start: float, end: float) -> None:
  """Raises ValueError for epochs between which nothing can decay."""
  errors.check_non_negative(owner, decay_start_epoch=start)
  errors.check_non_negative(owner, decay_end_epoch=end)
  if (start or end) and end <= start:
    raise ValueError(f"{owner}: decay_end_epoch must be above decay_start_epoch = {start}, got {end}")


def class_outputs(output: str) -> Reduction:
  """The reduction that gathers the teacher's outputs by class for `class_cka`: [k, k].

  The accumulator has [k, m, d], for m images of each class: those of the smallest class.

  Args:
    output: "embedding" or "logits".
  """

  def init(teachers, labels):
    teacher = contract.single_teacher("wkd_logit", teachers)
    k, spec = teacher.logits.shape[-1], getattr(teacher, output)
    counts = np.bincount(labels[labels >= 0], minlength=k)
    smallest = counts[counts > 0].min(initial=len(labels))
    if smallest < 2:
      raise ValueError(
        f"wkd_logit: CKA needs two images of each class or more, class {np.argmax(counts == smallest)} has {smallest}; "
        "use cost='classifier'"
      )
    dtype = jnp.promote_types(spec.dtype, jnp.float32)
    return jnp.zeros((k, smallest, spec.shape[-1]), dtype), jnp.zeros(k, jnp.int32)

  def update(accumulator, teachers, labels):
    (teacher,), (rows, counts) = teachers, accumulator
    is_class = jax.nn.one_hot(labels, len(counts), dtype=counts.dtype)
    position = jnp.sum(
      is_class * (counts[None, :] + jnp.cumsum(is_class, axis=0) - 1), axis=-1
    )  # within the class
    target = jnp.where(labels < 0, len(counts), labels)  # no class: dropped
    rows = rows.at[target, position].set(getattr(teacher, output).astype(rows.dtype), mode="drop")
    return rows, counts + jnp.sum(is_class, axis=0)

  def finish(accumulator):
    return class_cka(accumulator[0])

  return Reduction(frozenset({output}), init, update, finish)


def method(
  *,
  gamma: float = 600.0,
  temperature: float = 8.0,
  cost: str = "cka",
  sharpen: float = 1.0,
  cost_matrix: tuple[tuple[float, ...], ...] = (),
  regularization: float = 0.05,
  iterations: int = 10,
  decay_start_epoch: float = 0.0,
  decay_end_epoch: float = 0.0,
) -> contract.Method:
  """WKD-L; the state has the cost of each pair of classes, unless the classifier has it."""
  errors.check_non_negative("wkd_logit", gamma=gamma)
  errors.check_positive("wkd_logit", temperature=temperature)
  errors.check_choice("wkd_logit", COSTS, cost=cost)
  errors.check_positive("wkd_logit", sharpen=sharpen)
  errors.check_positive("wkd_logit", regularization=regularization)
  errors.check_positive_integer("wkd_logit", iterations=iterations)
  check_decay("wkd_logit", decay_start_epoch, decay_end_epoch)
  matrix = _check_matrix(cost_matrix)
  costs = _cost_source(cost, sharpen) if matrix is None else _given_cost(matrix)
  options = {"temperature": temperature, "regularization": regularization, "iterations": iterations}

  def init(key, student, teachers, labels, *statistics):
    del key, labels
    teacher = contract.single_teacher("wkd_logit", teachers)
    contract.check_same_classes("wkd_logit", student, teacher)
    return MethodVariables(state=costs.init(teacher, *statistics))

  def apply(params, state, student, teachers, context):
    del params
    (teacher,) = teachers
    labels, matrix = context.batch.label, costs.matrix(state, teacher)
    weight = gamma * cosine_decay(context.epoch, start=decay_start_epoch, end=decay_end_epoch)
    return loss(student.logits, teacher.logits, labels, matrix, gamma=weight, **options), state

  return contract.make(
    init,
    apply,
    reads={"logits"} | costs.reads,
    student_reads=("logits",),
    needs_labels=True,
    learns=costs.learns,
    statistics=costs.statistics,
  )


class _CostSource(NamedTuple):
  """Origin of the cost of each pair of classes."""

  init: Callable[..., Any]  # (teacher's shapes, *statistics) -> state
  matrix: Callable[[Any, Outputs], jax.Array]  # (state, teacher) -> cost [k, k]
  reads: frozenset[str] = frozenset()  # outputs of the teacher that `matrix` reads
  statistics: Reduction | None = None
  learns: str = "the cost of each pair of classes"


def _cost_source(cost: str, sharpen: float) -> _CostSource:
  """Cost by a name of `COSTS`."""
  if cost == "classifier":

    def check(teacher):
      contract.check_output("wkd_logit", "head", "teacher", teacher)
      return ()

    def by_classifier(state, teacher):
      del state
      return class_cost(classifier_cosine(teacher.head.kernel), sharpen=sharpen)

    return _CostSource(check, by_classifier, reads=frozenset({"head"}), learns="")

  def init(teacher, similarity):
    del teacher
    return class_cost(similarity, sharpen=sharpen)

  output = "logits" if cost == "cka_logits" else "embedding"
  return _CostSource(init, lambda state, teacher: state, statistics=class_outputs(output))


def _given_cost(matrix: np.ndarray) -> _CostSource:
  """Cost of a matrix [k, k]."""

  def init(teacher):
    classes = teacher.logits.shape[-1]
    if len(matrix) != classes:
      raise ValueError(f"wkd_logit: cost_matrix has {len(matrix)} rows, the networks have {classes} classes")
    return jnp.asarray(matrix, jnp.promote_types(teacher.logits.dtype, jnp.float32))

  return _CostSource(init, lambda state, teacher: state)


def _check_matrix(matrix: tuple[tuple[float, ...], ...]) -> np.ndarray | None:
  """The given matrix, [k, k]; None for an empty tuple. Raises ValueError for anything else."""
  if isinstance(matrix, tuple) and not matrix:
    return None
  try:
    array: np.ndarray = np.asarray(matrix, np.float64)
  except (TypeError, ValueError):
    array = np.zeros(0)
  if array.ndim != 2 or array.shape[0] != array.shape[1] or not np.isfinite(array).all():
    text = errors.short_repr(matrix)
    raise ValueError(f"wkd_logit: cost_matrix must be a square matrix of finite numbers, got {text}")
  return array
