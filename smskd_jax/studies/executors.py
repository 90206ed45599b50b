"""Executors of a study's units: this process, subprocesses, or a Ray cluster.

Each executor is a generator of (unit, error message or None) in the order in which units end.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
import traceback
from typing import Any, NamedTuple

from smskd_jax import data
from smskd_jax.config.study_schema import seed_config
from smskd_jax.engine import experiment
from smskd_jax.errors import UserError
from smskd_jax.runtime import parallel, parent_death, resource_errors, signals
from smskd_jax.runtime.console import log
from smskd_jax.studies import ray_executor, subprocess_pool
from smskd_jax.studies.ray_worker import UnitTask
from smskd_jax.studies.units import Unit, UnitErrors, is_intact

TEACHERS = "teachers"  # folder of the teachers' run, and their value of --unit

TitleFn = Callable[[Unit], str]  # title of a unit on the console


class Study(NamedTuple):
  """A validated study, its folders and its devices."""

  config: dict[str, Any]  # resolved
  workdir: Path
  store: Path
  devices: parallel.Devices
  cpu_devices: int | None
  load: Callable[..., data.Dataset]

  @property
  def teachers_folder(self) -> Path:
    """Workdir of the teachers' run."""
    return self.workdir / TEACHERS


def train_teachers(study: Study) -> None:
  """Trains the study's teachers in this process, or reads them from the store."""
  if study.config[TEACHERS]:
    log("teachers")
    experiment.run(
      study.config[TEACHERS],
      study.teachers_folder,
      store=study.store,
      cpu_devices=study.cpu_devices,
      load=study.load,
      print_summary=False,
    )


def run_in_process(study: Study, units: Sequence[Unit], title: TitleFn) -> UnitErrors:
  """Runs units in this process, one after another.

  If a unit of several seeds fails, each seed is tried alone.

  Raises:
    Interrupted: SIGTERM or Ctrl-C.
  """
  for unit in units:
    log(title(unit))
    error = _try_unit(study, unit)
    if error and len(unit.seeds) > 1:
      yield from run_in_process(study, unit.split_seeds(), title)
    else:
      yield from ((one, error) for one in unit.split_seeds())


def _try_unit(study: Study, unit: Unit) -> str | None:
  """Trains a unit; returns the error message, None after success."""
  variant, teachers = study.config["variants"][unit.variant], str(study.teachers_folder)
  runs = [
    (seed_config(variant, one.seeds[0], teachers), one.folder(study.workdir)) for one in unit.split_seeds()
  ]
  try:
    experiment.run_seeds(runs, store=study.store, cpu_devices=study.cpu_devices, load=study.load)
  except signals.Interrupted:
    raise
  except UserError as error:
    return str(error)
  except Exception as error:  # the other variants do not depend on this one
    if resource_errors.explain(error, {}):  # but all of them need the disk
      raise
    traceback.print_exc()
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
  return None


def run_in_subprocesses(
  study: Study, units: Sequence[Unit], title: TitleFn, *, command: Sequence[str], jobs: int
) -> UnitErrors:
  """Runs units in subprocesses, which end with this process however it ends.

  Args:
    study: the study, whose teachers are trained.
    units: units to run.
    title: see `TitleFn`.
    command: command line that starts the study.
    jobs: number of simultaneous subprocesses.

  Raises:
    Interrupted: SIGTERM or Ctrl-C.
  """

  def unit_command(unit: Unit) -> list[str]:
    return parent_death.with_parent_death([*command, f"--unit={unit}"])

  def log_path(unit: Unit) -> Path:
    return _log_path(unit.folder(study.workdir))

  return subprocess_pool.run_pool(units, unit_command, log_path, jobs, title)


def run_on_ray(
  study: Study, units: Sequence[Unit], title: TitleFn, *, command: Sequence[str], jobs: int
) -> UnitErrors:
  """Runs the teachers and then the units on the Ray cluster that this process has joined.

  Args:
    study: the study; this process trains nothing.
    units: units to run.
    title: see `TitleFn`.
    command: command line that starts the study.
    jobs: number of simultaneous units on a node.

  Raises:
    UserError: a node cannot run units, or the teachers cannot be trained.
    Interrupted: SIGTERM or Ctrl-C.
  """
  folders = {"--workdir": study.workdir, "--store": study.store}
  with ray_executor.prepare_nodes(command, folders, jobs) as spec:
    result = study.teachers_folder / "result.json"
    if study.config[TEACHERS] and not is_intact(result):
      task = UnitTask(TEACHERS, _log_path(study.teachers_folder), (result,), TEACHERS)
      for name, error in ray_executor.run_units(spec, {TEACHERS: task}):
        if error:
          raise UserError(f"study.{name}: {error}")
    tasks = {
      unit: UnitTask(
        str(unit), _log_path(unit.folder(study.workdir)), unit.result_paths(study.workdir), title(unit)
      )
      for unit in units
    }
    yield from ray_executor.run_units(spec, tasks)


def _log_path(folder: Path) -> Path:
  return folder / "log.txt"
