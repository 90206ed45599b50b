"""Corrupted copies of test images, computed on the fly, to measure robustness.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
https://arxiv.org/abs/1903.12261

Nine of the paper's corruptions, with the constants of its public code for CIFAR (CIFAR-10-C); severity goes from 1 to
5. Weather, glass, motion, zoom and elastic distortions are left out. The published copies were drawn without a seed, so
that noise differs here; deterministic corruptions differ by rounding at most, JPEG by the version of its library.
Results are rounded to the nearest grey level, the paper's are truncated.
"""

from collections.abc import Callable, Mapping
import io
from types import MappingProxyType
import zlib

import numpy as np
from PIL import Image
from scipy import ndimage

SEVERITIES = (1, 2, 3, 4, 5)

# (images [n, h, w, c] in 0..1, severity - 1, generator) -> corrupted images [n, h, w, c]
Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def gaussian_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
  """Normal noise."""
  return x + rng.normal(scale=(0.04, 0.06, 0.08, 0.09, 0.10)[severity], size=x.shape)


def shot_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
  """Poisson noise, stronger in brighter pixels."""
  photons = (500, 250, 100, 75, 50)[severity]
  return rng.poisson(x * photons) / photons


def impulse_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
  """Salt and pepper in equal parts, each channel independently."""
  fraction = (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
  hit, salt = rng.random(x.shape) < fraction, rng.random(x.shape) < 0.5
  return np.where(hit, salt, x)


def gaussian_blur(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
  """Gaussian filter; borders are extended by their nearest pixels."""
  del rng
  sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity]
  return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def defocus_blur(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
  """Disk filter with soft edges; borders are mirrored."""
  del rng
  radius, softness = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity]
  offset = np.arange(-3, 4)
  disk = (offset[:, None] ** 2 + offset[None] ** 2 <= radius**2).astype(float)
  # Softened by a Gaussian of 3x3, as in the paper's code.
  bell = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
  kernel = ndimage.convolve(disk / disk.sum(), np.outer(bell, bell) / bell.sum() ** 2, mode="constant")
  return ndimage.correlate(x, kernel[None, :, :, None], mode="mirror")


def contrast(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
  """Contrast reduced towards the mean of each channel."""
  del rng
  mean = x.mean((1, 2), keepdims=True)
  return (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity] + mean


def brightness(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
  """HSV value increased: all channels of a pixel grow by one factor, and black becomes grey."""
  del rng
  value = x.max(-1, keepdims=True)
  brighter = np.clip(value + (0.05, 0.1, 0.15, 0.2, 0.3)[severity], 0, 1)
  return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def jpeg_compression(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
  """JPEG compression of low quality."""
  del rng
  quality = (80, 65, 58, 50, 40)[severity]

  def transform(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)

  return _apply_with_pillow(x, transform)


def pixelate(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
  """Resized to a smaller size and back, by box filters."""
  del rng
  fraction = (0.95, 0.9, 0.85, 0.75, 0.65)[severity]

  def transform(image: Image.Image) -> Image.Image:
    small = (int(image.width * fraction), int(image.height * fraction))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

  return _apply_with_pillow(x, transform)


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
  {
    corruption.__name__: corruption
    for corruption in (
      gaussian_noise,
      shot_noise,
      impulse_noise,
      gaussian_blur,
      defocus_blur,
      contrast,
      brightness,
      jpeg_compression,
      pixelate,
    )
  }
)


def corrupt(image: np.ndarray, name: str, severity: int, *, seed: int = 0) -> np.ndarray:
  """Corrupts images; deterministic for a seed.

  Args:
    image: [n, h, w, c], uint8; c is 1 or 3.
    name: a key of `CORRUPTIONS`.
    severity: 1 to 5.
    seed: of the noise.

  Returns:
    [n, h, w, c], uint8.
  """
  rng = np.random.default_rng([seed, zlib.crc32(name.encode()), severity])
  # In pieces, which bounds the memory; all draw from one generator.
  pieces = np.array_split(image, -(-len(image) // 1000))
  corrupted = (CORRUPTIONS[name](piece / 255.0, severity - 1, rng) for piece in pieces)
  return np.concatenate([np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8) for x in corrupted])


def _apply_with_pillow(x: np.ndarray, transform: Callable[[Image.Image], Image.Image]) -> np.ndarray:
  levels = np.rint(255 * x).astype(np.uint8)
  squeezed = levels[..., 0] if x.shape[-1] == 1 else levels
  out = np.stack([np.asarray(transform(Image.fromarray(one))) for one in squeezed])
  return out.reshape(x.shape) / 255.0
