"""Tests of studies/table.py: what is compared with what."""

import pytest

from smskd_jax.analysis import statistics
from smskd_jax.studies import table


def outcomes(*accuracies):
  return {
    seed: table.Outcome(accuracy, accuracy, None, None, 100, 0, 1.0)
    for seed, accuracy in enumerate(accuracies)
  }


FOUND = {
  "one.kd": outcomes(70.0, 71.0),
  "one.nokd": outcomes(68.0, 68.5),
  "two.kd": outcomes(60.0, 61.0),
  "two.nokd": outcomes(59.0, 59.5),
}


def rows(**fields):
  study = {"network": "student", "published": {}, "control": "one.nokd", "variants": dict.fromkeys(FOUND)}
  text = table.text("title", study | fields, FOUND, {})
  words, table_ = text.split("\n\n")[-2:]
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_.strip().splitlines()[2:]]
  return words, {row[0]: row for row in cells}


def test_all_are_compared_with_one_control():
  words, found = rows()
  assert words == "Compared with `one.nokd`, seed by seed:"
  assert {name: row[2] for name, row in found.items()} == {
    "one.kd": "+2.25",
    "two.kd": "-7.75",
    "two.nokd": "-9.00",
  }


def test_each_is_compared_with_its_own_control_and_all_are_one_family():
  words, found = rows(controls={"two.kd": "two.nokd", "two.nokd": "two.nokd"})
  assert words.startswith("Each compared with its control")
  assert {name: row[2] for name, row in found.items()} == {
    "one.kd against one.nokd": "+2.25",
    "two.kd against two.nokd": "+1.25",
  }
  p = statistics.paired({0: 70.0, 1: 71.0}, {0: 68.0, 1: 68.5}).t_p
  raw, corrected = found["one.kd against one.nokd"][6].strip(")").split(" (")
  assert float(raw) == pytest.approx(p, abs=1e-3) and float(corrected) == pytest.approx(2 * p, abs=1e-3)


def test_a_variant_alone_is_compared_with_none():
  words, _ = rows(controls={name: name for name in FOUND})
  assert words.startswith("Test accuracy")
