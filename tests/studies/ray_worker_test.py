"""Tests of what a node of a cluster does: whether it can run units, and what becomes of one. None needs Ray."""

import contextlib
import fcntl
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest

import runs
from smskd_jax.runtime import parent_death, workdir
from smskd_jax.studies import ray_worker


@pytest.fixture(autouse=True)
def own_claims(monkeypatch):
  """The cores that other tests have claimed on this machine are free here."""
  monkeypatch.setattr(ray_worker, "CORE_LOCK", f"test.{uuid.uuid4().hex}")


@pytest.fixture
def asked(tmp_path):
  """What a study asks for, whose unit is a piece of Python; its folder is marked as the study does it."""
  mark = tmp_path / ".ray-mark"
  with open(mark, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield ray_worker.NodeSpec(
      arguments=("-c", "import sys; exec(sys.argv[1].removeprefix('--unit='))"),
      folder=str(runs.ROOT),
      environment=(("MARK", "ours"),),
      lock_files=(("--workdir", str(mark)),),
      fingerprint=json.dumps(workdir.environment_fingerprint()),
      cpus=1,
      gpus=0,
    )


def task(tmp_path, code):
  return ray_worker.UnitTask(code, tmp_path / "unit" / "log.txt", (tmp_path / "result.json",), "a unit")


def finish(tmp_path):
  return f"open({str(tmp_path / 'result.json')!r}, 'w'); "


def test_a_node_like_ours_can_run_units(asked):
  assert ray_worker.check_node(asked) == ""


def test_what_a_node_lacks_is_said(asked, tmp_path):
  elsewhere = asked._replace(marks=(("--store", str(tmp_path / "other" / ".ray-mark")),))
  assert f"it does not see --store ({tmp_path / 'other'})" in ray_worker.check_node(elsewhere)
  (tmp_path / "unlocked").touch()
  unlocked = asked._replace(marks=(("--workdir", str(tmp_path / "unlocked")),))
  assert f"locks in --workdir ({tmp_path}) do not reach it" in ray_worker.check_node(unlocked)
  assert "it does not see /nowhere, where the study was started" in ray_worker.check_node(
    asked._replace(folder="/nowhere")
  )
  hidden = asked._replace(folder=str(tmp_path), environment=(("PYTHONPATH", ""), ("PYTHONNOUSERSITE", "1")))
  (tmp_path / "smskd_jax").mkdir()
  # In the place of the one that is installed, if one is.
  (tmp_path / "smskd_jax" / "__init__.py").write_text("raise ModuleNotFoundError('no JAX here')")
  assert "smskd_jax cannot be imported there (ModuleNotFoundError: no JAX here)" in ray_worker.check_node(
    hidden
  )
  other = asked._replace(likeness=json.dumps({**workdir.environment_fingerprint(), "code": "0123"}))
  assert 'it is not like the study\'s: code is "0123" there and ' in ray_worker.check_node(other)


def test_a_node_that_cannot_is_an_error_of_the_unit(asked, tmp_path):
  end = ray_worker.run_unit(asked._replace(folder="/nowhere"), task(tmp_path, finish(tmp_path)))
  assert "it does not see /nowhere" in end.error and not (tmp_path / "result.json").exists()


def test_a_unit_has_its_core_and_environment_and_says_what_went_wrong(asked, tmp_path):
  code = "import os, sys; print(os.environ['MARK'], len(os.sched_getaffinity(0))); "
  assert ray_worker.run_unit(asked, task(tmp_path, finish(tmp_path) + code)).error is None
  assert (tmp_path / "unit" / "log.txt").read_text() == "ours 1\n"
  error = ray_worker.run_unit(asked, task(tmp_path, code + "sys.exit('error: config.seed: too small')")).error
  assert error.startswith("config.seed: too small (exit status 1; ")


@pytest.mark.parametrize(
  "code", ["", "import os; os.kill(os.getpid(), 9)", "import os; os.kill(os.getpid(), 15)"]
)
def test_one_that_was_stopped_is_to_be_run_again(asked, tmp_path, code):
  with pytest.raises(ray_worker.UnitStopped, match=str(tmp_path / "unit" / "log.txt")):
    ray_worker.run_unit(asked, task(tmp_path, code or "print('it has saved')"))


def test_one_that_is_cancelled_is_asked_to_stop_and_waited_for(asked, tmp_path):
  ready, saved = tmp_path / "ready", tmp_path / "saved"
  stop = f"lambda *_: (__import__('time').sleep(0.5), open({str(saved)!r}, 'w'), sys.exit())"
  code = (
    f"import signal, time; signal.signal(signal.SIGTERM, {stop}); open({str(ready)!r}, 'w'); time.sleep(60)"
  )

  def cancel():
    wait_for(ready.exists)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=cancel).start()
  with pytest.raises(KeyboardInterrupt):
    ray_worker.run_unit(asked, task(tmp_path, code))
  assert saved.exists()


def test_a_core_is_given_to_one_unit_at_a_time():
  free = os.sched_getaffinity(0)
  with contextlib.ExitStack() as first:
    mine = ray_worker._claim_cores(1, first)
    with contextlib.ExitStack() as second:
      other = ray_worker._claim_cores(1, second)
      assert len(mine) == 1 and (mine.isdisjoint(other) or len(free) == 1)
    assert ray_worker._claim_cores(len(free), first) == free, "all, where there are not so many"
  assert ray_worker._claim_cores(0, contextlib.ExitStack()) == free


def test_a_command_ends_with_the_process_that_started_it_however_that_ends(tmp_path):
  told = tmp_path / "told"
  child = f"import os, time; open({str(told)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
  code = f"""if True:
    import subprocess, sys
    from smskd_jax.runtime import tied
    subprocess.Popen(tied.command([sys.executable, "-c", {child!r}])).wait()
  """
  parent = subprocess.Popen([sys.executable, "-c", code], cwd=runs.ROOT)
  wait_for(lambda: told.exists() and told.read_text().endswith("\n"))
  alive = lambda: Path(f"/proc/{int(told.read_text())}").exists()
  assert alive()
  parent.kill()
  parent.wait()
  wait_for(lambda: not alive())


def test_a_command_whose_starter_is_gone_is_not_run():
  command = parent_death.with_parent_death([sys.executable, "-c", "print('it runs')"])
  command[3] = "1"  # as if another process had asked
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1 and done.stdout == ""


def wait_for(condition):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)
