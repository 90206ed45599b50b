"""Tests of training/cached_forward.py: a step whose teachers are looked up is the step in which they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from smskd_jax.data import enumerable_views
from smskd_jax.runtime import parallel
from smskd_jax.training import cached_forward
from smskd_jax.training.stage import make_train_step
from smskd_jax.types import Batch, CachedOutputs

VIEWS = enumerable_views.crop_flip(padding=1)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
ROWS = np.arange(3, 37)  # of the images, those that are trained on
normalize = lambda image: image.astype(jnp.float32) / 64 - 2


def stages(*methods):
  """The same stage with its teachers run, and with their answers kept."""
  view = lambda key, batch: normalize(
    VIEWS.render(batch.image, batch.index, VIEWS.sample_index(key, batch.index))
  )
  run = networks.make_stage(*methods, reference=networks.REFERENCE_OPTIONS)._replace(views=(view, view))
  return run, run._replace(view_index_fn=lambda key, batch: VIEWS.sample_index(key, batch.index))


def answers(stage, frozen, dtype):
  say = jax.jit(cached_forward.make_cached_forward(stage.teachers[0], VIEWS, normalize, dtype))
  of = [say(frozen.teachers[0], (IMAGES[ROWS], ROWS, jnp.full(len(ROWS), v))) for v in range(VIEWS.num_views)]
  row = np.zeros(len(IMAGES), np.int32)
  row[ROWS] = np.arange(len(ROWS))
  return CachedOutputs(jnp.asarray(row), *(jnp.stack(x, axis=1) for x in zip(*of, strict=True)))


def batch():
  index = np.random.default_rng(1).permutation(ROWS)[:16].astype(np.int32)
  return Batch(IMAGES[index], (index % 10).astype(np.int32), index)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.float16, 5e-3)])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_a_step_with_kept_answers_is_the_step(dtype, tolerance, num_devices):
  run, looked_up = stages(("kd", 0.9), ("rkd", 0.1))
  state, frozen = networks.init_stage(run)
  devices, found = jax.devices()[:num_devices], []
  for stage, teachers in ((run, frozen.teachers), (looked_up, (answers(run, frozen, dtype),))):
    step = parallel.compile_step(make_train_step(stage, parallel.AXIS), devices)
    own = parallel.replicate(jax.tree.map(jnp.copy, state), devices)
    found.append(step(own, frozen._replace(teachers=teachers), parallel.shard(batch(), devices)))
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_teachers_whose_answers_are_kept_never_run():
  run, looked_up = stages(("kd", 0.9))
  state, frozen = networks.init_stage(run)
  of_teacher = networks.batch_of(0).image, frozen.teachers[0]
  forward = (
    jax.jit(lambda x, v: run.teachers[0].apply(v, x)).lower(*of_teacher).compile().cost_analysis()["flops"]
  )
  cost = lambda stage, teachers: (
    jax.jit(make_train_step(stage))
    .lower(state, frozen._replace(teachers=teachers), batch())
    .compile()
    .cost_analysis()["flops"]
  )
  saved = cost(run, frozen.teachers) - cost(looked_up, (answers(run, frozen, jnp.float32),))
  assert saved > 2 * 0.95 * forward, "of two views"


def test_without_an_embedding_there_is_none():
  said = cached_forward.lookup_outputs(
    CachedOutputs(jnp.array([0, 1]), jnp.ones((2, 3, 5), jnp.float16)), np.array([1]), np.array([2])
  )
  assert said.logits.shape == (1, 5) and said.logits.dtype == jnp.float32
  assert said.embedding.shape == (1, 0) and said.features == ()
