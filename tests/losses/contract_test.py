"""The contract of losses/contract.py, for every method of METHODS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marks
import networks
from smskd_jax.losses import FAMILIES, METHODS, PLUGINS, contract
from smskd_jax.losses.contract import OUTPUTS, Context, pmean, transform_logits
from smskd_jax.types import Batch, Head, Norm, Outputs

NAMES = sorted(METHODS)
TRAITS = {name: make() for name, make in METHODS.items()}
NUM_EXAMPLES = 50

# Losses of neighbours in the batch: another order is another loss.
OF_NEIGHBOURS = {"cc"}
# Methods that relate examples, or remember something of all: the others say of each device's share what they say of it.
OVER_DEVICES = sorted({*FAMILIES["relation"], "ctkd", "kdsvd", "mlkd", "ofd", "vid"} & set(NAMES))
# Methods of whose gradient there are no golden vectors.
WITHOUT_GOLDEN = [
  "afd",
  "catkd",
  "crd_infonce",
  "ickd",
  "irg",
  "logits_cosine",
  "logits_mse",
  "nkd",
  "simkd",
  "srrl",
  "ttm",
]
# Methods that take something of the student as given, so that differences of their loss are not their gradient; each
# has a test of its gradient of its own.
PARTLY_CONSTANT = {"dml", "ft", "uda", "wsld"}
# The fields of Outputs that hold parameters and not a row an example.
PARAMETERS = ("head", "norms")


def network(rng, b, k, channels, sizes):
  features = tuple(rng.normal(size=(b, h, h, c)) for h, c in zip(sizes, channels, strict=True))
  norms = tuple(Norm(0.5 + rng.uniform(size=c), rng.normal(size=c)) for c in channels)
  activation = lambda x: np.logaddexp(0, x)  # smooth, and no channel is zero everywhere
  head = Head(rng.normal(size=(channels[-1], k)), rng.normal(size=k))
  return Outputs(
    rng.normal(size=(b, k)),
    activation(features[-1]).mean((1, 2)),
    tuple(map(activation, features)),
    features,
    activation(features[-1]),
    head,
    norms,
  )


def training_labels(k=5):
  """The labels of the whole training set."""
  return np.random.default_rng(1).integers(0, k, NUM_EXAMPLES).astype(np.int32)


def example(name, b=8, k=5, dtype=np.float32):
  """(learner, teachers, batch): a student, with a peer, and a teacher with more channels and one more map.

  For methods that take all views at once, what both say of a second view.
  """
  rng = np.random.default_rng(0)
  learner = network(rng, b, k, (3, 4, 6), (8, 8, 4))
  learner = learner._replace(peer_outputs=(network(rng, b, k, (2,), (4,)),))
  teacher = network(rng, b, k, (5, 7, 9, 8), (8, 4, 4, 2))
  index = rng.permutation(NUM_EXAMPLES)[:b].astype(np.int32)
  if TRAITS[name].multi_view:
    # Some of the first view's answers have to be sure: uda learns from no others.
    learner = learner._replace(logits=4 * learner.logits, view_outputs=(network(rng, b, k, (2,), (4,)),))
    teacher = teacher._replace(view_outputs=(network(rng, b, k, (2,), (4,)),))
  learner, teacher = jax.tree.map(lambda x: jnp.asarray(x, dtype), (learner, teacher))
  batch = Batch(
    jnp.zeros((b, 8, 8, 3), jnp.uint8), jnp.asarray(training_labels(k)[index]), jnp.asarray(index)
  )
  return learner, (teacher,), batch


def spec(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def of_rows(f, tree, otherwise=lambda x: x):
  """The tree with f applied to what has a row an example, and the other function to parameters."""
  is_parameter = lambda path: any(getattr(key, "name", None) in PARAMETERS for key in path)
  return jax.tree_util.tree_map_with_path(lambda path, x: (otherwise if is_parameter(path) else f)(x), tree)


def started(name, learner, teachers, k=5):
  """The method with its default hyper-parameters, and its MethodVariables from shapes alone."""
  method = METHODS[name]()
  return method, method.init(jax.random.key(0), spec(learner), spec(teachers), training_labels(k))


def apply(method, aux, learner, teachers, batch, axis_name=None):
  return method.apply(*aux, learner, teachers, Context(batch, jax.random.key(1), jnp.float32(0.5), axis_name))


def loss_and_gradients(method, aux, learner, teachers, batch, axis_name=None):
  """(loss [b], new state), and the gradients of its mean by the auxiliary parameters, the learner and the teachers."""

  def mean_loss(params, learner, teachers):
    loss, state = apply(method, aux._replace(params=params), learner, teachers, batch, axis_name)
    return loss.mean(), (loss, state)

  gradient_of = jax.value_and_grad(mean_loss, argnums=(0, 1, 2), has_aux=True)
  (_, results), gradients = gradient_of(aux.params, learner, teachers)
  return results, gradients


TRACED = []  # names of methods, one for each time that their program was traced


@functools.cache
def program(name):
  """`loss_and_gradients` of a method, jitted once for all tests: to compile is what takes their time."""

  def run(aux, learner, teachers, batch):
    TRACED.append(name)
    return loss_and_gradients(METHODS[name](), aux, learner, teachers, batch)

  return jax.jit(run, compiler_options=networks.FAST_COMPILE)


def assert_finite(tree):
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    assert np.isfinite(np.asarray(x, np.float64)).all(), jax.tree_util.keystr(path)


def assert_close(actual, expected, tolerance):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_the_table_is_sorted_and_cannot_be_changed():
  assert list(METHODS) == NAMES
  with pytest.raises(TypeError):
    METHODS["mine"] = METHODS["kd"]


@pytest.mark.parametrize("name", NAMES)
def test_one_loss_an_example_and_one_compilation(name):
  learner, teachers, batch = example(name)
  _, aux = started(name, learner, teachers)
  for step in range(3):
    traces = len(TRACED)
    (loss, state), (_, by_learner, by_teachers) = program(name)(aux, learner, teachers, batch)
    assert step == 0 or len(TRACED) == traces
    assert loss.shape == (8,) and loss.dtype == jnp.float32
    assert jax.tree.structure(state) == jax.tree.structure(aux.state)
    assert spec(state) == spec(aux.state)
    aux = aux._replace(state=state)
  assert any(np.any(x) for x in jax.tree.leaves(by_learner)), "teaches the learner nothing"
  assert not any(np.any(x) for x in jax.tree.leaves(by_teachers))


@pytest.mark.parametrize("name", marks.quick(sorted(set(NAMES) - PARTLY_CONSTANT), WITHOUT_GOLDEN))
def test_gradient(name):
  """Against differences of the mean loss along three directions, in a second step: crd fixes its Z in the first."""
  with jax.enable_x64(True):
    learner, teachers, batch = example(name, dtype=np.float64)
    _, aux = started(name, learner, teachers)
    (_, state), _ = program(name)(aux, learner, teachers, batch)
    aux = aux._replace(state=state)
    point = (aux.params, learner)

    def at(point):
      (loss, _), (by_params, by_learner, _) = program(name)(
        aux._replace(params=point[0]), point[1], teachers, batch
      )
      return loss.mean(), (by_params, by_learner)

    _, gradient = at(point)
    moved = lambda direction, h: jax.tree.map(lambda x, d: x + h * d, point, direction)
    rng = np.random.default_rng(0)
    for _ in range(3):
      direction = jax.tree.map(lambda x: rng.normal(size=x.shape), point)
      ahead, behind = (at(moved(direction, h))[0] for h in (1e-6, -1e-6))
      slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))
      np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(NAMES) - OF_NEIGHBOURS))
def test_the_order_of_the_batch_does_not_matter(name):
  order = np.random.default_rng(1).permutation(8)
  with jax.enable_x64(True):
    everything = example(name, dtype=np.float64)
    _, aux = started(name, *everything[:2])
    (loss, state), _ = program(name)(aux, *everything)
    (shuffled, shuffled_state), _ = program(name)(aux, *of_rows(lambda x: x[order], everything))
    assert_close(shuffled, loss[order], 1e-10)
    assert_close(shuffled_state, state, 1e-10)


EXTREMES = {
  "huge logits": lambda x: transform_logits(lambda z: jnp.where(z > 0, 1e4, -1e4).astype(z.dtype), (x,))[0],
  "identical rows": lambda x: of_rows(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), x),
  "zero maps": lambda x: x._replace(features=jax.tree.map(jnp.zeros_like, x.features)),
  "zeros": lambda x: jax.tree.map(jnp.zeros_like, x),
  "large": lambda x: jax.tree.map(lambda leaf: 1e4 * leaf, x),
  "small": lambda x: jax.tree.map(lambda leaf: 1e-6 * leaf, x),
}


@pytest.mark.parametrize("name", NAMES)
def test_finite_at_extremes(name):
  learner, teachers, batch = example(name)
  _, aux = started(name, learner, teachers)
  run = lambda learner, teachers: program(name)(aux, learner, teachers, batch)
  for extreme in EXTREMES.values():
    assert_finite(run(extreme(learner), teachers))
    assert_finite(run(learner, tuple(map(extreme, teachers))))
    assert_finite(run(extreme(learner), tuple(map(extreme, teachers))))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("b, dtype", [(8, jnp.bfloat16), (1, jnp.float32)])
def test_finite_in_half_precision_for_two_classes_and_for_one_example(name, b, dtype):
  learner, teachers, batch = example(name, b, 2, dtype)
  _, aux = started(name, learner, teachers, 2)
  (loss, state), gradients = program(name)(aux, learner, teachers, batch)
  assert loss.shape == (b,) and loss.dtype == jnp.float32
  assert spec(state) == spec(aux.state)
  assert_finite((loss, state, gradients))


@pytest.mark.parametrize("name", marks.quick(NAMES, OVER_DEVICES))
def test_one_device_equals_four(name):
  devices = 4
  if jax.device_count() < devices:
    pytest.skip(f"needs {devices} devices")
  with jax.enable_x64(True):
    everything = example(name, dtype=np.float64)
    method, aux = started(name, *everything[:2])

    def parted(results, axis_name=None):
      (loss, state), (by_params, by_learner, _) = results
      parameters = pmean((by_params, by_learner.head, by_learner.norms), axis_name)
      views = tuple(view._replace(head=None, norms=()) for view in by_learner.view_outputs)
      by_rows = by_learner._replace(head=None, norms=(), peer_outputs=(), view_outputs=views)
      return (loss, by_rows), (state, parameters)

    (loss, by_learner), of_all = parted(program(name)(aux, *everything))
    split = lambda x: x.reshape(devices, -1, *x.shape[1:])
    on_each = lambda x: jnp.broadcast_to(x, (devices, *x.shape))
    # What a device differentiates is the sum of the devices' means: `devices` times the global mean.
    expected = jax.tree.map(split, (loss, jax.tree.map(lambda x: devices * x, by_learner)))
    shares = of_rows(split, everything, otherwise=on_each)
    replicated = jax.pmap(
      lambda aux, x: parted(loss_and_gradients(method, aux, *x, "batch"), "batch"),
      axis_name="batch",
      in_axes=(None, 0),
      devices=jax.devices()[:devices],
    )
    rows, replicas = replicated(aux, shares)
    assert_close(rows, expected, 1e-10)
    assert_close(replicas, jax.tree.map(on_each, of_all), 1e-10)


def poisoned(outputs, fields):
  """The outputs with NaN in some fields, those of the other views too."""
  views = tuple(poisoned(view, fields) for view in outputs.view_outputs)
  nan = lambda tree: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)
  return outputs._replace(**{field: nan(getattr(outputs, field)) for field in fields}, view_outputs=views)


@pytest.mark.parametrize("name", NAMES)
def test_reads_what_it_declares_and_nothing_else(name):
  """Without the other outputs loss and gradients are equal; without one that is declared they differ."""
  student, (teacher,), batch = example(name)
  method, aux = started(name, student, (teacher,))
  run = lambda student, teacher: program(name)(aux, student, (teacher,), batch)
  equal = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
  (loss, state), (by_params, by_student, _) = run(student, teacher)
  undeclared = [
    [field for output, field in OUTPUTS.items() if output not in reads]
    for reads in (method.student_reads, method.reads)
  ]
  (same, same_state), (same_by_params, same_by_student, _) = run(
    poisoned(student, undeclared[0]), poisoned(teacher, undeclared[1])
  )
  assert equal((same, same_state, same_by_params), (loss, state, by_params))
  assert equal(same_by_student, by_student)
  declared = method.reads - {"head"} if method.init_student else method.reads  # copied before the first step
  for output in declared:
    assert not equal(run(student, poisoned(teacher, [OUTPUTS[output]]))[0], (loss, state)), output
  for output in method.student_reads:
    assert not equal(run(poisoned(student, [OUTPUTS[output]]), teacher)[0], (loss, state)), output


@pytest.mark.parametrize("name", NAMES)
def test_declares_what_it_learns(name):
  student, teachers, _ = example(name)
  method, aux = started(name, student, teachers)
  assert bool(method.learns) == bool(jax.tree.leaves(aux))


def test_traits_that_do_not_exist_are_refused():
  loss = lambda student, teachers, context: student.logits[:, 0]
  for traits, message in (
    ({"reads": ("logit",)}, r"reads: unknown 'logit'; the outputs of a network are logits, embedding, .*"),
    ({"reads": "logits"}, r"reads: 'logits' is not a tuple"),
    ({"reads": (), "student_reads": ("maps",)}, r"student_reads: unknown 'maps'"),
    ({"reads": (), "needs_label": True}, r"unknown trait 'needs_label'; the traits are .*needs_labels"),
    ({"reads": (), "min_views": 2}, r"min_views=2 needs multi_view=True"),
  ):
    with pytest.raises(ValueError, match=message):
      contract.stateless(loss, **traits)


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plug_in_has_the_traits_of_the_method_that_it_wraps(name):
  for wrapped in TRAITS.values():
    traits = PLUGINS[name](wrapped)._replace(init=None, apply=None, learns="", transforms_logits=False)
    assert traits == wrapped._replace(init=None, apply=None, learns="")


def test_plug_ins_that_read_logits_declare_it():
  assert PLUGINS["multi_teacher"](METHODS["cc"](), weighting="tcp").reads == {"embedding", "logits"}
  assert PLUGINS["ctkd"](METHODS["at"](), per_instance=True).student_reads == {"features", "logits"}


@pytest.mark.parametrize("name", [name for name in NAMES if TRAITS[name].needs_teacher])
def test_refuses_any_other_number_of_teachers(name):
  learner, (teacher,), _ = example(name)
  for teachers in ((), (teacher, teacher)):
    with pytest.raises(ValueError, match=f"{name}: needs exactly one teacher, got {len(teachers)}"):
      started(name, learner, teachers)


@pytest.mark.parametrize("name", [name for name in NAMES if TRAITS[name].multi_view])
def test_a_stage_of_one_view_will_do_or_is_refused(name):
  learner, teachers, batch = example(name)
  method, aux = started(name, learner, teachers)
  first = lambda network: network._replace(view_outputs=())
  run = lambda: apply(method, aux, first(learner), tuple(map(first, teachers)), batch)
  if TRAITS[name].min_views > 1:
    with pytest.raises(ValueError, match=f"{name}: needs a stage of two views or more"):
      run()
  else:
    assert np.any(run()[0])


@pytest.mark.parametrize("name", NAMES)
def test_reads_labels_or_places_only_where_it_says_so(name):
  """Other labels, other places: another loss, state or gradient, or the same."""
  learner, teachers, batch = example(name)
  _, aux = started(name, learner, teachers)
  run = lambda batch: jax.tree.leaves(program(name)(aux, learner, teachers, batch))
  # Not only other names for the classes: crd_infonce asks no more than which images are of one.
  others = (
    batch._replace(label=(batch.label + jnp.arange(8)) % 5),
    batch._replace(index=(batch.index + 1) % NUM_EXAMPLES),
  )
  results = run(batch)
  same_by_label, same_by_index = (all(map(np.array_equal, run(other), results)) for other in others)
  assert same_by_label == (not TRAITS[name].needs_labels)
  assert same_by_index == (not TRAITS[name].per_example_memory)
