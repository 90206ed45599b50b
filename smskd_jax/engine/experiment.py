"""Runs of experiments: stage after stage, each read from the store or trained into it."""

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
import time
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax import config as config_lib
from smskd_jax import data
from smskd_jax.analysis import run_report
from smskd_jax.config import build
from smskd_jax.config.merge import drop_keys
from smskd_jax.data import extra_tests
from smskd_jax.data.dataset import Dataset, Split
from smskd_jax.engine import memory, summary, teacher_cache
from smskd_jax.engine.evaluator import Evaluator
from smskd_jax.engine.plan import StagePlan, make_plans
from smskd_jax.engine.profiler import Profiler
from smskd_jax.engine.stage_runner import RunContext, StageRunner
from smskd_jax.errors import UserError
from smskd_jax.exchange import variables
from smskd_jax.runtime import console, distributed, parallel, seed_parallel, signals
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
  """Runs an experiment, or continues an interrupted one.

  Args:
    config: as `smskd_jax.config.experiment` returns it.
    workdir: folder of the run: config, results, report, and the store unless `store` names another folder.
    store: folder of finished and unfinished stages, which several runs may share; None: WORKDIR/store.
    cpu_devices: virtual devices of a CPU; None: chosen by the number of cores.
    dry_run: print the plan and write nothing.
    profile: training steps of each stage to trace into WORKDIR/profile before it trains; 0: none.
    load: reads data sets; several runs may share a function that caches them.
    print_summary: print networks and stages before training, and report and total time after training.

  Returns:
    The contents of WORKDIR/result.json; of a dry run, the resolved config.

  Raises:
    UserError: a mistake in the config, data or folders, before anything is trained or written; or a loss that is not
      finite.
    Interrupted: SIGTERM or Ctrl-C came, and the state is saved; the same call continues the run.
  """
  start = time.monotonic()
  store = Path(store) if store else Path(workdir) / "store"
  if profile and distributed.is_initialized():
    raise UserError(
      f"--profile: {profile}, but this run has several processes (--distributed); profile a run of one process"
    )
  prepared = _prepare([(config, workdir)], store, cpu_devices, load)
  what = prepared.plans[0], prepared.dataset, prepared.devices, store
  if print_summary:
    console.log(summary.describe(*what))
  if dry_run:
    console.log(summary.estimate_cost(*what))
    console.log(json.dumps(prepared.configs[0], indent=2))
    return prepared.configs[0]
  result = _execute(prepared, seed_parallel.select_seed_devices(prepared.devices, cpu_devices), profile)[0]
  if print_summary and distributed.is_primary():
    path = Path(workdir) / "report.md"
    seconds = console.format_duration(time.monotonic() - start)
    console.log(f"\n{path.read_text()}\ntotal time: {seconds}; report: {path}")
  return result


def run_seeds(
  runs: Runs,
  *,
  store: str | Path,
  cpu_devices: int | None = None,
  load: Callable[..., Dataset] = data.load,
) -> list[dict[str, Any]]:
  """Runs experiments that differ in their seed, stage by stage.

  Several seeds train at once where the devices allow it.

  Results equal those of separate runs up to rounding: on several devices of one batch, sums are taken in another order
  than on one device. An interrupted run continues together with others that were stopped at the same step. No summary
  is printed.

  Args:
    runs: configs and their workdirs.
    store: folder of stages that the runs share.
    cpu_devices: as for `run`.
    load: as for `run`.

  Returns:
    The contents of each result.json.

  Raises:
    UserError: as `run`; also if the configs differ in more than their seed.
    Interrupted: as `run`.
  """
  prepared = _prepare(runs, Path(store), cpu_devices, load)
  return _execute(prepared, seed_parallel.select_seed_devices(prepared.devices, cpu_devices))


class _Prepared(NamedTuple):
  """Runs that differ in their seed, validated and planned."""

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
  first = configs[0]
  _check_folders(configs, workdirs, store)
  # Before anything else uses JAX: the number of a CPU's virtual devices cannot change later.
  devices = parallel.select_devices(batch_sizes(first), cpu_devices, len(runs))
  workdir_lib.check_processes_match(config=first, **workdir_lib.environment_fingerprint())
  dataset = load(**drop_keys(first["data"], "extra_tests"))
  names, folder = first["data"]["extra_tests"], first["data"]["folder"]
  tests = extra_tests.lazy_test_sets("config.data.extra_tests", names, dataset, folder)
  workdir_lib.check_processes_match(data={"fingerprint": dataset.fingerprint})
  pretrained = {name: one.for_data(dataset.channel_stats) for name, one in _load_pretrained(first).items()}
  plans = [make_plans(resolved, dataset, pretrained) for resolved in configs]
  memory.check(plans[0], dataset, devices)
  teacher_cache.check(plans[0], dataset, devices)
  return _Prepared(configs, workdirs, store, devices, dataset, tests, pretrained, plans)


def _check_folders(configs: Sequence[dict[str, Any]], workdirs: Sequence[Path], store: Path) -> None:
  """Checks that the folders can be written to and belong to these configs."""
  if store not in workdirs:
    workdir_lib.check_kind("--store", store, workdir_lib.STORE, allow_unknown=True)
  for resolved, workdir in zip(configs, workdirs, strict=True):
    workdir_lib.check_workdir(workdir, resolved)
    field = workdir_lib.first_difference("config", configs[0] | {"seed": 0}, resolved | {"seed": 0})
    if field is not None:
      raise UserError(f"{workdir}: {field}; runs that are trained at once differ in their seed alone")
  workdir_lib.check_writable("--store", store)


def _execute(prepared: _Prepared, seed_devices: parallel.Devices, profile: int = 0) -> list[dict[str, Any]]:
  """Trains the stages that are not in the store, and writes results and reports."""
  evaluator = Evaluator(prepared.dataset, prepared.devices, prepared.configs[0]["evaluate"], prepared.store)
  labels = {name: split.label for name, split in evaluator.splits.items()}
  for resolved, workdir in zip(prepared.configs, prepared.workdirs, strict=True):
    workdir_lib.write_config(workdir, resolved, prepared.store, prepared.devices)
    workdir_lib.write_labels(workdir, labels)
  runner = StageRunner(_make_context(prepared, evaluator, seed_devices, profile))
  pretrained = _evaluate_pretrained(prepared, runner)
  with signals.handle_signals(unsaved=False) as stop:
    trained = [
      runner.run_stage(
        plans, [workdir / "tensorboard" / plans[0].name for workdir in prepared.workdirs], stop
      )
      for plans in zip(*prepared.plans, strict=True)
    ]
  results = []
  for i, plans in enumerate(prepared.plans):
    stages = [of_stage[i] for of_stage in trained]
    extra = evaluator.evaluate_extra_sets(plans, prepared.extra_tests)
    for stage, accuracies in zip(stages, extra, strict=True):
      stage["extra_tests"] = accuracies
    results.append(_write(prepared, i, {"pretrained": pretrained[i], "stages": stages}))
  distributed.barrier()
  return results


def _make_context(
  prepared: _Prepared, evaluator: Evaluator, seed_devices: parallel.Devices, profile: int
) -> RunContext:
  plans, dataset, store = prepared.plans, prepared.dataset, prepared.store
  return RunContext(
    config=prepared.configs[0],
    dataset=dataset,
    devices=prepared.devices,
    store=store,
    evaluator=evaluator,
    seed_devices=seed_devices,
    estimate=summary.RunEstimate(plans[0], dataset, store, len(plans)),
    profiler=Profiler(prepared.devices, prepared.workdirs[0] / "profile", profile),
  )


def _evaluate_pretrained(prepared: _Prepared, runner: StageRunner) -> list[list[dict[str, Any]]]:
  """Entries of the pretrained networks in each run's result."""
  networks = build.make_networks(prepared.configs[0], len(prepared.dataset.class_names))
  stats = {name: one.normalization for name, one in prepared.pretrained.items()}
  networks |= build.renormalize(networks, stats, prepared.dataset)
  return [
    [
      runner.evaluate_pretrained(
        name, networks[name], one, workdir_lib.pretrained_outputs_path(workdir, name)
      )
      for name, one in prepared.pretrained.items()
    ]
    for workdir in prepared.workdirs
  ]


def _write(prepared: _Prepared, i: int, results: Mapping[str, Any]) -> dict[str, Any]:
  """Writes result and report of run `i`; returns the result."""
  workdir, dataset = prepared.workdirs[i], prepared.dataset
  images = {name: getattr(dataset, name) for name in ("image_shape", "mean", "std", "class_names")}
  result = {
    "seed": prepared.configs[i]["seed"],
    "data": dataset.name,
    "image_metadata": images,
    **results,
    **workdir_lib.environment(prepared.devices),
  }
  store_lib.write_json_with_checksum(workdir / "result.json", result)
  if distributed.is_primary():
    run_report.write_summary(workdir, prepared.store)
  return result


def batch_sizes(config: Mapping[str, Any]) -> list[int]:
  """Batch sizes of all stages of a resolved config, labeled and unlabeled.

  Each must divide over the devices.
  """
  names = ("batch_size", "unlabeled_batch_size")
  return [stage[name] for stage in config["stages"] for name in names if stage[name]]


def _load_pretrained(config: Mapping[str, Any]) -> dict[str, variables.Pretrained]:
  """Variables of the networks that begin with some, by the networks' names."""
  return {
    name: variables.load(f"config.networks.{name}.variables", entry["variables"], name)
    for name, entry in config["networks"].items()
    if entry["variables"]
  }
