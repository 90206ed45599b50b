"""Runs a study: the teachers, then every variant with every seed, one after another or several at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import json
from pathlib import Path
import traceback
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax import data, experiment
from smskd_jax.errors import UserError
from smskd_jax.exchange import variables
from smskd_jax.filling import options
from smskd_jax.runtime import console, interrupt, parallel
from smskd_jax.runtime import store as store_lib
from smskd_jax.runtime import workdir as workdir_lib
from smskd_jax.studies import children, tree
from smskd_jax.studies import config as config_lib
from smskd_jax.studies import table as table_lib

TEACHERS = "teachers"  # the folder of their run


class Unit(NamedTuple):
  """A variant with a seed."""

  variant: str
  seed: int

  def __str__(self) -> str:
    return f"{self.variant}:{self.seed}"

  def folder(self, workdir: Path) -> Path:
    """Its own workdir."""
    return workdir / self.variant / f"seed{self.seed}"


def run(
  config: ConfigDict | Mapping[str, Any],
  workdir: str | Path,
  *,
  store: str | Path | None = None,
  cpu_devices: int | None = None,
  jobs: int = 1,
  command: Sequence[str] = (),
  only: str = "",
  dry_run: bool = False,
) -> dict[str, Any]:
  """Runs a study, or goes on with one that was interrupted.

  Every stage is trained once, whoever needs it: all runs share a store. A variant that fails is reported, and the
  others go on.

  Args:
    config: as `smskd_jax.studies.config.study` makes it.
    workdir: the study's folder: a run's workdir for each variant and seed, the report, and the store.
    store: a folder of stages that other runs may share; None: WORKDIR/store.
    cpu_devices: virtual devices of a CPU; None chooses.
    jobs: how many runs at once, each in a process of its own on its share of the cores.
    command: what starts this study again, for these processes.
    only: a unit, VARIANT:SEED: runs that one and writes no report.
    dry_run: print the tree of stages, and write nothing.

  Returns:
    The failures, one line each, by unit.

  Raises:
    UserError: a mistake in the study, before anything is trained or written.
    Interrupted: SIGTERM or Ctrl-C came; the same call goes on from there.
  """
  workdir = Path(workdir).absolute()
  store = Path(store).absolute() if store else workdir / "store"
  study = config_lib.resolve(config)
  chosen = _chosen(study, only)
  workdir_lib.check_writable("--store", store)
  _check(workdir, study)
  experiments = [*study["variants"].values(), *([study[TEACHERS]] if study[TEACHERS] else ())]
  devices = parallel.select(
    [size for one in experiments for size in experiment.batch_sizes(one)], cpu_devices
  )
  load = functools.lru_cache(maxsize=2)(data.load)
  if not only:
    _tell(study, workdir, store, load, devices)
  if dry_run:
    return {}
  one = functools.partial(experiment.run, store=store, cpu_devices=cpu_devices, load=load)
  if not only:
    store_lib.write_json(workdir / "study.json", {"study": study, "store": str(store)})
    if study[TEACHERS]:
      one(study[TEACHERS], workdir / TEACHERS)
  run_units = functools.partial(_in_process, study, workdir, one)
  if jobs > 1 and not only:
    run_units = functools.partial(_in_others, workdir, command, jobs)
  failures: dict[str, str] = {}
  for unit, error in run_units([u for u in chosen if not (u.folder(workdir) / "result.json").exists()]):
    if error:
      failures[str(unit)] = error
      console.say(f"{unit}: {error}")
    if not only:
      table_lib.write(workdir, failures)
  if not only:
    path = table_lib.write(workdir, failures)
    console.say(f"\n{path.read_text()}\nreport: {path}")
  return failures


def _chosen(study: Mapping[str, Any], only: str) -> list[Unit]:
  units = [Unit(name, seed) for seed in study["seeds"] for name in study["variants"]]
  if not only:
    return units
  found = [unit for unit in units if str(unit) == only]
  if not found:
    raise UserError(
      f"--only: {only!r} is no VARIANT:SEED of this study; it has: {', '.join(map(str, units))}"
    )
  return found


def _check(workdir: Path, study: Mapping[str, Any]) -> None:
  """Refuses the folder of another study; seeds may be added."""
  workdir_lib.check_writable("--workdir", workdir)
  if not (workdir / "study.json").exists():
    return
  # A study that was begun before variants had controls of their own goes on.
  theirs = {"controls": {}} | json.loads((workdir / "study.json").read_text())["study"]
  ours = json.loads(json.dumps(study))
  field = workdir_lib.first_difference("study", theirs | {"seeds": 0}, ours | {"seeds": 0})
  if field is not None:
    raise UserError(f"--workdir: {workdir} belongs to another study: {field}; choose another folder")


def _tell(
  study: Mapping[str, Any],
  workdir: Path,
  store: Path,
  load: Callable[..., data.Dataset],
  devices: parallel.Devices,
) -> None:
  """The tree of stages. Also finds every mistake that shows when stages are planned."""
  given = {}
  if (workdir / TEACHERS / "result.json").exists():
    names = config_lib.teachers_of(study)
    given = {name: variables.load(f"study.{TEACHERS}", str(workdir / TEACHERS), name) for name in names}
  found = tree.nodes(study, load, store, given)
  rate = tree.measured_rate(found, store)
  if rate is None:
    of_data = next(iter(study["variants"].values()))["data"]
    rate = tree.timed_rate(found, load(**options(of_data, "extra_tests")), devices)
  console.say(tree.describe(found, study, rate))


def _in_process(
  study: Mapping[str, Any], workdir: Path, one: Callable[..., Any], units: Sequence[Unit]
) -> Iterator[tuple[Unit, str | None]]:
  """Runs the units here, one after another; yields each with what went wrong."""
  for unit in units:
    config = config_lib.of_seed(study["variants"][unit.variant], unit.seed, str(workdir / TEACHERS))
    try:
      one(config, unit.folder(workdir))
      yield unit, None
    except interrupt.Interrupted:
      raise
    except UserError as error:
      yield unit, str(error)
    except Exception as error:  # whatever it is, the other variants can do without this one
      traceback.print_exc()
      yield unit, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _in_others(
  workdir: Path, command: Sequence[str], jobs: int, units: Sequence[Unit]
) -> Iterator[tuple[Unit, str | None]]:
  command_of = lambda unit: [*command, f"--only={unit}"]
  return children.run(units, command_of, lambda unit: unit.folder(workdir) / "log.txt", jobs)
