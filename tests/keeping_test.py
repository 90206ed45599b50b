"""Tests of keeping.py: runs whose teachers' answers are kept, and what becomes of the answers."""

from pathlib import Path

import jax
import numpy as np
import pytest

import runs
from smskd_jax import build, data, experiment, keeping
from smskd_jax.config import method, network, resolve, stage
from smskd_jax.errors import UserError
from smskd_jax.exchange.variables import Given
from smskd_jax.models import spec
from smskd_jax.plan import make_plans
from smskd_jax.runtime import parallel
from smskd_jax.runtime.writer import read_metrics
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
  run = lambda kind: experiment.run(config(kind), folder / kind, store=folder / "store", cpu_devices=2)
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


def test_the_ledger_counts_each_forward_pass_once(finished):
  _, results = finished
  passes = {kind: [s["forward_passes"]["teachers"] for s in of["stages"]] for kind, of in results.items()}
  images, steps = 1438, 22
  assert passes["off"] == [0, steps * 128, steps * 128]
  assert passes["float32"] == [0, 9 * images, 0]


def test_answers_serve_other_seeds_and_are_computed_again_where_they_were_cut_off(finished, monkeypatch):
  folder, results = finished
  computed, compute = [], keeping._compute
  monkeypatch.setattr(keeping, "_compute", lambda *args: (computed.append(1), compute(*args))[1])
  teacher = folder / "store" / results["off"]["stages"][0]["key"]
  done = sorted(teacher.glob("views-*/done"))
  assert len(done) == 2, "those with embeddings, for RKD, serve KD too"
  changed = config("float32")
  changed.stages[1].epochs = 1
  experiment.run(changed, folder / "shorter", store=folder / "store", cpu_devices=2)
  assert not computed
  for path in done:
    path.unlink()
  changed.stages[1].task_weight = 0.5
  with monkeypatch.context() as cut:
    cut.setattr(keeping.Path, "touch", lambda path: pytest.fail("cut off"))
    with pytest.raises(pytest.fail.Exception):
      experiment.run(changed, folder / "again", store=folder / "store", cpu_devices=2)
  assert len(computed) == 1 and not list(teacher.glob("views-*/done"))
  experiment.run(changed, folder / "again", store=folder / "store", cpu_devices=2)
  assert len(computed) == 2


def test_embeddings_that_a_later_stage_will_ask_for_are_computed_at_once(finished, tmp_path):
  folder, _ = finished
  asked = config("float32")
  asked.stages = (asked.stages[0], asked.stages[2], asked.stages[1])
  asked.stages[1].reference.stage = "none"
  for one in asked.stages[1:]:
    one.epochs, one.max_images = 1, 500
  result = experiment.run(asked, tmp_path, store=folder / "store", cpu_devices=2)
  images = 499  # 500, rounded class by class
  assert [one["forward_passes"]["teachers"] for one in result["stages"]] == [0, 9 * images, 0]


def test_answers_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
  monkeypatch.setattr(parallel, "free_bytes", lambda devices: 1000)
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
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), spec.variables(teacher, dataset.image_shape))
    given = {"teacher": Given(zeros, "f" * 64, "x")}
    rkd, kd = make_plans(resolved, dataset, given)
    return [keeping._places(plan, dataset, given["teacher"].key, Path()) for plan in (rkd, kd)]

  exact, rounded = places("float32"), places("bfloat16")
  assert exact[0] == exact[1][:1], "those with embeddings, for RKD, serve KD too"
  assert not set(sum(exact, ())) & set(sum(rounded, ()))
