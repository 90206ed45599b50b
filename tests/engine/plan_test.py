"""Tests of engine/plan.py: what a config says becomes a step that can be computed."""

import jax
import jax.numpy as jnp
import pytest

import runs
from smskd_jax import config as config_lib
from smskd_jax import data
from smskd_jax.config import experiment, method, network, stage
from smskd_jax.engine import plan
from smskd_jax.errors import UserError
from smskd_jax.training import optimizer, schedule
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Batch, Frozen
from tiny import SMALL


@pytest.fixture(scope="module")
def digits():
  return data.load("digits")


def traced(config, dataset):
  """The shapes of the state after a step of the last stage, and of its metrics."""
  *_, last = plan.make_plans(config_lib.resolve(config), dataset)
  size = last.loop_config.batch_size
  image = jax.ShapeDtypeStruct((size, *dataset.train.image.shape[1:]), jnp.uint8)
  number = jax.ShapeDtypeStruct((size,), jnp.int32)

  def variables(n):
    return jax.eval_shape(n.init, jax.random.key(0), jnp.zeros((1, *image.shape[1:])))

  frozen = Frozen(
    jax.random.key(0), tuple(map(variables, last.stage.teachers)), variables(last.stage.student)
  )
  before = plan.abstract_state(last, dataset)
  after, metrics = jax.eval_shape(make_train_step(last.stage), before, frozen, Batch(image, number, number))
  same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), before, after)
  assert all(jax.tree.leaves(same))
  return metrics


# Each optimiser with one schedule, and each schedule with one optimiser.
CHOICES = [(name, "cosine") for name in optimizer.OPTIMIZERS] + [
  ("sgd", rate) for rate in schedule.SCHEDULES if rate != "cosine"
]


@pytest.mark.parametrize("name, rate", CHOICES)
def test_every_optimiser_takes_a_step(name, rate, digits):
  config = experiment(
    data={"source": "digits"},
    networks={"teacher": network(SMALL, width=0.25), "student": network(SMALL, width=0.125)},
    stages=(
      stage("teacher"),
      stage(
        "student",
        teachers=("teacher",),
        methods=(method("kd"),),
        optimizer={"name": name},
        schedule={"name": rate},
      ),
    ),
  )
  assert {"loss", "task", "distill/kd"} <= traced(config, digits).keys()


def test_the_stages_of_smskd_are_anchored(digits):
  assert {"reference", "reference_tcp"} <= traced(runs.tiny(), digits).keys()


def test_every_field_of_an_entry_reaches_the_stage(digits):
  fields = {
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
    "trainable": "head",
    "teacher_statistics": "batch",
    "alternate_epochs": 2,
    "task_weight": 0.5,
    "views": ("crop_flip", "cutout"),
    "mix": {"name": "mixup", "alpha": 0.3},
    "optimizer": {"clip_norm": 0.25, "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0},
    "schedule": {"name": "constant"},
  }
  config = experiment(
    data={"source": "digits"},
    networks={"student": network(SMALL, width=0.125)},
    stages=(stage("student", **fields), stage("student")),
  )
  made, plain = (one.stage for one in plan.make_plans(config_lib.resolve(config), digits))
  for name in (
    "label_smoothing",
    "ema_decay",
    "trainable",
    "teacher_statistics",
    "alternate_epochs",
    "task_weight",
  ):
    assert getattr(made, name) == fields[name] != getattr(plain, name)
  assert (len(made.views), len(plain.views), plain.mix) == (2, 1, None)
  image, label = jnp.arange(2.0).reshape(2, 1, 1, 1), jnp.array([1, 3])
  mixed, answer = made.mix(jax.random.key(0), image, label, None)
  assert answer.soft_label.shape == (2, 10) and jnp.allclose(answer.soft_label.sum(-1), 1)
  assert mixed.shape == image.shape
  gradient = {"w": jnp.full(4, 3.0)}
  updates, _ = made.optimizer.update(gradient, made.optimizer.init(gradient), gradient)
  assert jnp.allclose(jnp.linalg.norm(updates["w"]), 0.25)


def test_labels_are_counted_where_some_may_lack(digits):
  dataset = digits._replace(unlabeled=digits.train.image[:100])
  config = experiment(
    data={"source": "digits", "unlabeled": "digits"},
    networks={"student": network(SMALL, width=0.125)},
    stages=(stage("student"), stage("student", unlabeled_batch_size=8)),
  )
  known = [one.stage.all_examples_labeled for one in plan.make_plans(config_lib.resolve(config), dataset)]
  assert known == [True, False]


def test_a_rate_that_is_meant_for_a_batch_grows_with_it(digits):
  def update(**optimizer):
    config = experiment(
      data={"source": "digits"},
      networks={"teacher": network(SMALL)},
      stages=(stage("teacher", batch_size=256, optimizer=optimizer, schedule={"name": "constant"}),),
    )
    (only,) = plan.make_plans(config_lib.resolve(config), digits)
    weights = {"w": jnp.ones(3)}
    updates, _ = only.stage.optimizer.update(weights, only.stage.optimizer.init(weights), weights)
    return float(updates["w"][0])

  assert update(learning_rate=0.05, base_batch_size=64) == pytest.approx(update(learning_rate=0.2))
  both = update(learning_rate=0.05, base_batch_size=64, accumulate_steps=1), update(learning_rate=0.05)
  assert both[0] == pytest.approx(4 * both[1])


def refused_pair(digits, model, entry):
  """One line about a method that is not defined for a teacher of three maps and a student."""
  config = experiment(
    data={"source": "digits"},
    networks={"teacher": network(SMALL, width=0.25), "student": model},
    stages=(stage("teacher"), stage("student", teachers=("teacher",), methods=(entry,))),
  )
  with pytest.raises(UserError) as error:
    plan.make_plans(config_lib.resolve(config), digits)
  return str(error.value)


def test_a_refusal_names_the_methods_that_are_defined_for_the_pair(digits):
  text = refused_pair(digits, network("custom:tiny:Tiny"), method("at"))
  reason, _, names = text.partition("; methods for these networks are ")
  assert reason.startswith("config.stages[1]: at: needs feature maps after the stem") and "\n" not in text
  assert "catkd, cc, crd," in names and "at," not in names.split()


def test_a_refusal_of_an_option_names_no_other_methods(digits):
  text = refused_pair(digits, network(SMALL, width=0.125), method("fitnet", student_layer=9))
  assert "layer 9 does not exist" in text and "methods for these networks" not in text
