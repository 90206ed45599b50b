"""The distillation methods: names to factories."""

from collections.abc import Callable, Mapping
import types

from smskd_jax.losses import fitnet, kd, rkd
from smskd_jax.losses.method import Method

# Every factory takes the method's hyper-parameters by keyword and raises ValueError on a bad one.
METHODS: Mapping[str, Callable[..., Method]] = types.MappingProxyType(
  {
    "fitnet": fitnet.method,
    "kd": kd.method,
    "rkd": rkd.method,
  }
)
