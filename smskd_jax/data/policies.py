"""AutoAugment, RandAugment, TrivialAugment and FixMatch's strong view. Pure.

Shapes: b batch, h height, w width, c channels. Each policy takes (key, image [b, h, w, c], index [b]) and returns the
image, all uint8. The operations of an example depend on the key and the example's index alone, not on the device or the
rest of the batch.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.data import erasing
from smskd_jax.data.augment import RNG_SALT, uniform_per_example
from smskd_jax.data.image_ops import ENHANCE_OPS, OP_NAMES, Fill, apply_ops
from smskd_jax.errors import check_positive_integer

# AutoAugment's policy for CIFAR-10: two of (operation, probability, level). The cubic shears are the survey's.
AUTOAUGMENT_CIFAR10 = (
  (("invert", 0.1, 7), ("contrast", 0.2, 6)),
  (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
  (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
  (("cubic_shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
  (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
  (("cubic_shear_y", 0.2, 7), ("posterize", 0.3, 7)),
  (("color", 0.4, 3), ("brightness", 0.6, 7)),
  (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
  (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
  (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
  (("color", 0.7, 7), ("translate_x", 0.5, 8)),
  (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
  (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
  (("brightness", 0.9, 6), ("color", 0.2, 8)),
  (("solarize", 0.5, 2), ("invert", 0.0, 3)),
  (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
  (("equalize", 0.2, 8), ("equalize", 0.8, 4)),
  (("color", 0.9, 9), ("equalize", 0.6, 6)),
  (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
  (("brightness", 0.1, 3), ("color", 0.7, 0)),
  (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
  (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
  (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
  (("equalize", 0.8, 8), ("invert", 0.1, 3)),
  (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)

# The 14 operations of RandAugment and TrivialAugment: AutoAugment's without invert, with the identity.
RANDAUGMENT_OPS = (
  "identity",
  "shear_x",
  "shear_y",
  "translate_x",
  "translate_y",
  "rotate",
  "brightness",
  "color",
  "contrast",
  "sharpness",
  "posterize",
  "solarize",
  "autocontrast",
  "equalize",
)


class SampledOps(NamedTuple):
  """n operations for each image, applied in order, in the form of `image_ops.apply_ops`.

  op_names: names of the operations.
  op_index: [b, n], int32, indices into the names.
  magnitude: [b, n], float32.
  """

  op_names: Sequence[str]
  op_index: jax.Array
  magnitude: jax.Array


def autoaugment(key: jax.Array, image: jax.Array, index: jax.Array, *, fill: Fill = 128) -> jax.Array:
  """AutoAugment's policy for CIFAR-10: one of 25 pairs of operations.

  Each operation is applied with a probability.

  Cubuk et al., "AutoAugment: Learning Augmentation Policies from Data", CVPR 2019, https://arxiv.org/abs/1805.09501.
  Signs, resampling, fill and units are those of the code of "The State of Knowledge Distillation for Classification",
  https://arxiv.org/abs/1912.10850: shears are cubic, other geometric operations use nearest neighbours; rotations have
  no random sign, other geometric operations and enhancements do; solarize has thresholds from 256.
  """
  return _apply_sequence(image, sample_autoaugment(key, index, image.shape[1], image.shape[2]), fill)


def randaugment(
  key: jax.Array,
  image: jax.Array,
  index: jax.Array,
  *,
  num_ops: int = 2,
  magnitude: int = 9,
  fill: Fill = 0,
) -> jax.Array:
  """`num_ops` operations, drawn from 14 with replacement, of one magnitude from 0 to 30.

  Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS 2020,
  https://arxiv.org/abs/1909.13719. Operations, ranges and signs are torchvision's: the ranges of AutoAugment in 31
  steps, translation by whole pixels, a random sign for geometric operations and enhancements, solarize from 255,
  nearest neighbours.

  Raises:
    ValueError: an option is out of range.
  """
  check_positive_integer("randaugment", num_ops=num_ops)
  if magnitude not in range(31):
    raise ValueError(f"randaugment: magnitude must be a whole number from 0 to 30, got {magnitude!r}")
  sampled = sample_randaugment(key, index, image.shape[1], image.shape[2], num_ops, magnitude)
  return _apply_sequence(image, sampled, fill)


def trivialaugment(key: jax.Array, image: jax.Array, index: jax.Array, *, fill: Fill = 0) -> jax.Array:
  """One operation of a magnitude drawn from 31, from the wide space.

  Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021,
  https://arxiv.org/abs/2103.10158. The space is that of torchvision's `TrivialAugmentWide`. The authors' code truncates
  degrees and bits to whole numbers, and enhances by 0.01 to 2, which is 1 +- 0.99 in other steps.
  """
  return _apply_sequence(image, sample_trivialaugment(key, index), fill)


def fixmatch(key: jax.Array, image: jax.Array, index: jax.Array, *, fill: Fill = 0) -> jax.Array:
  """Two operations of random magnitude, then a random square of one colour.

  Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
  https://arxiv.org/abs/2001.07685, appendix; as in the code of Jin, Wang and Lin, "Multi-Level Logit Distillation",
  CVPR 2023, where it follows crop and flip in the strong view. Enhancement factors are 0.05 to 0.95 only.
  """
  image = _apply_sequence(image, sample_fixmatch(key, index, image.shape[1], image.shape[2]), fill)
  return erasing.random_square(jax.random.fold_in(key, RNG_SALT), image, index)


def sample_autoaugment(key: jax.Array, index: jax.Array, h: int, w: int) -> SampledOps:
  """Samples a pair, the application of each of its operations, and two signs."""
  space = _signed_magnitudes(_autoaugment_ranges(10, h, w) | {"solarize": np.linspace(256, 0, 10)})
  space["rotate"][:, 0] = space["rotate"][:, 1]  # no sign
  space["cubic_shear_y"] = space["shear_y"]
  names = ("identity", *dict.fromkeys(name for pair in AUTOAUGMENT_CIFAR10 for name, _, _ in pair))
  choice = np.array([[names.index(name) for name, _, _ in pair] for pair in AUTOAUGMENT_CIFAR10], np.int32)
  probability = np.array([[p for _, p, _ in pair] for pair in AUTOAUGMENT_CIFAR10], np.float32)
  magnitude = np.array(
    [[space[name][level] for name, _, level in pair] for pair in AUTOAUGMENT_CIFAR10], np.float32
  )
  uniforms = uniform_per_example(key, index, 5)
  pair = _to_index(uniforms[:, 0], len(AUTOAUGMENT_CIFAR10))
  applied = uniforms[:, 1:3] < jnp.asarray(probability)[pair]
  sign = _to_index(uniforms[:, 3:], 2)
  signed = jnp.take_along_axis(jnp.asarray(magnitude)[pair], sign[..., None], axis=-1)[..., 0]
  return SampledOps(names, jnp.where(applied, jnp.asarray(choice)[pair], 0), signed)


def sample_randaugment(
  key: jax.Array, index: jax.Array, h: int, w: int, num_ops: int, magnitude: int
) -> SampledOps:
  """Samples operations and signs."""
  table = _magnitude_table(_signed_magnitudes(_round_translation(_autoaugment_ranges(31, h, w))))[
    :, magnitude
  ]
  uniforms = uniform_per_example(key, index, 2 * num_ops)
  choice, sign = _to_index(uniforms[:, :num_ops], len(RANDAUGMENT_OPS)), _to_index(uniforms[:, num_ops:], 2)
  return SampledOps(RANDAUGMENT_OPS, choice, jnp.asarray(table)[choice, sign])


def sample_trivialaugment(key: jax.Array, index: jax.Array) -> SampledOps:
  """Samples an operation, a level and a sign."""
  table = _magnitude_table(_signed_magnitudes(_round_translation(_wide_ranges())))
  uniforms = uniform_per_example(key, index, 3)
  choice, level, sign = (_to_index(uniforms[:, i : i + 1], n) for i, n in enumerate(table.shape))
  return SampledOps(RANDAUGMENT_OPS, choice, jnp.asarray(table)[choice, level, sign])


def sample_fixmatch(key: jax.Array, index: jax.Array, h: int, w: int) -> SampledOps:
  """Samples two operations and their magnitudes."""
  ends: dict[str, tuple[float, float]] = {"posterize": (4, 8), "solarize": (0, 256), "rotate": (-30, 30)}
  ends |= {"shear_x": (-0.3, 0.3), "shear_y": (-0.3, 0.3)}
  ends |= {"translate_x": (-0.3 * w, 0.3 * w), "translate_y": (-0.3 * h, 0.3 * h)}
  ends |= dict.fromkeys(ENHANCE_OPS, (0.05, 0.95))
  table = np.array([ends.get(name, (0, 0)) for name in RANDAUGMENT_OPS], np.float32)
  uniforms = uniform_per_example(key, index, 4)
  choice = _to_index(uniforms[:, :2], len(RANDAUGMENT_OPS))
  low, high = jnp.moveaxis(jnp.asarray(table)[choice], -1, 0)
  return SampledOps(RANDAUGMENT_OPS, choice, low + (high - low) * uniforms[:, 2:])


def _apply_sequence(image: jax.Array, sampled: SampledOps, fill: Fill) -> jax.Array:
  def apply_one(image, ops):
    return apply_ops(image, *ops, op_names=sampled.op_names, fill=fill), None

  # A loop, so that the operations are compiled once.
  return jax.lax.scan(apply_one, image, (sampled.op_index.T, sampled.magnitude.T))[0]


def _to_index(uniforms: jax.Array, count: int) -> jax.Array:
  """Indices below count from uniform numbers in [0, 1)."""
  return jnp.floor(uniforms * count).astype(jnp.int32)


MagnitudeRanges = dict[str, np.ndarray]  # by operation: its strength at each level, [levels]


def _autoaugment_ranges(num_levels: int, h: int, w: int) -> MagnitudeRanges:
  """AutoAugment's ranges; translations are scaled from its images of 331 pixels."""
  shear, enhance, move = (np.linspace(0, end, num_levels) for end in (0.3, 0.9, 150 / 331))
  ranges = {"shear_x": shear, "shear_y": shear, "translate_x": move * w, "translate_y": move * h}
  ranges |= {"rotate": np.linspace(0, 30, num_levels), "posterize": np.round(np.linspace(8, 4, num_levels))}
  return ranges | {"solarize": np.linspace(255, 0, num_levels)} | dict.fromkeys(ENHANCE_OPS, enhance)


def _wide_ranges() -> MagnitudeRanges:
  shear, enhance, move = (np.linspace(0, end, 31) for end in (0.99, 0.99, 32))
  ranges = {"shear_x": shear, "shear_y": shear, "translate_x": move, "translate_y": move}
  ranges |= {"rotate": np.linspace(0, 135, 31), "posterize": np.round(np.linspace(8, 2, 31))}
  return ranges | {"solarize": np.linspace(255, 0, 31)} | dict.fromkeys(ENHANCE_OPS, enhance)


def _round_translation(ranges: MagnitudeRanges) -> MagnitudeRanges:
  rounded = {name: np.trunc(ranges[name].round(6)) for name in ("translate_x", "translate_y")}
  return ranges | rounded


def _signed_magnitudes(ranges: MagnitudeRanges) -> dict[str, np.ndarray]:
  """Magnitudes for `apply_ops` by operation, [levels, 2]."""
  magnitudes = {}
  for name, level in ranges.items():
    middle = 1.0 if name in ENHANCE_OPS else 0.0
    both = (level, level) if name in ("posterize", "solarize") else (middle - level, middle + level)
    magnitudes[name] = np.stack(both, axis=1)
  num_levels = len(magnitudes["rotate"])
  return magnitudes | {name: np.zeros((num_levels, 2)) for name in OP_NAMES if name not in magnitudes}


def _magnitude_table(magnitudes: Mapping[str, np.ndarray]) -> np.ndarray:
  """Magnitudes of RandAugment's operations, [14, levels, 2]."""
  return np.array([magnitudes[name] for name in RANDAUGMENT_OPS], np.float32)
