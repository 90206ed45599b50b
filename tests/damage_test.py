"""Damage to the files of a finished run and of its store: named in one line by every command that reads them.

The table is over all kinds of files and damages; each pair is tried with evaluate, report, export, compare and main. A
command that does not read the file must do what it does without the damage.
"""

import functools
import json
from pathlib import Path
import re
import shutil
import sys

import pytest

import runs
from runtime.integrity_test import DAMAGES
from smskd_jax import compare, data, export, report
from smskd_jax.analysis import figures
from smskd_jax.config import method, stage
from smskd_jax.engine import experiment
from smskd_jax.errors import UserError
from smskd_jax.exchange import evaluation, exported_network, exporters
from smskd_jax.runtime import checkpoint, integrity
from smskd_jax.runtime.store import StageEntry

ENTRY = (
  "stage.json",
  "result.json",
  "metrics.jsonl",
  "predictions.npz",
  "eval_outputs.npz",
  "method_state.npz",
)
IN_FINAL = "0", "1", "2"  # of the files of the variables, the largest first
FILES = [
  *("config.json", "result.json", "labels.npz"),
  *(f"{name}/{file}" for name in ("teacher", "student") for file in ENTRY),
  *(f"{name}/final/{file}" for name in ("teacher", "student") for file in IN_FINAL),
]
FEW = [
  ("teacher/final/0", "flipped"),
  ("student/metrics.jsonl", "truncated"),
  ("result.json", "garbage"),
]
TABLE = [(file, damage) for file in FILES for damage in DAMAGES]


def config():
  """A teacher and a student that ends with its best epoch, each of one epoch or two."""
  common = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
  taught = {
    "teachers": ("teacher",),
    "methods": (method("kd"),),
    "epochs": 2,
    "keep_checkpoint": "validation",
  }
  return runs.tiny(
    data={"source": "digits", "validation": 0.2},
    stages=(stage("teacher", **common), stage("student", name="student", **taught, **common)),
    evaluate={"feature_images": 16},
  )


load = functools.cache(data.load)


def run(workdir):
  return experiment.run(config(), workdir, cpu_devices=1, load=lambda **fields: load(**fields))


@pytest.fixture(scope="module", autouse=True)
def fast():
  """Neither draws pictures nor measures latencies, which take most of the time and read no file."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figures, "to_png", lambda figure, *, crop=False: b"picture")
    patch.setattr(exporters, "cpu_latency", lambda network: 0.0)
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run, and a function that computes what a command makes of it."""
  folder = tmp_path_factory.mktemp("damage") / "run"
  run(folder)
  return folder, functools.cache(lambda name: COMMANDS[name](folder))


def path_of(workdir, file):
  """The path of a file of FILES; below a stage's name, in its entry."""
  result = integrity.read_json(workdir / "result.json")
  name, _, rest = file.partition("/")
  if not rest:
    return workdir / file
  (key,) = (one["key"] for one in result["stages"] if one["name"] == name)
  folder = workdir / "store" / key
  if not rest.startswith("final/"):
    return folder / rest
  inside = sorted(path for path in folder.rglob("final/**/*") if path.is_file())
  return sorted(inside, key=lambda path: path.stat().st_size, reverse=True)[int(rest[-1])]


def without_times(result):
  """A run's result without what differs between two runs of a config."""

  def seconds(one):
    return {name: x for name, x in one.items() if not name.startswith("seconds")}

  return {"stages": [seconds(one) for one in result["stages"]], "data": result["data"]}


def page_of(workdir):
  """The text of a report, without the folder's name and times."""
  if report.main([str(workdir)]):
    return None
  text = (workdir / "report_full.md").read_text()
  return re.sub(r"\d+ (s|min)\b", "", text.replace(str(workdir), "RUN"))


def exported(workdir):
  """The fingerprint of the exported student."""
  if export.main([str(workdir), "--format=safetensors", f"--out={workdir / 'out'}", "--overwrite"]):
    return None
  return checkpoint.tree_digest(exported_network.read(workdir / "out" / "student.safetensors").variables)


def evaluated(workdir):
  """The metrics of the student on the test images."""
  try:
    return evaluation.evaluate_network(workdir, "digits", network="student", batch_size=359).metrics
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return None


# What each makes of a folder; None where it refuses.
COMMANDS = {
  "evaluate": evaluated,
  "report": page_of,
  "export": exported,
  "compare": lambda workdir: None if compare.main([str(workdir), str(workdir)]) else "compared",
  "main": lambda workdir: without_times(json.loads(json.dumps(run(workdir)))),
}


def attempt(name, workdir, capsys):
  """(what the command made, what it said)."""
  capsys.readouterr()
  made, refused = None, ""
  try:
    made = COMMANDS[name](workdir)
  except UserError as error:  # as `cli.exit_status` does
    refused = f"error: {error}\n"
  out, err = capsys.readouterr()
  return made, out, err + refused


def is_told(out, err, path):
  """True if a line names the file; of a run that lost its config or result, an error names the folder."""
  named = (path,) if path.exists() or path.name not in ("config.json", "result.json") else (path.parent,)
  lines = [line for line in (out + err).splitlines() if any(str(name) in line for name in named)]
  assert "Traceback" not in out + err
  if err.startswith("error: "):
    assert err.count("\n") == 1, err
  return bool(lines)


def check(finished, tmp_path, capsys, file, damage, commands):
  folder, whole = finished
  workdir = tmp_path / "run"
  shutil.copytree(folder, workdir)
  config_ = json.loads((workdir / "config.json").read_text())
  if "store" in config_:  # of a folder that was copied
    del config_["store"], config_["sha256"]
    (workdir / "config.json").write_text(json.dumps(integrity.with_checksum(config_), indent=2))
  path = path_of(workdir, file)
  DAMAGES[damage](path)
  named = {}
  for name in commands:
    made, out, err = attempt(name, workdir, capsys)
    named[name] = is_told(out, err, path)
    if made is None:
      assert err.startswith("error: "), f"{name}: {out}{err}"
    assert named[name] or made == whole(name), f"{name} is silent"
  if "main" in commands and made is not None:
    assert made == whole("main"), "trained again it is the same"
    entries = [StageEntry(workdir / "store", one["key"]) for one in made["stages"]]
    # Records of a stage that others were built on stay damaged, and are named each time.
    left = [problem for entry in entries for problem in entry.problems()]
    assert not left or (named["main"] and left == [path.name] and file.startswith("teacher"))
  return named


@pytest.mark.parametrize(("file", "damage"), FEW)
def test_a_damaged_file_is_named_by_report_and_export(finished, tmp_path, capsys, file, damage):
  named = check(finished, tmp_path, capsys, file, damage, ("report", "export"))
  assert any(named.values())


@pytest.mark.slow
@pytest.mark.parametrize(("file", "damage"), TABLE)
def test_no_damage_is_silent_and_none_ends_in_a_traceback(finished, tmp_path, capsys, file, damage):
  named = check(finished, tmp_path, capsys, file, damage, tuple(COMMANDS))
  # The byte in the middle of labels.npz may be one of a date: then all commands do what they do without the damage.
  assert any(named.values()) or (file, damage) == ("labels.npz", "flipped")


def test_the_table_is_large():
  assert len(TABLE) >= 40 and all(Path(file).name for file, _ in TABLE)
