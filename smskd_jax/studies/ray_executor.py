"""Driver side of studies on a Ray cluster.

Ray assigns units to nodes and restarts those whose node or worker is lost.

The only module that imports Ray. `ray_worker.py` runs on the nodes.
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
from smskd_jax.runtime import parallel, signals, workdir
from smskd_jax.runtime.console import format_duration, log
from smskd_jax.studies import ray_worker
from smskd_jax.studies.ray_worker import NodeSpec, UnitTask

T = TypeVar("T")
Node = Mapping[str, Any]  # as ray.nodes() describes it
LOCAL, AUTO = "local", "auto"
ADDRESS_PATTERN = r"[^:/\s]+:\d+"
MAX_RETRIES = 5  # of a unit that was lost with its worker, or stopped by somebody else
CONNECT_TIMEOUT = 5  # seconds
CHECK_TIMEOUT = 120  # seconds, for the check of a node
OBJECT_STORE_BYTES = 10**8  # of a local cluster; units exchange files, not objects
FORWARDED_PREFIXES = ("PYTHONPATH", "JAX_", "XLA_")  # of the environment variables that units inherit


def check_address(address: str) -> None:
  """Raises UserError if a value of --ray names no cluster."""
  if address not in (LOCAL, AUTO) and not re.fullmatch(ADDRESS_PATTERN, address):
    raise UserError(f"--ray: {address!r} is none of 'local', 'auto' and HOST:PORT, as in 10.0.0.1:6379")


@contextlib.contextmanager
def connect(address: str, jobs: int) -> Iterator[None]:
  """Starts a cluster on this machine or joins one.

  Must precede the first use of JAX, whose threads no fork survives.

  Args:
    address: 'local'; 'auto', the cluster of RAY_ADDRESS or the one that this machine is a node of; or HOST:PORT.
    jobs: number of simultaneous units on a node.

  Raises:
    UserError: Ray is not installed, no cluster runs, or its nodes are too small.
  """
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  if address != LOCAL:
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # the default retries for a quarter of an hour
  try:
    import ray
  except ImportError as error:
    raise UserError(
      f"--ray: {address!r} needs Ray ({error}); pip install 'smskd_jax[ray]', or pip install -e '.[ray]' in a checkout"
    ) from error
  try:
    _init_ray(ray, address)
    unit_resources([node["Resources"] for node in _alive_nodes().values()], jobs)
    yield
  finally:
    ray.shutdown()


def _init_ray(ray: Any, address: str) -> None:
  options: dict[str, Any] = {"address": address}
  if address == LOCAL:
    options |= {"num_cpus": parallel.num_cpus(), "include_dashboard": False}
    options["object_store_memory"] = OBJECT_STORE_BYTES
  handler = signal.getsignal(signal.SIGTERM)
  try:
    if address != LOCAL:
      options["address"] = _resolve_address(address)
    ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
  except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
    message = " ".join(str(error).split())[:300]
    raise UserError(
      f"--ray: {address!r}: {message}; start a cluster by `ray start --head`, make this machine a node of one by "
      "`ray start --address=HOST:PORT`, or use 'local'"
    ) from error
  finally:
    if threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, handler)  # ray.init replaces the handler


def _resolve_address(address: str) -> str:
  """Address of a cluster that accepts connections.

  Ray itself would take minutes to notice that none does.
  """
  address = os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address
  if address == AUTO:
    return address
  if not re.fullmatch(ADDRESS_PATTERN, address):
    raise ValueError(f"RAY_ADDRESS is {address}, which is not HOST:PORT")
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()
  except (OSError, OverflowError) as error:
    raise ConnectionError(f"no cluster at {address} ({error})") from error
  return address


@contextlib.contextmanager
def prepare_nodes(command: Sequence[str], folders: Mapping[str, Path], jobs: int) -> Iterator[NodeSpec]:
  """Checks that all nodes can run units of a study.

  Args:
    command: command line that starts the study, Python first.
    folders: folders that all nodes must mount, by the flags that name them.
    jobs: number of simultaneous units on a node.

  Yields:
    The requirements of the study, while its folders are locked.

  Raises:
    UserError: names a node and the missing requirement.
  """
  nodes = _alive_nodes()
  cpus, gpus = unit_resources([node["Resources"] for node in nodes.values()], jobs)
  usable = {
    key: node
    for key, node in nodes.items()
    if node["Resources"].get("CPU", 0) >= cpus and node["Resources"].get("GPU", 0) >= gpus
  }
  with contextlib.ExitStack() as locks:
    spec = NodeSpec(
      arguments=(*command[1:], "--ray="),
      folder=os.getcwd(),
      environment=tuple(item for item in os.environ.items() if item[0].startswith(FORWARDED_PREFIXES)),
      lock_files=tuple((flag, _lock_marker(folder, locks)) for flag, folder in folders.items()),
      fingerprint=json.dumps(workdir.environment_fingerprint()),
      cpus=cpus,
      gpus=gpus,
    )
    _check_nodes(usable, spec)
    log(f"Ray cluster: nodes: {len(usable)}; a unit's CPUs: {cpus}, GPUs: {gpus}; output of units: log.txt")
    yield spec


def unit_resources(nodes: Sequence[Mapping[str, float]], jobs: int) -> tuple[int, int]:
  """CPUs and GPUs of a unit.

  One GPU with its part of the node's CPUs, or the smallest node's CPUs over `jobs`.

  Args:
    nodes: resources of each node, as Ray names them.
    jobs: number of simultaneous units on a node.

  Raises:
    UserError: the nodes have too few.
  """
  gpu_nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
  if gpu_nodes and jobs > 1:
    raise UserError(f"--jobs: {jobs}, but this cluster has GPUs, and each of them runs a unit; leave it out")
  if gpu_nodes:
    return int(min(node.get("CPU", 0) // node["GPU"] for node in gpu_nodes)), 1
  smallest = int(min((node["CPU"] for node in nodes if node.get("CPU", 0) >= 1), default=0))
  if not smallest:
    raise UserError("--ray: no node of this cluster has CPUs; add one by `ray start --address=HOST:PORT`")
  if jobs > smallest:
    raise UserError(f"--jobs: {jobs}, but a node of this cluster has {smallest} CPUs; use so many at most")
  return smallest // jobs, 0


def run_units(spec: NodeSpec, tasks: Mapping[T, UnitTask]) -> Iterator[tuple[T, str | None]]:
  """Runs units on the cluster.

  Yields (unit, error message or None) in the order in which they end.

  On SIGTERM and Ctrl-C all units get SIGTERM, so that they save their state, and are waited for.

  Args:
    spec: of `prepare_nodes`.
    tasks: tasks by unit.

  Raises:
    Interrupted: SIGTERM or Ctrl-C.
  """
  import ray

  run_unit = ray.remote(ray_worker.run_unit).options(
    num_cpus=spec.cpus,
    num_gpus=spec.gpus,
    scheduling_strategy="SPREAD",
    max_retries=MAX_RETRIES,
    retry_exceptions=[ray_worker.UnitStopped],
  )
  nodes = _alive_nodes()
  with signals.handle_signals() as stop:
    running = {run_unit.remote(spec, task): unit for unit, task in tasks.items()}
    try:
      while running and not stop:
        for ref in ray.wait(list(running), timeout=1)[0]:
          unit = running.pop(ref)
          yield unit, _unit_error(tasks[unit].title, ref)
        nodes = _report_lost_nodes(nodes)
    finally:
      for ref in running:
        ray.cancel(ref)  # raises KeyboardInterrupt in the worker
      if running and stop:
        ray.wait(list(running), num_returns=len(running))
    if stop:
      raise signals.Interrupted(stop.signum, "stopped")


def _unit_error(title: str, ref: Any) -> str | None:
  import ray

  try:
    result: ray_worker.UnitResult = ray.get(ref)
  except ray.exceptions.RayError as error:
    return _first_line(error)
  log(f"{title}: {format_duration(result.seconds)} on {result.host}")
  return result.error


def _check_nodes(nodes: Mapping[str, Node], spec: NodeSpec) -> None:
  """Raises UserError if a node cannot run units."""
  import ray
  from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

  check_node = ray.remote(num_cpus=0)(ray_worker.check_node)
  refs = {
    key: check_node.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)).remote(spec)
    for key in nodes
  }
  for key, ref in refs.items():
    try:
      problem = ray.get(ref, timeout=CHECK_TIMEOUT)
    except ray.exceptions.RayError as error:
      problem = f"cannot be checked ({_first_line(error)}); install smskd_jax on all nodes"
    if problem:
      raise UserError(f"--ray: node {_node_name(nodes[key])}: {problem}")


def _alive_nodes() -> dict[str, Node]:
  """Nodes that are alive, by their identifiers."""
  import ray

  return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _node_name(node: Node) -> str:
  return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _report_lost_nodes(before: dict[str, Node]) -> dict[str, Node]:
  """Logs the nodes that are no longer alive; returns the others."""
  now = _alive_nodes()
  for key in before.keys() - now.keys():
    log(f"node {_node_name(before[key])} is lost; its units go on elsewhere")
  return now


def _lock_marker(folder: Path, locks: contextlib.ExitStack) -> str:
  """Creates a file that is locked until `locks` closes, by which nodes recognise the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f".ray-{uuid.uuid4().hex}"
  locks.callback(path.unlink, missing_ok=True)
  fcntl.flock(locks.enter_context(path.open("w")), fcntl.LOCK_EX)
  return str(path)


def _first_line(error: Exception) -> str:
  """First line of the error on the node, without Ray's stack."""
  cause = getattr(error, "cause", None) or error
  return str(cause).strip().partition("\n")[0]
