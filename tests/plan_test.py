"""Tests of plan.py: what a config says becomes a step that can be computed."""

import jax
import jax.numpy as jnp
import pytest
import runs

from smskd_jax import config as config_lib
from smskd_jax import data, plan
from smskd_jax.config import experiment, method, network, stage
from smskd_jax.state import Batch, Frozen
from smskd_jax.training import optimizer
from smskd_jax.training.stage import make_train_step


@pytest.fixture(scope="module")
def digits():
  return data.load("digits")


def traced(config, dataset):
  """The shapes of the state after a step of the last stage, and of its metrics."""
  *_, last = plan.make_plans(config_lib.resolve(config), dataset)
  size = last.budget.batch_size
  image = jax.ShapeDtypeStruct((size, *dataset.train.image.shape[1:]), jnp.uint8)
  number = jax.ShapeDtypeStruct((size,), jnp.int32)
  variables = lambda n: jax.eval_shape(n.init, jax.random.key(0), jnp.zeros((1, *image.shape[1:])))
  frozen = Frozen(
    jax.random.key(0), tuple(map(variables, last.stage.teachers)), variables(last.stage.learner)
  )
  before = plan.abstract_state(last, dataset)
  after, metrics = jax.eval_shape(make_train_step(last.stage), before, frozen, Batch(image, number, number))
  same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), before, after)
  assert all(jax.tree.leaves(same))
  return metrics


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
@pytest.mark.parametrize("schedule", optimizer.SCHEDULES)
def test_every_optimiser_takes_a_step(name, schedule, digits):
  config = experiment(
    data={"source": "digits"},
    networks={"teacher": network("resnet8", width=0.25), "student": network("resnet8", width=0.125)},
    stages=(
      stage("teacher"),
      stage(
        "student",
        teachers=("teacher",),
        methods=(method("kd"),),
        optimizer={"name": name},
        schedule={"name": schedule},
      ),
    ),
  )
  assert {"loss", "task", "distill/kd"} <= traced(config, digits).keys()


def test_the_stages_of_smskd_are_anchored(digits):
  assert {"reference", "tcp"} <= traced(runs.tiny(), digits).keys()
