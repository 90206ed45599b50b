"""Shared set-up: virtual devices, no rank promotion, one compilation cache for a session."""

import os
from pathlib import Path
import signal

# A shell that starts the tests in the background ignores Ctrl-C, which the tests and their subprocesses would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Most of the time of the tests is compilation, which takes little more than half as long at this level. Subprocesses
# inherit the setting.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax
import pytest

# Each compiled program takes a few memory maps, of which Linux allows a process 65,530.
MAX_MEMORY_MAPS = 30_000

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.devices()  # the devices exist from here on: the first experiment would otherwise make as many as it needs


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
  """One folder of compiled programs for all workers of a session and for the processes that the tests start."""
  folder = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent
  folder = folder / "compiled"
  folder.mkdir(exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"


@pytest.fixture(scope="module", autouse=True)
def bound_memory_maps():
  """Drop compiled programs before their memory maps reach the limit, at which the process would crash."""
  yield
  maps = Path("/proc/self/maps")
  if not maps.exists() or maps.read_bytes().count(b"\n") > MAX_MEMORY_MAPS:
    jax.clear_caches()


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield
