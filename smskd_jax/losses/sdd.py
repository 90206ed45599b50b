"""Scale decoupled distillation: a logit loss on every region of the last map.

Wei, Luo, Luo, "Scale Decoupled Distillation", CVPR 2024, https://arxiv.org/abs/2403.13512

  L_i = sum_r w_ir l(z_student,ir, z_teacher,ir),    z_r = mean_{h,w in r} f_hw W + b
  w_ir = `complementary_weight` where argmax z_teacher,ir differs from argmax z_teacher,i0, else 1

f is a network's last map, whose mean its classifier (W, b) reads. Each scale m of `scales` divides the map into m x m
regions; region 0 is the whole map, whose z are the network's logits. l, the option `inner`, is the loss of `kd`, `dkd`
or `nkd`, which gives SD-KD, SD-DKD or SD-NKD. `temperature` is that of l, `alpha` and `beta` are dkd's weights and
`gamma` is nkd's; dkd and nkd read the labels. The gradient reaches the student's classifier through every region.

The paper takes scales (1, 2) for networks of one family and (1, 2, 4) for others, and the outer weight that l has
without regions, raised linearly from zero over the first 30 epochs, which belongs to the stage.

`public_code=True` follows the authors' code, of which the published numbers are: a mean over the regions in the place
of the sum; regions are complementary where the teacher is right about the region and wrong about the whole image, or
the other way round, so that two different wrong classes count as equal; and the regions of all scales are means of a 4
x 4 map, so that with a map of 7 x 7 they overlap and region 0 does not give the network's logits. It raises the weight
over 20 epochs with dkd and nkd (1 on ImageNet), and not at all with kd.

Differences: regions of a map whose size they do not divide overlap, as in PyTorch's adaptive pooling; the paper does
not define them. The code of SD-NKD leaves the label among the other classes; here it is left out, as in the papers. It
takes gamma = 8 and T = 4; the default gamma is that of NKD's paper, which has T = 1. The code sets terms that are NaN
to zero; here none is NaN.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, dkd, kd, maps, nkd, numerics

INNER = ("kd", "dkd", "nkd")
_FINEST = (4, 4)  # map of which the authors' code makes all regions


def region_logits(
  feature: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  *,
  scales: tuple[int, ...] = (1, 2, 4),
  public_code: bool = False,
) -> jax.Array:
  """Logits of the regions of a map.

  Args:
    feature: [b, h, w, d], the last map.
    kernel: [d, k], of the classifier.
    bias: [k].
    scales: each m divides the map into m x m regions.
    public_code: True makes the regions of a 4 x 4 map, as the authors' code does.

  Returns:
    [b, r, k] with r the sum of the squares of `scales`, in their order; row by row within a scale.
  """
  chex.assert_rank([feature, kernel, bias], [4, 2, 1])
  feature = numerics.upcast(feature)
  if public_code:
    feature = maps.adaptive_avg_pool(feature, _FINEST)
  pooled = [
    maps.adaptive_avg_pool(feature, (m, m)).reshape(len(feature), m * m, feature.shape[-1]) for m in scales
  ]
  regions = jnp.concatenate(pooled, axis=1)
  logits = jnp.einsum("brd,dk->brk", regions, numerics.upcast(kernel), precision="highest")
  return logits + numerics.upcast(bias)[None, None, :]


def _inner_loss(inner: str, temperature: float, alpha: float, beta: float, gamma: float):
  """Loss (student's logits, teacher's logits, labels) -> [b] of a name of `INNER`."""
  if inner == "kd":
    return lambda student, teacher, labels: kd.loss(student, teacher, temperature=temperature)
  if inner == "dkd":
    return functools.partial(dkd.loss, alpha=alpha, beta=beta, temperature=temperature)
  return functools.partial(nkd.loss, gamma=gamma, temperature=temperature)


def is_complementary(
  teacher_logits: jax.Array, labels: jax.Array | None = None, *, public_code: bool = False
) -> jax.Array:
  """Mask [b, r] of regions for which the teacher's prediction differs from region 0's.

  Args:
    teacher_logits: [b, r, k].
    labels: [b], integers; read if `public_code`.
    public_code: True compares right and wrong predictions, False predicted classes.
  """
  predicted = jnp.argmax(teacher_logits, axis=-1)
  if public_code:
    if labels is None:
      raise ValueError("sdd: public_code=True needs labels")
    predicted = predicted == labels[:, None]
  return predicted != predicted[:, :1]


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array | None = None,
  *,
  inner: str = "kd",
  complementary_weight: float = 2.0,
  temperature: float = 4.0,
  alpha: float = 1.0,
  beta: float = 8.0,
  gamma: float = 1.5,
  public_code: bool = False,
) -> jax.Array:
  """Weighted sum over regions of a logit loss, per example.

  Args:
    student_logits: [b, r, k], of `region_logits`; region 0 is the whole image.
    teacher_logits: [b, r, k].
    labels: [b], integers; read by dkd and nkd, and if `public_code`.
    inner: "kd", "dkd" or "nkd".
    complementary_weight: weight of the regions of `is_complementary`; 1 for all others.
    temperature: T > 0, of the inner loss.
    alpha: of dkd.
    beta: of dkd.
    gamma: of nkd.
    public_code: True takes the mean over regions, and the complementary regions of the authors' code.

  Returns:
    [b], >= 0.

  Raises:
    ValueError: labels are read and missing.
  """
  chex.assert_rank([student_logits, teacher_logits], 3)
  chex.assert_equal_shape([student_logits, teacher_logits])
  b, r, k = student_logits.shape
  if labels is None and inner != "kd":
    raise ValueError(f"sdd: inner={inner!r} needs labels")
  repeated = None if labels is None else jnp.repeat(labels, r)
  inner_loss = _inner_loss(inner, temperature, alpha, beta, gamma)
  values = inner_loss(student_logits.reshape(b * r, k), teacher_logits.reshape(b * r, k), repeated)
  complementary = is_complementary(teacher_logits, labels, public_code=public_code)
  weighted = jnp.where(complementary, complementary_weight, 1.0) * values.reshape(b, r)
  return jnp.mean(weighted, axis=1) if public_code else jnp.sum(weighted, axis=1)


def _check_scales(scales: tuple[int, ...]) -> None:
  """Raises ValueError unless the scales are a tuple of positive integers that begins with 1."""
  is_valid = isinstance(scales, tuple) and all(type(m) is int and m > 0 for m in scales)
  if not is_valid or scales[:1] != (1,):
    raise ValueError(f"sdd: scales must be a tuple of positive integers that begins with 1, got {scales!r}")


def method(
  *,
  inner: str = "kd",
  scales: tuple[int, ...] = (1, 2, 4),
  complementary_weight: float = 2.0,
  temperature: float = 4.0,
  alpha: float = 1.0,
  beta: float = 8.0,
  gamma: float = 1.5,
  public_code: bool = False,
) -> contract.Method:
  """SDD between the last maps of student and teacher, through their classifiers.

  The labels are read by `inner` "dkd" and "nkd", and if `public_code`.
  """
  errors.check_choice("sdd", INNER, inner=inner)
  _check_scales(scales)
  errors.check_non_negative(
    "sdd", complementary_weight=complementary_weight, alpha=alpha, beta=beta, gamma=gamma
  )
  errors.check_positive("sdd", temperature=temperature)
  errors.check_boolean("sdd", public_code=public_code)
  needs_labels = inner != "kd" or public_code

  def check(student, teachers):
    teacher = contract.single_teacher("sdd", teachers)
    for network, outputs in (("student", student), ("teacher", teacher)):
      for output in ("final_map", "head"):
        contract.check_output("sdd", output, network, outputs)
    contract.check_same_classes("sdd", student, teacher)

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    logits = (
      region_logits(outputs.final_map, *outputs.head, scales=scales, public_code=public_code)
      for outputs in (student, teacher)
    )
    return loss(
      *logits,
      context.batch.label if needs_labels else None,
      inner=inner,
      complementary_weight=complementary_weight,
      temperature=temperature,
      alpha=alpha,
      beta=beta,
      gamma=gamma,
      public_code=public_code,
    )

  return contract.stateless(loss_fn, check, reads=("final_map", "head"), needs_labels=needs_labels)
