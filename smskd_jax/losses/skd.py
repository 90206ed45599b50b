"""Streamlined knowledge distillation: KD, and the directions of the logits of a batch.

Jeong, Lee, Choi, "Streamlined Knowledge Distillation", CVPR 2026,
https://openaccess.thecvf.com/content/CVPR2026/html/Jeong_Streamlined_Knowledge_Distillation_CVPR_2026_paper.html

  L_i = KL(softmax(z_teacher,i / T) || softmax(z_student,i / T)) + sqrt(D_i (S + lambda I)^-1 D_i')
  D = U_student U_student' - U_teacher U_teacher',  S = cov(rows of D)

The rows of U are the logits of the n examples of the batch, each divided by its norm, so that D has the differences of
the n x n cosines between examples. The second term is the length of row D_i in the space where the covariance is the
identity; D_i is not centred, S is (with a divisor of n - 1). The gradient passes through S as well. The term takes
time for the cube of n.

`public_code=True` follows the authors' code, which differs from the formula in three ways: the first term has a factor
T^2, the cosines are divided by the number of classes, and each term is multiplied by a fraction. The fractions are
those of the examples, and of the classes, that the teacher is least sure of (the largest probability of the example,
or the sum of the probabilities of the class, is at most the percentile 50 of the batch): the masks are applied to
numbers that are means already, as in `mlkd`, and so only multiply by about 1/2. With 100 classes S is far below
lambda, and the second term is the norm of D_i / sqrt(lambda). The published numbers are of that code, of a learning
rate of 0.1, and of 100,000 images in an epoch: each image with and without RandAugment.

Differences: the batch is the global one, over all devices; the authors' code takes each device's. Where D_i is zero,
as where the networks agree, the second term has a gradient of zero, where that code has NaN. A batch of one example
has no second term. The paper does not print T and lambda; the defaults are that code's.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, kd, mlkd, numerics


def _cosines(logits: jax.Array) -> jax.Array:
  """Cosines [n, n] between rows [n, k]; zero for a row of zeros."""
  unit = numerics.safe_divide(logits, numerics.safe_norm(logits)[:, None])
  return jnp.matmul(unit, unit.T, precision="highest")


def direction_loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  tikhonov: float = 0.1,
  divide_by_classes: bool = False,
  axis_name: str | None = None,
) -> jax.Array:
  """Whitened length of the difference of the cosines between each example and all examples.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k'].
    tikhonov: lambda > 0, added to the diagonal of the covariance.
    divide_by_classes: True divides the cosines by the number of classes, as the authors' code does.
    axis_name: the axis of devices that the batch is spread over.

  Returns:
    [b], >= 0; zero, with a gradient of zero, where the cosines agree.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape_prefix([student_logits, teacher_logits], 1)
  student, teacher = (
    _cosines(contract.gather(numerics.upcast(x), axis_name)) for x in (student_logits, teacher_logits)
  )
  if divide_by_classes:
    student, teacher = student / student_logits.shape[-1], teacher / teacher_logits.shape[-1]
  difference = student - teacher
  n, b = len(difference), len(student_logits)
  centered = difference - jnp.mean(difference, axis=0, keepdims=True)
  covariance = jnp.matmul(centered.T, centered, precision="highest") / max(n - 1, 1)
  factor = jnp.linalg.cholesky(covariance + tikhonov * jnp.eye(n, dtype=covariance.dtype))
  rows = jax.lax.dynamic_slice_in_dim(difference, contract.local_offset(b, axis_name), b)
  return numerics.safe_norm(jax.scipy.linalg.solve_triangular(factor, rows.T, lower=True).T)


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  temperature: float = 4.0,
  tikhonov: float = 0.1,
  public_code: bool = False,
  percentile: float = 50.0,
  axis_name: str | None = None,
) -> jax.Array:
  """KL divergence of the softened probabilities plus `direction_loss`, per example.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    temperature: T > 0, of the divergence.
    tikhonov: lambda > 0.
    public_code: True scales the terms as the authors' code does; see above.
    percentile: of the masks of that code, in [0, 100]; without effect unless `public_code`.
    axis_name: the axis of devices that the batch is spread over.

  Returns:
    [b]; >= 0, and zero where the logits agree.
  """
  chex.assert_equal_shape([student_logits, teacher_logits])
  instance = kd.loss(student_logits, teacher_logits, temperature=temperature)
  direction = direction_loss(
    student_logits,
    teacher_logits,
    tikhonov=tikhonov,
    divide_by_classes=public_code,
    axis_name=axis_name,
  )
  if not public_code:
    return instance / temperature**2 + direction
  of_examples, of_classes = mlkd.mask_fractions(teacher_logits, percentile=percentile, axis_name=axis_name)
  return of_examples * instance + of_classes * direction


def method(*, temperature: float = 4.0, tikhonov: float = 0.1, public_code: bool = False) -> contract.Method:
  """SKD from a single teacher's logits."""
  errors.check_positive("skd", temperature=temperature, tikhonov=tikhonov)
  errors.check_boolean("skd", public_code=public_code)

  def check(student, teachers):
    contract.check_same_classes("skd", student, contract.single_teacher("skd", teachers))

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    return loss(
      student.logits,
      teacher.logits,
      temperature=temperature,
      tikhonov=tikhonov,
      public_code=public_code,
      axis_name=context.axis_name,
    )

  return contract.stateless(loss_fn, check, reads=("logits",))
