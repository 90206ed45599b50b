"""Tests of the option checks of errors.py."""

import math

import numpy as np
import pytest

from smskd_jax import errors


@pytest.mark.parametrize(
  "check, good, bad, expected",
  [
    (
      errors.check_positive,
      (1, 0.5, np.float32(2)),
      (0, -1.0, math.nan, math.inf, "1", True),
      "a positive number",
    ),
    (errors.check_non_negative, (0, 0.0, 3), (-1e-9, math.nan, math.inf, "0", False), "a number >= 0"),
    (errors.check_unit_interval, (0, 1.0, 0.5), (-0.1, 1.1, math.nan, "1", True), "a number from 0 to 1"),
    (errors.check_decay, (0, 0.999), (-0.1, 1.0, math.nan, True), "a number from 0 to below 1"),
    (errors.check_integer, (-1, 0, np.int32(2)), (1.0, "1", True, None), "an integer"),
    (errors.check_positive_integer, (1, np.int64(2)), (0, -1, 1.0, True), "a positive integer"),
    (errors.check_non_negative_integer, (0, 1), (-1, 0.0, False), "an integer >= 0"),
    (errors.check_boolean, (True, False), (0, 1, "no", None), "True or False"),
  ],
)
def test_checks_accept_and_refuse(check, good, bad, expected):
  for value in good:
    check("owner", option=value)
  for value in bad:
    with pytest.raises(ValueError) as error:
      check("owner", fine=good[0], option=value)
    assert str(error.value) == f"owner: option must be {expected}, got {value!r}"


def test_choices_and_messages_without_an_owner():
  errors.check_choice("owner", {"a": 1, "b": 2}, option="b")
  with pytest.raises(ValueError, match=r"^owner: option must be one of a, b, got 'c'$"):
    errors.check_choice("owner", ("a", "b"), option="c")
  with pytest.raises(ValueError, match=r"^momentum must be a number from 0 to below 1, got 1$"):
    errors.check_decay(momentum=1)
