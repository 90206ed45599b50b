"""Tests of engine/memory.py, and of giant numbers elsewhere: refused before anything is allocated or written."""

import jax
import numpy as np
import pytest

import runs
from smskd_jax import data
from smskd_jax.config import network, resolve
from smskd_jax.config import study_schema as study_config
from smskd_jax.data.dataset import resize_dataset
from smskd_jax.engine import experiment, memory, plan
from smskd_jax.errors import UserError
from smskd_jax.runtime import parallel
from tiny import SMALL


def plans(**networks):
  dataset = data.load("digits")
  return plan.make_plans(resolve(runs.tiny(**networks)), dataset), dataset


def test_what_a_step_holds():
  found, dataset = plans()
  needed = memory.needed_bytes(found[2], dataset, 2)
  parameters = sum(x.size for x in jax.tree.leaves(plan.abstract_state(found[2], dataset).params))
  assert needed["gradients"] == 4 * parameters
  # Parameters and momentum, and a little for batch statistics, the step and the key.
  assert 8 * parameters <= needed["the network, its optimizer and its methods"] < 10 * parameters
  assert needed["images"] == 4 * 64 * 8 * 8
  assert needed["teachers and reference"] > needed["gradients"]
  assert memory.needed_bytes(found[0], dataset, 2)["teachers and reference"] == 0


def test_a_stage_that_does_not_fit_is_refused_with_what_it_needs(monkeypatch):
  found, dataset = plans()
  monkeypatch.setattr(parallel, "free_bytes", lambda devices: 1_000)
  with pytest.raises(
    UserError, match=r"config.stages\[0\] \(teacher\): needs .*B of memory .* 1 kB are free"
  ):
    memory.check(found, dataset, jax.devices()[:2])


@pytest.mark.parametrize(
  "change, message",
  [
    (
      {"networks": {"teacher": network(SMALL, width=0.25), "student": network(SMALL, width=1e6)}},
      "PB of memory",
    ),
    ({"networks": {"teacher": network(SMALL, width=1e5), "student": network(SMALL)}}, "PB of memory"),
    ({"seed": 2**32}, "config.seed: 4294967296 is too large; it must be at most 4294967295"),
    ({"seed": 2**70}, "config.seed: .* is too large"),
    ({"data": {"source": "digits", "split_seed": 2**32}}, "split_seed: 4294967296 is too large"),
    ({"data": {"source": "digits", "image_size": 100_000}}, "image_size: 100000 is too large; .* 4096"),
    ({"evaluate": {"calibration_bins": 10**12}}, "calibration_bins: 1000000000000 is too large"),
    ({"num_workers": 10**6}, "config.num_workers: 1000000 is too large"),
  ],
)
def test_giants_are_refused_before_anything_is_written(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    experiment.run(runs.tiny(**change), tmp_path / "run", cpu_devices=2)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "change, message",
  [
    ({"epochs": 10**11}, r"stages\[0\].epochs: 100000000000 is too large; it must be at most 1000000"),
    ({"batch_size": 10**12}, r"batch_size: 1000000000000 is too large"),
    ({"augment": {"crop_flip": {"padding": 1000}}}, "padding: 1000 pixels around images of 8x8; use 0 to 7"),
    (
      {"augment": {"crop_flip": {"padding": 1000, "num_views": 5}}},
      "padding: 1000 pixels around images of 8x8; use 0 to 7",
    ),
  ],
)
def test_giants_of_a_stage_are_refused_before_anything_is_written(tmp_path, change, message):
  config = runs.tiny()
  with config.ignore_type():
    config.stages[0].update(change)
  with pytest.raises(UserError, match=message):
    experiment.run(config, tmp_path / "run", cpu_devices=1)
  assert not (tmp_path / "run").exists()


def test_more_steps_than_a_stage_can_count_are_refused():
  config = resolve(runs.tiny(data={"source": "fashion_mnist_small"}))
  config["stages"][0].update({"epochs": 10**6, "batch_size": 1})
  with pytest.raises(
    UserError, match=r"epochs: 1000000 of \d,\d+ steps each are more than the 2,147,483,647"
  ):
    plan.make_plans(config, data.load("fashion_mnist_small"))


def test_images_that_do_not_fit_are_refused(monkeypatch):
  class Huge:
    """Of another image's shape, and so many that they need no memory to be counted."""

    def __len__(self):
      return 10**9

  dataset = data.load("digits")
  split = dataset.train._replace(label=Huge())
  with pytest.raises(UserError, match=r"data.image_size: 1,000,000,\d+ images of 64x64 need [\d.]+ GiB"):
    resize_dataset(dataset._replace(train=split), 64)


def test_a_studys_seeds_have_the_same_bounds():
  with pytest.raises(UserError, match="study.seeds: 4294967296 is too large"):
    study_config.resolve(study_config.study(seeds=(0, 2**32), variants={"one": runs.tiny()}))


def test_why_seeds_have_a_bound():
  def bits(seed):
    return np.asarray(jax.random.key_data(jax.random.key(seed))).tolist()

  assert len({tuple(bits(seed)) for seed in (0, 1, 2**31, 2**32 - 1)}) == 4
