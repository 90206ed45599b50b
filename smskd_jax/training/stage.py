"""Stage of training: its networks, objective and optimizer. Pure.

`training/train_step.py` makes the training step of a stage.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple, cast

from flax import linen as nn
from flax.typing import VariableDict
import jax
import jax.numpy as jnp
import optax

from smskd_jax.losses.contract import Method
from smskd_jax.models import segments
from smskd_jax.training.reference import Reference
from smskd_jax.training.targets import Targets
from smskd_jax.types import Batch, CachedOutputs, Outputs, SegmentFn, Segments, TrainState

Metrics = dict[str, jax.Array]
ViewFn = Callable[[jax.Array, Batch], jax.Array]  # (key, batch) -> images, [b, h, w, c], floats
ViewIndexFn = Callable[[jax.Array, Batch], jax.Array]  # (key, batch) -> view index of each image, [b], int32
# (key, images, labels [b], axis_name) -> mixed images and their targets
MixFn = Callable[[jax.Array, jax.Array, jax.Array, str | None], tuple[jax.Array, Targets]]


def _identity_view(key: jax.Array, batch: Batch) -> jax.Array:
  del key
  return batch.image


class Term(NamedTuple):
  """Distillation term of the objective."""

  name: str  # of its metric, 'distill/NAME'
  weight: float
  method: Method
  warmup_epochs: float = 0.0  # the weight grows linearly, epoch by epoch: 1/n of it in the first of n epochs


class Stage(NamedTuple):
  """Networks, objective and optimizer of a stage.

  The objective is a mean over the views:

    L = lambda_c CE + sum_j weight_j L_j + lambda_r mean_i w_i KL(p_student,i || p_reference,i)
  """

  student: nn.Module  # the network that is trained, also where it is a future teacher
  optimizer: optax.GradientTransformation
  teachers: tuple[nn.Module, ...] = ()
  terms: tuple[Term, ...] = ()
  task_weight: float = 1.0  # lambda_c
  label_smoothing: float = 0.0  # in [0, 1)
  reference: Reference | None = None
  steps_per_epoch: int = 1  # converts steps to epochs for warm-ups, `alternate_epochs` and methods
  # True: the optimizer's update gets the gradient of the task and, as `distill`, that of all other terms
  separate_distill_gradient: bool = False
  views: tuple[ViewFn, ...] = (_identity_view,)
  mix: MixFn | None = None
  ema_decay: float = (
    0.0  # of the exponential moving average of the student's variables, per step; 0: no average
  )
  trainable: str = "all"  # parameters of the student: "all", or "head", its linear classifier
  teacher_statistics: str = "running"  # of the teachers' batch norm: "running", or "batch"
  # For views that can be enumerated: the teachers' outputs are then looked up in `CachedOutputs`, which `Frozen` holds
  # in place of the teachers' variables
  view_index_fn: ViewIndexFn | None = None
  all_examples_labeled: bool = False  # True saves the devices from counting labels in every step
  alternate_epochs: int = (
    0  # > 0: one term at a time, each for this many epochs, in turn; 0: all terms at once
  )
  reference_network: nn.Module | None = None  # None: `student`; another where its input normalization differs

  @property
  def reference_module(self) -> nn.Module:
    """Network that computes the reference's outputs."""
    return self.student if self.reference_network is None else self.reference_network


def student_variables(state: TrainState) -> Mapping[str, Any]:
  """Variables of the student that a stage ends with: the moving average if there is one."""
  return state.ema if state.ema else raw_student_variables(state)


def raw_student_variables(state: TrainState) -> Mapping[str, Any]:
  """Variables of the student as the optimizer left them."""
  return {"params": state.params["student"], **state.model_state}


def frozen_outputs(network: nn.Module, variables: VariableDict, image: Any) -> Outputs:
  """Outputs of a frozen network, by its running statistics."""
  return cast(Outputs, network.apply(variables, image))


def frozen_outputs_batch_stats(
  network: nn.Module, variables: VariableDict, image: Any, axis_name: str | None
) -> Outputs:
  """Outputs of a frozen network, by the statistics of the batch."""
  collections = [name for name in variables if name != "params"]
  outputs, _ = network.apply(variables, image, train=True, axis_name=axis_name, mutable=collections)
  return cast(Outputs, outputs)


def teacher_forward(stage: Stage, axis_name: str | None) -> Callable[[nn.Module, VariableDict, Any], Outputs]:
  """The function (network, variables, image) -> outputs of a stage's teachers."""
  if stage.teacher_statistics == "running":
    return frozen_outputs
  return functools.partial(frozen_outputs_batch_stats, axis_name=axis_name)


def make_segments(stage: Stage, variables: VariableDict, teachers: Sequence[Any], image: Any) -> Segments:
  """Segments of a stage's networks.

  Args:
    stage: the stage.
    variables: the student's, arrays or shapes.
    teachers: the teachers' variables.
    image: inputs of the networks, [b, h, w, c], an array or a shape.

  Raises:
    ValueError: a network cannot be cut.
  """

  def cut(role: str, network: nn.Module, values: Any) -> tuple[SegmentFn, ...]:
    try:
      return segments.cut(network, values, image)
    except ValueError as error:
      raise ValueError(f"a method runs parts of the {role}, which {error}") from error

  pairs = zip(stage.teachers, teachers, strict=True)
  return Segments(
    image, cut("student", stage.student, variables), tuple(cut("teacher", *pair) for pair in pairs)
  )


def lookup_outputs(cached: CachedOutputs, index: jax.Array, view_index: jax.Array) -> Outputs:
  """Outputs of a frozen network from its cache: logits and embedding, in float32.

  Args:
    cached: the cache. Without embeddings in it, the embedding is [b, 0].
    index: [b], of the images in the training set.
    view_index: [b], of the view of each image.
  """
  row = cached.row_index[index]
  logits = cached.logits[row, view_index].astype(jnp.float32)
  if cached.embedding is None:
    return Outputs(logits, jnp.zeros((len(index), 0)), (), ())
  return Outputs(logits, cached.embedding[row, view_index].astype(jnp.float32), (), ())


def lookup_spec(outputs: Outputs, embeddings: bool) -> Outputs:
  """Shapes of `lookup_outputs`, from the shapes of the network's outputs."""
  b, d = outputs.embedding.shape
  logits = jax.ShapeDtypeStruct(outputs.logits.shape, jnp.float32)
  embedding = jax.ShapeDtypeStruct((b, d if embeddings else 0), jnp.float32)
  return Outputs(cast(jax.Array, logits), cast(jax.Array, embedding), (), ())


def output_spec(network: nn.Module, variables: Any, image: Any) -> Outputs:
  """Shapes of a network's outputs, memoized.

  A study plans the same networks hundreds of times.
  """
  leaves, structure = jax.tree.flatten(variables)
  shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
  return _output_spec(network, structure, shapes, (image.shape, image.dtype), jnp.result_type(float))


@functools.lru_cache(maxsize=256)
def _output_spec(network, structure, shapes, image, widest_float) -> Outputs:
  del widest_float  # part of the cache key: dtypes of outputs may depend on it
  variables = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in shapes])
  return jax.eval_shape(functools.partial(frozen_outputs, network), variables, jax.ShapeDtypeStruct(*image))


def head_mask(network: nn.Module, variables: VariableDict, image: Any) -> Any:
  """Mask of a network's linear classifier: a tree of bools like `variables["params"]`.

  The masked parameters are those that the network returns as `Outputs.head`, found by tracing the network.

  Args:
    network: a network.
    variables: its variables, arrays or shapes.
    image: its input, [b, h, w, c], an array or a shape.

  Raises:
    ValueError: the network has no linear classifier, or one that is not among its parameters.
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (dict(variables), image))
  params = shapes[0].pop("params")

  def classifier(params: Any, others: Any, image: Any) -> Any:
    return frozen_outputs(network, {"params": params, **others}, image).head

  jaxpr = jax.make_jaxpr(classifier)(params, *shapes).jaxpr
  head = {id(variable) for variable in jaxpr.outvars}
  leaves, structure = jax.tree.flatten(params)
  mask = [id(variable) in head for variable in jaxpr.invars[: len(leaves)]]
  if not any(mask):
    raise ValueError(
      "trainable: 'head', but this network has no linear classifier among its parameters; use 'all'"
    )
  return jax.tree.unflatten(structure, mask)
