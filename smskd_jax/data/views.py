"""Views by name: chains of augmentations of uint8 images, made on the device inside the compiled step. Pure.

plain            the image as it is
crop_flip        a random crop of the zero-padded image, mirrored half the time: padding, flip
autoaugment      the CIFAR-10 policy of AutoAugment: fill
randaugment      operations of one magnitude: num_ops, magnitude, fill
trivialaugment   one operation of any magnitude: fill
fixmatch         two operations of any magnitude and a square: fill
cutout           a square in one colour: size, fill
random_erasing   a rectangle of random levels: probability, min_area, max_area, min_aspect, fill

A `+` joins them: "crop_flip+randaugment+cutout". b batch, h w c image.
"""

from collections.abc import Callable, Mapping
import inspect
from types import MappingProxyType
from typing import Any

import jax

from smskd_jax.data import augment, erasing, policies

# (key, image [b, h, w, c], uint8, index [b], integers) -> [b, h, w, c], uint8.
View = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def plain(key: jax.Array, image: jax.Array, index: jax.Array) -> jax.Array:
  """The image as it is."""
  del key, index
  return image


def crop_flip(
  key: jax.Array, image: jax.Array, index: jax.Array, *, padding: int = 4, flip: bool = True
) -> jax.Array:
  """`augment.crop_flip`, with the usual options for CIFAR."""
  return augment.crop_flip(key, image, index, padding=padding, flip=flip)


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
  }
)


def make_view(name: str, **options: Any) -> View:
  """A view of its name.

  Each part of a chain draws from a key of its own; a `crop_flip` that comes first draws from the key as it is.

  Args:
    name: one of `VIEWS`, or several that are joined by "+", in the order in which they are applied.
    **options: each goes to every part that has it.

  Returns:
    (key, image [b, h, w, c], index [b]) -> image, all uint8. The key already holds the stage, the step and, where an
    image is seen in several views, which of them this is. What becomes of an example depends on the key and on its
    own index alone.

  Raises:
    ValueError: an unknown part, or an option that no part has. A bad value is refused where the view is first used.
  """
  names = name.split("+")
  for part in names:
    if part not in VIEWS:
      raise ValueError(f"view {name!r}: unknown part {part!r}; known: {', '.join(VIEWS)}")
  known = view_options(name)
  for option in options:
    if option not in known:
      raise ValueError(f"view {name!r} has no option {option!r}; it has: {', '.join(known) or 'none'}")
  own = [{option: value for option, value in options.items() if option in _defaults(part)} for part in names]

  def view(key, image, index):
    for place, (part, chosen) in enumerate(zip(names, own, strict=True)):
      as_it_is = place == 0 and part == "crop_flip"
      part_key = key if as_it_is else jax.random.fold_in(key, augment.NO_INDEX - place)
      image = VIEWS[part](part_key, image, index, **chosen)
    return image

  return view


def view_options(name: str) -> dict[str, Any]:
  """The options of a view and their defaults; of several parts with one option, the first part's default."""
  options: dict[str, Any] = {}
  for part in name.split("+"):
    options = _defaults(part) | options
  return options


def _defaults(part: str) -> dict[str, Any]:
  parameters = inspect.signature(VIEWS[part]).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
