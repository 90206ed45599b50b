"""Tests that a long run uses no more of the machine at its end than at its beginning: handles, threads, memory."""

import gc
import os
from pathlib import Path

import jax.numpy as jnp
import pytest

from smskd_jax.runtime import checkpoint, writer

STATE = {"w": jnp.ones((100, 100))}
# Orbax opens a pool of threads now and then; a leak of one a checkpoint is far above this.
SLACK = {"handles": 12, "threads": 8, "MB": 40}


def used():
  """Open handles, threads and MB of memory of this process."""
  gc.collect()
  pages = int(Path("/proc/self/statm").read_text().split()[1])

  def count(name):
    return len(os.listdir(f"/proc/self/{name}"))

  return {"handles": count("fd"), "threads": count("task"), "MB": pages * os.sysconf("SC_PAGE_SIZE") >> 20}


def of_checkpoints(folder, marks):
  """Handles, threads and memory in use after some numbers of checkpoints, and once all is closed."""
  checkpoints, found = checkpoint.Checkpoints(folder), []
  for step in range(1, marks[-1] + 1):
    checkpoints.save(step, STATE, {"step": step})
    if step in marks:
      found.append(used())
  checkpoints.close()
  return [*found, used()]


def assert_flat(before, after):
  assert {
    name: after[name] - before[name] for name in SLACK if after[name] > before[name] + SLACK[name]
  } == {}


@pytest.mark.slow
def test_checkpoints_leave_no_handles_and_threads(tmp_path):
  early, late, closed = of_checkpoints(tmp_path, (10, 40))
  assert_flat(early, late)
  assert closed["handles"] <= early["handles"] and closed["threads"] <= early["threads"]


@pytest.mark.slow
def test_stages_leave_no_handles_and_threads(tmp_path):
  found = []
  for i in range(12):
    checkpoints = checkpoint.Checkpoints(tmp_path / f"{i}")
    metrics = writer.MetricsWriter(tmp_path / f"{i}.jsonl", tmp_path / f"events{i}", last_step=-1)
    metrics.write({"step": 1, "epoch": 0.5, "train/loss": 1.0})
    checkpoints.save(1, STATE, {})
    checkpoints.close()
    metrics.close()
    found.append(used())
  assert found[-1]["handles"] <= found[3]["handles"] + 2 and found[-1]["threads"] <= found[3]["threads"] + 4


@pytest.mark.slow
def test_hundreds_of_checkpoints_leave_no_handles_threads_and_memory(tmp_path):
  early, late, closed = of_checkpoints(tmp_path, (50, 300))
  print(f"after 50 checkpoints {early}, after 300 {late}, closed {closed}")
  assert_flat(early, late)
