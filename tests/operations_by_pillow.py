"""Pillow's versions of the operations of data/image_ops.py, one image at a time."""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = 128


def apply_with_pillow(name, image, magnitude):
  picture, magnitude = Image.fromarray(image.squeeze()), float(magnitude)
  fill = FILL if image.shape[-1] == 1 else (FILL,) * 3

  def affine(*matrix, resample=Image.Resampling.NEAREST):
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)

  cubic = Image.Resampling.BICUBIC
  result = {
    "shear_x": lambda: affine(1, magnitude, 0, 0, 1, 0),
    "shear_y": lambda: affine(1, 0, 0, magnitude, 1, 0),
    "cubic_shear_x": lambda: affine(1, magnitude, 0, 0, 1, 0, resample=cubic),
    "cubic_shear_y": lambda: affine(1, 0, 0, magnitude, 1, 0, resample=cubic),
    "translate_x": lambda: affine(1, 0, magnitude, 0, 1, 0),
    "translate_y": lambda: affine(1, 0, 0, 0, 1, magnitude),
    "rotate": lambda: picture.rotate(magnitude, fillcolor=fill),
    "posterize": lambda: ImageOps.posterize(picture, int(magnitude)),
    "solarize": lambda: ImageOps.solarize(picture, magnitude),
    "autocontrast": lambda: ImageOps.autocontrast(picture),
    "equalize": lambda: ImageOps.equalize(picture),
    "invert": lambda: ImageOps.invert(picture),
    "color": lambda: ImageEnhance.Color(picture).enhance(magnitude),
    "contrast": lambda: ImageEnhance.Contrast(picture).enhance(magnitude),
    "brightness": lambda: ImageEnhance.Brightness(picture).enhance(magnitude),
    "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(magnitude),
    "identity": lambda: picture,
  }[name]()
  return np.asarray(result).reshape(image.shape)
