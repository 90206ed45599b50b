"""Tests of training/statistics.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from smskd_jax.losses import METHODS, PLUGINS, contract
from smskd_jax.training import statistics
from smskd_jax.training.initialization import check_term, init_state
from smskd_jax.training.stage import Term, frozen_outputs
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import MethodVariables, Outputs

IMAGE = np.random.default_rng(0).normal(size=(networks.NUM_EXAMPLES, 8, 8, 1)).astype(np.float32)
LABELS = networks.LABELS


def make_stage(*methods):
  """A stage of tiny networks with terms of weight 1."""
  stage = networks.make_stage(("kd", 1.0))
  return stage._replace(terms=tuple(Term(str(i), 1.0, method) for i, method in enumerate(methods)))


def kd_nd():
  return PLUGINS["nd"](METHODS["kd"]())


def teacher_of(stage):
  return networks.random_variables(stage.teachers[0], 1)


def forward_of(stage, *normalize):
  return statistics.make_forward(stage.teachers, statistics.stage_reduction(stage).reads, *normalize)


def compute(stage, **options):
  return statistics.compute_statistics(stage, (teacher_of(stage),), IMAGE, LABELS, **options)


@pytest.mark.parametrize("batch_size", [256, 64, 24])
def test_statistics_are_those_of_all_images(batch_size):
  stage = make_stage(METHODS["kd"](), kd_nd(), METHODS["wkd_logit"]())
  nothing, (means, inner), similarity = compute(stage, batch_size=batch_size)
  embedding = frozen_outputs(stage.teachers[0], teacher_of(stage), IMAGE).embedding
  expected = [np.asarray(embedding)[label == LABELS].mean(0) for label in range(10)]
  np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)
  assert nothing == () == inner and similarity.shape == (10, 10)


def test_shapes_are_those_of_the_statistics():
  stage = make_stage(kd_nd(), METHODS["wkd_logit"]())
  specs = statistics.statistics_spec(stage, (teacher_of(stage),), IMAGE[:1], LABELS)
  computed = compute(stage)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), specs) == jax.tree.map(
    lambda x: (x.shape, x.dtype), computed
  )


def test_only_declared_outputs_are_computed():
  def program(*methods):
    """Names of the computed outputs, and the number of matrix products of the compiled program."""
    stage = make_stage(*methods)
    forward, inputs = forward_of(stage), ((teacher_of(stage),), IMAGE)
    (outputs,) = jax.eval_shape(forward, *inputs)
    names = {name for name, value in outputs._asdict().items() if value != ()}
    return names, jax.jit(forward).lower(*inputs).compile().as_text().count(" dot(")

  names, products = program(kd_nd())
  assert names == {"embedding"}
  assert program(kd_nd(), METHODS["wkd_logit"](cost="cka_logits")) == ({"embedding", "logits"}, products + 1)


def test_images_are_normalized_before_the_teacher():
  stage = make_stage(kd_nd())
  (plain,) = forward_of(stage)((teacher_of(stage),), 2 * IMAGE)
  (normalized,) = forward_of(stage, lambda image: 2 * image)((teacher_of(stage),), IMAGE)
  np.testing.assert_array_equal(plain.embedding, normalized.embedding)


def test_a_state_has_a_copy_of_the_statistics():
  """The training step donates the state; the caller's statistics serve another state."""
  stage = make_stage(kd_nd())
  variables, teacher = networks.random_variables(stage.student, 0), teacher_of(stage)
  given = compute(stage)
  step = jax.jit(make_train_step(stage), donate_argnums=0, compiler_options=networks.FAST_COMPILE)
  frozen = networks.init_stage(stage)[1]._replace(teachers=(teacher,))
  for _ in range(2):
    state = init_state(stage, jax.random.key(0), variables, (teacher,), IMAGE[:1], LABELS, statistics=given)
    np.testing.assert_array_equal(state.method_state[0]["class_means"], given[0][0])
    state, metrics = step(state, frozen, networks.batch_of(0))
    assert np.isfinite(metrics["distill/0"])
    np.testing.assert_array_equal(state.method_state[0]["class_means"], given[0][0], "constant in training")


def test_a_state_without_the_statistics_is_refused():
  stage = make_stage(METHODS["kd"](), kd_nd())
  arguments = (
    jax.random.key(0),
    networks.random_variables(stage.student, 0),
    (teacher_of(stage),),
    IMAGE[:1],
    LABELS,
  )
  for given in ((), compute(stage)[1:]):
    message = (
      rf"^1: needs statistics of the training set, one entry for each of 2 terms, got {len(given)}; pass "
    )
    with pytest.raises(ValueError, match=message) as error:
      init_state(stage, *arguments, statistics=given)
    assert "\n" not in str(error.value)


def test_stages_without_statistics_need_none():
  stage = make_stage(METHODS["kd"]())
  assert statistics.stage_reduction(stage) is None
  assert compute(stage) == () == statistics.statistics_spec(stage, (teacher_of(stage),), IMAGE[:1], LABELS)


def mean_logits():
  """A method of a user: the distance of the student's logits from the teacher's mean logits, of 13 at most."""

  def init(key, student, teachers, labels, statistics):
    del key, student, teachers, labels
    return MethodVariables(state=statistics)

  def apply(params, state, student, teachers, context):
    del params, teachers, context
    return jnp.square(student.logits - state[None, :]).sum(-1), state

  reduction = contract.Reduction(
    frozenset({"logits"}),
    lambda teachers, labels: (jnp.zeros(teachers[0].logits.shape[1]), len(labels)),
    lambda sums, teachers, labels: (sums[0] + teachers[0].logits.sum(0), sums[1]),
    lambda sums: sums[0] / sums[1],
  )
  return contract.make(
    init,
    apply,
    reads=(),
    student_reads=("logits",),
    needs_labels=True,
    statistics=reduction,
    learns="mean logits",
  )


def test_a_method_of_a_user_has_statistics():
  method = mean_logits()
  assert method.needs_teacher, "though its loss reads no output of the teacher"
  stage = make_stage(method)
  (mean,) = compute(stage, batch_size=24)
  outputs: Outputs = frozen_outputs(stage.teachers[0], teacher_of(stage), IMAGE)
  np.testing.assert_allclose(mean, outputs.logits.mean(0), rtol=1e-4, atol=1e-6)
  check_term(stage, 0, networks.random_variables(stage.student, 0), (teacher_of(stage),), IMAGE[:1], LABELS)
