"""Tests of studies/executors.py with trained units and clusters replaced by fakes."""

import contextlib

import pytest

from smskd_jax.engine import experiment
from smskd_jax.errors import UserError
from smskd_jax.runtime import parallel
from smskd_jax.runtime.store import write_json_with_checksum
from smskd_jax.studies import executors, ray_executor
from smskd_jax.studies.units import Unit

VARIANT = {"networks": {}, "seed": 0}


@pytest.fixture
def study(tmp_path):
  config = {"variants": {"free": VARIANT}, "teachers": {"stages": ()}, "seeds": (0, 1)}
  return executors.Study(config, tmp_path, tmp_path / "store", parallel.select_devices([8], 1), 1, None)


def test_if_a_unit_of_several_seeds_fails_each_seed_is_tried_alone(study, monkeypatch):
  attempts = []

  def run_seeds(runs, **options):
    seeds = [config["seed"] for config, _ in runs]
    attempts.append(seeds)
    if 1 in seeds:
      raise FloatingPointError("loss is not finite\nstack")

  monkeypatch.setattr(experiment, "run_seeds", run_seeds)
  with contextlib.redirect_stderr(None):
    found = dict(executors.run_in_process(study, [Unit("free", (0, 1))], str))
  assert attempts == [[0, 1], [0], [1]]
  assert found == {Unit("free", (0,)): None, Unit("free", (1,)): "FloatingPointError: loss is not finite"}


@pytest.fixture
def submitted(monkeypatch):
  """Tasks that are submitted to a fake cluster, on which 'broken' fails."""
  tasks = []

  @contextlib.contextmanager
  def prepare_nodes(command, folders, jobs):
    yield None

  def run_units(spec, units):
    tasks.extend(units.values())
    yield from ((unit, "it failed" if task.unit == "broken:0" else None) for unit, task in units.items())

  monkeypatch.setattr(ray_executor, "prepare_nodes", prepare_nodes)
  monkeypatch.setattr(ray_executor, "run_units", run_units)
  return tasks


def run_on_ray(study, *units):
  return dict(executors.run_on_ray(study, units, str, command=["python"], jobs=1))


def write_teachers(study, *, damaged):
  path = study.teachers_folder / "result.json"
  path.parent.mkdir()
  write_json_with_checksum(path, {"stages": []})
  if damaged:
    path.write_text(path.read_text().replace("stages", "stagez"))


@pytest.mark.parametrize(
  ("state", "first"), [("absent", ["teachers"]), ("damaged", ["teachers"]), ("intact", [])]
)
def test_teachers_run_on_ray_unless_their_result_is_intact(study, submitted, state, first):
  if state != "absent":
    write_teachers(study, damaged=state == "damaged")
  unit = Unit("free", (0,))
  assert run_on_ray(study, unit) == {unit: None}
  assert [task.unit for task in submitted] == [*first, "free:0"]
  assert submitted[-1].result_paths == (study.workdir / "free" / "seed0" / "result.json",)


def test_errors_of_units_on_ray_are_returned(study, submitted):
  write_teachers(study, damaged=False)
  assert run_on_ray(study, Unit("broken", (0,))) == {Unit("broken", (0,)): "it failed"}


def test_teachers_that_fail_on_ray_end_the_study(study, submitted, monkeypatch):
  monkeypatch.setattr(ray_executor, "run_units", lambda spec, units: iter([("teachers", "no data")]))
  with pytest.raises(UserError, match="study.teachers: no data"):
    run_on_ray(study, Unit("free", (0,)))
