"""Shared set-up: virtual devices, no rank promotion, one compilation cache for a session."""

import os
import pathlib
import signal

# A shell that starts the tests in the background has Ctrl-C ignored, which they and their subprocesses would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiling is most of what the tests do, and at this level takes little more than half as long. Their subprocesses
# inherit it.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.devices()  # made now: the first test to run an experiment would make as many as that needs


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
  """Compilation cache of the session, also for the processes that it starts."""
  folder = str(tmp_path_factory.mktemp("compiled"))
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
  """Clears compiled programs before a process reaches its limit of 65,530 memory maps."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if not maps.exists() or maps.read_text().count("\n") > 30_000:
    jax.clear_caches()


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield
