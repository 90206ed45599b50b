"""Tests of runtime/store.py and runtime/workdir.py."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from smskd_jax.errors import UserError
from smskd_jax.runtime import distributed, store, workdir, writer
from smskd_jax.runtime.memmap_cache import MemmapCache
from smskd_jax.runtime.store import StageEntry, key_of


def test_key_depends_on_values_and_not_on_order():
  assert key_of({"a": 1, "b": [1.5, None]}) == key_of({"b": [1.5, None], "a": 1})
  assert key_of({"a": 1}) != key_of({"a": 2})
  assert len(key_of({})) == 16


def test_entry_is_finished_when_its_result_is_there(tmp_path):
  entry = StageEntry(tmp_path, "key")
  assert entry.result() is None
  entry.write_metadata({"seed": 0}, {"name": "teacher"})
  entry.checkpoints.mkdir()
  assert entry.result() is None
  entry.mark_finished({"accuracy": 0.5})
  assert entry.result() == {"accuracy": 0.5}
  assert not entry.checkpoints.exists()
  assert json.loads((entry.folder / "stage.json").read_text())["hashed"] == {"seed": 0}


def test_entry_of_another_format_is_refused(tmp_path, monkeypatch):
  entry = StageEntry(tmp_path, "key")
  entry.write_metadata({}, {})
  entry.mark_finished({})
  monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
  with pytest.raises(
    UserError,
    match=f"is of format {store.FORMAT - 1}, this version's is {store.FORMAT}; remove it or use another --store",
  ):
    entry.result()


def hold(folder, held, release):
  with StageEntry(folder, "key").lock(waiting=print):
    held.set()
    release.wait(10)


def test_two_processes_take_turns(tmp_path):
  context = multiprocessing.get_context("spawn")
  held, release = context.Event(), context.Event()
  other = context.Process(target=hold, args=(tmp_path, held, release))
  other.start()
  assert held.wait(60)
  told = []

  def waiting(text):
    told.append(text)
    release.set()

  with StageEntry(tmp_path, "key").lock(waiting):
    assert told == ["another process trains key; waiting for it"]
    assert release.is_set()
  other.join()


def test_a_killed_process_lets_go(tmp_path):
  context = multiprocessing.get_context("spawn")
  held, release = context.Event(), context.Event()
  other = context.Process(target=hold, args=(tmp_path, held, release))
  other.start()
  assert held.wait(60)
  other.kill()
  other.join()
  with StageEntry(tmp_path, "key").lock(pytest.fail):
    pass


def test_workdir_of_another_config_is_refused_with_the_first_field(tmp_path):
  config = {"seed": 0, "stages": ({"epochs": 3},), "networks": {"a": {"width": 1.0}}}
  store.write_json(tmp_path / "config.json", {"config": config})
  workdir.check_workdir(tmp_path, config)
  for other, message in (
    (config | {"seed": 1}, "config.seed is 0 there and 1 here"),
    (config | {"stages": ({"epochs": 4},)}, r"config.stages\[0\].epochs is 3 there and 4 here"),
    (config | {"stages": ()}, r"config.stages is \[\{.*\}\] there and \[\] here"),
    (config | {"more": 1}, 'config.more is "absent" there and 1 here'),
  ):
    with pytest.raises(UserError, match=message):
      workdir.check_workdir(tmp_path, other)


def test_workdir_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="--workdir: .* cannot be written to"):
    workdir.check_workdir(tmp_path / "file" / "run", {})
  monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
  with pytest.raises(UserError, match="--workdir: .* cannot be written to"):
    workdir.check_workdir(tmp_path / "new" / "run", {})
  assert not (tmp_path / "new").exists()


def test_only_process_0_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(distributed, "process_index", lambda: 1)
  store.write_json(tmp_path / "a.json", {})
  store.write_json_with_checksum(tmp_path / "b.json", {})
  store.write_arrays(tmp_path / "c.npz", {"x": np.zeros(2)})
  metrics = writer.MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "events", last_step=-1)
  metrics.write({"step": 0, "epoch": 0, "loss": 1.0})
  metrics.close()
  cache = MemmapCache(tmp_path / "views", (2, 1))
  cache.write(np.array([0]), np.array([0]), {"logits": np.ones((1, 3), np.float32)})
  cache.save()
  assert not list(tmp_path.iterdir())
