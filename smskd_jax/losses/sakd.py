"""Spot-adaptive distillation: a policy chooses the layers for each image.

Song, Chen, Ye, Song, "Spot-Adaptive Knowledge Distillation", IEEE Transactions on Image Processing, 2022,
https://arxiv.org/abs/2205.02399

  L_i = w_m sum_k a_ik L_k,i + w_kd a_iK KD_i + w_p L_policy,i
  a_ik = 1 if P(e_teacher,i, e_student,i)_k,on + g_i,on > P(...)_k,off + g_i,off, else 0

  x_teacher = (1 - a_ik) H_k(h_student) + a_ik h_teacher      (behind spot k, into the next segments)
  x_student = (1 - a_ik) h_student + a_ik H'_k(h_teacher)
  z_i = (1 - a_iK) z_student,i + a_iK z_teacher,i             (routed logits)
  L_policy,i = c CE(z_i, y_i) + max(0, n / 2 - sum_i a_iK)

A plug-in around a method that compares feature layers or embeddings: at, cc, crd, fitnet, ft, nst, pkt, rkd, sp, vid.
Its spots are the layers that the wrapped method compares; the last spot K are the logits, with KD at temperature T. P,
the policy, is a linear layer on the embeddings of both networks; g is Gumbel noise, drawn anew in each step. H and H'
are adapters between the maps of both networks (convolution, batch norm and ReLU; for embeddings, linear layers). From
the images on, both networks run segment by segment, and an image goes on through the teacher (a = 1) or the student.

The actions a reach the loss of the student as constants. L_policy trains policy and adapters alone, through the
straight-through gradient of the softmax at temperature tau; there the student's variables are constants, and its batch
norm uses running statistics. c is gamma if the mean of CE(z) over the batch is above that of CE(z_student), 1 / gamma
if it is below. n is the size of the global batch: half of the images or more are to be at the logits.

L has its weights inside: with an outer weight of 1, `method_weight` w_m is the published weight of the wrapped method.
`policy_weight` w_p = 0.5 gives policy and adapters the authors' optimizer, SGD of half the student's learning rate and
weight decay 1e-3, in the student's SGD of weight decay 5e-4. `initial_bias` is added to the biases of "on" at the
start: the authors take 10 for networks of one family, which starts with nearly all spots on, and 0 for others. Their
gamma is 2 around at, vid and rkd, and 1 around other methods.

A relation method (cc, pkt, rkd, sp) relates only the images at the spot to each other, as in the authors' code. A
stage reports the fraction of images at each spot (method/NAME/routed_LAYER), the mean entropy in nats of the policy's
choices, and L_policy.

Differences: policy and student take one step together, where the authors' policy takes its step first; the student's
step does not change, because its actions are already drawn. With other optimizers than SGD, w_p = 0.5 is not half a
learning rate. The segments have the student's variables and running statistics of before the step. Around crd, fitnet
and ft, batch norm, memory banks and Z are those of all images, not only of those at the spot; the reconstruction error
of ft counts at the spot alone. Adapters of maps are regressors of fitnet, which lists the differences for ratios of
sizes other than 1, 2 and 1/2. The networks may have different numbers of feature layers. Without an image at a spot
its loss is 0, as is that of a single image for rkd and cc, where the authors' code has NaN. Of a mixed image, y is the
label of the larger part.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, fitnet, kd, numerics
from smskd_jax.types import MethodVariables, Outputs, SegmentFn, Segments

WRAPPED = ("at", "cc", "crd", "fitnet", "ft", "nst", "pkt", "rkd", "sp", "vid")


class Policy(nn.Module):
  """One linear layer: logits of (on, off) for each spot."""

  num_spots: int

  @nn.compact
  def __call__(self, student: jax.Array, teacher: jax.Array, axis_name: str | None = None) -> jax.Array:
    """[b, spots, 2], of embeddings [b, d] and [b, d']."""
    del axis_name
    x = jnp.concatenate([teacher, student], axis=-1)
    x = basic.linear(2 * self.num_spots, x.shape[-1], name="linear")(x)
    return x.reshape(-1, self.num_spots, 2)


class LinearAdapter(nn.Module):
  """Linear layer from one network's embedding to the other's size."""

  dimension: int

  @nn.compact
  def __call__(self, x: jax.Array, axis_name: str | None = None) -> jax.Array:
    """[b, dimension]."""
    del axis_name
    return basic.linear(self.dimension, x.shape[-1], name="linear")(x)


class Adapters(NamedTuple):
  """Modules of one spot, or their parameters, or their running statistics."""

  to_teacher: Any
  to_student: Any


def sample_actions(logits: jax.Array, key: jax.Array, index: jax.Array, *, tau: float = 5.0) -> jax.Array:
  """Actions of each image at each spot: 1 for "on", 0 for "off".

  The gradient is that of the softmax of (logits + noise) / tau (straight-through Gumbel softmax).

  Args:
    logits: [b, spots, 2], of on and off.
    key: random key.
    index: [b], positions in the training set; the noise of an image depends on the key and its index.
    tau: > 0.

  Returns:
    [b, spots].
  """

  def noise(i):
    return jax.random.gumbel(jax.random.fold_in(key, i), logits.shape[1:], logits.dtype)

  soft = jax.nn.softmax((logits + jax.vmap(noise)(index)) / tau)[..., 0]
  hard = (soft >= 0.5).astype(soft.dtype)
  return hard + (soft - jax.lax.stop_gradient(soft))


def policy_loss(
  routed_logits: jax.Array,
  student_logits: jax.Array,
  labels: jax.Array,
  logits_action: jax.Array,
  *,
  gamma: float = 1.0,
  axis_name: str | None = None,
) -> jax.Array:
  """Loss of the policy, per example.

  Args:
    routed_logits: [b, k], z.
    student_logits: [b, k], of the student alone; constants.
    labels: [b].
    logits_action: [b], actions at the logits.
    gamma: >= 1 makes a routed pass that is worse than the student count more.
    axis_name: the axis of devices that the batch is spread over.

  Returns:
    [b], in nats.
  """

  def cross_entropy(logits):
    return -numerics.gather_label(jax.nn.log_softmax(numerics.upcast(logits)), labels)

  routed = cross_entropy(routed_logits)
  means = jnp.stack([jnp.mean(x) for x in (routed, cross_entropy(student_logits))])
  routed_mean, student_mean = jax.lax.stop_gradient(contract.pmean(means, axis_name))
  factor = jnp.where(routed_mean > student_mean, gamma, jnp.where(routed_mean < student_mean, 1 / gamma, 1.0))
  num_images = len(labels) * (1 if axis_name is None else jax.lax.axis_size(axis_name))
  fraction = contract.pmean(jnp.mean(logits_action), axis_name)
  return factor.astype(routed.dtype) * routed + jnp.maximum(0.0, num_images * (0.5 - fraction))


def binary_entropy(logits: jax.Array) -> jax.Array:
  """Entropy in nats of the softmax of two logits, over the last axis."""
  log_p = jax.nn.log_softmax(logits)
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def _mix(action: jax.Array, on: jax.Array, off: jax.Array) -> jax.Array:
  """`on` for images of action 1 and `off` for those of action 0."""
  action = action.reshape(-1, *(1,) * (on.ndim - 1))
  return action * numerics.upcast(on) + (1 - action) * numerics.upcast(off)


def _run(segments: Sequence[SegmentFn], x: jax.Array) -> jax.Array:
  return functools.reduce(lambda value, segment: segment(value), segments, x)


def _ends(spots: Sequence[contract.Spot], student: Outputs, teacher: Outputs) -> list[tuple[int, int]]:
  """Numbers of segments (student's, teacher's) from the images to each spot."""

  def end(layer, outputs):
    return 1 + (len(outputs.features) if layer is None else layer)

  return [(end(spot.student_layer, student), end(spot.teacher_layer, teacher)) for spot in spots]


def _values(spots: Sequence[contract.Spot], student: Outputs, teacher: Outputs) -> list[tuple[Any, Any]]:
  """Arrays or shapes of both networks at each spot."""

  def value(outputs, layer):
    return outputs.embedding if layer is None else outputs.features[layer]

  return [(value(student, spot.student_layer), value(teacher, spot.teacher_layer)) for spot in spots]


def _adapter(target: Any) -> nn.Module:
  """Module to the shape of the other network's array."""
  if len(target.shape) == 2:
    return LinearAdapter(target.shape[1])
  return fitnet.Regressor(target.shape[1:])


def _modules(spots: Sequence[contract.Spot], student: Outputs, teacher: Outputs) -> list[Adapters]:
  return [Adapters(_adapter(t), _adapter(s)) for s, t in _values(spots, student, teacher)]


def routed_logits(
  segments: Segments,
  ends: Sequence[tuple[int, int]],
  modules: Sequence[Adapters],
  variables: MethodVariables,
  actions: jax.Array,
  axis_name: str | None = None,
) -> tuple[jax.Array, tuple[Adapters, ...]]:
  """Logits of the routed pass, and the new running statistics of the adapters.

  Args:
    segments: of student and teacher.
    ends: numbers of segments (student's, teacher's) from the images to each inner spot, ascending.
    modules: adapters of each inner spot.
    variables: their parameters and running statistics, an entry for each spot.
    actions: [b, spots + 1], the last ones of the logits.
    axis_name: axis of devices over which the batch is split.

  Returns:
    [b, k] and one entry for each inner spot.
  """
  student_segments, (teacher_segments,) = segments.student, segments.teachers
  student = teacher = segments.image
  begin, state = (0, 0), []
  for i, end in enumerate(ends):
    student = _run(student_segments[begin[0] : end[0]], student)
    teacher = _run(teacher_segments[begin[1] : end[1]], teacher)
    pairs = zip(modules[i], variables.params[i], variables.state[i], (student, teacher), strict=True)
    results = [adapters.apply(*one, axis_name=axis_name) for one in pairs]
    (hint, back), statistics = zip(*results, strict=True)
    student, teacher = _mix(actions[:, i], back, student), _mix(actions[:, i], teacher, hint)
    state.append(Adapters(*statistics))
    begin = end
  student = _run(student_segments[begin[0] :], student)
  teacher = _run(teacher_segments[begin[1] :], teacher)
  return _mix(actions[:, -1], teacher, student), tuple(state)


class _Options(NamedTuple):
  """The wrapped method and hyper-parameters."""

  wrapped: contract.Method
  method_weight: float
  kd_weight: float
  policy_weight: float
  temperature: float
  gamma: float
  tau: float
  initial_bias: float

  def spots(self, student: Outputs, teachers: tuple[Outputs, ...]) -> tuple[contract.Spot, ...]:
    """Inner spots."""
    assert self.wrapped.spots is not None
    return self.wrapped.spots(student, teachers)

  def part(self, spot: contract.Spot) -> contract.Method:
    """Part of the wrapped method at a spot."""
    return spot.method or self.wrapped


def method(
  wrapped: contract.Method,
  /,
  *,
  method_weight: float = 1.0,
  kd_weight: float = 1.0,
  policy_weight: float = 0.5,
  temperature: float = 4.0,
  gamma: float = 1.0,
  tau: float = 5.0,
  initial_bias: float = 0.0,
) -> contract.Method:
  """Wraps a method that has spots, so that a policy chooses the spots of each image.

  Args:
    wrapped: the method.
    method_weight: w_m, the published weight of the wrapped method.
    kd_weight: w_kd.
    policy_weight: w_p, > 0.
    temperature: T of KD.
    gamma: factor of the policy's cross-entropy, >= 1.
    tau: temperature of the Gumbel softmax.
    initial_bias: added to the policy's biases of "on" at the start.
  """
  errors.check_non_negative("sakd", method_weight=method_weight, kd_weight=kd_weight)
  errors.check_non_negative("sakd", initial_bias=initial_bias)
  errors.check_positive("sakd", policy_weight=policy_weight, temperature=temperature, gamma=gamma, tau=tau)
  if gamma < 1:
    raise ValueError(f"sakd: gamma must be a number >= 1, got {gamma}")
  if wrapped.spots is None:
    raise ValueError(
      f"sakd: wraps methods that compare feature layers or embeddings: {', '.join(WRAPPED)}; this one declares no spots"
    )
  options = _Options(wrapped, method_weight, kd_weight, policy_weight, temperature, gamma, tau, initial_bias)
  own_reads = {"logits", "embedding"}
  return contract.wrap(
    wrapped,
    functools.partial(_init, options),
    functools.partial(_apply, options),
    reads=wrapped.reads | own_reads,
    student_reads=wrapped.student_reads | own_reads,
    needs_labels=True,
    reads_segments=True,
    metrics=_metrics,
    learns="policy and adapters",
  )


def _init(
  options: _Options,
  key: Any,
  student: Outputs,
  teachers: tuple[Outputs, ...],
  labels: Any,
  statistics: Any = (),
) -> MethodVariables:
  """Variables of policy, adapters and the parts of the wrapped method, from shapes."""
  teacher = contract.single_teacher("sakd", teachers)
  contract.check_same_classes("sakd", student, teacher)
  spots = options.spots(student, teachers)
  _check_order(_ends(spots, student, teacher))
  policy_key, adapters_key, methods_key = jax.random.split(key, 3)
  adapter_params, adapter_state = _init_adapters(adapters_key, spots, student, teacher)
  parts = [
    contract.init_method(
      options.part(spot), jax.random.fold_in(methods_key, i), student, teachers, labels, statistics
    )
    for i, spot in enumerate(spots)
  ]
  dtype = jnp.promote_types(student.logits.dtype, jnp.float32)
  params = {
    "policy": _init_policy(policy_key, student, teacher, len(spots) + 1, options.initial_bias),
    "adapters": adapter_params,
    "methods": tuple(part.params for part in parts),
  }
  state = {
    "adapters": adapter_state,
    "methods": tuple(part.state for part in parts),
    "metrics": {name: jnp.zeros((), dtype) for name in _metric_names(spots)},
  }
  return MethodVariables(params, state)


def _apply(
  options: _Options,
  params: Any,
  state: Any,
  student: Outputs,
  teachers: tuple[Outputs, ...],
  context: contract.Context,
) -> tuple[jax.Array, Any]:
  """Loss [b] of the student, of its parts of the wrapped method, and of the policy."""
  (teacher,) = teachers
  assert context.segments is not None
  spots, axis_name = options.spots(student, teachers), context.axis_name
  actions_key, methods_key = jax.random.split(context.key)
  embeddings = (numerics.upcast(x.embedding) for x in (student, teacher))
  policy_logits, _ = adapters.apply(
    Policy(len(spots) + 1), params["policy"], {}, *map(jax.lax.stop_gradient, embeddings)
  )
  actions = sample_actions(policy_logits, actions_key, context.batch.index, tau=options.tau)
  constants = jax.lax.stop_gradient(actions)
  values, method_states = _spot_losses(
    tuple(map(options.part, spots)),
    MethodVariables(params["methods"], state["methods"]),
    student,
    teachers,
    constants,
    context._replace(key=methods_key),
  )
  kd_values = kd.loss(student.logits, teacher.logits, temperature=options.temperature)
  values = options.method_weight * values + options.kd_weight * constants[:, -1] * kd_values
  routed, adapter_state = routed_logits(
    context.segments,
    _ends(spots, student, teacher),
    _modules(spots, student, teacher),
    MethodVariables(params["adapters"], state["adapters"]),
    actions,
    axis_name,
  )
  policy_values = policy_loss(
    routed, student.logits, context.batch.label, actions[:, -1], gamma=options.gamma, axis_name=axis_name
  )
  numbers = [*jnp.mean(constants, axis=0), jnp.mean(binary_entropy(policy_logits)), jnp.mean(policy_values)]
  numbers = contract.pmean(jax.lax.stop_gradient(jnp.stack(numbers)), axis_name)
  metrics = dict(zip(_metric_names(spots), numbers, strict=True))
  new_state = {"adapters": adapter_state, "methods": method_states, "metrics": metrics}
  return values + options.policy_weight * policy_values, new_state


def _metrics(state: dict[str, Any]) -> dict[str, jax.Array]:
  return state["metrics"]


def _metric_names(spots: Sequence[contract.Spot]) -> list[str]:
  """Names of the metrics of a step, by the student's layers."""
  layers = ["embedding" if spot.student_layer is None else f"layer_{spot.student_layer}" for spot in spots]
  return [*(f"routed_{layer}" for layer in (*layers, "logits")), "policy_entropy", "policy_loss"]


def _check_order(ends: Sequence[tuple[int, int]]) -> None:
  """Raises ValueError unless the layers of both networks ascend from spot to spot."""
  for behind, before in zip(ends[1:], ends[:-1], strict=True):
    if behind[0] <= before[0] or behind[1] <= before[1]:
      raise ValueError(
        "sakd: the wrapped method must name layers from the first to the last, each once; got (student's, teacher's) "
        f"{', '.join(map(str, ends))}"
      )


def _init_policy(key: Any, student: Outputs, teacher: Outputs, num_spots: int, bias: float) -> Any:
  """Parameters of the policy, PyTorch's at the start, with a bias for "on"."""
  params = adapters.init(Policy(num_spots), key, student.embedding, teacher.embedding).params
  start = params["linear"]["bias"]
  is_on = (jnp.arange(2 * num_spots) % 2 == 0).astype(start.dtype)
  return {"linear": {**params["linear"], "bias": start + bias * is_on}}


def _init_adapters(
  key: Any, spots: Sequence[contract.Spot], student: Outputs, teacher: Outputs
) -> tuple[tuple[Adapters, ...], tuple[Adapters, ...]]:
  """Parameters and running statistics of the adapters of each spot."""
  params, state = [], []
  modules = _modules(spots, student, teacher)
  for i, (module, inputs) in enumerate(zip(modules, _values(spots, student, teacher), strict=True)):
    keys = jax.random.split(jax.random.fold_in(key, i))
    made = [adapters.init(one, k, x) for one, k, x in zip(module, keys, inputs, strict=True)]
    params.append(Adapters(*(variables.params for variables in made)))
    state.append(Adapters(*(variables.state for variables in made)))
  return tuple(params), tuple(state)


def _spot_losses(
  parts: Sequence[contract.Method],
  variables: MethodVariables,
  student: Outputs,
  teachers: tuple[Outputs, ...],
  actions: jax.Array,
  context: contract.Context,
) -> tuple[jax.Array, tuple[Any, ...]]:
  """Sum over the inner spots of the losses of the images there, [b], and the new states."""
  total, states = jnp.zeros((), actions.dtype), []
  for i, (part, params, state) in enumerate(zip(parts, *variables, strict=True)):
    own = context._replace(key=jax.random.fold_in(context.key, i), mask=actions[:, i] > 0.5)
    values, new = part.apply(params, state, student, teachers, own, stop_teacher_gradient=False)
    total = total + actions[:, i] * values
    states.append(new)
  return total, tuple(states)
