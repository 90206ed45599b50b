"""Winograd's minimal filtering of 3x3 convolutions: 16 products a tile instead of 36.

Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, https://arxiv.org/abs/1509.09308: their
F(2x2, 3x3). Tiles of 4x4 inputs and the kernel are mapped to 16 numbers each (B, G), multiplied, summed over channels
as 16 matrix products, and mapped back (A). The map of the inputs has only sums, so that its
rounding is that of the convolution itself; the gradients are those of the map, written out.

The sums are of slices and not of matrix products with B and A, which XLA would not fuse with their neighbours.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Transform of a kernel of three; halves are exact.
KERNEL_TRANSFORM = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
TileElements = list[jax.Array]  # 16, of each tile: [tiles, channels]


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves x, [b, h, w, i] with even h and w, by [3, 3, i, o]: [b, h, w, o]."""
  transformed = _transform_kernel(kernel)
  products = [number @ transformed[t] for t, number in enumerate(_transform_inputs(x))]
  return _inverse_transform(products, (*x.shape[:-1], kernel.shape[-1]))


def input_gradient(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
  """Gradient by the inputs, [b, h, w, i], of a gradient by the outputs, [b, h, w, o]."""
  return convolve(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """Gradient by the kernel, [3, 3, i, o], of a gradient by the outputs, [b, h, w, o]."""
  pairs = zip(_transform_inputs(x), _transform_gradient(gradient), strict=True)
  products = jnp.stack([number.T @ other for number, other in pairs])
  to_kernel = KERNEL_TRANSFORM.astype(x.dtype)
  return jnp.einsum("sp,tq,stio->pqio", to_kernel, to_kernel, products.reshape(4, 4, *products.shape[1:]))


def _transform_kernel(kernel: jax.Array) -> jax.Array:
  """[16, i, o]: G k G^T."""
  transform = KERNEL_TRANSFORM.astype(kernel.dtype)
  return jnp.einsum("sp,tq,pqio->stio", transform, transform, kernel).reshape(16, *kernel.shape[2:])


def _transform_inputs(x: jax.Array) -> TileElements:
  """B^T d B of each tile d, 4x4 inputs of which neighbours share two rows or columns."""
  _, h, w, channels = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

  def combine(d):
    return (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])

  rows = combine([padded[:, i : i + h - 1 : 2] for i in range(4)])
  both = [combine([row[:, :, j : j + w - 1 : 2] for j in range(4)]) for row in rows]
  return [number.reshape(-1, channels) for row in both for number in row]


def _inverse_transform(products: TileElements, shape: tuple[int, ...]) -> jax.Array:
  """A^T m A of each tile: its 2x2 outputs."""
  b, h, w, channels = shape

  def combine(m):
    return (m[0] + m[1] + m[2], m[1] - m[2] - m[3])

  columns = [combine(products[j::4]) for j in range(4)]
  tiles = [combine([column[p] for column in columns]) for p in range(2)]
  each = [[number.reshape(b, h // 2, w // 2, channels) for number in row] for row in tiles]
  return jnp.stack([jnp.stack(row, axis=3) for row in each], axis=2).reshape(shape)


def _transform_gradient(gradient: jax.Array) -> TileElements:
  """A g A^T of each tile g, 2x2: `_to_outputs`, transposed."""

  def combine(g):
    return (g[0], g[0] + g[1], g[0] - g[1], -g[1])

  rows = combine([gradient[:, p::2] for p in range(2)])
  both = [combine([row[:, :, q::2] for q in range(2)]) for row in rows]
  return [number.reshape(-1, gradient.shape[-1]) for row in both for number in row]
