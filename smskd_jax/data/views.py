"""Views by name: chains of augmentations of uint8 images. Pure.

They are computed on the device inside the compiled step.

  view             augmentation                                                  options and defaults
  plain            the image unchanged
  crop_flip        random crop of the zero-padded image, mirrored half the time  padding=4, flip=True, num_views=0 (all)
  autoaugment      AutoAugment's policy for CIFAR-10                             fill=128
  randaugment      operations of one magnitude                                   num_ops=2, magnitude=9, fill=0
  trivialaugment   one operation of random magnitude                             fill=0
  fixmatch         two operations of random magnitude and a square               fill=0
  cutout           a square of one colour                                        size=16, fill=128
  random_erasing   a rectangle of random levels                                  probability, min_area, max_area, ...
  noise            standard normal noise instead of the image, as normalized floats; cannot be chained

`+` chains views: "crop_flip+randaugment+cutout". Shapes: b batch, h height, w width, c channels.

`plain` and `crop_flip` have finitely many views per image: a crop of the image padded by p pixels, mirrored or not, is
one of 2 (2p + 1)^2, 162 for p = 4. `EnumerableView` numbers them, so that the outputs of a frozen network can be
cached. With num_views = V below the total N, the views of an image are

  (offset + v stride) mod N,  v = 0, ..., V - 1,

where the offset is drawn once for each image and the stride is coprime to N, so that the V views differ. V < N
approximates the usual augmentation, which samples all N.
"""

from collections.abc import Callable, Mapping
import inspect
import math
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.data import augment, erasing, policies

# (key, image [b, h, w, c], uint8, index [b], integers) -> [b, h, w, c], uint8; or float32, normalized already.
View = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

OFFSET_SEED = 0x5EED  # key of the offset that is drawn once for each image


class EnumerableView(NamedTuple):
  """A view of which each image has finitely many, numbered from 0.

  num_views: views per image.
  sample_index: (key, index [b]) -> view indices [b], int32, a random one for each image.
  render: (image [b, h, w, c], index [b], view index [b]) -> views [b, h, w, c], uint8.
  """

  num_views: int
  sample_index: Callable[[jax.Array, jax.Array], jax.Array]
  render: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def enumerable_plain() -> EnumerableView:
  """The image unchanged: one view."""
  return EnumerableView(1, lambda key, index: jnp.zeros_like(index), lambda image, index, view_index: image)


def enumerable_crop_flip(*, padding: int = 4, flip: bool = True, num_views: int = 0) -> EnumerableView:
  """Crops of the zero-padded image, mirrored or not.

  Args:
    padding: pixels of zeros on each side.
    flip: also use mirrored crops.
    num_views: views per image; 0 for all.

  Raises:
    ValueError: `num_views` is negative or greater than the number of crops.
  """
  side, num_flips = 2 * padding + 1, 1 + flip
  total = side * side * num_flips
  if not 0 <= num_views <= total:
    raise ValueError(
      f"crop_flip.num_views: {num_views}; a padding of {padding} gives {total}, and 0 means all"
    )
  is_subset = 0 < num_views < total

  def sample_index(key, index):
    if is_subset:
      return jnp.floor(augment.uniform_per_example(key, index, 1)[:, 0] * num_views).astype(jnp.int32)
    corner, flipped = augment.sample_crop_flip(key, index, padding)
    crop_index = corner[:, 0] * side + corner[:, 1]
    return crop_index * 2 + flipped if flip else crop_index

  def render(image, index, view_index):
    if is_subset:
      uniforms = augment.uniform_per_example(jax.random.key(OFFSET_SEED), index, 1)[:, 0]
      offset = jnp.floor(uniforms * total).astype(jnp.int32)
      view_index = (offset + view_index * _coprime_stride(total, num_views)) % total
    crop_index, flipped = jnp.divmod(view_index, num_flips)
    corner = jnp.stack(jnp.divmod(crop_index, side), axis=-1)
    return augment.apply_crop_flip(image, corner, flipped.astype(bool), padding=padding, flip=flip)

  return EnumerableView(num_views or total, sample_index, render)


def _coprime_stride(total: int, num_views: int) -> int:
  """Smallest integer of at least total / num_views that is coprime to total."""
  return next(s for s in range(-(-total // num_views), 2 * total + 1) if math.gcd(s, total) == 1)


# Views whose outputs can be cached, by their names in `VIEWS`.
ENUMERABLE_VIEWS: Mapping[str, Callable[..., EnumerableView]] = MappingProxyType(
  {"plain": enumerable_plain, "crop_flip": enumerable_crop_flip}
)


def plain(key: jax.Array, image: jax.Array, index: jax.Array) -> jax.Array:
  """The image unchanged."""
  del key, index
  return image


def crop_flip(
  key: jax.Array,
  image: jax.Array,
  index: jax.Array,
  *,
  padding: int = 4,
  flip: bool = True,
  num_views: int = 0,
) -> jax.Array:
  """`augment.crop_flip` with CIFAR's usual options.

  `num_views` > 0 samples that many views of each image.
  """
  if not num_views:
    return augment.crop_flip(key, image, index, padding=padding, flip=flip)
  views = enumerable_crop_flip(padding=padding, flip=flip, num_views=num_views)
  return views.render(image, index, views.sample_index(key, index))


def noise(key: jax.Array, image: jax.Array, index: jax.Array) -> jax.Array:
  """Standard normal noise for each example, as a normalized image.

  [b, h, w, c], float32.

  A network with a normalization of its own gets the same noise in its own units.
  """

  def sample(i):
    return jax.random.normal(jax.random.fold_in(key, i), image.shape[1:], jnp.float32)

  return jax.vmap(sample)(index)


# Each is a View that also takes options by name, with defaults.
VIEWS: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
  {
    "plain": plain,
    "crop_flip": crop_flip,
    "autoaugment": policies.autoaugment,
    "randaugment": policies.randaugment,
    "trivialaugment": policies.trivialaugment,
    "fixmatch": policies.fixmatch,
    "cutout": erasing.cutout,
    "random_erasing": erasing.random_erasing,
    "noise": noise,
  }
)


def make_view(name: str, options: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> View:
  """Makes the view of a name.

  Each part of a chain draws from its own key; a `crop_flip` in the first position draws from the key unchanged.

  Args:
    name: one of `VIEWS`, or several joined by "+", applied from left to right.
    options: options by part, as {"crop_flip": {"padding": 2}}; options of parts that the name lacks are ignored.

  Returns:
    (key, image [b, h, w, c], index [b]) -> image, uint8 except for noise. The key must already hold the stage, the step
    and the number of the view. The view of an example depends on the key and the index of the example alone.

  Raises:
    ValueError: an unknown part, or an option that a part does not have. A bad value is refused on first use of the
      view.
  """
  known = view_options(name)
  for part, part_options in options.items():
    for option in part_options:
      if part in known and option not in known[part]:
        raise ValueError(
          f"view {part!r} has no option {option!r}; it has: {', '.join(known[part]) or 'none'}"
        )
  parts = [(part, dict(options.get(part, {}))) for part in name.split("+")]

  def view(key, image, index):
    for position, (part, part_options) in enumerate(parts):
      keep_key = position == 0 and part == "crop_flip"
      part_key = key if keep_key else jax.random.fold_in(key, augment.RNG_SALT - position)
      image = VIEWS[part](part_key, image, index, **part_options)
    return image

  return view


def view_options(name: str) -> dict[str, dict[str, Any]]:
  """Options of each part of a view, with their defaults.

  Raises:
    ValueError: an unknown part.
  """
  parts = name.split("+")
  for part in parts:
    if part not in VIEWS:
      raise ValueError(f"view {name!r}: unknown part {part!r}; known: {', '.join(VIEWS)}")
  if "noise" in parts and len(parts) > 1:
    raise ValueError(f"view {name!r}: 'noise' replaces the image and cannot be chained; use 'noise' alone")
  return {part: _default_options(part) for part in parts}


def _default_options(part: str) -> dict[str, Any]:
  parameters = inspect.signature(VIEWS[part]).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
