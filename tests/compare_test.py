"""Tests of compare.py: two runs, two studies."""

import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

from analysis import fake_runs
from smskd_jax import compare

ROOT = Path(__file__).resolve().parents[1]


def rows_of(markdown, name):
  """Cells of the rows that begin with a name, in all tables."""
  lines = [line for line in markdown.splitlines() if re.match(rf"\| {re.escape(name)} +\|", line)]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def pair(tmp_path):
  """A run with a reference, and a more accurate run without one, of the same seed."""
  return (
    fake_runs.run(tmp_path / "anchored", fake_runs.stages(0)),
    fake_runs.run(tmp_path / "free", fake_runs.stages(0, anchored=False, accuracy=0.85, tag="free")),
  )


def test_two_runs(pair):
  text = compare.run(*pair)
  assert text.startswith("# anchored: digits, seed 0 and free: digits, seed 0\n")
  assert "One pair of runs decides nothing: with the same seed, 0, two configs still differ by chance" in text
  assert rows_of(text, "stages.kd.reference.stage") == [["stages.kd.reference.stage", "previous", "none"]]
  assert ["kd", "accuracy [%]", "80.00", "85.00", "+5.00"] in rows_of(text, "kd")
  assert ["kd", "nll", "0.9000", "0.9000", "+0.0000"] in rows_of(text, "kd")
  assert not [row for row in rows_of(text, "kd") if "reference" in row[1]]
  label = "images through frozen networks"
  assert rows_of(text, label) == [[label, "5,760", "3,840", "-1,920"]]


def test_the_same_run(pair):
  text = compare.run(pair[0], pair[0])
  assert "the same stages, with equal keys: every number is the same" in text
  assert "The configs are the same." in text
  assert "share the stages teacher, fitnet, kd" in text


def test_runs_of_two_seeds(tmp_path):
  runs = [fake_runs.run(tmp_path / str(seed), fake_runs.stages(seed), seed=seed) for seed in (0, 1)]
  text = compare.run(*runs)
  assert "these differ in their seeds too" in text
  assert rows_of(text, "seed") == [["seed", "0", "1"]]


def test_runs_with_other_stages(tmp_path, pair):
  other = fake_runs.run(tmp_path / "other", [fake_runs.stage("rkd", tag="x")])
  text = compare.run(pair[0], other)
  assert "there is nothing to compare" in text
  assert "- only A has the stages teacher, fitnet, kd\n- only B has the stage rkd" in text


def test_different_data_give_a_warning(tmp_path, monkeypatch, pair):
  whole = fake_runs.config
  monkeypatch.setattr(fake_runs, "config", lambda *a: whole(*a) | {"data": {"source": "cifar10"}})
  assert "The data differ" in compare.run(pair[0], fake_runs.run(tmp_path / "other"))
  assert "The data differ" not in compare.run(*pair)


def test_two_studies(tmp_path):
  seeds = range(6)
  a = fake_runs.study(tmp_path / "a", seeds=seeds)
  b = fake_runs.study(tmp_path / "b", seeds=[*seeds, 7], gain=0.05)
  text = compare.run(a, b)
  assert "- `anchored`: no difference, over 6 shared seeds\n" in text
  # Six seeds, each of them better: 2 / 2^6, and twice that in a family of two.
  assert "- `free`: undecided at 6 seeds" in text
  assert "(+5.00 points over 6 shared seeds, exact p 0.031, after Holm 0.062)" in text
  assert rows_of(text, "free")[0][:3] == ["free", "6", "+5.00"]
  assert rows_of(text, "seeds[6]") == [["seeds[6]", "absent", "7"]]
  assert "images forward and backward" in text


def test_a_decided_claim(tmp_path):
  seeds = range(7)
  a, b = (
    fake_runs.study(tmp_path / name, seeds=seeds, gain=gain) for name, gain in (("a", 0.0), ("b", -0.05))
  )
  assert "- `free`: B is worse than A (-5.00 points over 7 shared seeds" in compare.run(a, b)


def test_studies_with_little_in_common(tmp_path):
  a = fake_runs.study(tmp_path / "a", seeds=(0, 1))
  b = fake_runs.study(tmp_path / "b", seeds=(1, 2), variants=("free", "joint"))
  text = compare.run(a, b)
  assert "One seed only" in text
  assert "- only A has the variant anchored\n- only B has the variant joint" in text
  c = fake_runs.study(tmp_path / "c", seeds=(5,), variants=("free",))
  assert "no comparison: A and B have no seed in common" in compare.run(a, c)
  d = fake_runs.study(tmp_path / "d", variants=("other",))
  assert "there is nothing to compare" in compare.run(a, d)


def test_from_the_command_line(pair):
  line = [sys.executable, "-m", "smskd_jax.compare", *map(str, pair)]
  environment = os.environ | {"PYTHONWARNINGS": "error"}
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120)
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout == compare.run(*pair)
