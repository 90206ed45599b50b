"""Multi-level logit distillation: matches examples, their relations and the classes'.

Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023,
https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html

  L_i = sum_T [ T^2 KL(p_i || q_i) + sum_j (p_i . p_j - q_i . q_j)^2 + |P' P - Q' Q|_F^2 / k ]
      + sum_T T^2 KL(p_strong,i || q_strong,i)      (where a second view is given)

P and Q hold the probabilities p_i and q_i of the teacher and of the student as rows, softmax(z_i / T), of the n
examples of the batch. The second term has the n x n inner products between examples (j runs over the batch), the
third the k x k products between classes, P' being P transposed. It belongs to the batch as a whole and is the same
for each of its examples.

The second view is strongly augmented: RandAugment of two operations in the authors' code, against the usual crop and
flip of the first: a stage with views=('crop_flip', 'crop_flip+fixmatch') here; with a single view the last term is left
out, and several strong views are averaged. The published numbers depend on it, and on a learning rate of 0.025 over 240
epochs (480 in the rerun by the code of "Logit Standardization in Knowledge Distillation").

Differences: the factor T^2, the mean over examples in the first term and the division by n and by k in the others
are those of the authors' code. Neither Gram matrix is divided by the number of terms in its entries, so that the
second and third term grow with the batch (the published numbers: 64).

The authors' code differs from the formula, and `public_code=True` follows it. It selects the half of the examples
that the teacher is least sure of (its largest probability at T = 1 is at most the median of the batch), and the half
of the classes whose probabilities at T = 1 have the smallest sums over the batch, but applies these masks to losses
that are means already. That multiplies the terms of the first view by the share of selected examples (KL, second
term) or classes (third term), about 1/2, and selects nothing. And its KL of the second view takes the first view at
T = 2 and T = 6. The published numbers are of that code.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, kd, numerics


def batch_loss(
  student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float, axis_name: str | None = None
) -> jax.Array:
  """Squared error of the inner products between the probabilities of examples.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    temperature: T > 0.
    axis_name: the axis of devices that the batch is spread over: the rows are this device's examples, the columns
      everyone's.

  Returns:
    [b], sums over the columns.
  """
  probabilities = _probabilities(student_logits, teacher_logits, temperature)
  student, teacher = (
    jnp.matmul(p, contract.gather(p, axis_name).T, precision="highest") for p in probabilities
  )
  return jnp.sum(jnp.square(teacher - student), axis=1)


def class_loss(
  student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float, axis_name: str | None = None
) -> jax.Array:
  """Squared error of the inner products between classes over the global batch, over k.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    temperature: T > 0.
    axis_name: the axis of devices that the batch is spread over.

  Returns:
    [b], the same number for every example.
  """
  b, k = student_logits.shape
  probabilities = _probabilities(student_logits, teacher_logits, temperature)
  student, teacher = (jnp.matmul(p.T, p, precision="highest") for p in probabilities)
  num_devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
  difference = num_devices * contract.pmean(teacher - student, axis_name)
  return jnp.broadcast_to(jnp.sum(jnp.square(difference)) / k, (b,))


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  student_strong_logits: jax.Array | None = None,
  teacher_strong_logits: jax.Array | None = None,
  *,
  temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
  public_code: bool = False,
  axis_name: str | None = None,
) -> jax.Array:
  """The three levels of alignment, summed over temperatures.

  Args:
    student_logits: [b, k], of the first view.
    teacher_logits: [b, k].
    student_strong_logits: [b, k], of the strongly augmented view; None leaves its term out.
    teacher_strong_logits: [b, k].
    temperatures: each T > 0.
    public_code: True weights and chooses the terms as the authors' code does; see above.
    axis_name: the axis of devices that the batch is spread over.

  Returns:
    [b]; >= 0, and zero where the logits of both views agree up to constants.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  if (student_strong_logits is None) != (teacher_strong_logits is None):
    raise ValueError("mlkd: the strongly augmented view needs the logits of both networks")

  def over_temperatures(term):
    # Mapped, so that the collectives of all temperatures are one.
    def loss_at(t):
      return term(student_logits, teacher_logits, temperature=t, axis_name=axis_name)

    each = jax.vmap(loss_at)(jnp.asarray(temperatures, numerics.upcast(student_logits).dtype))
    return jnp.sum(each, axis=0)

  by_example = _instance_loss(student_logits, teacher_logits, temperatures) + over_temperatures(batch_loss)
  by_class = over_temperatures(class_loss)
  if public_code:
    example_fraction, class_fraction = mask_fractions(teacher_logits, axis_name=axis_name)
    by_example, by_class = example_fraction * by_example, class_fraction * by_class
  total = by_example + by_class
  if student_strong_logits is None or teacher_strong_logits is None:
    return total
  weak = tuple(t for t in temperatures if public_code and t in (2, 6))
  strong = tuple(t for t in temperatures if t not in weak)
  total += _instance_loss(student_strong_logits, teacher_strong_logits, strong)
  return total + _instance_loss(student_logits, teacher_logits, weak)


def _probabilities(
  student_logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """Softened probabilities of the student and of the teacher, each [b, k]."""
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  return (
    jax.nn.softmax(numerics.upcast(student_logits) / temperature),
    jax.nn.softmax(numerics.upcast(teacher_logits) / temperature),
  )


def _instance_loss(
  student_logits: jax.Array, teacher_logits: jax.Array, temperatures: tuple[float, ...]
) -> jax.Array:
  """KD summed over temperatures, [b]."""
  terms = (kd.loss(student_logits, teacher_logits, temperature=t) for t in temperatures)
  return sum(terms, start=jnp.zeros((), numerics.upcast(student_logits).dtype))


def mask_fractions(
  teacher_logits: jax.Array, *, percentile: float = 50.0, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """Fractions [] of examples and classes that the masks of the authors' code select.

  Selected are examples whose largest probability, and classes whose sum of probabilities over the global batch, is at
  most the percentile, in [0, 100], of all.
  """
  probabilities = jax.nn.softmax(contract.gather(numerics.upcast(teacher_logits), axis_name))

  def fraction(x):
    x = jnp.sort(x)  # stored: computed twice, with another rounding, an element may exceed itself
    return jnp.mean(x <= jnp.percentile(x, percentile), dtype=x.dtype)

  return fraction(jnp.max(probabilities, axis=1)), fraction(jnp.sum(probabilities, axis=0))


def method(
  *, temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0), public_code: bool = False
) -> contract.Method:
  """Multi-level logit distillation from a single teacher, on the views that the stage makes.

  On one view `public_code` is the factor of about 1/2 alone.
  """
  if not isinstance(temperatures, tuple) or not temperatures:
    raise ValueError(f"mlkd: temperatures must be a tuple of positive numbers, got {temperatures!r}")
  for temperature in temperatures:
    errors.check_positive("mlkd", temperatures=temperature)
  errors.check_boolean("mlkd", public_code=public_code)

  def check(student, teachers):
    contract.check_same_classes("mlkd", student, contract.single_teacher("mlkd", teachers))

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    view_loss = functools.partial(
      loss,
      student.logits,
      teacher.logits,
      temperatures=temperatures,
      public_code=public_code,
      axis_name=context.axis_name,
    )
    if not student.view_outputs:
      return view_loss()
    pairs = zip(student.view_outputs, teacher.view_outputs, strict=True)
    return jnp.mean(
      jnp.stack([view_loss(student.logits, strong.logits) for student, strong in pairs]), axis=0
    )

  return contract.stateless(loss_fn, check, reads=("logits",), multi_view=True)
