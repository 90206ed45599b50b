"""Contract of a distillation method: pure functions and traits, as in optax."""

from collections.abc import Callable, Iterable
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.losses.reduction import Reduction
from smskd_jax.types import Batch, MethodVariables, Outputs, Segments

# Outputs of a network that a method may declare to read: fields of `Outputs`.
OUTPUTS = tuple(name for name in Outputs._fields if name != "view_outputs")
CACHEABLE = frozenset({"logits", "embedding"})  # outputs that a teacher cache stores
NOT_INHERITED = (
  "init",
  "apply",
  "spots",
  "metrics",
)  # fields of a method that say nothing of a plug-in around it


class Context(NamedTuple):
  """Inputs of a method besides the networks' outputs.

  With an `axis_name`, b is the local batch of one device, and a loss that relates examples spans the axis.
  """

  batch: Batch
  key: Any = None  # random key of the step; None for methods that draw nothing
  epoch: jax.Array | float = (
    0.0  # [], epochs with their fraction, counted from the first of the stages it continues
  )
  axis_name: str | None = None  # of devices
  segments: Segments | None = None  # the networks in parts, for methods that declare `reads_segments`
  # [b], bool: images that a method relates to each other; None: all. Only plug-ins set a mask, and only methods with
  # `spots` get one. The loss of other images is 0, and the mean over images of the mask is the loss of these alone.
  mask: jax.Array | None = None


class Spot(NamedTuple):
  """Part of a method's loss that compares one layer of each network."""

  method: "Method | None" = None  # this part alone; None: the whole method, which has no other part
  student_layer: int | None = None  # index of the feature layer; None: the embedding
  teacher_layer: int | None = None


class Method(NamedTuple):
  """A distillation loss and its traits; build one with `make` or `stateless`.

  Attributes:
    init: (key, student, teachers, labels) -> MethodVariables. `student` and `teachers` are `Outputs` of shapes, as
      `jax.eval_shape` returns them; `labels` is [n], int32, of the whole training set. Raises ValueError if the method
      is not defined for these networks. With `statistics`, the fifth argument is what the reduction computed.
    apply: (params, state, student, teachers, context) -> (loss [b], new state). The mean of the loss over the global
      batch is the paper's loss: no outer weight, no cross-entropy. No gradient reaches the teachers, unless a plug-in
      that trains a transformation of their outputs passes `stop_teacher_gradient=False`.
    init_student: None, or (student's variables, teachers' `Outputs`) -> student's variables before the first step,
      which copies parameters of the teachers. May only read outputs that are equal for all images: `head` and `norms`.
    reads: outputs of the teachers that `apply` or `init_student` reads, of `OUTPUTS`; empty if no teacher is needed.
    student_reads: outputs of the student that `apply` reads.
    needs_labels: True if every image must have a label.
    per_example_memory: True if the method stores an entry for every training example, and so is undefined for others.
    multi_view: True if a stage of several views calls `apply` once, with the first view's outputs and those of the
      other views in `Outputs.view_outputs`; otherwise `apply` is called for each view, and the mean is taken.
    min_views: smallest number of views of a stage.
    reads_segments: True if `apply` runs parts of the networks, which `Context.segments` then has.
    spots: None, or (student, teachers), on shapes, -> parts of the loss by layer, in order; the loss is their sum. Each
      part is a loss per image, or restricts its relations to `Context.mask`.
    metrics: None, or (new state) -> scalars by name, equal on all devices, which the step reports as method/TERM/NAME.
    transforms_logits: True if a plug-in changes the logits that the wrapped method reads.
    learns: parameters and memory of the method, in words for the documentation; '' if it has none.
    statistics: None, or the function of the teachers' outputs on the whole training set that `init` needs. It is
      computed once, before the first step of a stage; `init` puts the result, or arrays made of it, into the state.
  """

  init: Callable[..., MethodVariables]
  apply: Callable[..., tuple[jax.Array, Any]]
  init_student: Callable[[Any, tuple[Outputs, ...]], Any] | None = None
  reads: frozenset[str] = frozenset()
  student_reads: frozenset[str] = frozenset()
  needs_labels: bool = False
  per_example_memory: bool = False
  multi_view: bool = False
  min_views: int = 1
  reads_segments: bool = False
  spots: Callable[[Outputs, tuple[Outputs, ...]], tuple[Spot, ...]] | None = None
  metrics: Callable[[Any], dict[str, jax.Array]] | None = None
  transforms_logits: bool = False
  learns: str = ""
  statistics: Reduction | None = None

  @property
  def needs_teacher(self) -> bool:
    """True if the method reads a teacher."""
    return bool(self.reads) or self.statistics is not None

  @property
  def cacheable(self) -> bool:
    """True if a teacher cache stores all outputs that the method reads."""
    return self.reads <= CACHEABLE and not self.reads_segments


def make(
  init: Callable[..., MethodVariables],
  apply: Callable[[Any, Any, Outputs, tuple[Outputs, ...], Context], tuple[jax.Array, Any]],
  *,
  reads: Iterable[str],
  student_reads: Iterable[str] | None = None,
  **traits: Any,
) -> Method:
  """Builds a method of its functions and traits.

  Args:
    init: as of `Method`.
    apply: (params, state, student, teachers, context) -> (loss [b], new state), as of `Method`; the result stops
      gradients to the teachers before it calls `apply`.
    reads: as of `Method`.
    student_reads: as of `Method`; None for those of `reads`.
    **traits: the other fields of `Method`.

  Raises:
    ValueError: unknown output or trait.
  """
  unknown = traits.keys() - set(Method._fields)
  if unknown:
    raise ValueError(f"unknown trait {min(unknown)!r}; the traits are {', '.join(Method._fields[2:])}")

  def apply_to_constants(params, state, student, teachers, context, *, stop_teacher_gradient=True):
    if stop_teacher_gradient:
      teachers = jax.lax.stop_gradient(teachers)
    return apply(params, state, student, teachers, context)

  teacher_reads = _outputs("reads", reads)
  student_reads = teacher_reads if student_reads is None else _outputs("student_reads", student_reads)
  return check(Method(init, apply_to_constants, reads=teacher_reads, student_reads=student_reads, **traits))


def stateless(
  loss: Callable[[Outputs, tuple[Outputs, ...], Context], jax.Array],
  check: Callable[[Outputs, tuple[Outputs, ...]], Any] = lambda student, teachers: None,
  *,
  reads: Iterable[str],
  student_reads: Iterable[str] | None = None,
  **traits: Any,
) -> Method:
  """Builds a method without parameters and memory.

  Args:
    loss: (student, teachers, context) -> [b].
    check: (student, teachers), on shapes; raises ValueError where the method is not defined for the pair.
    reads: as of `make`.
    student_reads: as of `make`.
    **traits: as of `make`.
  """

  def init(key, student, teachers, labels):
    del key, labels
    check(student, teachers)
    return MethodVariables()

  def apply(params, state, student, teachers, context):
    del params
    return loss(student, teachers, context), state

  return make(init, apply, reads=reads, student_reads=student_reads, **traits)


def wrap(
  wrapped: Method,
  init: Callable[..., MethodVariables],
  apply: Callable[..., Any],
  *,
  learns: str = "",
  **traits: Any,
) -> Method:
  """Builds a plug-in's method: the traits are the wrapped method's unless given.

  `spots` and `metrics` are not inherited.

  The plug-in's `apply` calls the wrapped one with `stop_teacher_gradient=False`: gradients reach the plug-in's own
  parameters, and stop at the teachers.
  """
  learned = "; ".join(filter(None, (wrapped.learns, learns)))
  inherited = {name: value for name, value in wrapped._asdict().items() if name not in NOT_INHERITED}
  return make(init, apply, **inherited | traits | {"learns": learned})


def check(method: Method) -> Method:
  """Returns the method if its traits are valid.

  Raises:
    ValueError: unknown output, `min_views` above 1 without `multi_view`, or `statistics` without `needs_labels`.
  """
  for name in ("reads", "student_reads"):
    _outputs(name, getattr(method, name))
  if method.statistics is not None:
    shared = _outputs("statistics.reads", method.statistics.reads) & {"head", "norms", "peer_outputs"}
    if shared:
      raise ValueError(f"statistics.reads: {min(shared)!r} has no row for each image")
    if not method.needs_labels:
      raise ValueError(
        "statistics: a pass over the training set reads the label of every image; needs_labels=True"
      )
  if method.min_views > 1 and not method.multi_view:
    raise ValueError(f"min_views={method.min_views} needs multi_view=True")
  return method


def init_method(
  method: Method,
  key: jax.Array,
  student: Outputs,
  teachers: tuple[Outputs, ...],
  labels: Any,
  statistics: Any,
) -> MethodVariables:
  """Calls `Method.init`, with the statistics if the method declares some."""
  if method.statistics is None:
    return method.init(key, student, teachers, labels)
  return method.init(key, student, teachers, labels, statistics)


def _outputs(name: str, outputs: Iterable[str]) -> frozenset[str]:
  """A trait's set of outputs; refuses unknown names, and a string in place of a tuple of one."""
  unknown = [] if isinstance(outputs, str) else sorted(set(outputs) - set(OUTPUTS))
  if isinstance(outputs, str) or unknown:
    wrong = f"{outputs!r} is not a tuple" if isinstance(outputs, str) else f"unknown {unknown[0]!r}"
    raise ValueError(f"{name}: {wrong}; the outputs of a network are {', '.join(OUTPUTS)}")
  return frozenset(outputs)


def embedding_spot(student: Outputs, teachers: tuple[Outputs, ...]) -> tuple[Spot, ...]:
  """Trait `spots` of a method that compares embeddings."""
  del student, teachers
  return (Spot(),)


def single_teacher(method: str, teachers: tuple[Outputs, ...]) -> Outputs:
  """The teacher of a method that takes exactly one; raises ValueError for another number."""
  if len(teachers) != 1:
    fix = "or wrap it in the plug-in multi_teacher" if teachers else "name it in the stage's teachers"
    raise ValueError(f"{method}: needs exactly one teacher, got {len(teachers)}; {fix}")
  return teachers[0]


def check_same_classes(method: str, student: Outputs, teacher: Outputs) -> None:
  """Raises ValueError unless both networks have equally many classes."""
  student_classes, teacher_classes = student.logits.shape[-1], teacher.logits.shape[-1]
  if student_classes != teacher_classes:
    raise ValueError(f"{method}: the student has {student_classes} classes, the teacher {teacher_classes}")


def check_layer(method: str, layer: int, network: str, outputs: Outputs) -> None:
  """Raises ValueError if a feature layer does not exist; negative ones count from the end."""
  count = len(outputs.features)
  if not -count <= layer < count:
    raise ValueError(
      f"{method}: layer {layer} does not exist, the {network} has {count} feature maps (0 to {count - 1})"
    )


def check_output(method: str, name: str, network: str, outputs: Outputs) -> None:
  """Raises ValueError if a network leaves out an optional field of its `Outputs`."""
  value = getattr(outputs, name)
  if value is None or (isinstance(value, tuple) and not value):
    raise ValueError(f"{method}: the {network} does not give Outputs.{name}, which this method needs")


def transform_logits(f: Callable[[jax.Array], jax.Array], networks: Iterable[Outputs]) -> tuple[Outputs, ...]:
  """Networks' outputs with f applied to the logits of all views."""

  def transform(network: Outputs) -> Outputs:
    views = tuple(map(transform, network.view_outputs))
    return network._replace(logits=f(network.logits), view_outputs=views)

  return tuple(map(transform, networks))


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
  """Rows of all devices, [b of the axis, ...]; `x` unchanged without an axis."""
  return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def num_masked(mask: jax.Array, axis_name: str | None) -> jax.Array:
  """Images of a mask [b] on all devices, []; at least 1, so that sums can be divided by it."""
  count = jnp.sum(mask, dtype=jnp.float32)
  return jnp.maximum(count if axis_name is None else jax.lax.psum(count, axis_name), 1)


def mean_over_mask(x: jax.Array, mask: jax.Array | None, axis_name: str | None) -> jax.Array:
  """Mean [b] of rows [b, n] over the images of a mask on all devices.

  Args:
    x: [b, n], relations of the local images to those of all devices; zero outside the mask.
    mask: [b], bool; None: all images.
    axis_name: of devices.
  """
  if mask is None:
    return jnp.mean(x, axis=1)
  return jnp.sum(x, axis=1) / num_masked(mask, axis_name).astype(x.dtype)


def local_offset(b: int, axis_name: str | None) -> jax.Array | int:
  """Index in the global batch of the first of this device's b examples."""
  return 0 if axis_name is None else b * jax.lax.axis_index(axis_name)


def pmean(tree: Any, axis_name: str | None) -> Any:
  """Mean over devices of each array in a tree; the tree unchanged without an axis.

  The arrays are sent as one: each collective costs a rendezvous of all devices. On a single device they are not joined,
  because joining all gradients of a network takes long to compile.
  """
  if axis_name is None:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  if len({leaf.dtype for leaf in leaves}) != 1 or jax.lax.axis_size(axis_name) == 1:
    return jax.lax.pmean(tree, axis_name)
  flat = jax.lax.pmean(jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), axis_name)
  pieces = jnp.split(flat, list(itertools.accumulate(leaf.size for leaf in leaves))[:-1])
  return jax.tree.unflatten(
    structure, [p.reshape(leaf.shape) for p, leaf in zip(pieces, leaves, strict=True)]
  )
