"""Tests of engine/teacher_cache.py: runs whose teachers' answers are kept, and what becomes of the answers."""

from pathlib import Path
import shutil
import signal

import jax
import numpy as np
import pytest

import runs
from smskd_jax import data
from smskd_jax.config import build, method, network, resolve, stage
from smskd_jax.engine import experiment, stage_runner, teacher_cache
from smskd_jax.engine.plan import make_plans
from smskd_jax.errors import UserError
from smskd_jax.exchange.variables import Pretrained
from smskd_jax.models import introspection
from smskd_jax.runtime import integrity, parallel, signals
from smskd_jax.runtime.writer import read_metrics
from smskd_jax.training import batches
from tiny import SMALL

AUGMENT = {"crop_flip": {"padding": 1, "flip": False}}


def config(cache, **fields):
  """A teacher, RKD and then KD, each of two epochs; the view of a padding of 1 is one of nine."""
  common = {"batch_size": 128, "augment": AUGMENT}
  taught = {"teachers": ("teacher",), "teacher_cache": cache, "epochs": 2, **common}
  stages = (
    stage("teacher", **common),
    stage("student", name="rkd", methods=(method("rkd", weight=0.1),), **taught),
    stage("student", name="kd", methods=(method("kd"),), reference={"stage": "previous"}, **taught),
  )
  return runs.tiny(stages=stages, **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """By the kind of cache, a finished run's folder and result; the teacher is the same."""
  folder = tmp_path_factory.mktemp("keeping")
  kinds = ("off", "float32", "float16")

  def run(kind):
    return experiment.run(config(kind), folder / kind, store=folder / "store", cpu_devices=2)

  return folder, {kind: run(kind) for kind in kinds}


def losses(folder, of_stage):
  lines = read_metrics(folder / "store" / of_stage["key"] / "metrics.jsonl")
  return np.array([line["train/loss"] for line in lines if "train/loss" in line])


@pytest.mark.parametrize("kind, tolerance", [("float32", 1e-4), ("float16", 1e-2)])
def test_a_run_with_kept_answers_is_the_run(finished, kind, tolerance):
  folder, results = finished
  assert results[kind]["stages"][0]["key"] == results["off"]["stages"][0]["key"]
  for i in (1, 2):
    plain, kept = (losses(folder, results[of]["stages"][i]) for of in ("off", kind))
    assert len(plain) > 5
    np.testing.assert_allclose(kept, plain, rtol=tolerance)


def asked(of_stage):
  """Views that a finished stage has sampled, from what it says of itself: its seed, place, epochs and images."""
  plans = make_plans(resolve(config("float32")), data.load(source="digits"))
  (plan,) = (plan for plan in plans if plan.key == of_stage["key"])
  key = jax.random.fold_in(jax.random.key(plan.description["seed"]), plan.stage_index)
  steps, order = (
    jax.random.fold_in(key, stream) for stream in (stage_runner.RNG_STEPS, stage_runner.RNG_ORDER)
  )
  seen = set()
  for step, batch in enumerate(batches.iterate_batches(plan.input_spec, order, 0)):
    view = jax.random.split(jax.random.fold_in(steps, step))[0]
    seen |= set(zip(batch.index.tolist(), plan.stage.view_index_fn(view, batch).tolist(), strict=True))
  return seen


def test_the_ledger_counts_each_forward_pass_once_and_none_that_nobody_sees(finished):
  _, results = finished
  passes = {kind: [s["forward_passes"]["teachers"] for s in of["stages"]] for kind, of in results.items()}
  drawn = 22 * 128
  assert passes["off"] == [0, drawn, drawn]
  rkd, kd = (asked(one) for one in results["float32"]["stages"][1:])
  assert passes["float32"] == [0, len(rkd), len(kd - rkd)] == passes["float16"]
  assert len(rkd) < drawn and len(kd - rkd) < len(kd) < drawn


def count_asked(monkeypatch):
  counts, compute = [], teacher_cache._compute

  def counting(*args):
    counts.append(compute(*args))
    return counts[-1]

  monkeypatch.setattr(teacher_cache, "_compute", counting)
  return counts


def test_what_was_asked_is_read_and_what_was_cut_off_is_asked_again(finished, monkeypatch):
  folder, results = finished
  counts = count_asked(monkeypatch)
  teacher = folder / "store" / results["off"]["stages"][0]["key"]
  present = sorted(teacher.glob("views-*/present.npz"))
  assert len(present) == 2, "those with embeddings, for RKD, serve KD too"
  changed = config("float32")
  changed.stages[1].epochs = 1
  shorter = experiment.run(changed, folder / "shorter", store=folder / "store", cpu_devices=2)
  first = [one["forward_passes"]["teachers"] for one in shorter["stages"]]
  assert not counts and first == [0, 0, 0], "of the same seed and place the epochs have the same views"
  for path in present:
    path.unlink()
  changed.stages[1].task_weight = 0.5
  with monkeypatch.context() as cut:
    cut.setattr(teacher_cache.MemmapCache, "save", lambda table: pytest.fail("cut off"))
    with pytest.raises(pytest.fail.Exception):
      experiment.run(changed, folder / "again", store=folder / "store", cpu_devices=2)
  assert not list(teacher.glob("views-*/present.npz"))
  again = experiment.run(changed, folder / "again", store=folder / "store", cpu_devices=2)
  assert counts == [one["forward_passes"]["teachers"] for one in again["stages"][1:]] and min(counts) > 500


def test_asked_to_stop_it_keeps_what_it_has_and_goes_on(finished, tmp_path, monkeypatch):
  folder, results = finished
  one = config("float32", evaluate={"batch_size": 128})
  one.stages = one.stages[:2]
  put, count = teacher_cache.MemmapCache.write, []

  def stopping(table, *args):
    put(table, *args)
    count.append(1)
    if len(count) == 3:
      signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(teacher_cache.MemmapCache, "write", stopping)
    with pytest.raises(
      signals.Interrupted, match=r"'rkd', stopped while caching teacher outputs, at view 384 of"
    ):
      experiment.run(one, tmp_path, cpu_devices=2)
  counts = count_asked(monkeypatch)
  result = experiment.run(one, tmp_path, cpu_devices=2)
  whole = results["float32"]["stages"][1]["forward_passes"]["teachers"]
  assert counts == [whole - 384] == [result["stages"][1]["forward_passes"]["teachers"]]
  np.testing.assert_array_equal(
    losses(tmp_path, result["stages"][1]), losses(folder, results["float32"]["stages"][1])
  )


def test_embeddings_that_a_later_stage_will_ask_for_are_computed_at_once(finished, tmp_path):
  folder, _ = finished
  asked = config("float32")
  asked.stages = (asked.stages[0], asked.stages[2], asked.stages[1])
  asked.stages[1].reference.stage = "none"
  for one in asked.stages[1:]:
    one.epochs, one.max_images = 1, 500
  result = experiment.run(asked, tmp_path, store=folder / "store", cpu_devices=2)
  passes = [one["forward_passes"]["teachers"] for one in result["stages"]]
  teacher = folder / "store" / result["stages"][0]["key"]
  newest = max(teacher.glob("views-*/present.npz"), key=lambda path: path.stat().st_mtime)
  present = integrity.read_arrays(newest)["present"]
  assert newest.parent.name.endswith("-embedding") and present.shape == (499, 9)  # rounded class by class
  assert present.sum() == sum(passes), "what KD has asked RKD need not"


@pytest.mark.slow
def test_damaged_answers_are_named_and_computed_again(finished, tmp_path, monkeypatch, capsys):
  folder, results = finished
  shutil.copytree(folder / "store", tmp_path / "store")
  rkd = results["float32"]["stages"][1]
  teacher = tmp_path / "store" / results["off"]["stages"][0]["key"]
  for path in teacher.glob("views-*/logits.npy"):
    present = integrity.read_arrays(path.parent / "present.npz")["present"]
    np.load(path, mmap_mode="r+")[tuple(np.argwhere(present)[0])] += 1
  for one in results["float32"]["stages"][1:]:
    shutil.rmtree(tmp_path / "store" / one["key"])
  counts = count_asked(monkeypatch)
  shorter = config("float32")
  shorter.stages = shorter.stages[:2]
  again = experiment.run(shorter, tmp_path / "again", store=tmp_path / "store", cpu_devices=2)["stages"][1]
  assert "cached outputs are damaged; these are computed again" in capsys.readouterr().out
  assert 0 < sum(counts) <= 9, "those of one image"
  np.testing.assert_array_equal(losses(tmp_path, again), losses(folder, rkd))


def test_answers_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
  monkeypatch.setattr(parallel, "free_bytes", lambda devices: 200_000)  # enough to train, not to cache
  message = r"stages\[1\].teacher_cache: 9 views of 1,438 images need .*'float16', or 'off'"
  with pytest.raises(UserError, match=message):
    experiment.run(config("float32"), tmp_path / "run", cpu_devices=2)
  assert not (tmp_path / "run").exists()


def test_what_computes_with_given_variables_is_part_of_the_question():
  dataset = data.load(source="digits")

  def places(dtype):
    asked = config(
      "float32",
      networks={"teacher": network("resnet8", variables="x", dtype=dtype), "student": network(SMALL)},
    )
    asked.stages = asked.stages[1:]
    resolved = resolve(asked)
    teacher = build.make_networks(resolved, 10)["teacher"]
    zeros = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), introspection.variable_shapes(teacher, dataset.image_shape)
    )
    given = {"teacher": Pretrained(zeros, "f" * 64, "x")}
    rkd, kd = make_plans(resolved, dataset, given)
    tables = [teacher_cache._caches(plan, dataset, given["teacher"].key, Path()) for plan in (rkd, kd)]
    return [{pooled: table.folder for pooled, table in of.items()} for of in tables]

  exact, rounded = places("float32"), places("bfloat16")
  assert set(exact[0]) == {True} and exact[0][True] == exact[1][True], "those with embeddings serve KD too"
  assert not {*exact[0].values(), *exact[1].values()} & {*rounded[0].values(), *rounded[1].values()}
