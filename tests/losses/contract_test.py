"""The contract of losses/contract.py, for every method of METHODS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marks
from method_examples import (
  NUM_EXAMPLES,
  TRACED,
  TRAITS,
  apply,
  example_statistics,
  example_variables,
  loss_and_gradients,
  make_example,
  map_rows,
  program,
  shapes,
  training_labels,
)
from smskd_jax.losses import FAMILIES, METHODS, PLUGINS, contract, sakd
from smskd_jax.losses.contract import OUTPUTS, pmean, transform_logits
from smskd_jax.losses.reduction import Reduction

NAMES = sorted(METHODS)

# Losses of neighbours in the batch: another order is another loss.
ORDERED = {"cc"}
# Methods that relate examples, or store something of all of them; all others are sums over independent examples.
SPAN_DEVICES = sorted(
  {*FAMILIES["relation"], "kdsvd", "mlkd", "ofa", "ofd", "skd", "srd", "vid", "wkd_feature"}
)
# Methods whose gradients have no golden vectors, or not in their default form.
WITHOUT_GOLDEN = [
  "afd", "catkd", "crd_infonce", "ickd", "irg", "logits_cosine", "logits_mse", "mgd", "nkd", "pld", "sdd", "simkd",
  "srrl", "ttm",
]  # fmt: skip
# Methods that take something of the student as constant, so that differences of their loss are not their gradient; each
# tests its gradient in a file of its own.
PARTLY_CONSTANT = {"dml", "ft", "uda", "wsld"}
# Methods whose random samples depend on the index of an image, without a memory of it.
SAMPLED_BY_INDEX = {"mgd"}
# Operations that round nothing.
MOVES = {
  "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "gather", "max", "reshape",
  "select_n", "slice", "split", "squeeze", "stop_gradient", "transpose",
}  # fmt: skip


def assert_finite(tree):
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    assert np.isfinite(np.asarray(x, np.float64)).all(), jax.tree_util.keystr(path)


def assert_close(actual, expected, tolerance):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def all_equal(a, b):
  return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_the_table_is_sorted_and_cannot_be_changed():
  assert list(METHODS) == NAMES
  with pytest.raises(TypeError):
    METHODS["mine"] = METHODS["kd"]


@pytest.mark.parametrize("name", NAMES)
def test_one_loss_an_example_one_compilation_and_gradients_of_the_student_only(name):
  student, teachers, batch = make_example(name)
  variables = example_variables(name)
  for step in range(3):
    traces = len(TRACED)
    (loss, state), (_, by_student, by_teachers) = program(name)(variables, student, teachers, batch)
    assert step == 0 or len(TRACED) == traces
    assert loss.shape == (8,) and loss.dtype == jnp.float32
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)
    assert shapes(state) == shapes(variables.state)
    variables = variables._replace(state=state)
  assert any(np.any(x) for x in jax.tree.leaves(by_student)), "no gradient reaches the student"
  assert not any(np.any(x) for x in jax.tree.leaves(by_teachers))


@pytest.mark.parametrize("name", marks.quick(sorted(set(NAMES) - PARTLY_CONSTANT), WITHOUT_GOLDEN))
def test_gradient(name):
  """Against differences of the mean loss along three directions, in a second step: crd fixes its Z in the first."""
  with jax.enable_x64(True):
    student, teachers, batch = make_example(name, dtype=np.float64)
    variables = example_variables(name, dtype=np.float64)
    (_, state), _ = program(name)(variables, student, teachers, batch)
    variables = variables._replace(state=state)
    point = (variables.params, student)

    def evaluate(point):
      params, student = point
      (loss, _), (*gradient, _) = program(name)(variables._replace(params=params), student, teachers, batch)
      return loss.mean(), tuple(gradient)

    _, gradient = evaluate(point)
    rng = np.random.default_rng(0)
    for _ in range(3):
      direction = jax.tree.map(lambda x: rng.normal(size=x.shape), point)
      ahead, behind = (
        evaluate(jax.tree.map(lambda x, d, h=h: x + h * d, point, direction))[0] for h in (1e-6, -1e-6)
      )
      slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))
      np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(NAMES) - ORDERED))
def test_the_order_of_the_batch_does_not_matter(name):
  order = np.random.default_rng(1).permutation(8)
  inputs, variables = make_example(name), example_variables(name)
  (loss, state), _ = program(name)(variables, *inputs)
  (shuffled, shuffled_state), _ = program(name)(variables, *map_rows(lambda x: x[order], inputs))
  assert_close(shuffled, loss[order], 2e-5)
  assert_close(shuffled_state, state, 2e-5)


def huge_logits(outputs):
  return transform_logits(lambda z: jnp.where(z > 0, 1e4, -1e4).astype(z.dtype), (outputs,))[0]


EXTREMES = (
  huge_logits,
  lambda outputs: map_rows(lambda x: jnp.broadcast_to(x[:1], x.shape), outputs),  # identical examples
  lambda outputs: outputs._replace(features=jax.tree.map(jnp.zeros_like, outputs.features)),
  lambda outputs: jax.tree.map(jnp.zeros_like, outputs),
  lambda outputs: jax.tree.map(lambda x: 1e4 * x, outputs),
  lambda outputs: jax.tree.map(lambda x: 1e-6 * x, outputs),
)


@pytest.mark.parametrize("name", NAMES)
def test_finite_at_extremes(name):
  student, teachers, batch = make_example(name)
  variables = example_variables(name)
  for extreme in EXTREMES:
    extreme_teachers = tuple(map(extreme, teachers))
    assert_finite(program(name)(variables, extreme(student), teachers, batch))
    assert_finite(program(name)(variables, student, extreme_teachers, batch))
    assert_finite(program(name)(variables, extreme(student), extreme_teachers, batch))


def half_precision_operations(jaxpr):
  """Names of the operations with results in bfloat16, those of inner functions included."""
  for equation in jaxpr.eqns:
    inner = [
      x for x in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")) if hasattr(x, "eqns")
    ]
    inner += [x.jaxpr for x in jax.tree.leaves(equation.params) if hasattr(x, "jaxpr")]
    for each in inner:
      yield from half_precision_operations(each)
    if not inner and any(x.aval.dtype == jnp.bfloat16 for x in equation.outvars):
      yield equation.primitive.name


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_single(name):
  student, teachers, batch = make_example(name, dtype=jnp.bfloat16)
  variables = example_variables(name, dtype=jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(variables)} <= {jnp.dtype(t) for t in (jnp.float32, jnp.int32)}
  jaxpr = jax.make_jaxpr(lambda *inputs: apply(TRAITS[name], *inputs))(variables, student, teachers, batch)
  assert {x.dtype for x in jaxpr.out_avals if jnp.issubdtype(x.dtype, jnp.floating)} == {
    jnp.dtype(jnp.float32)
  }
  assert set(half_precision_operations(jaxpr.jaxpr)) <= MOVES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("b, dtype", [(8, jnp.bfloat16), (1, jnp.float32)])
def test_finite_in_half_precision_for_two_classes_and_for_one_example(name, b, dtype):
  student, teachers, batch = make_example(name, b, 2, dtype)
  variables = example_variables(name, b, 2, dtype)
  (loss, state), gradients = program(name)(variables, student, teachers, batch)
  assert loss.shape == (b,) and loss.dtype == jnp.float32
  assert shapes(state) == shapes(variables.state)
  assert_finite((loss, state, gradients))


@pytest.mark.parametrize("name", marks.quick(NAMES, SPAN_DEVICES))
def test_one_device_equals_four(name):
  devices = 4
  if jax.device_count() < devices:
    pytest.skip(f"needs {devices} devices")
  with jax.enable_x64(True):
    inputs = make_example(name, dtype=np.float64)
    variables = example_variables(name, dtype=np.float64)

    def by_rows_and_replicated(results, axis_name=None):
      (loss, state), (by_params, by_student, _) = results
      parameters = pmean((by_params, by_student.head, by_student.norms), axis_name)
      views = tuple(view._replace(head=None, norms=()) for view in by_student.view_outputs)
      by_rows = by_student._replace(head=None, norms=(), peer_outputs=(), view_outputs=views)
      return (loss, by_rows), (state, parameters)

    def on_one_device(variables, inputs):
      return by_rows_and_replicated(loss_and_gradients(TRAITS[name], variables, *inputs, "batch"), "batch")

    def split(x):
      return x.reshape(devices, -1, *x.shape[1:])

    def replicate(x):
      return jnp.broadcast_to(x, (devices, *x.shape))

    (loss, by_student), replicated = by_rows_and_replicated(program(name)(variables, *inputs))
    # A device differentiates the sum of the devices' means: `devices` times the global mean.
    expected = jax.tree.map(split, (loss, jax.tree.map(lambda x: devices * x, by_student)))
    on_each = jax.pmap(on_one_device, axis_name="batch", in_axes=(None, 0), devices=jax.devices()[:devices])
    rows, replicas = on_each(variables, map_rows(split, inputs, otherwise=replicate))
    assert_close(rows, expected, 1e-10)
    assert_close(replicas, jax.tree.map(replicate, replicated), 1e-10)


def poisoned(outputs, fields):
  """The outputs with NaN in some fields, also in the other views."""

  def nan(tree):
    return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)

  views = tuple(poisoned(view, fields) for view in outputs.view_outputs)
  return outputs._replace(**{field: nan(getattr(outputs, field)) for field in fields}, view_outputs=views)


@pytest.mark.parametrize("name", NAMES)
def test_reads_its_declared_outputs_and_no_others(name):
  """Without the other outputs loss and gradients are equal; without a declared one the loss differs."""
  student, (teacher,), batch = make_example(name)
  method, variables = TRAITS[name], example_variables(name)

  def run(student, teacher):
    return program(name)(variables, student, (teacher,), batch)

  results = (loss, state), _ = run(student, teacher)
  undeclared = [sorted(set(OUTPUTS) - reads) for reads in (method.student_reads, method.reads)]
  unread = run(poisoned(student, undeclared[0]), poisoned(teacher, undeclared[1]))
  assert all_equal(unread[0], results[0]) and all_equal(unread[1][:2], results[1][:2])
  declared = method.reads - {"head"} if method.init_student else method.reads  # copied before the first step
  for output in declared:
    assert not all_equal(run(student, poisoned(teacher, [output]))[0], (loss, state)), output
  for output in method.student_reads:
    assert not all_equal(run(poisoned(student, [output]), teacher)[0], (loss, state)), output


@pytest.mark.parametrize("name", NAMES)
def test_reads_labels_and_indices_only_if_declared(name):
  student, teachers, batch = make_example(name)
  variables = example_variables(name)
  # Not only other names for the classes: crd_infonce only compares labels with each other.
  other_labels = batch._replace(label=(batch.label + jnp.arange(8)) % 5)
  other_indices = batch._replace(index=(batch.index + 1) % NUM_EXAMPLES)
  results, by_label, by_index = (
    program(name)(variables, student, teachers, one) for one in (batch, other_labels, other_indices)
  )
  assert all_equal(by_label, results) == (not TRAITS[name].needs_labels)
  reads_index = TRAITS[name].per_example_memory or name in SAMPLED_BY_INDEX
  assert all_equal(by_index, results) == (not reads_index)


@pytest.mark.parametrize("name", NAMES)
def test_declares_parameters_and_memory(name):
  assert bool(TRAITS[name].learns) == bool(jax.tree.leaves(example_variables(name)))


def reading(output):
  """A reduction that reads an output."""
  return Reduction(frozenset({output}), lambda *_: (), lambda x, *_: x, lambda x: x)


def test_unknown_traits_are_refused():
  for traits, message in (
    ({"reads": ("logit",)}, r"reads: unknown 'logit'; the outputs of a network are logits, embedding, .*"),
    ({"reads": "logits"}, r"reads: 'logits' is not a tuple"),
    ({"reads": (), "student_reads": ("maps",)}, r"student_reads: unknown 'maps'"),
    ({"reads": (), "needs_label": True}, r"unknown trait 'needs_label'; the traits are .*needs_labels"),
    ({"reads": (), "min_views": 2}, r"min_views=2 needs multi_view=True"),
    (
      {"reads": (), "statistics": reading("logits")},
      r"statistics: .* the label of every image; needs_labels=True",
    ),
    ({"reads": (), "statistics": reading("maps")}, r"statistics.reads: unknown 'maps'"),
    ({"reads": (), "statistics": reading("head")}, r"statistics.reads: 'head' has no row for each image"),
  ):
    with pytest.raises(ValueError, match=message):
      contract.stateless(lambda student, teachers, context: student.logits[:, 0], **traits)


WRAP_EVERYTHING = sorted(set(PLUGINS) - {"sakd"})
# Traits of a plug-in besides those of the method that it wraps.
OWN_TRAITS = {"nd": {"reads": {"embedding"}, "student_reads": {"embedding"}, "needs_labels": True}}


@pytest.mark.parametrize("name", WRAP_EVERYTHING)
def test_a_plug_in_has_the_traits_of_the_method_that_it_wraps(name):
  for wrapped in TRAITS.values():
    plugged, expected = (
      one._replace(init=None, apply=None, learns="", transforms_logits=False, statistics=None, spots=None)
      for one in (PLUGINS[name](wrapped), wrapped)
    )
    own = OWN_TRAITS.get(name, {})
    assert plugged == expected._replace(**{trait: getattr(expected, trait) | x for trait, x in own.items()})


@pytest.mark.parametrize("name", WRAP_EVERYTHING)
def test_a_plug_in_computes_the_statistics_of_the_method_that_it_wraps(name):
  """Around KD and WKD-L, in training and at the start; the wrapped state is that of the method alone."""
  student, teachers, batch = make_example("wkd_logit")
  for wrapped in (TRAITS["kd"], TRAITS["wkd_logit"]):
    method = PLUGINS[name](wrapped)
    labels = training_labels()
    statistics = example_statistics(method, teachers, labels)
    variables = contract.init_method(
      method, jax.random.key(0), shapes(student), shapes(teachers), labels, statistics
    )
    loss, state = apply(method, variables, student, teachers, batch)
    assert loss.shape == (8,) and np.isfinite(loss).all()
    assert shapes(state) == shapes(variables.state)
    if wrapped.statistics is None:
      continue
    costs = [x for x in jax.tree.leaves(state) if x.shape == (5, 5)]
    alone = example_variables("wkd_logit").state
    assert len(costs) == 1 and np.allclose(costs[0], alone, atol=1e-6)


def test_spot_adaptive_distillation_adds_to_the_traits_of_the_method_that_it_wraps():
  for wrapped in (TRAITS[name] for name in sakd.WRAPPED):
    traits = PLUGINS["sakd"](wrapped)
    added = {"needs_labels": True, "reads_segments": True, "spots": None}
    for name in ("reads", "student_reads"):
      added[name] = getattr(wrapped, name) | {"logits", "embedding"}
    own = {"init": None, "apply": None, "learns": "", "metrics": None}
    assert traits._replace(**own) == wrapped._replace(**own)._replace(**added)
    assert not traits.cacheable


def test_plug_ins_that_read_logits_declare_them():
  assert PLUGINS["multi_teacher"](METHODS["cc"](), weighting="tcp").reads == {"embedding", "logits"}
  assert PLUGINS["ctkd"](METHODS["at"](), per_instance=True).student_reads == {"features", "logits"}


@pytest.mark.parametrize("name", [name for name in NAMES if TRAITS[name].multi_view])
def test_a_stage_of_one_view_is_enough_or_refused(name):
  def first_view(outputs):
    return outputs._replace(view_outputs=())

  student, teachers, batch = make_example(name)
  inputs = TRAITS[name], example_variables(name), first_view(student), tuple(map(first_view, teachers)), batch
  if TRAITS[name].min_views > 1:
    with pytest.raises(ValueError, match=f"{name}: needs a stage of two views or more"):
      apply(*inputs)
  else:
    assert np.any(apply(*inputs)[0])
