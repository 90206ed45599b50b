"""Tests of studies on Ray clusters: the same results, whoever is lost on the way, and what is refused."""

import contextlib
import json
import os
from pathlib import Path
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types

import pytest

import runs
from smskd_jax.errors import UserError
from smskd_jax.runtime import checkpoint, distributed
from smskd_jax.studies import ray_executor, runner

CONFIG = "--config=tests/studies/ray_study.py"
LONG = (f"{CONFIG}:60", "--cpu_devices=1")  # four units of 660 steps
WAIT = 120  # seconds for anything


def list_processes():
  """(pid, parent, arguments) of all processes."""
  for folder in Path("/proc").glob("[0-9]*"):
    try:
      parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
      yield int(folder.name), parent, (folder / "cmdline").read_text().split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
      continue


def unit_processes(workdir):
  """(pid, parent) of the processes that train units of a study, by unit."""
  own = [of for of in list_processes() if f"--workdir={workdir}" in of[2]]
  found = {arg.removeprefix("--unit="): of[:2] for of in own for arg in of[2] if arg.startswith("--unit=")}
  return {only: of for only, of in found.items() if only != "teachers"}


def wait_for(wanted, program=None):
  """What `wanted` gives, as soon as it is true."""
  end = time.monotonic() + WAIT
  while time.monotonic() < end:
    found = wanted()
    if found:
      return found
    assert program is None or program.poll() is None, program.communicate()
    time.sleep(0.02)
  pytest.fail("it does not come")


def num_checkpointed_at_least(workdir, count):
  """Whether so many stages are being trained and have a checkpoint."""
  found = [path.parent for path in workdir.glob("store/*/checkpoints/[0-9]*") if path.name.isdigit()]
  return len(set(found)) >= count


def digests(workdir):
  """Of every network of every unit, and of the teacher."""
  found = {}
  for path in sorted(workdir.glob("*/**/result.json")):
    for one in json.loads(path.read_text()).get("stages", ()):
      final = checkpoint.load_variables(workdir / "store" / one["key"] / "final")
      found[str(path.parent.relative_to(workdir)), one["name"]] = checkpoint.tree_digest(final)
  return found


def processes_using(folder):
  """The processes that have a file open there."""
  found = set()
  for link in Path("/proc").glob("[0-9]*/fd/*"):
    with contextlib.suppress(OSError):  # it has ended, or is somebody else's
      found |= {link.parts[2]} if os.readlink(link).startswith(folder) else set()
  return found


@pytest.fixture
def temporary(monkeypatch):
  """Where Ray puts its logs and sockets: pytest's own names are too long for these."""
  folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
  monkeypatch.setenv("RAY_TMPDIR", folder)
  yield folder
  assert not processes_using(folder), "processes of Ray are left"
  shutil.rmtree(folder)


@pytest.fixture
def nodes():
  """The address of a cluster of two workers with a CPU each, and the processes of these two."""
  command = [sys.executable, str(runs.ROOT / "tests" / "studies" / "ray_nodes.py")]
  path = os.pathsep.join((str(runs.ROOT / "tests"), str(runs.ROOT)))
  environment = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
  with subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
  ) as process:
    yield json.loads(process.stdout.readline())
    process.stdin.close()
    assert process.wait(timeout=WAIT) == 0


@pytest.fixture
def drive(tmp_path):
  """Starts the long study, and ends what a failed test leaves."""
  started = []

  def start(*flags):
    started.append(runs.start(tmp_path, *LONG, *flags, module="study"))
    return started[-1]

  yield start
  for process in started:
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The folder of the study as one process runs it."""
  workdir = tmp_path_factory.mktemp("one")
  status, _, err = runs.program("study", workdir, *LONG)
  assert status == 0, err
  return workdir


def test_a_study_on_a_cluster_of_this_machine(tmp_path, temporary):
  """Of two units one fails, which is told and not tried again."""
  status, out, err = runs.program("study", tmp_path, CONFIG, "--cpu_devices=1", "--ray=local", "--jobs=2")
  assert status == 1, err
  assert "exploding:0: stage 'student', step" in err and err.count("\n") == 1
  assert "Ray cluster: nodes: 1; a unit's CPUs: 1" in out and "report:" in out and "ray::" not in out
  numbers = json.loads((tmp_path / "result.json").read_text())
  assert set(numbers["variants"]["alone"]) == {"0"} and set(numbers["failures"]) == {"exploding:0"}
  assert (tmp_path / "exploding" / "seed0" / "log.txt").read_text().count("error:") == 1
  assert not list(tmp_path.rglob(".ray-*"))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["node", "worker", "unit"])
def test_what_a_lost_worker_trained_goes_on_elsewhere(finished, tmp_path, nodes, drive, lost):
  driver = drive(f"--ray={nodes['address']}")
  wait_for(lambda: num_checkpointed_at_least(tmp_path, 2) and len(unit_processes(tmp_path)) == 2, driver)
  raylet, of = nodes["raylets"][0], {pid: parent for pid, parent, _ in list_processes()}
  only, (pid, worker) = next(
    (only, ids) for only, ids in unit_processes(tmp_path).items() if of[ids[1]] == raylet
  )
  of_node = (raylet, *(one for one in of if of[one] == raylet))
  for one in {"node": of_node, "worker": (worker,), "unit": (pid,)}[lost]:
    os.kill(one, signal.SIGKILL)
  wait_for(lambda: (pid, worker) not in unit_processes(tmp_path).values())
  out, err = driver.communicate(timeout=2 * WAIT)
  assert driver.returncode == 0, err
  assert err == "" and ("is lost; units that ran there go on elsewhere" in out) == (lost == "node")
  variant, seed = only.split(":")
  log = (tmp_path / variant / f"seed{seed}" / "log.txt").read_text()
  step = int(log.partition("goes on from step ")[2].split()[0])
  assert 0 < step < 660
  assert digests(tmp_path) == digests(finished) and len(digests(finished)) == 5
  assert not unit_processes(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_all_units_save_and_the_same_command_goes_on(
  finished, tmp_path, nodes, drive, monkeypatch, signum, status
):
  monkeypatch.setenv("RAY_ADDRESS", nodes["address"])
  driver = drive("--ray=auto")
  wait_for(lambda: num_checkpointed_at_least(tmp_path, 2), driver)
  driver.send_signal(signum)
  out, err = driver.communicate(timeout=WAIT)
  assert driver.returncode == status and err == "stopped; the same command continues from there\n"
  assert not unit_processes(tmp_path)
  logs = [path.read_text() for path in tmp_path.glob("*/seed*/log.txt")]
  assert len(logs) == 2 and all("the last checkpoint is of step" in log for log in logs)
  status, _, err = runs.program("study", tmp_path, *LONG, "--ray=auto")
  assert status == 0, err
  assert all("goes on from step" in path.read_text() for path in tmp_path.glob("*/seed0/log.txt"))
  assert digests(tmp_path) == digests(finished)


def refusal(tmp_path, *flags):
  """What is said, in one line, of flags with which nothing is begun."""
  status, _, err = runs.program("study", tmp_path / "new", CONFIG, *flags)
  assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
  assert not (tmp_path / "new").exists()
  return err


@pytest.mark.parametrize("how", ["here", "localhost", "ray://localhost:10001", "a b:1", "localhost:one"])
def test_what_names_no_cluster_is_refused(how):
  with pytest.raises(UserError, match="--ray: .* is none of 'local', 'auto' and HOST:PORT"):
    ray_executor.check_address(how)


def test_a_name_of_no_cluster_is_refused_by_the_program(tmp_path):
  assert "--ray: 'here' is none of 'local', 'auto' and HOST:PORT" in refusal(
    tmp_path, "--ray=here", "--dry_run"
  )


def test_a_cluster_that_is_not_there_is_refused(tmp_path, monkeypatch):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  err = refusal(tmp_path, f"--ray={address}")
  assert f"--ray: '{address}': nothing answers at {address} (" in err and "`ray start --head`" in err
  monkeypatch.setenv("RAY_ADDRESS", address)
  with pytest.raises(ConnectionError, match=f"nothing answers at {address}"):
    ray_executor._resolve_address("auto")
  monkeypatch.setenv("RAY_ADDRESS", "http://localhost:8265")
  with pytest.raises(ValueError, match="RAY_ADDRESS is http://localhost:8265, which is not HOST:PORT"):
    ray_executor._resolve_address("auto")


def test_without_ray_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(UserError, match=r"--ray: 'local' needs Ray .* pip install 'smskd_jax\[ray\]'"):
    runner.run(runs.module("tests/studies/ray_study.py").get_config(), "/nowhere", ray="local")


def test_what_ray_says_is_one_line(monkeypatch):
  """Whatever it is; and its handler of SIGTERM does not stay."""

  def init(**options):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise ConnectionError("Could not find any\nrunning instance.")

  exceptions = types.SimpleNamespace(RayError=Exception)
  ray = types.SimpleNamespace(init=init, shutdown=lambda: None, exceptions=exceptions)
  monkeypatch.setitem(sys.modules, "ray", ray)
  monkeypatch.delenv("RAY_ADDRESS", raising=False)
  before = signal.getsignal(signal.SIGTERM)
  with (
    pytest.raises(UserError, match="--ray: 'auto': Could not find any running instance.; start a cluster"),
    ray_executor.connect("auto", 1),
  ):
    pass
  assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--ray=local", "--unit=alone:0"), "--ray: 'local' runs all units of a study, --unit=alone:0 one"),
    (("--ray=local", "--jobs=1000"), "--jobs: 1000, but a node of this cluster has "),
  ],
)
def test_flags_that_do_not_go_together(tmp_path, temporary, flags, message):
  assert message in refusal(tmp_path, *flags)


def test_one_of_several_processes_joins_no_cluster(monkeypatch):
  monkeypatch.setattr(distributed, "is_initialized", lambda: True)
  with pytest.raises(UserError, match="--ray: local, but this study is one of several processes already"):
    runner.run(runs.module("tests/studies/ray_study.py").get_config(), "/nowhere", ray="local")


CPUS = {"CPU": 8.0, "memory": 1e9}
HEAD = {"memory": 1e9}
GPUS = {"CPU": 17.0, "GPU": 4.0}


@pytest.mark.parametrize(
  ("nodes", "jobs", "of_each"),
  [
    ((CPUS,), 1, (8, 0)),
    ((HEAD, CPUS, {"CPU": 5.0}), 2, (2, 0)),
    ((CPUS, GPUS), 1, (4, 1)),
    ((GPUS, {"GPU": 2.0, "CPU": 1.0}), 1, (0, 1)),
  ],
)
def test_what_a_unit_takes(nodes, jobs, of_each):
  assert ray_executor.unit_resources(nodes, jobs) == of_each


@pytest.mark.parametrize(
  ("nodes", "jobs", "message"),
  [
    ((CPUS, {"CPU": 2.0}), 3, "--jobs: 3, but a node of this cluster has 2 CPUs"),
    ((HEAD,), 1, "--ray: no node of this cluster has CPUs"),
    ((CPUS, GPUS), 2, "--jobs: 2, but this cluster has GPUs"),
  ],
)
def test_what_the_nodes_have_not_is_refused(nodes, jobs, message):
  with pytest.raises(UserError, match=message):
    ray_executor.unit_resources(nodes, jobs)
