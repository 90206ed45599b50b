"""Tests of machines that lack something: one line, a status that is not 0, no hang, and going on later bit for bit."""

import contextlib
import errno
import os
import resource
import subprocess
import time

import pytest

import runs
from smskd_jax import cli
from smskd_jax.config import stage
from smskd_jax.engine import experiment
from smskd_jax.runtime import resource_errors, writer
from smskd_jax.runtime.writer import read_metrics

SIZE = "96m"


def chained(outer, inner):
  """An error in whose handling another was raised."""
  try:
    try:
      raise inner
    except type(inner) as error:
      raise outer from error
  except type(outer) as error:
    return error


SAID_BY_TENSORSTORE = ValueError("RESOURCE_EXHAUSTED: Error writing [OS error 28: No space left on device]")


@pytest.mark.parametrize(
  "error, words",
  [
    (OSError(errno.ENOSPC, "x"), "--workdir: {0} is full"),
    (OSError(errno.EDQUOT, "x"), "full for this user"),
    (SAID_BY_TENSORSTORE, "--workdir: {0} is full"),
    (ExceptionGroup("all", [SAID_BY_TENSORSTORE]), "is full"),
    (chained(RuntimeError("a"), OSError(errno.EROFS, "x", "/some/file")), "/some/file has become read-only"),
    (PermissionError(errno.EACCES, "x", "/some/file"), "/some/file may not be written to"),
    (OSError(errno.EMFILE, "x"), "too many open files"),
    (MemoryError(), "out of memory"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), "out of memory"),
    (RuntimeError("can't start new thread"), "no more threads"),
  ],
)
def test_what_is_lacking_is_one_line(tmp_path, error, words):
  line = resource_errors.explain(error, {"--workdir": tmp_path / "new", "--store": None})
  assert words.format(tmp_path / "new") in line and "\n" not in line
  assert line.endswith("and the same command continues from there")


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError(errno.ENOENT, "x", "y"), KeyError(28)])
def test_other_errors_are_not_explained(tmp_path, error):
  assert resource_errors.explain(error, {"--workdir": tmp_path}) is None


def test_a_disk_that_is_full_in_mid_training_is_one_line(tmp_path, monkeypatch, capsys):
  whole, lines = writer.MetricsWriter.write, []

  def write(self, values):
    lines.append(values)
    if len(lines) == 7:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    whole(self, values)

  def program(workdir=tmp_path / "run"):
    teacher = stage("teacher", epochs=2, batch_size=128, augment={"crop_flip": {"padding": 1, "flip": False}})
    experiment.run(runs.tiny(stages=(teacher,)), workdir)
    return 0

  with monkeypatch.context() as patched:
    patched.setattr(writer.MetricsWriter, "write", write)
    assert cli.exit_status(program, lambda: {"--workdir": tmp_path / "run"}) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"error: --workdir: {tmp_path / 'run'} is full")
  assert "stage 'teacher': the last checkpoint is of step" in line
  assert program() == program(tmp_path / "undisturbed") == 0
  assert runs.left_by(tmp_path / "run") == runs.left_by(tmp_path / "undisturbed")


def test_events_that_cannot_be_written_raise_and_do_not_wait(tmp_path):
  metrics = writer.MetricsWriter(tmp_path / "m.jsonl", tmp_path / "events", last_step=-1)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with pytest.raises(OSError), contextlib.closing(metrics):
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
      for step in range(20_000):
        metrics._mirror({"step": step, "epoch": 0.0, "train/loss": 1.0})
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path):
  """A disk of its own."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk], capture_output=True)
  if mounted.returncode:
    pytest.skip("no disk may be mounted here: it takes the rights of root")
  yield disk
  subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk):
  with contextlib.suppress(OSError), open(disk / "ballast", "ab", buffering=0) as file:
    while file.write(bytes(2**16)):
      pass
  with contextlib.suppress(OSError), open(disk / "ballast", "ab", buffering=0) as file:
    while file.write(b"x"):
      pass


def evaluations(store, count):
  return any(len(read_metrics(path)) >= count for path in store.glob("*/metrics.jsonl"))


MOMENTS = {
  "before the start": lambda workdir, store: True,
  "data and compilation": lambda workdir, store: (workdir / "config.json").exists(),
  "the first checkpoint": lambda workdir, store: any(store.glob("*/checkpoints/*")),
  "mid-training": lambda workdir, store: (
    len(list(store.glob("*/result.json"))) >= 1 and evaluations(store, 8)
  ),
  "the end of a stage": lambda workdir, store: len(list(store.glob("*/final"))) >= 3,
}
PLACES = {"workdir": ("disk", "other"), "store": ("other", "disk"), "both": ("disk", "disk")}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
  folder = tmp_path_factory.mktemp("smoke")
  assert runs.main(folder, *runs.SMOKE)[0] == 0
  return runs.left_by(folder)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk(small_disk, tmp_path, smoke, place, moment):
  where = {"disk": small_disk, "other": tmp_path / "other"}
  workdir, store = (where[name] / kind for name, kind in zip(PLACES[place], ("w", "s"), strict=True))

  def reached():
    return MOMENTS[moment](workdir, store)

  if moment == "before the start":
    fill(small_disk)
  process = runs.start(workdir, f"--store={store}", *runs.SMOKE)
  while not reached() and process.poll() is None:
    time.sleep(0.002)
  fill(small_disk)
  _, err = process.communicate(timeout=120)
  lines = err.splitlines()
  print(f"{place:8s} {moment:22s} status {process.returncode}, {len(lines)} lines: {err.strip()[-260:]}")
  if process.returncode == 0:  # all was written by then
    assert not lines and (workdir / "report.md").stat().st_size
  else:
    assert process.returncode == 1 and len(lines) == 1, err
    assert f"{small_disk}" in lines[0] and "is full" in lines[0]
    assert "the same command continues from there" in lines[0]
  (small_disk / "ballast").unlink()
  status, _, err = runs.main(workdir, f"--store={store}", *runs.SMOKE)
  assert status == 0, err
  assert runs.left_by(workdir, store) == smoke
