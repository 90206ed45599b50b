"""Runs of several processes, on one machine or many, by JAX's distributed runtime.

Every process runs the same program on a file system that all processes share. All processes compute; only process 0,
the primary, writes files and logs. Decisions that depend on the file system are made by process 0 for all:
`broadcast`.
"""

import contextlib
import json
import os
import sys
from typing import Any

from smskd_jax.errors import UserError

DISABLED, AUTO = "off", "auto"
HEARTBEAT_TIMEOUT = 20  # seconds without a heartbeat after which a process counts as dead, and the others end
INIT_TIMEOUT = 300  # seconds to wait for all processes at the start


def initialize(mode: str = DISABLED) -> None:
  """Joins the other processes; call before any other use of JAX.

  Args:
    mode: 'off': a single process; 'auto': as SLURM, Open MPI, Kubernetes or Cloud TPU configure; or
      'HOST:PORT,PROCESSES,PROCESS': address of process 0, number of processes, and index of this process.

  Raises:
    UserError: another mode, or 'auto' outside these systems.
  """
  if mode == DISABLED:
    return
  import jax  # late imports here and below: code that writes files without computing need not wait for JAX

  arguments = {} if mode == AUTO else _parse(mode)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=INIT_TIMEOUT,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
      shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
    )
  except (ValueError, RuntimeError) as error:
    reason = str(error).partition("\n")[0]
    raise UserError(
      f"--distributed: {mode!r}: {reason}; use 'auto' in a job of SLURM, Open MPI, Kubernetes or Cloud TPU, or "
      "HOST:PORT,PROCESSES,PROCESS"
    ) from error


def _parse(mode: str) -> dict[str, Any]:
  with contextlib.suppress(ValueError):
    address, count, index = mode.split(",")
    port = address.rpartition(":")[2]
    if 0 < int(port) < 2**16 and 0 <= int(index) < int(count):
      return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
  raise UserError(
    f"--distributed: {mode!r} is none of 'off', 'auto' and HOST:PORT,PROCESSES,PROCESS, as in 10.0.0.1:1234,4,0"
  )


def is_initialized() -> bool:
  """True if this process has joined others; does not initialise devices."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def process_count() -> int:
  """Number of processes; 1 without `initialize`."""
  import jax

  return jax.process_count() if is_initialized() else 1


def process_index() -> int:
  """Index of this process; 0 without `initialize`."""
  return sys.modules["jax"].process_index() if is_initialized() else 0


def is_primary() -> bool:
  """True for process 0, the only process that writes files and logs."""
  return process_index() == 0


def all_gather_json(value: Any) -> list[Any]:
  """The JSON values of all processes, in their order; a collective call."""
  if process_count() == 1:
    return [value]
  from jax.experimental import multihost_utils  # a late import: a single process does not need the module
  import numpy as np

  encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.reshape(multihost_utils.process_allgather(np.array([len(encoded)], np.int32)), -1)
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(encoded)] = encoded
  rows = np.reshape(multihost_utils.process_allgather(padded), (len(sizes), -1))
  return [json.loads(bytes(row[:size]).decode()) for row, size in zip(rows, sizes, strict=True)]


def broadcast(value: Any) -> Any:
  """Process 0's JSON value in all processes; a collective call."""
  return all_gather_json(value if is_primary() else None)[0] if process_count() > 1 else value


def barrier() -> None:
  """Waits for all processes.

  Files that process 0 wrote before are visible to all processes afterwards.
  """
  all_gather_json(None)


def is_peer_failure(error: Exception) -> bool:
  """True for the errors of JAX's runtime for a lost connection to another process."""
  import jax

  return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)


def abort(status: int) -> None:
  """Ends an initialised process at once.

  It does not wait for the others, which detect the loss.
  """
  if is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
