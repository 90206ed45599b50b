"""Views by name: chains of augmentations of uint8 images, made on the device inside the compiled step. Pure.

plain            the image as it is
crop_flip        a random crop of the zero-padded image, mirrored half the time: padding, flip, views (0: all there are)
autoaugment      the CIFAR-10 policy of AutoAugment: fill
randaugment      operations of one magnitude: num_ops, magnitude, fill
trivialaugment   one operation of any magnitude: fill
fixmatch         two operations of any magnitude and a square: fill
cutout           a square in one colour: size, fill
random_erasing   a rectangle of random levels: probability, min_area, max_area, min_aspect, fill
noise            standard normal noise in the place of the image, as floats that are normalized already; it stands alone

A `+` joins them: "crop_flip+randaugment+cutout". b batch, h w c image.
"""

from collections.abc import Callable, Mapping
import inspect
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from smskd_jax.data import augment, enumerable_views, erasing, policies

# (key, image [b, h, w, c], uint8, index [b], integers) -> [b, h, w, c], uint8; or float32, normalized already.
View = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def plain(key: jax.Array, image: jax.Array, index: jax.Array) -> jax.Array:
  """The image as it is."""
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
  """`augment.crop_flip`, with the usual options for CIFAR; with `views` only so many of each image, see `finite`."""
  if not num_views:
    return augment.crop_flip(key, image, index, padding=padding, flip=flip)
  of = enumerable_views.crop_flip(padding=padding, flip=flip, num_views=num_views)
  return of.render(image, index, of.sample_index(key, index))


def noise(key: jax.Array, image: jax.Array, index: jax.Array) -> jax.Array:
  """Noise for each example, of mean 0 and deviation 1 as images normalized by the data have: [b, h, w, c], float32.

  A network with a normalisation of its own gets the same picture, in its own units.
  """
  draw = lambda i: jax.random.normal(jax.random.fold_in(key, i), image.shape[1:], jnp.float32)
  return jax.vmap(draw)(index)


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
  """A view of its name.

  Each part of a chain draws from a key of its own; a `crop_flip` that comes first draws from the key as it is.

  Args:
    name: one of `VIEWS`, or several that are joined by "+", in the order in which they are applied.
    options: those of each part, by its name, as {"crop_flip": {"padding": 2}}; of other parts too, which are ignored.

  Returns:
    (key, image [b, h, w, c], index [b]) -> image, uint8 but for noise. The key already holds the stage, the step and,
    where an image is seen in several views, which of them this is. What becomes of an example depends on the key and on
    its own index alone.

  Raises:
    ValueError: an unknown part, or an option that a part does not have. A bad value is refused where the view is first
      used.
  """
  known = view_options(name)
  for part, given in options.items():
    for option in given:
      if part in known and option not in known[part]:
        raise ValueError(
          f"view {part!r} has no option {option!r}; it has: {', '.join(known[part]) or 'none'}"
        )
  parts = [(part, dict(options.get(part, {}))) for part in name.split("+")]

  def view(key, image, index):
    for place, (part, chosen) in enumerate(parts):
      as_it_is = place == 0 and part == "crop_flip"
      part_key = key if as_it_is else jax.random.fold_in(key, augment.RNG_SALT - place)
      image = VIEWS[part](part_key, image, index, **chosen)
    return image

  return view


def view_options(name: str) -> dict[str, dict[str, Any]]:
  """The options of each part of a view, with their defaults.

  Raises:
    ValueError: an unknown part.
  """
  parts = name.split("+")
  for part in parts:
    if part not in VIEWS:
      raise ValueError(f"view {name!r}: unknown part {part!r}; known: {', '.join(VIEWS)}")
  if "noise" in parts and len(parts) > 1:
    raise ValueError(f"view {name!r}: 'noise' leaves nothing of the image for other parts; use it alone")
  return {part: _default_options(part) for part in parts}


def _default_options(part: str) -> dict[str, Any]:
  parameters = inspect.signature(VIEWS[part]).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
