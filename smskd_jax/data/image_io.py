"""A file of an image, opened by Pillow."""

from pathlib import Path
from typing import Any, BinaryIO


def open_image(file: Path | BinaryIO, name: str) -> Any:
  """The image, decoded, of Pillow's mode L where it is grey, else RGB: without transparency or palette.

  Args:
    file: to read.
    name: of the file, for messages.

  Raises:
    ValueError: it cannot be read, or its pixels are of another kind.
  """
  from PIL import Image

  try:
    with Image.open(file) as image:
      if image.mode in ("L", "RGB"):
        image.load()
        return image
      if image.mode in ("1", "LA"):
        return image.convert("L")
      if image.mode in ("RGBA", "P", "PA", "CMYK", "YCbCr"):
        # Through RGBA, since a palette with transparency would make Pillow warn.
        return image.convert("RGBA").convert("RGB")
      mode = image.mode
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, of bad files
    raise ValueError(f"cannot read {name} ({error}); replace or remove it") from None
  raise ValueError(f"{name} has pixels of kind {mode}; convert it to 8-bit grey or RGB")
