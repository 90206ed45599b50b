"""What all tests share: several virtual devices, and no silent broadcasting."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield
