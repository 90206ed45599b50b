"""An experiment, run: stage after stage, each trained or, where the store has it, read."""

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
import time
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax import config as config_lib
from smskd_jax import data
from smskd_jax.analysis import run_report
from smskd_jax.config import build, merge
from smskd_jax.data import extra_tests
from smskd_jax.data.dataset import Dataset, Split
from smskd_jax.engine import estimates, memory, summary, teacher_cache
from smskd_jax.engine.evaluator import Evaluator
from smskd_jax.engine.learner import RunContext
from smskd_jax.engine.plan import StagePlan, make_plans
from smskd_jax.engine.profiler import Profiler
from smskd_jax.engine.stage_runner import StageRunner
from smskd_jax.errors import UserError
from smskd_jax.exchange import variables
from smskd_jax.runtime import console, distributed, parallel, signals
from smskd_jax.runtime import seed_parallel as beside_lib
from smskd_jax.runtime import store as store_lib
from smskd_jax.runtime import workdir as workdir_lib

Runs = Sequence[tuple[ConfigDict | Mapping[str, Any], str | Path]]  # configs and their workdirs


def run(
  config: ConfigDict | Mapping[str, Any],
  workdir: str | Path,
  *,
  store: str | Path | None = None,
  cpu_devices: int | None = None,
  dry_run: bool = False,
  profile: int = 0,
  load: Callable[..., Dataset] = data.load,
  print_summary: bool = True,
) -> dict[str, Any]:
  """Runs an experiment, or goes on with one that was interrupted.

  Args:
    config: as `smskd_jax.config.experiment` makes it.
    workdir: the run's folder: config, results, report, and the store unless another is named.
    store: a folder of finished and unfinished stages, which other runs may share; None: WORKDIR/store.
    cpu_devices: virtual devices of a CPU; None chooses.
    dry_run: say what would run, and write nothing.
    profile: how many steps of each stage to trace into WORKDIR/profile before it trains; 0: none.
    load: reads data sets; several runs may share one that remembers.
    print_summary: print the networks and stages before training, and the report and the total time after it.

  Returns:
    What WORKDIR/result.json holds; of a dry run, the resolved config.

  Raises:
    UserError: a mistake in the config, data or folders, before anything is trained or written; or a loss that is not
      finite.
    Interrupted: SIGTERM or Ctrl-C came, and the state is saved; the same call goes on from there.
  """
  began = time.monotonic()
  store = Path(store) if store else Path(workdir) / "store"
  if profile and distributed.is_initialized():
    raise UserError(
      f"--profile: {profile}, but this run is of several processes (--distributed); profile one of them"
    )
  ready = _prepare([(config, workdir)], store, cpu_devices, load)
  if print_summary:
    console.log(summary.describe(ready.plans[0], ready.dataset, ready.devices, store))
  if dry_run:
    console.log(summary.estimate_cost(ready.plans[0], ready.dataset, ready.devices, store))
    console.log(json.dumps(ready.configs[0], indent=2))
    return ready.configs[0]
  result = _execute(ready, beside_lib.select_seed_devices(ready.devices, cpu_devices), profile)[0]
  if print_summary and distributed.is_primary():
    path = Path(workdir) / "report.md"
    console.log(
      f"\n{path.read_text()}\ntotal time: {console.format_duration(time.monotonic() - began)}; report: {path}"
    )
  return result


def run_seeds(
  runs: Runs,
  *,
  store: str | Path,
  cpu_devices: int | None = None,
  load: Callable[..., Dataset] = data.load,
) -> list[dict[str, Any]]:
  """Runs experiments that differ in their seed, stage by stage, all at once where the devices suit.

  Results are those of one run after another, to rounding: on several devices of one batch sums are taken in another
  order than on one. A run that was interrupted goes on, at once with others if they were stopped at the same step.
  No summaries are printed.

  Args:
    runs: configs and their folders.
    store: the folder of stages that they share.
    cpu_devices: as for `run`.
    load: as for `run`.

  Returns:
    What the result.json of each holds.

  Raises:
    UserError: as `run`; also where configs differ in more than their seed.
    Interrupted: as `run`.
  """
  ready = _prepare(runs, Path(store), cpu_devices, load)
  return _execute(ready, beside_lib.select_seed_devices(ready.devices, cpu_devices))


class _Prepared(NamedTuple):
  """Runs that differ in their seed, checked and planned."""

  configs: list[dict[str, Any]]  # resolved
  workdirs: list[Path]
  store: Path
  devices: parallel.Devices
  dataset: Dataset
  extra_tests: Mapping[str, Callable[[], Split]]
  pretrained: Mapping[str, variables.Pretrained]
  plans: list[tuple[StagePlan, ...]]


def _prepare(runs: Runs, store: Path, cpu_devices: int | None, load: Callable[..., Dataset]) -> _Prepared:
  """Finds every mistake that can be found before training. Writes nothing."""
  configs, workdirs = [config_lib.resolve(config) for config, _ in runs], [Path(folder) for _, folder in runs]
  if store not in workdirs:
    workdir_lib.check_kind("--store", store, workdir_lib.STORE, allow_unknown=True)
  first = configs[0]
  for resolved, workdir in zip(configs, workdirs, strict=True):
    workdir_lib.check_workdir(workdir, resolved)
    field = workdir_lib.first_difference("config", first | {"seed": 0}, resolved | {"seed": 0})
    if field is not None:
      raise UserError(f"{workdir}: {field}; runs that are trained at once differ in their seed alone")
  workdir_lib.check_writable("--store", store)
  # Before anything else that uses JAX: a CPU's virtual devices cannot be made later.
  devices = parallel.select_devices(batch_sizes(first), cpu_devices, len(runs))
  workdir_lib.check_processes_match(config=first, **workdir_lib.environment_fingerprint())
  dataset, extra = _load_data(first["data"], load)
  workdir_lib.check_processes_match(data={"fingerprint": dataset.fingerprint})
  given = {
    name: of_network.for_data(dataset.channel_stats) for name, of_network in _load_pretrained(first).items()
  }
  plans = [make_plans(resolved, dataset, given) for resolved in configs]
  memory.check(plans[0], dataset, devices)
  teacher_cache.check(plans[0], dataset, devices)
  return _Prepared(configs, workdirs, store, devices, dataset, extra, given, plans)


def _execute(ready: _Prepared, beside: parallel.Devices, profile: int = 0) -> list[dict[str, Any]]:
  """Trains what is not in the store, and writes results and reports."""
  first, dataset, devices = ready.configs[0], ready.dataset, ready.devices
  held_out = Evaluator(dataset, devices, first["evaluate"], ready.store)
  for resolved, workdir in zip(ready.configs, ready.workdirs, strict=True):
    workdir_lib.write_config(workdir, resolved, ready.store, devices)
    workdir_lib.write_labels(workdir, {name: split.label for name, split in held_out.splits.items()})
  runner = StageRunner(
    RunContext(first, dataset, devices, ready.store, held_out),
    beside,
    estimates.RunEstimate(ready.plans[0], dataset, ready.store, len(ready.plans)),
    Profiler(devices, ready.workdirs[0] / "profile", profile),
  )
  networks = build.make_networks(first, len(dataset.class_names))
  networks |= build.renormalize(
    networks, {name: one.normalization for name, one in ready.pretrained.items()}, dataset
  )
  givens = [
    [
      runner.evaluate_pretrained(
        name, networks[name], of_network, workdir_lib.pretrained_outputs_path(workdir, name)
      )
      for name, of_network in ready.pretrained.items()
    ]
    for workdir in ready.workdirs
  ]
  with signals.handle_signals(unsaved=False) as stop:
    trained = [
      runner.run_stage(
        of_stage, [workdir / "tensorboard" / of_stage[0].name for workdir in ready.workdirs], stop
      )
      for of_stage in zip(*ready.plans, strict=True)
    ]
  results = []
  for i, given in enumerate(givens):
    stages = [of_stage[i] for of_stage in trained]
    for stage, values in zip(
      stages, held_out.evaluate_extra_sets(ready.plans[i], ready.extra_tests), strict=True
    ):
      stage["extra_tests"] = values
    results.append(_write(ready, i, {"given": given, "stages": stages}))
  distributed.barrier()
  return results


def _write(prepared: _Prepared, i: int, results: Mapping[str, Any]) -> dict[str, Any]:
  """Writes result and report of one of the runs; returns the result."""
  workdir, dataset = prepared.workdirs[i], prepared.dataset
  about = {
    "seed": prepared.configs[i]["seed"],
    "data": dataset.name,
    "image_metadata": _image_metadata(dataset),
  }
  result = {**about, **results, **workdir_lib.environment(prepared.devices)}
  store_lib.write_json_with_checksum(workdir / "result.json", result)
  if distributed.is_primary():
    run_report.write_summary(workdir, prepared.store)
  return result


def _load_data(
  config: Mapping[str, Any], load: Callable[..., Dataset]
) -> tuple[Dataset, Mapping[str, Callable[[], Split]]]:
  """The data set, and what more is tested on."""
  dataset = load(**merge.drop_keys(config, "extra_tests"))
  asked = config["extra_tests"]
  return dataset, extra_tests.lazy_test_sets("config.data.extra_tests", asked, dataset, config["folder"])


def _image_metadata(dataset: Dataset) -> dict[str, Any]:
  """What images are to the networks."""
  return {name: getattr(dataset, name) for name in ("image_shape", "mean", "std", "class_names")}


def batch_sizes(config: Mapping[str, Any]) -> list[int]:
  """Of all stages of a resolved config, with and without labels: each must divide over the devices."""
  names = ("batch_size", "unlabeled_batch_size")
  return [stage[name] for stage in config["stages"] for name in names if stage[name]]


def _load_pretrained(config: Mapping[str, Any]) -> dict[str, variables.Pretrained]:
  """The variables of the networks that begin with some, by the networks' names."""
  return {
    name: variables.load(f"config.networks.{name}.variables", entry["variables"], name)
    for name, entry in config["networks"].items()
    if entry["variables"]
  }
