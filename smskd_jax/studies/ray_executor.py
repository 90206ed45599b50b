"""Runs of a study on a Ray cluster: Ray places them, and begins those again whose node or worker was lost.

The one file that imports Ray. What becomes of a unit on its node is in `node.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import json
import logging
import os
from pathlib import Path
import re
import signal
import socket
import threading
from typing import Any, TypeVar
import uuid

from smskd_jax.errors import UserError
from smskd_jax.runtime import console, parallel, signals, workdir
from smskd_jax.studies import ray_worker

T = TypeVar("T")
LOCAL, AUTO = "local", "auto"
ADDRESS_PATTERN = r"[^:/\s]+:\d+"
MAX_RETRIES = 5  # of a unit that was lost with its worker, or stopped by somebody else
CONNECT_TIMEOUT = 5  # seconds for the cluster to take a connection
CHECK_TIMEOUT = 120  # seconds for a node to say whether it can run units
FORWARDED_PREFIXES = ("PYTHONPATH", "JAX_", "XLA_")  # variables that begin so are the units' too


def check_address(address: str) -> None:
  """Refuses what names no cluster."""
  if address not in (LOCAL, AUTO) and not re.fullmatch(ADDRESS_PATTERN, address):
    raise UserError(f"--ray: {address!r} is none of 'local', 'auto' and HOST:PORT, as in 10.0.0.1:6379")


@contextlib.contextmanager
def connect(address: str, jobs: int) -> Iterator[None]:
  """Starts a cluster on this machine, or joins one. Before JAX's first use, whose threads no fork survives.

  Args:
    how: 'local'; 'auto', the cluster that RAY_ADDRESS names or that this machine is a node of; or HOST:PORT.
    jobs: how many units at once on a node.

  Raises:
    UserError: Ray is not installed, there is no cluster, or its nodes are too small.
  """
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  if address != LOCAL:
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # or it would try for a quarter of an hour
  try:
    import ray
  except ImportError as error:
    raise UserError(
      f"--ray: {address!r} needs Ray ({error}); pip install 'smskd_jax[ray]', or pip install -e '.[ray]' in a checkout"
    ) from error
  try:
    _init_ray(ray, address)
    unit_resources([of["Resources"] for of in _alive_nodes().values()], jobs)
    yield
  finally:
    ray.shutdown()


def _init_ray(ray: Any, address: str) -> None:
  where: dict[str, Any] = {"address": address}
  if address == LOCAL:
    where |= {"num_cpus": parallel.num_cpus(), "include_dashboard": False, "object_store_memory": 10**8}
  handler = signal.getsignal(signal.SIGTERM)
  try:
    if address != LOCAL:
      where["address"] = _resolve_address(address)
    ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
  except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
    told = " ".join(str(error).split())[:300]
    raise UserError(
      f"--ray: {address!r}: {told}; start a cluster by `ray start --head`, make this machine a node of one by "
      "`ray start --address=HOST:PORT`, or use 'local'"
    ) from error
  finally:
    if threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place


def _resolve_address(address: str) -> str:
  """The address of a cluster. Ray itself would take minutes to notice that nobody is there."""
  address = os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address
  if address == AUTO:
    return address
  if not re.fullmatch(ADDRESS_PATTERN, address):
    raise ValueError(f"RAY_ADDRESS is {address}, which is not HOST:PORT")
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()
  except (OSError, OverflowError) as error:
    raise ConnectionError(f"nothing answers at {address} ({error})") from error
  return address


@contextlib.contextmanager
def prepare_nodes(
  command: Sequence[str], folders: Mapping[str, Path], jobs: int
) -> Iterator[ray_worker.NodeSpec]:
  """Looks whether all nodes can run units of a study.

  Args:
    command: what starts the study, Python first.
    folders: those that all nodes must see, by the flags that name them.
    jobs: how many units at once on a node.

  Raises:
    UserError: names a node and what it lacks.
  """
  nodes = _alive_nodes()
  cpus, gpus = unit_resources([of["Resources"] for of in nodes.values()], jobs)
  has = lambda key, what: nodes[key]["Resources"].get(what, 0)
  able = {key: nodes[key] for key in nodes if has(key, "CPU") >= cpus and has(key, "GPU") >= gpus}
  with contextlib.ExitStack() as held:
    asked = ray_worker.NodeSpec(
      arguments=(*command[1:], "--ray="),
      folder=os.getcwd(),
      environment=tuple(of for of in os.environ.items() if of[0].startswith(FORWARDED_PREFIXES)),
      lock_files=tuple((flag, _lock_marker(folder, held)) for flag, folder in folders.items()),
      fingerprint=json.dumps(workdir.environment_fingerprint()),
      cpus=cpus,
      gpus=gpus,
    )
    _check_nodes(able, asked)
    console.log(f"Ray cluster: nodes: {len(able)}; a unit's CPUs: {cpus}, GPUs: {gpus}; its words: log.txt")
    yield asked


def unit_resources(nodes: Sequence[Mapping[str, float]], jobs: int) -> tuple[int, int]:
  """The CPUs and GPUs of a unit: a GPU with its share of the CPUs, or of the smallest node's CPUs as `jobs` says.

  Args:
    nodes: what each has, as Ray names it.
    jobs: how many units at once on a node.

  Raises:
    UserError: the nodes have not so much.
  """
  with_gpus = [of for of in nodes if of.get("GPU", 0) >= 1]
  if with_gpus and jobs > 1:
    raise UserError(f"--jobs: {jobs}, but this cluster has GPUs, and each of them runs a unit; leave it out")
  if with_gpus:
    return int(min(of.get("CPU", 0) // of["GPU"] for of in with_gpus)), 1
  smallest = int(min((of["CPU"] for of in nodes if of.get("CPU", 0) >= 1), default=0))
  if not smallest:
    raise UserError("--ray: no node of this cluster has CPUs; add one by `ray start --address=HOST:PORT`")
  if jobs > smallest:
    raise UserError(f"--jobs: {jobs}, but a node of this cluster has {smallest} CPUs; use so many at most")
  return smallest // jobs, 0


def run_units(
  spec: ray_worker.NodeSpec, tasks: Mapping[T, ray_worker.UnitTask]
) -> Iterator[tuple[T, str | None]]:
  """Runs units; yields each with what went wrong, as they end.

  Asked to stop, it asks the units to stop, which save their state, and waits for them.

  Args:
    asked: as `ready` gives it.
    tasks: by unit.

  Raises:
    Interrupted: SIGTERM or Ctrl-C came.
  """
  import ray

  need = {"num_cpus": spec.cpus, "num_gpus": spec.gpus, "scheduling_strategy": "SPREAD"}
  again = {"max_retries": MAX_RETRIES, "retry_exceptions": [ray_worker.UnitStopped]}
  attend = ray.remote(ray_worker.run_unit).options(**need, **again)
  nodes = _alive_nodes()
  with signals.handle_signals() as stop:
    running = {attend.remote(spec, task): unit for unit, task in tasks.items()}
    try:
      while running and not stop:
        for ref in ray.wait(list(running), timeout=1)[0]:
          unit = running.pop(ref)
          yield unit, _unit_error(tasks[unit].title, ref)
        nodes = _report_lost_nodes(nodes)
    finally:
      for ref in running:
        ray.cancel(ref)  # it becomes a KeyboardInterrupt there
      if running and stop:
        ray.wait(list(running), num_returns=len(running))
    if stop:
      raise signals.Interrupted(stop.signum, "stopped")


def _unit_error(title: str, ref: Any) -> str | None:
  import ray

  try:
    end = ray.get(ref)
  except ray.exceptions.RayError as error:
    return _first_line(error)
  console.log(f"{title}: {console.format_duration(end.seconds)} on {end.host}")
  return end.error


def _check_nodes(nodes: Mapping[str, Mapping[str, Any]], spec: ray_worker.NodeSpec) -> None:
  """Asks every node whether it can run units."""
  import ray
  from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

  here = lambda key: NodeAffinitySchedulingStrategy(key, soft=False)
  look = ray.remote(num_cpus=0)(ray_worker.check_node)
  answers = {key: look.options(scheduling_strategy=here(key)).remote(spec) for key in nodes}
  for key, answer in answers.items():
    try:
      problem = ray.get(answer, timeout=CHECK_TIMEOUT)
    except ray.exceptions.RayError as error:
      problem = f"it cannot look ({_first_line(error)}); install smskd_jax on all nodes"
    if problem:
      raise UserError(f"--ray: node {_node_name(nodes[key])}: {problem}")


def _alive_nodes() -> dict[str, dict[str, Any]]:
  """The nodes that are alive, as Ray describes them."""
  import ray

  return {of["NodeID"]: of for of in ray.nodes() if of["Alive"]}


def _node_name(described: Mapping[str, Any]) -> str:
  return f"{described['NodeManagerHostname']} ({described['NodeManagerAddress']})"


def _report_lost_nodes(before: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """The nodes that are left."""
  now = _alive_nodes()
  for key in before.keys() - now.keys():
    console.log(f"node {_node_name(before[key])} is lost; units that ran there go on elsewhere")
  return now


def _lock_marker(folder: Path, locks: contextlib.ExitStack) -> str:
  """A file that is locked as long as the study runs, by which a node knows the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f".ray-{uuid.uuid4().hex}"
  locks.callback(path.unlink, missing_ok=True)
  fcntl.flock(locks.enter_context(path.open("w")), fcntl.LOCK_EX)
  return str(path)


def _first_line(error: Exception) -> str:
  """Of an error on a node the error itself, which Ray wraps into a stack."""
  cause = getattr(error, "cause", None) or error
  return str(cause).strip().partition("\n")[0]
