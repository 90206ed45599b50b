"""Tests of folder kinds: every command refuses other folders in one line, and leaves them unchanged."""

import json
import re

import pytest

from analysis import fake_runs
import runs
from smskd_jax import compare, report
from smskd_jax.config import study
from smskd_jax.engine import experiment
from smskd_jax.errors import UserError
from smskd_jax.exchange import exporters, variables
from smskd_jax.runtime import inventory
from smskd_jax.runtime.store import StageEntry, write_json_with_checksum
from smskd_jax.studies import runner


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """One folder of each kind."""
  root = tmp_path_factory.mktemp("kinds")
  found = {"run": fake_runs.run(root / "run"), "study": fake_runs.study(root / "study")}
  StageEntry(root / "store", "key").write_metadata({}, {})
  write_json_with_checksum(root / "imported" / "network.json", {})
  return found | {"store": root / "store", "entry": root / "store" / "key", "imported": root / "imported"}


def main(folder):
  return experiment.run(runs.tiny(), folder, cpu_devices=1)


def main_with_store(folder):
  return experiment.run(runs.tiny(), folder.parent / "new", store=folder, cpu_devices=1)


def study_in(folder):
  return runner.run(study(seeds=(0,), variants={"alone": runs.tiny()}), folder, cpu_devices=1)


COMMANDS = {
  "main": (main, ("study", "store", "entry", "imported")),
  "main --store": (main_with_store, ("run", "study", "entry", "imported")),
  "study": (study_in, ("run", "store", "entry", "imported")),
  "report": (lambda folder: report.run([folder], folder), ("store", "entry", "imported")),
  "compare": (lambda folder: compare.run(folder, folder), ("store", "entry", "imported")),
  "export": (
    lambda folder: exporters.export_network(folder, "student", ["safetensors"], folder / "out"),
    ("study", "store", "entry", "imported"),
  ),
  "variables": (lambda folder: variables.load("field", str(folder), "student"), ("study", "store", "entry")),
  "store": (inventory.list_stages, ("run", "study", "entry", "imported")),
}


@pytest.mark.parametrize(
  ("command", "kind"), [(name, kind) for name, (_, kinds) in COMMANDS.items() for kind in kinds]
)
def test_folders_of_another_kind_are_refused_and_left_alone(folders, command, kind):
  before = {path: path.stat().st_mtime_ns for path in folders[kind].parent.rglob("*")}
  with pytest.raises(UserError, match=r": .* is (the|a|an) .*") as error:
    COMMANDS[command][0](folders[kind])
  assert "\n" not in str(error.value) and str(folders[kind]) in str(error.value)
  assert {path: path.stat().st_mtime_ns for path in folders[kind].parent.rglob("*")} == before


@pytest.mark.parametrize(("module", "flag"), [("main", "workdir"), ("study", "store")])
def test_empty_folders_are_refused(tmp_path, flag, module):
  config = "configs/smoke.py" if module == "main" else "configs/studies/smoke.py"
  status, out, err = runs.program(module, tmp_path / "run", f"--config={config}", f"--{flag}=")
  assert (status, out) == (2, "")
  assert re.fullmatch(f"error: --{flag}: (missing|empty); .*\n", err)
  assert not (tmp_path / "run").exists()


def test_config_of_a_run_that_is_damaged(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"config": {}})[:5])
  with pytest.raises(UserError, match="--workdir: .*config.json is damaged .*; remove it: the same command"):
    main(tmp_path)
