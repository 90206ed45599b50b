"""Tests of runtime/onednn.py: compiled once, by several processes at once, and XLA's convolutions without it."""

import functools
import importlib.metadata
import os
import subprocess
import sys

import pytest

from smskd_jax.runtime import onednn, workdir

try:
  HAS_EXTRA = bool([importlib.metadata.version(package) for package in onednn.PACKAGES])
except importlib.metadata.PackageNotFoundError:
  HAS_EXTRA = False
needs_extra = pytest.mark.skipif(not HAS_EXTRA, reason="needs the extra cpu")
needs_onednn = pytest.mark.skipif(onednn.version() is None, reason="needs the extra cpu and a C++ compiler")


@pytest.fixture
def afresh(monkeypatch):
  """The module as in a new process."""
  monkeypatch.setattr(onednn, "_library", functools.cache(onednn._library.__wrapped__))
  monkeypatch.setattr(onednn, "targets", functools.cache(onednn.targets.__wrapped__))


def test_without_the_extra_nothing_is_printed(afresh, monkeypatch, capsys):
  monkeypatch.setattr(onednn, "PACKAGES", ("no-such-package",) * 2)
  assert onednn.version() is None and onednn.targets() == {}
  assert capsys.readouterr().out == ""


def reason(capsys):
  """The one line that is printed, however often oneDNN is tried."""
  assert onednn.version() is None and onednn.targets() == onednn.targets() == {}
  (line,) = capsys.readouterr().out.splitlines()
  return line


@needs_extra
def test_the_switch(afresh, monkeypatch, capsys):
  monkeypatch.setenv(onednn.SWITCH, "off")
  assert reason(capsys) == "convolutions on the CPU are XLA's instead of oneDNN's: SMSKD_ONEDNN is off"
  assert workdir.environment_fingerprint()["versions"]["onednn"] is None


@needs_extra
def test_another_processor(afresh, monkeypatch, capsys):
  monkeypatch.setattr(onednn.platform, "machine", lambda: "aarch64")
  assert "for x86_64, this processor is aarch64" in reason(capsys)


@needs_extra
@pytest.mark.parametrize(
  ("compiler", "message"), [("no-such-compiler", "no C++ compiler"), ("false", "false fails: no message")]
)
def test_no_compiler(compiler, message, afresh, monkeypatch, capsys, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setenv("CXX", compiler)
  assert message in reason(capsys)
  assert not list(tmp_path.rglob("*.so"))


@needs_extra
def test_a_library_that_does_not_load(afresh, monkeypatch, capsys, tmp_path):
  broken = tmp_path / "onednn-0.so"
  broken.write_text("no library")
  monkeypatch.setattr(onednn, "_compile", lambda *_: broken)
  assert "onednn-0.so" in reason(capsys)


@needs_onednn
def test_the_version_is_part_of_the_environment():
  assert onednn.version() == importlib.metadata.version("onednn-cpu-gomp")
  assert workdir.environment_fingerprint()["versions"]["onednn"] == onednn.version()


@needs_onednn
def test_processes_compile_at_once(tmp_path):
  code = "from smskd_jax.runtime import onednn; print(onednn.version())"
  environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
  processes = [
    subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  assert [process.communicate()[0] for process in processes] == [f"{onednn.version()}\n"] * 2
  assert len(list(tmp_path.rglob("*"))) == 3  # two folders and one library


@needs_onednn
def test_errors_are_returned():
  import jax
  import numpy as np

  call = jax.ffi.ffi_call(onednn.targets()["forward"], jax.ShapeDtypeStruct((1, 4, 4, 8), np.float32))
  x, kernel = np.ones((1, 4, 4, 3), np.float32), np.ones((3, 3, 5, 8), np.float32)
  options = {"strides": np.ones(2, np.int64), "padding": np.ones(4, np.int64), "threads": np.int64(1)}
  with pytest.raises(Exception, match="oneDNN convolution: could not create"):
    jax.block_until_ready(jax.jit(lambda *a: call(*a, **options))(x, kernel))
