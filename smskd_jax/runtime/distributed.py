"""Runs of several processes, on one machine or many: JAX's own distributed runtime, and what it needs said.

Every process runs the same program on a disk that all of them see. All compute; the lead alone writes and speaks. What
a process decides by what it finds on the disk, the lead decides for all: `agree`.
"""

import contextlib
import json
import os
import sys
from typing import Any

from smskd_jax.errors import UserError

DISABLED, AUTO = "off", "auto"
HEARTBEAT_TIMEOUT = (
  20  # seconds without a sign of life after which a process counts as dead, and the others end
)
INIT_TIMEOUT = 300  # seconds to wait for all processes at the start


def initialize(mode: str = DISABLED) -> None:
  """Joins the other processes. Before anything else that uses JAX.

  Args:
    how: 'off': there are none; 'auto': as SLURM, Open MPI, Kubernetes or Cloud TPU tells; or
      'HOST:PORT,PROCESSES,PROCESS', where process 0 is to be reached, how many there are, and which this one is.

  Raises:
    UserError: it says none of these, or there is nothing to tell it by.
  """
  if mode == DISABLED:
    return
  import jax  # here and below: what writes files without computing need not wait for it

  where = {} if mode == AUTO else _parse(mode)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      **where,
      initialization_timeout=INIT_TIMEOUT,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
      shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
    )
  except (ValueError, RuntimeError) as error:
    told = str(error).partition("\n")[0]
    raise UserError(
      f"--distributed: {mode!r}: {told}; use 'auto' in a job of SLURM, Open MPI, Kubernetes or Cloud TPU, or "
      "HOST:PORT,PROCESSES,PROCESS"
    ) from error


def _parse(how: str) -> dict[str, Any]:
  with contextlib.suppress(ValueError):
    address, count, index = how.split(",")
    port = address.rpartition(":")[2]
    if 0 < int(port) < 2**16 and 0 <= int(index) < int(count):
      return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
  raise UserError(
    f"--distributed: {how!r} is none of 'off', 'auto' and HOST:PORT,PROCESSES,PROCESS, as in 10.0.0.1:1234,4,0"
  )


def is_initialized() -> bool:
  """Whether this process has joined others; does not touch devices."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def process_count() -> int:
  """How many processes there are."""
  import jax

  return jax.process_count() if is_initialized() else 1


def process_index() -> int:
  """Which of them this process is."""
  return sys.modules["jax"].process_index() if is_initialized() else 0


def is_primary() -> bool:
  """Whether this process is the one that writes and speaks."""
  return process_index() == 0


def all_gather_json(value: Any) -> list[Any]:
  """The values of all processes, which JSON must know, in their order. All must call it."""
  if process_count() == 1:
    return [value]
  from jax.experimental import multihost_utils  # imported here: one process needs none of it
  import numpy as np

  said = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.reshape(multihost_utils.process_allgather(np.array([len(said)], np.int32)), -1)
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(said)] = said
  rows = np.reshape(multihost_utils.process_allgather(padded), (len(sizes), -1))
  return [json.loads(bytes(row[:size]).decode()) for row, size in zip(rows, sizes, strict=True)]


def broadcast(value: Any) -> Any:
  """The lead's value, which JSON must know, in all processes. All must call it."""
  return all_gather_json(value if is_primary() else None)[0] if process_count() > 1 else value


def barrier() -> None:
  """Waits for all processes: what the lead has written before is there for all after."""
  all_gather_json(None)


def is_peer_failure(error: Exception) -> bool:
  """Whether an error is what JAX's runtime makes of a connection to another process that is lost."""
  import jax

  return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)


def abort(status: int) -> None:
  """Ends this process at once, where it has joined others: they must not be waited for, and will notice."""
  if is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
