"""Runs a study: the teachers, then every variant with every seed, and the report."""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smskd_jax import data
from smskd_jax.config import study_schema
from smskd_jax.config.merge import drop_keys
from smskd_jax.engine import experiment, memory, summary
from smskd_jax.errors import UserError
from smskd_jax.exchange import variables
from smskd_jax.runtime import distributed, integrity, parallel
from smskd_jax.runtime import store as store_lib
from smskd_jax.runtime import workdir as workdir_lib
from smskd_jax.runtime.console import log
from smskd_jax.studies import executors, ray_executor, report, stage_graph
from smskd_jax.studies.executors import TEACHERS, Study
from smskd_jax.studies.units import Unit, UnitErrors, find_unit, numbered_title, study_units


def run(
  config: ConfigDict | Mapping[str, Any],
  workdir: str | Path,
  *,
  store: str | Path | None = None,
  cpu_devices: int | None = None,
  jobs: int = 1,
  parallel_seeds: int = 1,
  ray: str = "",
  command: Sequence[str] = (),
  dry_run: bool = False,
) -> dict[str, str]:
  """Runs a study, or resumes one that was interrupted.

  All runs share a store, in which every stage is trained once. A variant that fails does not stop the others.

  Args:
    config: study made by `smskd_jax.config.study`.
    workdir: folder of the runs, the report and, by default, the store.
    store: folder of finished stages, which other runs may share. None: WORKDIR/store.
    cpu_devices: number of virtual CPU devices. None: by cores and batch sizes.
    jobs: number of simultaneous processes; with `ray`, on each node.
    parallel_seeds: number of seeds of a variant that are trained in one program.
    ray: Ray cluster: 'local', 'auto' or HOST:PORT. '': none.
    command: command line that starts this study, for the processes of `jobs` and `ray`.
    dry_run: print the stages and write nothing.

  Returns:
    Error messages of the failed units.

  Raises:
    UserError: the study is invalid; nothing has been trained or written.
    Interrupted: SIGTERM or Ctrl-C. The same call resumes the study.
  """
  _check_single_process(jobs, ray)
  with contextlib.ExitStack() as stack:
    if ray and not dry_run:
      stack.enter_context(ray_executor.connect(ray, jobs))
      parallel.force_cpu()
    study = _validate(config, workdir, store, cpu_devices, parallel_seeds)
    _print_plan(study, is_remote=bool(ray))
    return {} if dry_run else _execute(study, parallel_seeds, jobs, ray, command)


def run_unit(
  config: ConfigDict | Mapping[str, Any],
  workdir: str | Path,
  unit: str,
  *,
  store: str | Path | None = None,
  cpu_devices: int | None = None,
) -> dict[str, str]:
  """Runs one unit of a study, after its missing teachers, and writes no report.

  Many processes and machines may do so at the same time on one store: a process waits for a stage that another one
  trains.

  Args:
    config: as for `run`.
    workdir: as for `run`.
    unit: VARIANT:SEED; VARIANT:SEED,SEED,... for seeds in one program; the index of a VARIANT:SEED, from 0; or
      'teachers'.
    store: as for `run`.
    cpu_devices: as for `run`.

  Returns:
    As `run`.

  Raises:
    UserError: as `run`; also where the study has no such unit.
    Interrupted: as `run`.
  """
  study = _validate(config, workdir, store, cpu_devices, unit.count(",") + 1)
  teachers_only = unit == TEACHERS and study.config[TEACHERS]
  units = [] if teachers_only else [find_unit(study.config, unit)]
  executors.train_teachers(study)
  parallel_seeds = max((len(one.seeds) for one in units), default=1)
  title = functools.partial(numbered_title, study=study.config, parallel_seeds=parallel_seeds)
  return {str(one): error for one, error in executors.run_in_process(study, units, title) if error}


def _check_single_process(jobs: int, ray: str) -> None:
  """Raises UserError if this process is one of several and would start others."""
  for flag, value, is_used in (("jobs", jobs, jobs > 1), ("ray", ray, bool(ray))):
    if is_used and distributed.is_initialized():
      raise UserError(
        f"--{flag}: {value}, but this study is one of several processes already (--distributed); leave it out"
      )
  if ray:
    ray_executor.check_address(ray)


def _validate(
  config: ConfigDict | Mapping[str, Any],
  workdir: str | Path,
  store: str | Path | None,
  cpu_devices: int | None,
  parallel_seeds: int,
) -> Study:
  workdir = Path(workdir).absolute()
  store = Path(store).absolute() if store else workdir / "store"
  study = study_schema.resolve(config)
  if store != workdir:
    workdir_lib.check_kind("--store", store, workdir_lib.STORE, allow_unknown=True)
  _check_workdir(workdir, study)
  workdir_lib.check_writable("--store", store)
  experiments = [*study["variants"].values(), *([study[TEACHERS]] if study[TEACHERS] else ())]
  sizes = [size for one in experiments for size in experiment.batch_sizes(one)]
  devices = parallel.select_devices(sizes, cpu_devices, parallel_seeds)
  return Study(study, workdir, store, devices, cpu_devices, functools.lru_cache(maxsize=2)(data.load))


def _check_workdir(workdir: Path, study: Mapping[str, Any]) -> None:
  """Raises UserError for the folder of another study. A study may get more seeds."""
  workdir_lib.check_writable("--workdir", workdir)
  workdir_lib.check_kind("--workdir", workdir, workdir_lib.STUDY, allow_unknown=True)
  path = workdir / "study.json"
  if not path.exists():
    return
  fix = f"remove it: the same command writes it again, if {workdir} is its folder"
  try:
    # Studies that were begun before variants had controls of their own have no such field.
    stored = {"controls": {}} | integrity.read_json(path, fix)["study"]
  except integrity.DamagedFileError as error:
    raise UserError(f"--workdir: {error}") from None
  current = json.loads(json.dumps(study))
  field = workdir_lib.first_difference("study", stored | {"seeds": 0}, current | {"seeds": 0})
  if field is not None:
    raise UserError(f"--workdir: {workdir} belongs to another study: {field}; choose another folder")


def _print_plan(study: Study, *, is_remote: bool) -> None:
  """Prints the stages and their estimated time.

  Raises UserError for configs that cannot be planned.

  If other machines compute (`is_remote`), the speed of this one is not measured.
  """

  def load(config: Mapping[str, Any]) -> data.Dataset:
    return study.load(**drop_keys(config["data"], "extra_tests"))

  pretrained = _trained_teachers(study)
  graph = stage_graph.build_graph(study.config, study.load, study.store, pretrained)
  for variant in study.config["variants"].values():
    plans = stage_graph.variant_plans(variant, load(variant), pretrained)
    memory.check(plans, load(variant), study.devices)
  works = {key: node.work for key, node in graph.items()}
  speed = summary.stored_speed(works, study.store, study.devices)
  if speed is None and not is_remote:
    dataset = load(next(iter(study.config["variants"].values())))
    speed = summary.timed_speed([node.plan for node in graph.values()], dataset, study.devices)
  count = len(study_units(study.config))
  log(f"{stage_graph.describe(graph, study.config, speed)}\n{count} units: --unit=0 to --unit={count - 1}")


def _trained_teachers(study: Study) -> dict[str, variables.Pretrained]:
  """Variables of the study's teachers by network name; empty before they are trained."""
  folder = study.teachers_folder
  if (folder / "result.json").exists():
    names = study_schema.teacher_names(study.config)
    with contextlib.suppress(
      UserError
    ):  # the teachers' run reports damaged files, and repairs them if possible
      return {name: variables.load(f"study.{TEACHERS}", str(folder), name) for name in names}
  return {}


def _execute(
  study: Study, parallel_seeds: int, jobs: int, ray: str, command: Sequence[str]
) -> dict[str, str]:
  """Trains the units that are not finished, and writes the report after each."""
  content = {"study": study.config, "store": str(study.store)}
  store_lib.write_json_with_checksum(study.workdir / "study.json", content)
  failures: dict[str, str] = {}
  for unit, error in _run_units(study, parallel_seeds, jobs, ray, command):
    if error:
      failures[str(unit)] = error
      log(f"{unit}: {error}")
    if distributed.is_primary():
      report.write(study.workdir, failures)
  if distributed.is_primary():
    path = report.write(study.workdir, failures)
    log(f"\n{path.read_text()}\nreport: {path}")
  return failures


def _run_units(study: Study, parallel_seeds: int, jobs: int, ray: str, command: Sequence[str]) -> UnitErrors:
  """Trains the teachers and the units that are not finished, by one of the executors."""
  if not ray:
    executors.train_teachers(study)
  unfinished = study_units(study.config, parallel_seeds, lambda unit: not unit.is_finished(study.workdir))
  units = [Unit(variant, tuple(seeds)) for variant, seeds in distributed.broadcast(unfinished)]
  title = functools.partial(numbered_title, study=study.config, parallel_seeds=parallel_seeds)
  if ray:
    return executors.run_on_ray(study, units, title, command=command, jobs=jobs)
  if jobs > 1:
    return executors.run_in_subprocesses(study, units, title, command=command, jobs=jobs)
  return executors.run_in_process(study, units, title)
