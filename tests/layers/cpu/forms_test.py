"""Tests of layers/cpu/forms.py: the form of a convolution by its shape, type and library."""

import numpy as np
import pytest

from smskd_jax.layers.cpu.forms import Convolution, Direction, Form, choose

FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = Direction


def conv(side=8, i=128, o=128, kernel=3, stride=1, pad=1):
  return Convolution((2, side, side, i), (kernel, kernel, i, o), (stride, stride), ((pad, pad), (pad, pad)))


def form(direction=FORWARD, dtype=np.float32, onednn=True, **shape):
  return choose(direction, conv(**shape), np.dtype(dtype), has_onednn=onednn)


@pytest.mark.parametrize("direction", Direction)
def test_few_channels_are_onednns_or_xlas(direction):
  assert form(direction, i=64) is form(direction, o=16) is Form.ONEDNN
  assert form(direction, i=64, onednn=False) is Form.XLA


def test_many_channels_are_winograds():
  assert form(FORWARD) is form(INPUT_GRADIENT) is Form.WINOGRAD
  assert form(KERNEL_GRADIENT) is Form.ONEDNN
  assert form(KERNEL_GRADIENT, onednn=False) is Form.WINOGRAD


@pytest.mark.parametrize("other", [{"side": 7}, {"stride": 2}, {"kernel": 5, "pad": 2}, {"pad": 0}])
def test_other_shapes_are_not_winograds(other):
  assert form(**other) is Form.ONEDNN
  assert form(**other, onednn=False) is Form.XLA


def test_float64_is_never_onednns():
  assert form(dtype=np.float64, i=64) is Form.XLA
  assert form(dtype=np.float64) is Form.WINOGRAD


def test_shapes_of_results():
  strided = Convolution((2, 9, 7, 3), (3, 5, 3, 4), (2, 1), ((1, 1), (0, 2)))
  assert [strided.result(direction) for direction in Direction] == [(2, 5, 5, 4), (2, 9, 7, 3), (3, 5, 3, 4)]
