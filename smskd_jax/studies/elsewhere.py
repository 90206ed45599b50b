"""Units of a study in processes of their own: on this machine, or on the nodes of a cluster."""

from collections.abc import Callable, Sequence
from pathlib import Path

from smskd_jax.errors import UserError
from smskd_jax.runtime import tied
from smskd_jax.studies import children, cluster, node
from smskd_jax.studies.units import Ends, Unit

Title = Callable[[Unit], str]  # a unit's name in the line that is printed when it ends


def in_processes(
  command: Sequence[str], workdir: Path, jobs: int, units: Sequence[Unit], title_of: Title
) -> Ends:
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
  command_of = lambda unit: tied.command([*command, f"--only={unit}"])
  return children.run(units, command_of, lambda unit: _log(unit.folder(workdir)), jobs, title_of)


def on_cluster(
  command: Sequence[str],
  workdir: Path,
  store: Path,
  jobs: int,
  teachers: Path | None,
  units: Sequence[Unit],
  title_of: Title,
) -> Ends:
  """Runs units on the cluster that this process has joined, the teachers before all others: it computes nothing.

  Args:
    command: as for `in_processes`.
    workdir: the study's folder.
    store: of stages.
    jobs: how many units at once on a node.
    teachers: the folder of their run, whose name --only knows; None: there are none.
    units: what is to be run.
    title_of: see `Title`.

  Raises:
    UserError: a node cannot run units, or the teachers cannot be trained.
    Interrupted: SIGTERM or Ctrl-C came.
  """
  with cluster.ready(command, {"--workdir": workdir, "--store": store}, jobs) as asked:
    if teachers is not None and not (teachers / "result.json").exists():
      task = node.Task(teachers.name, _log(teachers), (teachers / "result.json",), teachers.name)
      for name, error in cluster.run(asked, {teachers.name: task}):
        if error:
          raise UserError(f"study.{name}: {error}")
    task_of = lambda unit: node.Task(
      str(unit), _log(unit.folder(workdir)), tuple(one.result(workdir) for one in unit.each()), title_of(unit)
    )
    yield from cluster.run(asked, {unit: task_of(unit) for unit in units})


def _log(folder: Path) -> Path:
  return folder / "log.txt"
