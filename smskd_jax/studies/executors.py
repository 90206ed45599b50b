"""Units of a study in processes of their own: on this machine, or on the nodes of a cluster."""

from collections.abc import Callable, Sequence
from pathlib import Path

from smskd_jax.errors import UserError
from smskd_jax.runtime import parent_death
from smskd_jax.studies import ray_executor, ray_worker, subprocess_pool
from smskd_jax.studies.units import Unit, UnitErrors

TitleFn = Callable[[Unit], str]  # a unit's name in the line that is printed when it ends


def run_in_subprocesses(
  command: Sequence[str], workdir: Path, jobs: int, units: Sequence[Unit], title_of: TitleFn
) -> UnitErrors:
  """Runs units on this machine. Their processes end with this one, however it ends.

  Args:
    command: what starts the study.
    workdir: the study's folder.
    jobs: how many units at once.
    units: what is to be run.
    title_of: see `Title`.

  Raises:
    Interrupted: SIGTERM or Ctrl-C came.
  """
  command_of = lambda unit: parent_death.with_parent_death([*command, f"--unit={unit}"])
  return subprocess_pool.run_pool(
    units, command_of, lambda unit: _log_path(unit.folder(workdir)), jobs, title_of
  )


def run_on_ray(
  command: Sequence[str],
  workdir: Path,
  store: Path,
  jobs: int,
  teachers: Path | None,
  units: Sequence[Unit],
  title_of: TitleFn,
) -> UnitErrors:
  """Runs units on the cluster that this process has joined, the teachers before all others: it computes nothing.

  Args:
    command: as for `in_processes`.
    workdir: the study's folder.
    store: of stages.
    jobs: how many units at once on a node.
    teachers: the folder of their run, whose name --unit knows; None: there are none.
    units: what is to be run.
    title_of: see `Title`.

  Raises:
    UserError: a node cannot run units, or the teachers cannot be trained.
    Interrupted: SIGTERM or Ctrl-C came.
  """
  with ray_executor.prepare_nodes(command, {"--workdir": workdir, "--store": store}, jobs) as asked:
    if teachers is not None and not (teachers / "result.json").exists():
      task = ray_worker.UnitTask(
        teachers.name, _log_path(teachers), (teachers / "result.json",), teachers.name
      )
      for name, error in ray_executor.run_units(asked, {teachers.name: task}):
        if error:
          raise UserError(f"study.{name}: {error}")
    task_of = lambda unit: ray_worker.UnitTask(
      str(unit),
      _log_path(unit.folder(workdir)),
      tuple(one.result(workdir) for one in unit.each()),
      title_of(unit),
    )
    yield from ray_executor.run_units(asked, {unit: task_of(unit) for unit in units})


def _log_path(folder: Path) -> Path:
  return folder / "log.txt"
