"""Tests of runtime/compilation_cache.py: the folder of the cache, and programs that are read from it."""

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache
import jax.numpy as jnp
import pytest

import runs
from smskd_jax.errors import UserError
from smskd_jax.runtime import compilation_cache


@pytest.fixture(autouse=True)
def own_settings():
  names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_the_default_folder_is_in_the_users_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  jax.config.update("jax_compilation_cache_dir", None)
  found = compilation_cache.enable()
  assert found == tmp_path / "smskd_jax" / "programs" / found.name and found.is_dir()
  assert jax.config.jax_compilation_cache_dir == str(found)


def test_the_setting_of_jax_stays_unless_a_folder_is_named(tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "told"))
  assert compilation_cache.enable() == tmp_path / "told"
  assert compilation_cache.enable(str(tmp_path / "named")) == tmp_path / "named"
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "named")
  assert compilation_cache.enable("off") is None and not jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="--compilation_cache: .*file/inside cannot be written to"):
    compilation_cache.enable(str(tmp_path / "file" / "inside"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  jax.config.update("jax_compilation_cache_dir", None)
  assert compilation_cache.enable() is None and jax.config.jax_compilation_cache_dir is None


def test_a_program_that_is_in_the_cache_is_not_compiled_again(tmp_path, monkeypatch):
  settings = ("jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes")
  before = {name: getattr(jax.config, name) for name in settings}
  hits = []
  jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event == "/jax/compilation_cache/cache_hits" else None
  )
  try:
    for name in settings:
      jax.config.update(name, 0)
    jax_cache.reset_cache()  # the folder is read at the first compilation
    compilation_cache.enable(str(tmp_path))
    files = []
    for hit in (False, True):
      jax.jit(lambda x: jnp.sin(x) * 3)(
        jnp.arange(5.0)
      )  # a new function each time: JAX's own cache has no entry
      assert bool(hits) == hit
      files.append({path.name for path in tmp_path.iterdir() if "atime" not in path.name})
    assert files[0] == files[1] != set()
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    jax_cache.reset_cache()


@pytest.mark.slow
def test_a_second_run_compiles_nothing_again(tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.setenv(
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"
  )  # otherwise the speed of the machine decides
  flags = (*runs.SMOKE, f"--compilation_cache={tmp_path / 'programs'}")
  kept = []
  for name in ("first", "second"):
    status, _, err = runs.main(tmp_path / name, *flags)
    assert status == 0, err
    kept.append(sorted(path.name for path in (tmp_path / "programs").iterdir() if "atime" not in path.name))
  assert kept[0] == kept[1] and len(kept[0]) >= 4
  assert runs.left_by(tmp_path / "first") == runs.left_by(tmp_path / "second")
