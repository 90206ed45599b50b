"""Tests of data/ahead.py."""

import functools
import os

import numpy as np
import pytest

from smskd_jax.data.ahead import ahead
from smskd_jax.errors import UserError


def of_step(bad, step):
  if step == bad:
    raise UserError(f"data.source: step {step} is bad; mend it")
  return np.array([step, os.getpid()])


def steps(arrays):
  return [int(array[0]) for array in arrays]


@pytest.mark.parametrize("workers", [0, 2])
def test_all_steps_come_in_their_order(workers):
  made = list(ahead(functools.partial(of_step, -1), 3, 20, workers=workers))
  assert steps(made) == list(range(3, 20))
  makers = {int(array[1]) for array in made}
  assert len(makers) == 2 and os.getpid() not in makers if workers else makers == {os.getpid()}
  assert all(type(array) is np.ndarray for array in made)


def test_behind_the_end_there_is_nothing():
  assert list(ahead(functools.partial(of_step, -1), 5, 5)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_comes_back_as_it_is(workers):
  made = ahead(functools.partial(of_step, 4), 2, 9, workers=workers)
  assert steps([next(made), next(made)]) == [2, 3]
  with pytest.raises(UserError, match="^data.source: step 4 is bad; mend it$"):
    next(made)


def test_it_may_be_left_before_its_end():
  made = ahead(functools.partial(of_step, -1), 0, 10**6, workers=1)
  assert steps([next(made)]) == [0]
  made.close()
