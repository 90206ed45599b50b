"""Tests of studies/ray_worker.py, none of which needs Ray: checks of a node, and the outcomes of units."""

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
from smskd_jax.runtime import integrity, parent_death, workdir
from smskd_jax.studies import ray_worker

INTACT = json.dumps(integrity.with_checksum({"stages": []}))


@pytest.fixture(autouse=True)
def unreserved_cores(monkeypatch):
  """Cores that other tests have reserved on this machine are free here."""
  monkeypatch.setattr(ray_worker, "CORE_LOCK", f"test.{uuid.uuid4().hex}")


@pytest.fixture
def spec(tmp_path):
  """Requirements of a study whose units are pieces of Python."""
  lock_file = tmp_path / ".ray-lock"
  with open(lock_file, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield ray_worker.NodeSpec(
      arguments=("-c", "import sys; exec(sys.argv[1].removeprefix('--unit='))"),
      folder=str(runs.ROOT),
      environment=(("FORWARDED", "yes"),),
      lock_files=(("--workdir", str(lock_file)),),
      fingerprint=json.dumps(workdir.environment_fingerprint()),
      cpus=1,
      gpus=0,
    )


def unit_task(tmp_path, code):
  return ray_worker.UnitTask(code, tmp_path / "unit" / "log.txt", (tmp_path / "result.json",), "a unit")


def write_result(tmp_path):
  """Code that writes the unit's result."""
  return f"open({str(tmp_path / 'result.json')!r}, 'w').write({INTACT!r}); "


def test_a_node_with_the_same_disk_and_software_can_run_units(spec):
  assert ray_worker.check_node(spec) == ""


def test_a_missing_requirement_is_named(spec, tmp_path):
  def problem(**fields):
    return ray_worker.check_node(spec._replace(**fields))

  other_disk = (("--store", str(tmp_path / "other" / ".ray-lock")),)
  assert f"--store ({tmp_path / 'other'}) does not exist there" in problem(lock_files=other_disk)
  (tmp_path / "unlocked").touch()
  unlocked = (("--workdir", str(tmp_path / "unlocked")),)
  assert f"locks in --workdir ({tmp_path}) have no effect there" in problem(lock_files=unlocked)
  assert "/nowhere, where the study was started, does not exist there" in problem(folder="/nowhere")
  (tmp_path / "smskd_jax").mkdir()  # hides an installed package
  (tmp_path / "smskd_jax" / "__init__.py").write_text("raise ModuleNotFoundError('no JAX here')")
  environment = (("PYTHONPATH", ""), ("PYTHONNOUSERSITE", "1"))
  error = problem(folder=str(tmp_path), environment=environment)
  assert "smskd_jax cannot be imported there (ModuleNotFoundError: no JAX here)" in error
  fingerprint = json.dumps({**workdir.environment_fingerprint(), "code": "0123"})
  error = problem(fingerprint=fingerprint)
  assert 'its software differs from the study\'s: code is "0123" there and ' in error


def test_on_a_node_that_lacks_a_requirement_a_unit_fails(spec, tmp_path):
  result = ray_worker.run_unit(spec._replace(folder="/nowhere"), unit_task(tmp_path, write_result(tmp_path)))
  assert "/nowhere, where the study was started, does not exist" in result.error
  assert not (tmp_path / "result.json").exists()


def test_a_unit_gets_its_core_and_environment_and_returns_its_error(spec, tmp_path):
  code = "import os, sys; print(os.environ['FORWARDED'], len(os.sched_getaffinity(0))); "
  assert ray_worker.run_unit(spec, unit_task(tmp_path, write_result(tmp_path) + code)).error is None
  assert (tmp_path / "unit" / "log.txt").read_text() == "yes 1\n"
  result = ray_worker.run_unit(spec, unit_task(tmp_path, code + "sys.exit('error: config.seed: too small')"))
  assert result.error.startswith("config.seed: too small (exit status 1; ")


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize(
  "code",
  ["print('saved')", "import os; os.kill(os.getpid(), 9)", "import os; os.kill(os.getpid(), 15)"],
  ids=["without a result", "killed", "terminated"],
)
def test_a_stopped_unit_is_run_again_even_if_a_damaged_result_exists(spec, tmp_path, code, damaged):
  if damaged:
    (tmp_path / "result.json").write_text(INTACT.replace("stages", "stagez"))
  with pytest.raises(ray_worker.UnitStopped, match=str(tmp_path / "unit" / "log.txt")):
    ray_worker.run_unit(spec, unit_task(tmp_path, code))


def test_a_cancelled_unit_saves_before_the_worker_ends(spec, tmp_path):
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
    ray_worker.run_unit(spec, unit_task(tmp_path, code))
  assert saved.exists()


def test_a_core_is_reserved_for_one_unit_at_a_time():
  all_cores = os.sched_getaffinity(0)
  with contextlib.ExitStack() as locks:
    first = ray_worker._claim_cores(1, locks)
    with contextlib.ExitStack() as other_locks:
      second = ray_worker._claim_cores(1, other_locks)
      assert len(first) == 1 and (first.isdisjoint(second) or len(all_cores) == 1)
    assert ray_worker._claim_cores(len(all_cores), locks) == all_cores, "all cores, if too few are free"
  assert ray_worker._claim_cores(0, contextlib.ExitStack()) == all_cores


def test_a_subprocess_ends_with_its_parent_even_if_that_is_killed(tmp_path):
  pid_file = tmp_path / "pid"
  child = f"import os, time; open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
  code = f"""if True:
    import subprocess, sys
    from smskd_jax.runtime import parent_death
    subprocess.Popen(parent_death.with_parent_death([sys.executable, "-c", {child!r}])).wait()
  """
  parent = subprocess.Popen([sys.executable, "-c", code], cwd=runs.ROOT)
  wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
  process = Path(f"/proc/{int(pid_file.read_text())}")
  assert process.exists()
  parent.kill()
  parent.wait()
  wait_for(lambda: not process.exists())


def test_a_command_whose_parent_is_gone_does_not_run():
  command = parent_death.with_parent_death([sys.executable, "-c", "print('it runs')"])
  command[3] = "1"  # the process id of another parent
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1 and done.stdout == ""


def wait_for(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)
