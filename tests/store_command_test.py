"""Tests of store.py: listing, verification and removal of stages."""

import pytest

from runtime.integrity_test import entry_of, flip
from smskd_jax import store
from smskd_jax.runtime import integrity, inventory
from smskd_jax.runtime.store import StageEntry, write_json_with_checksum


@pytest.fixture
def folder(tmp_path):
  """A teacher, two students of which one continues the other, and a stage in training."""
  root = tmp_path / "store"
  entry_of(root, "teacher")
  entry_of(root, "first", reads=["teacher"])
  entry_of(root, "second", reads=["first", "teacher"])
  StageEntry(root, "begun").write_metadata(
    {"inputs": {"init": None, "teachers": ["teacher"]}}, {"name": "in training"}
  )
  (root / "notes").mkdir()  # no stage
  return root


def keys(folder):
  return set(inventory.scan(folder))


def run(*arguments):
  return store.main([str(one) for one in arguments])


def test_the_list_has_inputs_and_dependents(folder, capsys):
  assert run(folder) == 0
  out = capsys.readouterr().out
  rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
  assert set(rows) == {"key", "teacher", "first", "second", "begun"}
  assert "finished" in rows["teacher"] and "MB" in rows["teacher"] and "min" in rows["teacher"]
  assert "stage first, stage second, in training" in rows["teacher"] or "and 0 more" not in rows["teacher"]
  assert "unfinished" in rows["begun"] and "stage teacher" in rows["begun"]
  assert "4 stages" in out


def test_verifies_all_files(folder, capsys):
  assert run(folder, "--verify") == 0
  assert "all files of finished stages are intact" in capsys.readouterr().out
  flip(StageEntry(folder, "first").predictions)
  assert run(folder, "--verify") == 2
  out, err = capsys.readouterr()
  assert err.startswith("error: 1 of 4 stages are damaged") and err.count("\n") == 1
  assert f"first (stage first): {folder}/first/predictions.npz is damaged" in out


def test_stages_with_dependents_are_not_removed(folder, capsys):
  assert run(folder, "--remove=first") == 2
  err = capsys.readouterr().err
  assert (
    "1 other stage depends on what would be removed: second (stage second)" in err and err.count("\n") == 1
  )
  assert run(folder, "--remove=first", "--dependents", "--dry_run") == 0
  assert "would remove first (stage first)" in capsys.readouterr().out
  assert keys(folder) == {"teacher", "first", "second", "begun"}
  assert run(folder, "--remove=first", "--dependents") == 0
  assert keys(folder) == {"teacher", "begun"}
  assert run(folder, "--remove=teacher", "--force") == 0
  assert keys(folder) == {"begun"} and (folder / "notes").is_dir()


def test_removes_unfinished_stages_that_no_process_trains(folder, capsys):
  with StageEntry(folder, "begun").lock(pytest.fail):
    assert run(folder, "--unfinished") == 2
    assert "begun (in training) is in use by a process" in capsys.readouterr().err
  assert run(folder, "--unfinished") == 0
  assert keys(folder) == {"teacher", "first", "second"}


def test_unused_stages_are_removed(folder, tmp_path, capsys):
  workdir = tmp_path / "run"
  write_json_with_checksum(workdir / "config.json", {"config": {}})
  assert run(folder, f"--unused_by={workdir}") == 2
  assert "no finished run" in capsys.readouterr().err
  write_json_with_checksum(workdir / "result.json", {"stages": [{"key": "first"}]})
  assert run(folder, f"--unused_by={workdir}") == 0
  assert keys(folder) == {"teacher", "first"}, "inputs of used stages are used"


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["{}/nothing"], "there is no folder"),
    (["{}", "--remove=secnd"], "did you mean 'second'"),
    (["{}/first"], "is a stage in a store, not a store of stages"),
  ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, words):
  assert run(*(one.format(folder) for one in arguments)) == 2
  err = capsys.readouterr().err
  assert err.startswith("error: ") and words in err and err.count("\n") == 1


def test_a_lock_that_was_removed_with_its_stage_is_taken_anew(folder):
  entry = StageEntry(folder, "begun")

  def remove_first(text):
    pytest.fail(text)

  with entry.lock(remove_first):
    (entry.folder / "lock").unlink()
    with StageEntry(folder, "begun").lock(remove_first):  # of a new file
      assert integrity.read_json(entry.folder / "stage.json")
