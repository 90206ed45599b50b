"""Tests of training/train_step.py with cached teacher outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from smskd_jax.data import views
from smskd_jax.layers import convolution
from smskd_jax.runtime import parallel
from smskd_jax.training import evaluate
from smskd_jax.training.stage import lookup_outputs
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Batch, CachedOutputs
import tiny

VIEWS = views.enumerable_crop_flip(padding=1)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
CACHED = np.arange(3, 37)  # indices of the images in the cache


def normalize(image):
  return image.astype(jnp.float32) / 64 - 2


def view_index(key, batch):
  return VIEWS.sample_index(key, batch.index)


def view(key, batch):
  return normalize(VIEWS.render(batch.image, batch.index, view_index(key, batch)))


def make_stages(*methods):
  """A stage whose teachers run, and one whose teachers are looked up."""
  stage = networks.make_stage(*methods, reference=networks.REFERENCE_OPTIONS)._replace(views=(view, view))
  return stage, stage._replace(view_index_fn=view_index)


def make_cache(stage, frozen, dtype):
  forward = jax.jit(evaluate.make_cached_forward(stage.teachers[0], VIEWS, normalize, dtype))
  outputs = [
    forward(frozen.teachers[0], (IMAGES[CACHED], CACHED, jnp.full(len(CACHED), i)))
    for i in range(VIEWS.num_views)
  ]
  row_index = np.zeros(len(IMAGES), np.int32)
  row_index[CACHED] = np.arange(len(CACHED))
  return CachedOutputs(jnp.asarray(row_index), *(jnp.stack(x, axis=1) for x in zip(*outputs, strict=True)))


def make_batch():
  index = np.random.default_rng(1).permutation(CACHED)[:16].astype(np.int32)
  return Batch(IMAGES[index], (index % 10).astype(np.int32), index)


@pytest.mark.parametrize(
  "num_devices, dtype, tolerance", [(1, jnp.float32, 1e-5), (4, jnp.float32, 1e-5), (4, jnp.float16, 5e-3)]
)
def test_a_step_with_cached_outputs_equals_the_step_with_running_teachers(num_devices, dtype, tolerance):
  running, cached = make_stages(("kd", 0.9), ("rkd", 0.1))
  state, frozen = networks.init_stage(running)
  devices, results = jax.devices()[:num_devices], []
  for stage, teachers in ((running, frozen.teachers), (cached, (make_cache(running, frozen, dtype),))):
    step = parallel.compile_step(make_train_step(stage, parallel.AXIS), devices)
    copied = parallel.replicate(jax.tree.map(jnp.copy, state), devices)
    results.append(step(copied, frozen._replace(teachers=teachers), parallel.shard(make_batch(), devices)))
  for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_teachers_with_cached_outputs_do_not_run():
  wide = (tiny.Tiny(64, networks.NUM_CLASSES),)  # its forward pass outweighs the look-up
  running, cached = (stage._replace(teachers=wide) for stage in make_stages(("kd", 0.9)))
  state, frozen = networks.init_stage(running)

  def flops(function, *arguments):
    with convolution.use_xla_convolution():  # XLA counts no operations of oneDNN's
      return jax.jit(lambda *a: function(*a)).lower(*arguments).compile().cost_analysis()["flops"]

  def step_flops(stage, teachers):
    return flops(make_train_step(stage), state, frozen._replace(teachers=teachers), make_batch())

  forward = flops(running.teachers[0].apply, frozen.teachers[0], networks.batch_of(0).image)
  cache = make_cache(running, frozen, jnp.float32)
  saved = step_flops(running, frozen.teachers) - step_flops(cached, (cache,))
  assert saved > 1.5 * forward, "two views save two forward passes"


def test_without_cached_embeddings_the_embedding_is_empty():
  cached = CachedOutputs(jnp.array([0, 1]), jnp.ones((2, 3, 5), jnp.float16))
  outputs = lookup_outputs(cached, np.array([1]), np.array([2]))
  assert outputs.logits.shape == (1, 5) and outputs.logits.dtype == jnp.float32
  assert outputs.embedding.shape == (1, 0) and outputs.features == ()
