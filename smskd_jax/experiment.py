"""An experiment, run: stage after stage, each trained or, where the store has it, read."""

from collections.abc import Callable, Mapping
import json
from pathlib import Path
import time
from typing import Any

from ml_collections import ConfigDict

from smskd_jax import build, data, filling, keeping, overview
from smskd_jax import config as config_lib
from smskd_jax.analysis import report
from smskd_jax.data import extra_tests
from smskd_jax.data.dataset import Dataset, Split
from smskd_jax.exchange import variables
from smskd_jax.plan import make_plans
from smskd_jax.profiling import Profiler
from smskd_jax.runner import Runner
from smskd_jax.runtime import console, interrupt, parallel
from smskd_jax.runtime import store as store_lib
from smskd_jax.runtime import workdir as workdir_lib


def run(
  config: ConfigDict | Mapping[str, Any],
  workdir: str | Path,
  *,
  store: str | Path | None = None,
  cpu_devices: int | None = None,
  dry_run: bool = False,
  profile: int = 0,
  load: Callable[..., Dataset] = data.load,
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

  Returns:
    What WORKDIR/result.json holds; of a dry run, the resolved config.

  Raises:
    UserError: a mistake in the config, data or folders, before anything is trained or written; or a loss that is not
      finite.
    Interrupted: SIGTERM or Ctrl-C came, and the state is saved; the same call goes on from there.
  """
  began = time.monotonic()
  workdir = Path(workdir)
  store = Path(store) if store else workdir / "store"
  resolved = config_lib.resolve(config)
  workdir_lib.check_writable("--store", store)
  workdir_lib.check(workdir, resolved)
  # Before anything else that uses JAX: a CPU's virtual devices cannot be made later.
  devices = parallel.select(batch_sizes(resolved), cpu_devices)
  dataset, extra = _data(resolved["data"], load)
  given = _given(resolved)
  plans = make_plans(resolved, dataset, given)
  keeping.check(plans, dataset, devices)
  console.say(overview.of(plans, dataset, devices, store))
  if dry_run:
    console.say(json.dumps(resolved, indent=2))
    return resolved
  workdir_lib.write_config(workdir, resolved, store, devices)
  profiler = Profiler(devices, workdir / "profile", profile)
  runner = Runner(resolved, dataset, devices, store, overview.Estimate(plans, dataset), profiler)
  workdir_lib.write_labels(workdir, {name: split.label for name, split in runner.held_out.splits.items()})
  networks = build.make_networks(resolved, len(dataset.class_names))
  givens = [
    runner.result_of_given(name, networks[name], of_network, workdir_lib.given_answers(workdir, name))
    for name, of_network in given.items()
  ]
  with interrupt.watch() as stop:
    stages = [runner.result_of(plan, workdir / "tensorboard" / plan.name, stop) for plan in plans]
  for stage, of_stage in zip(stages, runner.held_out.on_extra_tests(plans, extra), strict=True):
    stage["extra_tests"] = of_stage
  about = {"seed": resolved["seed"], "data": dataset.name, "inputs": _inputs(dataset)}
  result = {**about, "given": givens, "stages": stages, **workdir_lib.environment(devices)}
  store_lib.write_json(workdir / "result.json", result)
  path = report.write(workdir, store)
  console.say(f"\n{path.read_text()}\n{console.duration(time.monotonic() - began)}; report: {path}")
  return result


def _data(
  config: Mapping[str, Any], load: Callable[..., Dataset]
) -> tuple[Dataset, Mapping[str, Callable[[], Split]]]:
  """The data set, and what more is tested on."""
  dataset = load(**filling.options(config, "extra_tests"))
  asked = config["extra_tests"]
  return dataset, extra_tests.prepare("config.data.extra_tests", asked, dataset, config["folder"])


def _inputs(dataset: Dataset) -> dict[str, Any]:
  """What images are to the networks."""
  return {name: getattr(dataset, name) for name in ("image_shape", "mean", "std", "class_names")}


def batch_sizes(config: Mapping[str, Any]) -> list[int]:
  """Of all stages of a resolved config, with and without labels: each must divide over the devices."""
  names = ("batch_size", "unlabeled_batch_size")
  return [stage[name] for stage in config["stages"] for name in names if stage[name]]


def _given(config: Mapping[str, Any]) -> dict[str, variables.Given]:
  """The variables of the networks that begin with some, by the networks' names."""
  return {
    name: variables.load(f"config.networks.{name}.variables", entry["variables"], name)
    for name, entry in config["networks"].items()
    if entry["variables"]
  }
