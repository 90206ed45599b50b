"""Tests of runs with several seeds at once: the results are those of one after another, whatever happens between."""

import json
import signal

import numpy as np
import pytest

import runs
from smskd_jax.config import stage
from smskd_jax.engine import experiment
from smskd_jax.errors import UserError
from smskd_jax.runtime import checkpoint, signals
from smskd_jax.runtime.writer import read_metrics
from smskd_jax.training import loop

SEEDS = (0, 1, 2)


def asked(folder, seeds=SEEDS, **fields):
  return [(runs.tiny(seed=seed, **fields), folder / f"seed{seed}") for seed in seeds]


def at_once(folder, seeds=SEEDS, **fields):
  return experiment.run_seeds(asked(folder, seeds, **fields), store=folder / "store", cpu_devices=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("seeds")
  return folder, at_once(folder)


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
  folder = tmp_path_factory.mktemp("one_by_one")

  def run(config, workdir):
    return experiment.run(config, workdir, store=folder / "store", cpu_devices=2)

  return folder, {seed: run(*pair) for seed, pair in zip((0, 2), asked(folder, (0, 2)), strict=True)}


def lines(folder, of_stage):
  return read_metrics(folder / "store" / of_stage["key"] / "metrics.jsonl")


def test_they_are_the_runs_one_after_another(finished, one_by_one):
  for seed, theirs in one_by_one[1].items():
    ours = finished[1][seed]
    assert ours["seed"] == theirs["seed"] == seed
    for one, other in zip(ours["stages"], theirs["stages"], strict=True):
      assert (one["name"], one["key"], one["steps"]) == (other["name"], other["key"], other["steps"])
      mine, other_lines = lines(finished[0], one), lines(one_by_one[0], other)
      assert [set(line) for line in mine] == [set(line) for line in other_lines]
      for a, b in zip(mine, other_lines, strict=True):
        if "train/loss" in a:
          assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-3)
      assert abs(one["metrics"]["last"]["test/accuracy"] - other["metrics"]["last"]["test/accuracy"]) < 0.02


def test_two_devices_take_two_at_once_and_the_third_alone(finished, one_by_one):
  counts = [[one["num_parallel_seeds"] for one in result["stages"]] for result in finished[1]]
  assert counts == [[2, 2, 2], [2, 2, 2], [1, 1, 1]]
  alone = [[one["key"] for one in results[1][2]["stages"]] for results in (finished, one_by_one)]
  assert digests(finished[0], alone[0]) == digests(one_by_one[0], alone[1]), "bit for bit"


def digests(folder, keys):
  return [checkpoint.tree_digest(checkpoint.load_variables(folder / "store" / key / "final")) for key in keys]


def test_each_has_a_folder_of_its_own(finished):
  folder, results = finished
  for seed, result in zip(SEEDS, results, strict=True):
    workdir = folder / f"seed{seed}"
    assert json.loads((workdir / "result.json").read_text())["seed"] == seed
    assert json.loads((workdir / "config.json").read_text())["config"]["seed"] == seed
    assert (workdir / "report.md").is_file() and (workdir / "labels.npz").is_file()
    for one in result["stages"]:
      assert list((workdir / "tensorboard" / one["name"]).glob("events*"))
  finals = {tuple(digests(folder, [one["key"] for one in result["stages"]])) for result in results}
  assert len(finals) == 3


def stop_at(step, monkeypatch):
  """Runs are asked to end after so many steps of their third stage, 'kd'."""
  whole, stages = loop.run, []

  def stopping(program, budget, learners, progress, stop, timer):
    stages.append(budget)
    trained = progress.trained

    def told(done, just_now, *, compiled):
      trained(done, just_now, compiled=compiled)
      if len(stages) == 3 and done == step:
        stop.on_signal(signal.SIGUSR1)

    progress.trained = told
    return whole(program, budget, learners, progress, stop, timer)

  monkeypatch.setattr(loop, "run", stopping)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_at_once(finished, tmp_path, monkeypatch):
  with (
    monkeypatch.context() as patch,
    pytest.raises(signals.Interrupted, match="stage 'kd', stopped at step 5"),
  ):
    stop_at(5, patch)
    at_once(tmp_path, seeds=(0, 1))
  again = at_once(tmp_path, seeds=(0, 1))
  assert [result["stages"][-1]["num_parallel_seeds"] for result in again] == [2, 2]
  for ours, theirs in zip(again, finished[1], strict=False):
    keys = [one["key"] for one in ours["stages"]]
    assert digests(tmp_path, keys) == digests(finished[0], keys)
    assert ours["stages"][-1]["metrics"] == theirs["stages"][-1]["metrics"]
    mine, whole = (
      lines(folder, one["stages"][-1]) for folder, one in ((tmp_path, ours), (finished[0], theirs))
    )
    assert mine == whole


@pytest.mark.slow
def test_those_that_were_stopped_at_different_steps_go_on_one_by_one(finished, tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(signals.Interrupted):
    stop_at(5, patch)
    at_once(tmp_path, seeds=(0, 1))
  kd = finished[1][1]["stages"][-1]["key"]
  newest = max((tmp_path / "store" / kd / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
  for path in newest.rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  again = at_once(tmp_path, seeds=(0, 1))
  assert [result["stages"][-1]["num_parallel_seeds"] for result in again] == [1, 1]
  for ours, theirs in zip(again, finished[1], strict=False):
    last = [one["stages"][-1]["metrics"]["last"]["test/nll"] for one in (ours, theirs)]
    assert last[0] == pytest.approx(last[1], rel=1e-2)


def test_what_is_in_the_store_is_not_trained_again(finished, monkeypatch):
  folder, results = finished
  for path in (folder / "seed0" / "result.json", folder / "seed1" / "result.json"):
    path.unlink()
  monkeypatch.setattr(loop, "run", lambda *_: pytest.fail("trained again"))
  assert json.dumps(at_once(folder)) == json.dumps(results)


@pytest.mark.slow
def test_teachers_that_are_kept_are_asked_by_each_and_read_by_all(tmp_path, one_by_one):
  """All have one teacher: of the first seed, given."""
  given = str(one_by_one[0] / "seed0")
  base = runs.tiny()
  networks = {"teacher": dict(base.networks.teacher) | {"variables": given}, "student": base.networks.student}
  fields = {
    "teachers": ("teacher",),
    "batch_size": 128,
    "augment": {"crop_flip": {"padding": 1, "flip": False}},
  }
  methods = ({"name": "kd"},)

  def run(folder, cache, how):
    taught = (stage("student", methods=methods, teacher_cache=cache, **fields),)
    return how(
      asked(tmp_path / folder, (0, 1), networks=networks, stages=taught), store=tmp_path / folder / "store"
    )

  both = run("kept", "float32", lambda pairs, store: experiment.run_seeds(pairs, store=store, cpu_devices=2))
  each = run(
    "alone",
    "off",
    lambda pairs, store: [experiment.run(*pair, store=store, cpu_devices=1) for pair in pairs],
  )
  passes = [result["stages"][0]["forward_passes"]["teachers"] for result in both]
  assert 0 < passes[1] < passes[0] <= 11 * 128, "what the first has asked the second need not"
  for ours, theirs in zip(both, each, strict=True):
    assert ours["stages"][0]["num_parallel_seeds"] == 2
    own, other = (
      [line["train/loss"] for line in lines(tmp_path / folder, one["stages"][0]) if "train/loss" in line]
      for folder, one in (("kept", ours), ("alone", theirs))
    )
    np.testing.assert_allclose(own, other, rtol=1e-4)


def test_configs_that_differ_in_more_than_their_seed_are_refused(tmp_path):
  pairs = [(runs.tiny(seed=0), tmp_path / "a"), (runs.tiny(seed=1, log_every_steps=7), tmp_path / "b")]
  with pytest.raises(
    UserError, match="b: config.log_every_steps is 3 there and 7 here; .* in their seed alone"
  ):
    experiment.run_seeds(pairs, store=tmp_path / "store", cpu_devices=2)
  assert not list(tmp_path.iterdir())
