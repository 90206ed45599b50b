"""Tests of studies/units.py: units of a study, their names, and their results."""

import pytest

from smskd_jax.errors import UserError
from smskd_jax.runtime.store import write_json_with_checksum
from smskd_jax.studies import units
from smskd_jax.studies.units import Unit

STUDY = {"seeds": (0, 1, 2), "variants": dict.fromkeys(("anchored", "free", "exploding"))}


def names(found):
  return [str(unit) for unit in found]


def test_units_are_all_variants_with_the_first_seeds_then_with_the_next():
  assert names(units.study_units(STUDY))[:4] == ["anchored:0", "free:0", "exploding:0", "anchored:1"]


def test_unwanted_seeds_are_left_out_of_units_of_several():
  def is_wanted(unit):
    return str(unit) not in ("free:1", "exploding:2")

  found = units.study_units(STUDY, 2, is_wanted)
  assert names(found) == ["anchored:0,1", "free:0", "exploding:0,1", "anchored:2", "free:2"]


def test_titles_count_all_units():
  assert units.numbered_title(Unit("free", (1,)), STUDY, 1) == "unit 5 of 9: free, seed 1"
  assert units.numbered_title(Unit("free", (0, 1)), STUDY, 2) == "unit 2 of 6: free, seeds 0, 1"


@pytest.mark.parametrize(("name", "unit"), [("4", "free:1"), ("free:2,0", "free:2,0")])
def test_units_are_found_by_index_and_by_name(name, unit):
  assert str(units.find_unit(STUDY, name)) == unit


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("free:7", "--unit: 'free:7' is no VARIANT:SEED"),
    ("99", "--unit: 99, but this study has 9 units"),
    ("free", "--unit: 'free' is no VARIANT:SEED"),
    ("teachers", "--unit: 'teachers' is no VARIANT:SEED of this study; it has: anchored:0"),
  ],
)
def test_unknown_units_are_refused(name, message):
  with pytest.raises(UserError, match=message):
    units.find_unit(STUDY, name)


def test_a_unit_is_finished_once_all_its_results_are_intact(tmp_path):
  unit = Unit("free", (0, 1))
  first, second = unit.result_paths(tmp_path)
  for path in (first, second):
    assert not unit.is_finished(tmp_path)
    path.parent.mkdir(parents=True)
    write_json_with_checksum(path, {"stages": []})
  assert unit.is_finished(tmp_path)
  second.write_text(second.read_text().replace("stages", "stagez"))
  assert not unit.is_finished(tmp_path)
