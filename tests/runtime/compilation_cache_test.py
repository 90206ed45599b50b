"""Tests of runtime/compilation_cache.py: where compiled programs go."""

import jax
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


def test_by_default_they_go_to_the_user_s_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  jax.config.update("jax_compilation_cache_dir", None)
  found = compilation_cache.enable()
  assert found == tmp_path / "smskd_jax" / "programs" / found.name and found.is_dir()
  assert jax.config.jax_compilation_cache_dir == str(found)


def test_what_jax_was_told_stays_unless_a_folder_is_named(tmp_path):
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


def test_a_second_run_compiles_nothing_again(tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.setenv(
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"
  )  # else the machine's mood says what is kept
  flags = (*runs.SMOKE, f"--compilation_cache={tmp_path / 'programs'}")
  kept = []
  for name in ("first", "second"):
    status, _, err = runs.main(tmp_path / name, *flags)
    assert status == 0, err
    kept.append(sorted(path.name for path in (tmp_path / "programs").iterdir() if "atime" not in path.name))
  assert kept[0] == kept[1] and len(kept[0]) >= 4
  assert runs.left_by(tmp_path / "first") == runs.left_by(tmp_path / "second")
