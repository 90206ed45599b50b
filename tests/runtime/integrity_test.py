"""Tests of runtime/integrity.py and runtime/inventory.py: damage is found and named."""

import json
import os
import shutil

import numpy as np
import pytest

from smskd_jax import store as command
from smskd_jax.errors import UserError
from smskd_jax.runtime import integrity, inventory, store, workdir
from smskd_jax.runtime.integrity import DamagedFileError
from smskd_jax.runtime.store import StageEntry


def flip(path, place=None):
  """Changes one bit in the middle of a file, and nothing else of it but the time of the last change."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2 if place is None else place] ^= 1
  path.write_bytes(content)


DAMAGES = {
  "flipped": flip,
  "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
  "empty": lambda path: os.truncate(path, 0),
  "garbage": lambda path: path.write_bytes(b"PK\x03\x04 no zip and no JSON {" * 20),
  "removed": lambda path: path.unlink(),
}


def entry_of(folder, key, reads=(), name=None):
  """A finished stage made by hand."""
  entry = StageEntry(folder, key)
  description = {"inputs": {"init": None, "teachers": list(reads), "reference": None}}
  entry.write_metadata(description, {"name": name or f"stage {key}", "network": "net"})
  entry.checkpoints.mkdir()
  entry.metrics.write_text('{"step": 0, "epoch": 0.0, "test/accuracy": 0.5}\n')
  for path in (entry.predictions, entry.eval_outputs, entry.method_state):
    store.write_arrays(path, {"step": np.arange(100)})
  (entry.final / "d").mkdir(parents=True)
  for name in ("_METADATA", "manifest", "d/kernel", "d/bias"):
    (entry.final / name).write_bytes(name.encode() * 200)
  entry.mark_finished({"accuracy": 0.5, "inputs": description["inputs"]})
  return entry


@pytest.fixture
def teacher(tmp_path):
  return entry_of(tmp_path / "store", "teacher")


def files_of(entry):
  listed = integrity.read_json(entry.folder / "result.json")["files"]
  assert {"stage.json", "metrics.jsonl", "predictions.npz", "eval_outputs.npz", "method_state.npz"} < set(
    listed
  )
  assert any(name.startswith("final/") for name in listed)
  return ["result.json", *listed]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_every_file_of_a_stage_is_found_and_named(tmp_path, damage):
  whole = entry_of(tmp_path / "whole", "key")
  assert not whole.problems() and whole.state() == "in the store"
  names = [name for name in files_of(whole) if (whole.folder / name).stat().st_size]
  assert len(names) == 10
  for i, name in enumerate(names):
    entry = StageEntry(tmp_path / str(i), "key")
    shutil.copytree(whole.folder, entry.folder)
    path = entry.folder / name
    DAMAGES[damage](path)
    assert [*entry.problems()] == [name]
    told = []
    found = inventory.read_finished(entry, "kd", told.append)
    assert (found.result is None) == (name != "eval_outputs.npz") and found.has_eval_outputs == (
      name != "eval_outputs.npz"
    )
    assert len(told) == 1 and f"stage 'kd': {path} is " in told[0]


def test_what_others_were_built_on_is_refused_with_the_way_out(teacher):
  entry_of(teacher.folder.parent, "student", reads=["teacher"])
  kernel = teacher.final / "d" / "kernel"
  flip(kernel)
  with pytest.raises(DamagedFileError, match="final/.* is damaged .*run the command that trained it again"):
    teacher.verified(teacher.final)
  with pytest.raises(UserError) as error:
    inventory.read_finished(teacher, "teacher", pytest.fail)
  assert "\n" not in str(error.value) and str(kernel) in str(error.value)
  assert "1 stage were" not in str(error.value)
  way_out = str(error.value).partition("python -m smskd_jax.store ")[2].split()
  assert command.main(way_out) == 0
  assert not list(inventory.scan(teacher.folder.parent))


def test_records_that_are_damaged_are_done_without_where_stages_were_built(teacher):
  entry_of(teacher.folder.parent, "student", reads=["teacher"])
  flip(teacher.metrics)
  told = []
  found = inventory.read_finished(teacher, "teacher", told.append)
  assert (
    found.result == {"accuracy": 0.5, "inputs": found.result["inputs"]}
    and not found.has_metrics
    and found.has_eval_outputs
  )
  assert "metrics.jsonl" in told[0] and "reports leave it out" in told[0]


def test_a_result_that_is_lost_is_not_taken_for_a_stage_in_training(teacher):
  entry_of(teacher.folder.parent, "student", reads=["teacher"])
  (teacher.folder / "result.json").unlink()
  with pytest.raises(UserError, match="result.json is missing; 1 stage depends on it"):
    inventory.read_finished(teacher, "teacher", pytest.fail)
  teacher.checkpoints.mkdir()
  assert inventory.read_finished(teacher, "teacher", pytest.fail).result is None


def test_variables_that_came_from_a_stage_are_built_on_it(teacher):
  copy = StageEntry(teacher.folder.parent, "copy")
  copy.write_metadata({"variables": "abc"}, {"source": str(teacher.final)})
  copy.mark_finished({"fingerprint": "abc"})
  stages = inventory.scan(teacher.folder.parent)
  assert [stage.name for stage in inventory.find_dependents(stages, ["teacher"])] == ["pretrained"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_json_and_arrays_that_are_damaged_are_one_line(tmp_path, damage):
  config, labels = tmp_path / "config.json", tmp_path / "labels.npz"
  store.write_json_with_checksum(config, {"seed": 0, "lists": (1, 2.5, None)})
  store.write_arrays(labels, {"test": np.arange(300)})
  assert integrity.read_json(config) == {"seed": 0, "lists": [1, 2.5, None]}
  for path, read in ((config, integrity.read_json), (labels, integrity.read_arrays)):
    DAMAGES[damage](path)
    with pytest.raises(DamagedFileError) as error:
      read(path)
    assert str(error.value).startswith(f"{path} is ") and "\n" not in str(error.value)


def test_every_bit_of_a_json_file_matters_or_changes_nothing(tmp_path):
  path = tmp_path / "result.json"
  store.write_json_with_checksum(path, {"accuracy": 0.8125, "name": "kd"})
  whole = path.read_bytes()
  found = 0
  for place in range(len(whole)):
    flip(path, place)
    try:
      assert {name: integrity.read_json(path).get(name) for name in ("accuracy", "name")} == {
        "accuracy": 0.8125,
        "name": "kd",
      }
    except DamagedFileError:
      found += 1
    path.write_bytes(whole)
  assert found > 0.8 * len(whole)


def test_files_of_older_versions_have_no_checksum(tmp_path):
  (tmp_path / "result.json").write_text(json.dumps({"accuracy": 0.5}))
  assert integrity.read_json(tmp_path / "result.json") == {"accuracy": 0.5}


def test_files_that_did_not_change_are_read_once(teacher, monkeypatch):
  assert not teacher.problems()
  monkeypatch.setattr(integrity.hashlib, "file_digest", lambda *args: pytest.fail("read again"))
  assert not teacher.problems()


def test_kinds_of_folders(teacher, tmp_path):
  root = teacher.folder.parent
  assert workdir.folder_kind(teacher.folder) == workdir.STAGE and workdir.folder_kind(root) == workdir.STORE
  assert workdir.folder_kind(tmp_path) is None
  with pytest.raises(UserError, match="WORKDIR: .* is a store of stages, not the workdir of a run"):
    workdir.check_kind("WORKDIR", root, workdir.RUN)
