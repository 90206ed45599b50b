"""Tests of studies/ray_executor.py: addresses, resources, and studies on clusters that lose nodes and workers."""

import contextlib
import json
import os
from pathlib import Path
import re
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

CONFIG = "--config=tests/studies/small_study.py"
LONG = (f"{CONFIG}:60", "--cpu_devices=1")  # four units of 660 steps
TIMEOUT = 120  # seconds


def list_processes():
  """(pid, parent, arguments) of all processes."""
  for folder in Path("/proc").glob("[0-9]*"):
    try:
      parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
      yield int(folder.name), parent, (folder / "cmdline").read_text().split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):  # the process has ended
      continue


def unit_processes(workdir):
  """(pid, parent) of the processes that train units of a study, by unit."""
  found = {}
  for pid, parent, arguments in list_processes():
    if f"--workdir={workdir}" in arguments:
      names = [one.removeprefix("--unit=") for one in arguments if one.startswith("--unit=")]
      found |= {name: (pid, parent) for name in names if name != "teachers"}
  return found


def wait_for(condition, program=None):
  """The value of `condition()` once it is true."""
  deadline = time.monotonic() + TIMEOUT
  while time.monotonic() < deadline:
    value = condition()
    if value:
      return value
    assert program is None or program.poll() is None, program.communicate()
    time.sleep(0.02)
  pytest.fail("timeout")


def num_checkpointed(workdir):
  """Number of unfinished stages that have a checkpoint."""
  paths = workdir.glob("store/*/checkpoints/[0-9]*")
  return len({path.parent for path in paths if path.name.isdigit()})


def digests(workdir):
  """Digests of the final networks of every unit, and of the teacher."""
  found = {}
  for path in sorted(workdir.glob("*/**/result.json")):
    for one in json.loads(path.read_text()).get("stages", ()):
      final = checkpoint.load_variables(workdir / "store" / one["key"] / "final")
      found[str(path.parent.relative_to(workdir)), one["name"]] = checkpoint.tree_digest(final)
  return found


def processes_using(folder):
  """Processes that have a file open in a folder."""
  found = set()
  for link in Path("/proc").glob("[0-9]*/fd/*"):
    with contextlib.suppress(OSError):  # the process has ended, or is another user's
      found |= {link.parts[2]} if os.readlink(link).startswith(folder) else set()
  return found


@pytest.fixture
def ray_folder(monkeypatch):
  """Folder of Ray's logs and sockets: pytest's own paths are too long for the names of sockets."""
  folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
  monkeypatch.setenv("RAY_TMPDIR", folder)
  yield folder
  assert not processes_using(folder), "processes of Ray are left"
  shutil.rmtree(folder)


@pytest.fixture
def nodes():
  """Address of a cluster with two nodes of one CPU, and the pids of their raylets."""
  command = [sys.executable, str(runs.ROOT / "tests" / "studies" / "ray_nodes.py")]
  path = os.pathsep.join((str(runs.ROOT / "tests"), str(runs.ROOT)))
  environment = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
  with subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
  ) as process:
    yield json.loads(process.stdout.readline())
    process.stdin.close()
    assert process.wait(timeout=TIMEOUT) == 0


@pytest.fixture
def start_study(tmp_path):
  """Function that starts the long study; its processes are killed after the test."""
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
  """Workdir of the long study, trained in one process."""
  workdir = tmp_path_factory.mktemp("one")
  status, _, err = runs.program("study", workdir, *LONG)
  assert status == 0, err
  return workdir


@pytest.mark.slow
def test_on_a_local_cluster_a_failed_unit_is_reported_and_not_retried(tmp_path, ray_folder):
  status, out, err = runs.program("study", tmp_path, CONFIG, "--cpu_devices=1", "--ray=local", "--jobs=2")
  assert status == 1, err
  assert "exploding:0: stage 'student', step" in err and err.count("\n") == 1
  assert "Ray cluster: nodes: 1; a unit's CPUs: 1" in out and "report:" in out and "ray::" not in out
  result = json.loads((tmp_path / "result.json").read_text())
  assert set(result["variants"]["alone"]) == {"0"} and set(result["failures"]) == {"exploding:0"}
  assert (tmp_path / "exploding" / "seed0" / "log.txt").read_text().count("error:") == 1
  assert not list(tmp_path.rglob(".ray-*"))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["node", "unit"])
def test_a_lost_unit_goes_on_from_its_checkpoint(finished, tmp_path, nodes, start_study, lost):
  driver = start_study(f"--ray={nodes['address']}")
  wait_for(lambda: num_checkpointed(tmp_path) >= 2 and len(unit_processes(tmp_path)) == 2, driver)
  raylet, parents = nodes["raylets"][0], {pid: parent for pid, parent, _ in list_processes()}
  unit, (pid, worker) = next(
    item for item in unit_processes(tmp_path).items() if parents[item[1][1]] == raylet
  )
  children = [one for one, parent in parents.items() if parent == raylet]
  for one in {"node": (raylet, *children), "worker": (worker,), "unit": (pid,)}[lost]:
    os.kill(one, signal.SIGKILL)
  wait_for(lambda: (pid, worker) not in unit_processes(tmp_path).values())
  out, err = driver.communicate(timeout=2 * TIMEOUT)
  assert driver.returncode == 0, err
  assert err == "" and ("is lost; its units go on elsewhere" in out) == (lost == "node")
  variant, seed = unit.split(":")
  log = (tmp_path / variant / f"seed{seed}" / "log.txt").read_text()
  assert 0 < resumed_step(log) < 660
  assert digests(tmp_path) == digests(finished) and len(digests(finished)) == 5
  assert not unit_processes(tmp_path)


def resumed_step(log):
  """Step from which a log says that training goes on; 0: from the beginning."""
  match = re.search(r"from step (\d+) of", log)
  return int(match[1]) if match else 0


@pytest.mark.slow
@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_after_a_signal_all_units_save_and_the_same_command_resumes(
  finished, tmp_path, nodes, start_study, monkeypatch, signum, status
):
  monkeypatch.setenv("RAY_ADDRESS", nodes["address"])
  driver = start_study("--ray=auto")
  wait_for(lambda: num_checkpointed(tmp_path) >= 2, driver)
  driver.send_signal(signum)
  out, err = driver.communicate(timeout=TIMEOUT)
  assert driver.returncode == status and err == "stopped; the same command continues from there\n"
  assert not unit_processes(tmp_path)
  logs = [path.read_text() for path in tmp_path.glob("*/seed*/log.txt")]
  assert len(logs) == 2 and all("the last checkpoint is of step" in log for log in logs)
  status, _, err = runs.program("study", tmp_path, *LONG, "--ray=auto")
  assert status == 0, err
  assert all(resumed_step(path.read_text()) > 0 for path in tmp_path.glob("*/seed0/log.txt"))
  assert digests(tmp_path) == digests(finished)


@pytest.mark.parametrize("address", ["here", "localhost", "ray://localhost:10001", "a b:1", "localhost:one"])
def test_a_value_that_names_no_cluster_is_refused(address):
  with pytest.raises(UserError, match="--ray: .* is none of 'local', 'auto' and HOST:PORT"):
    ray_executor.check_address(address)


def fake_ray(init):
  exceptions = types.SimpleNamespace(RayError=Exception)
  return types.SimpleNamespace(init=init, shutdown=lambda: None, exceptions=exceptions)


def test_a_cluster_that_does_not_run_is_refused(monkeypatch):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  monkeypatch.setitem(sys.modules, "ray", fake_ray(init=None))
  message = f"--ray: '{address}': no cluster at {address} .*; start a cluster by `ray start --head`"
  with pytest.raises(UserError, match=message), ray_executor.connect(address, 1):
    pass
  monkeypatch.setenv("RAY_ADDRESS", address)
  with pytest.raises(ConnectionError, match=f"no cluster at {address}"):
    ray_executor._resolve_address("auto")
  monkeypatch.setenv("RAY_ADDRESS", "http://localhost:8265")
  with pytest.raises(ValueError, match="RAY_ADDRESS is http://localhost:8265, which is not HOST:PORT"):
    ray_executor._resolve_address("auto")


def small_study():
  return runs.module("tests/studies/small_study.py").get_config()


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(UserError, match=r"--ray: 'local' needs Ray .* pip install 'smskd_jax\[ray\]'"):
    runner.run(small_study(), "/nowhere", ray="local")


def test_an_error_of_ray_is_one_line_and_its_signal_handler_is_removed(monkeypatch):
  def init(**options):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise ConnectionError("Could not find any\nrunning instance.")

  monkeypatch.setitem(sys.modules, "ray", fake_ray(init))
  monkeypatch.delenv("RAY_ADDRESS", raising=False)
  before = signal.getsignal(signal.SIGTERM)
  message = "--ray: 'auto': Could not find any running instance.; start a cluster"
  with pytest.raises(UserError, match=message), ray_executor.connect("auto", 1):
    pass
  assert signal.getsignal(signal.SIGTERM) is before


def test_one_of_several_processes_joins_no_cluster(monkeypatch):
  monkeypatch.setattr(distributed, "is_initialized", lambda: True)
  with pytest.raises(UserError, match="--ray: local, but this study is one of several processes already"):
    runner.run(small_study(), "/nowhere", ray="local")


CPUS = {"CPU": 8.0, "memory": 1e9}
HEAD = {"memory": 1e9}
GPUS = {"CPU": 17.0, "GPU": 4.0}


@pytest.mark.parametrize(
  ("nodes", "jobs", "resources"),
  [
    ((CPUS,), 1, (8, 0)),
    ((HEAD, CPUS, {"CPU": 5.0}), 2, (2, 0)),
    ((CPUS, GPUS), 1, (4, 1)),
    ((GPUS, {"GPU": 2.0, "CPU": 1.0}), 1, (0, 1)),
  ],
)
def test_a_unit_gets_a_gpu_or_a_part_of_the_smallest_node(nodes, jobs, resources):
  assert ray_executor.unit_resources(nodes, jobs) == resources


@pytest.mark.parametrize(
  ("nodes", "jobs", "message"),
  [
    ((CPUS, {"CPU": 2.0}), 3, "--jobs: 3, but a node of this cluster has 2 CPUs"),
    ((HEAD,), 1, "--ray: no node of this cluster has CPUs"),
    ((CPUS, GPUS), 2, "--jobs: 2, but this cluster has GPUs"),
  ],
)
def test_more_than_the_nodes_have_is_refused(nodes, jobs, message):
  with pytest.raises(UserError, match=message):
    ray_executor.unit_resources(nodes, jobs)
