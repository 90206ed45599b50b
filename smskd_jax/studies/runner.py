"""Runs a study: the teachers, then every variant with every seed, one after another or several at once."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import functools
import json
from pathlib import Path
import traceback
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax import data
from smskd_jax.config import study_schema as config_lib
from smskd_jax.config.merge import drop_keys
from smskd_jax.engine import estimates, experiment, memory
from smskd_jax.errors import UserError
from smskd_jax.exchange import variables
from smskd_jax.runtime import console, distributed, file_kinds, parallel, resource_errors, signals
from smskd_jax.runtime import store as store_lib
from smskd_jax.runtime import workdir as workdir_lib
from smskd_jax.runtime.integrity import DamagedFileError, read_json
from smskd_jax.studies import executors, ray_executor, stage_graph
from smskd_jax.studies import report as table_lib
from smskd_jax.studies import units as units_lib
from smskd_jax.studies.units import Unit

TEACHERS = "teachers"  # the folder of their run


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
) -> dict[str, Any]:
  """Runs a study, or goes on with one that was interrupted.

  Every stage is trained once, whoever needs it: all runs share a store. A variant that fails is reported, and the
  others go on.

  Args:
    config: as `smskd_jax.config.study_schema.study` makes it.
    workdir: the study's folder: a run's workdir for each variant and seed, the report, and the store.
    store: a folder of stages that other runs may share; None: WORKDIR/store.
    cpu_devices: virtual devices of a CPU; None chooses.
    jobs: how many runs at once, each in a process of its own on its share of the cores.
    parallel_seeds: how many seeds of a variant are one run, its stages trained at once where the devices suit.
    ray: the Ray cluster that computes, 'local', 'auto' or HOST:PORT; `jobs` is then of each of its nodes. '': none.
    command: what starts this study again, for these processes.
    dry_run: print the tree of stages, and write nothing.

  Returns:
    The failures, one line each, by unit.

  Raises:
    UserError: a mistake in the study, before anything is trained or written.
    Interrupted: SIGTERM or Ctrl-C came; the same call goes on from there.
  """
  for flag, value, used in (("jobs", jobs, jobs > 1), ("ray", ray, bool(ray))):
    if used and distributed.is_initialized():
      raise UserError(
        f"--{flag}: {value}, but this study is one of several processes already (--distributed); leave it out"
      )
  if ray:
    ray_executor.check_address(ray)
  with contextlib.ExitStack() as until_the_end:
    if ray and not dry_run:
      until_the_end.enter_context(ray_executor.connect(ray, jobs))
      parallel.force_cpu()
    study = _prepare(config, workdir, store, cpu_devices, parallel_seeds)
    _print_plan(study, is_remote=bool(ray))
    if dry_run:
      return {}
    store_lib.write_json_with_checksum(
      study.workdir / "study.json", {"study": study.config, "store": str(study.store)}
    )
    return _execute(study, parallel_seeds, jobs, ray, command)


def _execute(
  study: "_Study", parallel_seeds: int, jobs: int, ray: str, command: Sequence[str]
) -> dict[str, Any]:
  """Trains what is not finished, and writes the report."""
  if not ray:
    _train_teachers(study)
  wanted = units_lib.study_units(
    study.config, parallel_seeds, lambda unit: not unit.is_finished(study.workdir)
  )
  units = [Unit(variant, tuple(seeds)) for variant, seeds in distributed.broadcast(wanted)]
  title_of = functools.partial(units_lib.numbered_title, study=study.config, parallel_seeds=parallel_seeds)
  if ray:
    teachers = study.workdir / TEACHERS if study.config[TEACHERS] else None
    ends = executors.run_on_ray(command, study.workdir, study.store, jobs, teachers, units, title_of)
  else:
    of_jobs = (command, study.workdir, jobs, units, title_of)
    ends = executors.run_in_subprocesses(*of_jobs) if jobs > 1 else _run_in_process(study, units, title_of)
  failures: dict[str, str] = {}
  for unit, error in ends:
    if error:
      failures[str(unit)] = error
      console.log(f"{unit}: {error}")
    if distributed.is_primary():
      table_lib.write(study.workdir, failures)
  if distributed.is_primary():
    path = table_lib.write(study.workdir, failures)
    console.log(f"\n{path.read_text()}\nreport: {path}")
  return failures


def run_unit(
  config: ConfigDict | Mapping[str, Any],
  workdir: str | Path,
  unit: str,
  *,
  store: str | Path | None = None,
  cpu_devices: int | None = None,
) -> dict[str, Any]:
  """Runs one unit of a study, its teachers first where they are not trained yet, and writes no report.

  Many processes and machines may do so at once on one store: what one trains the others wait for.

  Args:
    config: as for `run`.
    workdir: as for `run`.
    only: VARIANT:SEED, or VARIANT:SEED,SEED,... at once, or the place of a VARIANT:SEED among all, from 0; or
      'teachers', these alone.
    store: as for `run`.
    cpu_devices: as for `run`.

  Returns:
    As `run`.

  Raises:
    UserError: as `run`; also where the study has no such unit.
    Interrupted: as `run`.
  """
  study = _prepare(config, workdir, store, cpu_devices, unit.count(",") + 1)
  units = [] if unit == TEACHERS and study.config[TEACHERS] else [units_lib.find_unit(study.config, unit)]
  _train_teachers(study)
  title_of = functools.partial(
    units_lib.numbered_title,
    study=study.config,
    parallel_seeds=max(len(unit.seeds) for unit in units) if units else 1,
  )
  return {str(unit): error for unit, error in _run_in_process(study, units, title_of) if error}


class _Study(NamedTuple):
  """A study, checked, with what its runs share."""

  config: dict[str, Any]  # resolved
  workdir: Path
  store: Path
  devices: parallel.Devices
  cpu_devices: int | None
  load: Callable[..., data.Dataset]


def _prepare(
  config: ConfigDict | Mapping[str, Any],
  workdir: str | Path,
  store: str | Path | None,
  cpu_devices: int | None,
  parallel_seeds: int,
) -> _Study:
  workdir = Path(workdir).absolute()
  store = Path(store).absolute() if store else workdir / "store"
  study = config_lib.resolve(config)
  if store != workdir:
    file_kinds.check_kind("--store", store, file_kinds.STORE, absent=True)
  _check_workdir(workdir, study)
  workdir_lib.check_writable("--store", store)
  experiments = [*study["variants"].values(), *([study[TEACHERS]] if study[TEACHERS] else ())]
  sizes = [size for one in experiments for size in experiment.batch_sizes(one)]
  devices = parallel.select_devices(sizes, cpu_devices, parallel_seeds)
  return _Study(study, workdir, store, devices, cpu_devices, functools.lru_cache(maxsize=2)(data.load))


def _train_teachers(study: _Study) -> None:
  """Trains them, or waits for another process that does, or finds that they are there."""
  if study.config[TEACHERS]:
    where = study.workdir / TEACHERS
    console.log("teachers")
    how = functools.partial(experiment.run, store=study.store, cpu_devices=study.cpu_devices)
    how(study.config[TEACHERS], where, load=study.load, print_summary=False)


def _check_workdir(workdir: Path, study: Mapping[str, Any]) -> None:
  """Refuses the folder of another study; seeds may be added."""
  workdir_lib.check_writable("--workdir", workdir)
  file_kinds.check_kind("--workdir", workdir, file_kinds.STUDY, absent=True)
  path = workdir / "study.json"
  if not path.exists():
    return
  try:
    theirs = read_json(path, f"remove it: the same command writes it again, if {workdir} is its folder")
  except DamagedFileError as error:
    raise UserError(f"--workdir: {error}") from None
  # A study that was begun before variants had controls of their own goes on.
  theirs = {"controls": {}} | theirs["study"]
  ours = json.loads(json.dumps(study))
  field = workdir_lib.first_difference("study", theirs | {"seeds": 0}, ours | {"seeds": 0})
  if field is not None:
    raise UserError(f"--workdir: {workdir} belongs to another study: {field}; choose another folder")


def _print_plan(study: _Study, *, is_remote: bool) -> None:
  """Prints the tree of stages. Also finds every mistake that shows when stages are planned.

  Where other machines compute, `elsewhere`, a forward pass here says nothing of their speed.
  """
  given, teachers = {}, study.workdir / TEACHERS
  if (teachers / "result.json").exists():
    names = config_lib.teacher_names(study.config)
    with contextlib.suppress(UserError):  # where they are damaged, their run will say so and mend what it can
      given = {name: variables.load(f"study.{TEACHERS}", str(teachers), name) for name in names}
  found = stage_graph.build_graph(study.config, study.load, study.store, given)
  for variant in study.config["variants"].values():
    dataset = study.load(**drop_keys(variant["data"], "extra_tests"))
    memory.check(stage_graph.variant_plans(variant, dataset, given), dataset, study.devices)
  works = {key: node.work for key, node in found.items()}
  speed = estimates.stored_speed(works, study.store, study.devices)
  if speed is None and not is_remote:
    of_data = next(iter(study.config["variants"].values()))["data"]
    plans = [node.plan for node in found.values()]
    speed = estimates.timed_speed(plans, study.load(**drop_keys(of_data, "extra_tests")), study.devices)
  count = len(units_lib.study_units(study.config, 1))
  console.log(
    f"{stage_graph.describe(found, study.config, speed)}\n{count} units: --unit=0 to --unit={count - 1}"
  )


def _run_in_process(
  study: _Study, units: Sequence[Unit], title_of: Callable[[Unit], str]
) -> units_lib.UnitErrors:
  """Runs the units here, one after another. Where seeds fail at once, each is tried alone, to know which it is."""
  for unit in units:
    console.log(title_of(unit))
    error = _try_unit(study, unit)
    if error and len(unit.seeds) > 1:
      yield from _run_in_process(study, unit.split_seeds(), title_of)
    else:
      yield from ((one, error) for one in unit.split_seeds())


def _try_unit(study: _Study, unit: Unit) -> str | None:
  """What went wrong, if anything."""
  variant, teachers = study.config["variants"][unit.variant], str(study.workdir / TEACHERS)
  runs = [
    (config_lib.seed_config(variant, seed, teachers), one.folder(study.workdir))
    for seed, one in zip(unit.seeds, unit.split_seeds(), strict=True)
  ]
  try:
    experiment.run_seeds(runs, store=study.store, cpu_devices=study.cpu_devices, load=study.load)
  except signals.Interrupted:
    raise
  except UserError as error:
    return str(error)
  except Exception as error:  # whatever it is, the other variants can do without this one
    if resource_errors.explain(error, {}):  # but not without a disk
      raise
    traceback.print_exc()
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
  return None
