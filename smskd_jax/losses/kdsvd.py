"""KD by singular value decomposition: relations of consecutive maps' main directions.

Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018,
https://arxiv.org/abs/1807.06819

  L_i = sum_{l>1} sum_{c,d,j} (R(S_l, S_l-1)[c, d, j] - R(T_l, T_l-1)[c, d, j])^2
  R(X, Y)[c, d, j] = exp(-(X[c, j] - Y[d, j])^2 / 8)

T_l holds the first k right singular vectors of the teacher's map of layer l as a matrix [h w, c], each times its
singular value over the Euclidean norm of all k. S_l holds, for each of them, that of the student's first k + 3 vectors
whose cosine with it is the largest, of the same sign, times the teacher's number. The gradient reaches the student's
vectors alone.

This is what the code of "Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020) computes, with the
sum over the example's matrices. Differences: the authors' code takes half of the sum and k + 1 of the student's
vectors, and turns the teacher's to their signs. Singular vectors have no derivative where singular values coincide,
and both codes set non-finite values to zero. Here the gradient is finite: the derivative's 1 / gap, of two squared
singular values, is gap / (gap^2 + width^2) with a width of 1e-6 of the largest, and a vector whose squared singular
value is below that width counts as zero.

The sign of a singular vector is arbitrary, and R depends on it: in both codes the loss is defined only up to the signs
that a library chooses for the teacher's, even on maps without negative values. With `signs` = "svd" they are those of
XLA's decomposition, on a CPU LAPACK's, and nearly always those of PyTorch on a CPU. With "sum", the default of the
method, the sum of each vector is positive: this is equal on every machine, saves a decomposition, and differs from
the published numbers were trained with.

Where channels differ neither code is defined: a learned 1x1 convolution brings the student's map to the teacher's
channels, and `project` = False refuses such pairs.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, fsp, numerics

# Relative to the largest squared singular value: smaller gaps to another value or to zero cannot be resolved.
_RESOLUTION = 1e-6


def _map_matrices(decompose, matrices: jax.Array):
  """A decomposition of each matrix [b, m, n]; on a CPU one after the other.

  There a batch is shared out to threads, and two batches at once (of two maps, or of two devices) can take all threads
  and wait for each other forever.
  """
  return jax.lax.platform_dependent(
    matrices, cpu=functools.partial(jax.lax.map, decompose), default=decompose
  )


@jax.custom_jvp
def _eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(eigenvalues [b, n], descending, eigenvectors [b, n, n]), with a finite derivative."""
  values, vectors = _map_matrices(lambda x: tuple(jnp.linalg.eigh(x)), matrix)
  return values[:, ::-1], vectors[:, :, ::-1]


@_eigh.defjvp
def _eigh_jvp(primals, tangents):
  values, vectors = _eigh(*primals)
  multiply = functools.partial(jnp.matmul, precision="highest")
  change = multiply(jnp.swapaxes(vectors, 1, 2), multiply(tangents[0], vectors))
  gap = values[:, None, :] - values[:, :, None]
  width = _RESOLUTION * values[:, :1, None]
  rotation = numerics.safe_divide(gap, jnp.square(gap) + jnp.square(width)) * change
  return (values, vectors), (jnp.diagonal(change, axis1=1, axis2=2), multiply(vectors, rotation))


def right_vectors(feature: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
  """The first right singular vectors of each map as a matrix [h w, c], of any sign.

  Args:
    feature: [b, h, w, c].
    n: number of vectors, if the matrix has so many.

  Returns:
    (singular values up to a factor an example [b, m], vectors [b, m, c]) with m = min(n, h w, c); zeros where the
    singular value is less than a thousandth of the largest.
  """
  b, h, w, c = feature.shape
  x = numerics.normalize_scale(feature).reshape(b, h * w, c)
  rows = h * w < c  # The smaller of the two Gram matrices has the same non-zero eigenvalues.
  gram = jnp.einsum("bpc,bqc->bpq" if rows else "bpc,bpd->bcd", x, x, precision="highest")
  squares, vectors = _eigh(gram)
  squares, vectors = squares[:, :n], jnp.swapaxes(vectors[:, :, :n], 1, 2)
  if rows:
    vectors = jnp.einsum("bmp,bpc->bmc", vectors, x, precision="highest")
    vectors = numerics.safe_divide(vectors, numerics.safe_norm(vectors)[:, :, None])
  exists = squares > _RESOLUTION * squares[:, :1]
  values = jnp.where(exists, jnp.sqrt(jnp.where(exists, squares, 1)), 0)
  return values, jnp.where(exists[:, :, None], vectors, 0)


def _svd_signs(vectors: jax.Array, feature: jax.Array) -> jax.Array:
  """[b, m]: negative where XLA's decomposition has the opposite singular vector."""
  b, h, w, c = feature.shape
  x = feature.reshape(b, h * w, c)
  if 1 < h * w < c:
    # From 11/6 equally many columns as rows on, OpenBLAS begins with an LQ decomposition, which changes signs; MKL, of
    # PyTorch, only from a far larger ratio on. Rows of zeros put it off and change nothing else.
    rows = max(h * w, min(-(-6 * (c + 1) // 11), c - 1))
    x = jnp.pad(x, ((0, 0), (0, rows - h * w), (0, 0)))
  right = _map_matrices(lambda x: jnp.linalg.svd(x, full_matrices=False)[2], x)
  return jnp.sum(vectors * right[:, : vectors.shape[1]], axis=-1)


def _directions(student: jax.Array, teacher: jax.Array, k: int, signs: str) -> tuple[jax.Array, jax.Array]:
  """(S, T) of one layer, each [b, k, c]; zeros beyond the number of singular vectors."""
  teacher = jax.lax.stop_gradient(teacher)
  values, targets = right_vectors(teacher, k)
  strength = numerics.safe_divide(values, numerics.safe_norm(values)[:, None])
  negative = (jnp.sum(targets, axis=-1) if signs == "sum" else _svd_signs(targets, teacher)) < 0
  targets = jnp.where(negative[:, :, None], -targets, targets)
  targets = jnp.pad(targets, ((0, 0), (0, k - targets.shape[1]), (0, 0)))
  strength = jnp.pad(strength, ((0, 0), (0, k - strength.shape[1])))[:, :, None]
  _, vectors = right_vectors(student, k + 3)
  cosine = jnp.einsum("bmc,bkc->bmk", jax.lax.stop_gradient(vectors), targets, precision="highest")
  size = jnp.abs(cosine)
  is_largest = jax.nn.one_hot(jnp.argmax(size, axis=1), size.shape[1], axis=1, dtype=bool)
  choice = jnp.where(is_largest, jnp.sign(cosine), 0)
  return strength * jnp.einsum("bmk,bmc->bkc", choice, vectors, precision="highest"), strength * targets


def _relation(x: jax.Array, y: jax.Array) -> jax.Array:
  """R [b, k, c, d] of directions [b, k, c] and [b, k, d]."""
  return jnp.exp(-jnp.square(x[:, :, :, None] - y[:, :, None, :]) / 8)


def loss(
  student_features: tuple[jax.Array, ...],
  teacher_features: tuple[jax.Array, ...],
  *,
  k: int = 1,
  signs: str = "svd",
) -> jax.Array:
  """Squared difference of the relations between consecutive maps, summed, per example.

  Args:
    student_features: two maps or more, [b, h, w, c], shallow first.
    teacher_features: equally many, [b, h', w', c].
    k: number of the teacher's singular vectors.
    signs: of the teacher's vectors, 'svd' or 'sum'; see the module.

  Returns:
    [b]; takes memory for b k c d numbers, for consecutive channels c and d.
  """
  chex.assert_rank([*student_features, *teacher_features], 4)

  def layer_directions(student, teacher):
    chex.assert_equal_shape([student, teacher], dims=(0, 3))
    return _directions(numerics.upcast(student), numerics.upcast(teacher), k, signs)

  directions = [layer_directions(s, t) for s, t in zip(student_features, teacher_features, strict=True)]

  def relation_loss(before, after):
    (student_before, teacher_before), (student, teacher) = before, after
    difference = _relation(student, student_before) - _relation(teacher, teacher_before)
    return jnp.sum(jnp.square(difference), axis=(1, 2, 3))

  return sum(map(relation_loss, directions[:-1], directions[1:]))


def method(
  *,
  k: int = 1,
  signs: str = "sum",
  project: bool = True,
  student_layers: tuple[int, ...] = (),
  teacher_layers: tuple[int, ...] = (),
) -> contract.Method:
  """KD-SVD from a single teacher; without layers, between all layers but the stem.

  Args:
    k: number of the teacher's singular vectors.
    signs: of the teacher's vectors, 'sum' or 'svd'; see the module.
    project: True projects student's maps with other channels than the teacher's; False refuses them.
    student_layers: layers of the student, shallow first.
    teacher_layers: equally many layers of the teacher.
  """
  errors.check_positive_integer("kdsvd", k=k)
  errors.check_choice("kdsvd", ("sum", "svd"), signs=signs)
  map_loss = functools.partial(loss, k=k, signs=signs)
  return fsp.make_multi_layer_method(
    "kdsvd", map_loss, student_layers, teacher_layers, first_layer=1, project=project
  )
