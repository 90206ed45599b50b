"""SimKD's student: a body, a projector and the teacher's classifier, never trained.

Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
https://arxiv.org/abs/2203.14001

The method `simkd` fills in the classifier before its first step. Until then it is zero, and so are the logits: another
method cannot train this network before `simkd` has. Differences: where the body's map is larger than the teacher's, the
authors average it before the projector; here it is projected as it is, and averaged in the loss, so that the network
does not depend on the size of the teacher's map. As in the authors' code, the body keeps the classifier that it was
made with, though nothing reads it.
"""

from collections.abc import Callable, Mapping

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers.projector import Projector
from smskd_jax.models import introspection
from smskd_jax.types import FrozenHead, Outputs


class SimKDNet(nn.Module):
  """Body, projector, and a classifier in the collection `head`, outside the parameters."""

  body: nn.Module
  channels: int  # d, of the teacher's map and classifier
  num_classes: int
  factor: float = 2.0  # of the projector

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False, axis_name: str | None = None) -> Outputs:
    """Computes the outputs for a batch of images.

    Args:
      image: [b, h, w, c], as the body takes it.
      train: True if batch norm uses and updates the statistics of the batch (collection `batch_stats`).
      axis_name: the axis of devices that the statistics of the batch span.

    Returns:
      Outputs with the feature layers of the body. Its final map is the projected one, from which the classifier reads.
    """
    outputs = self.body(image, train=train, axis_name=axis_name)
    project = Projector(self.channels, self.factor, train=train, name="projector")
    final_map = project(outputs.final_map, axis_name)
    pooled = jnp.mean(final_map, axis=(1, 2))
    shape = (self.channels, self.num_classes)
    kernel = self.variable("head", "kernel", jnp.zeros, shape, jnp.float32).value
    bias = self.variable("head", "bias", jnp.zeros, shape[1:], jnp.float32).value
    return outputs._replace(
      logits=pooled @ kernel + bias[None],
      embedding=pooled,
      final_map=final_map,
      head=FrozenHead(kernel, bias),
    )


def make(
  models: Mapping[str, Callable[..., nn.Module]],
  /,
  *,
  num_classes: int,
  body: str = "resnet20",
  width: float = 1.0,
  teacher: str = "resnet32x4",
  teacher_width: float = 1.0,
  factor: float = 2.0,
  dtype: str = "float32",
) -> SimKDNet:
  """A student for the classifier of a given teacher.

  Args:
    models: names to factories, of which `body` and `teacher` are two.
    num_classes: the student's and the teacher's.
    body: the student without its classifier.
    width: of the body.
    teacher: the network whose classifier is reused. Only the width of its classifier is used here.
    teacher_width: its width.
    factor: how many times fewer channels the projector has inside. The paper compares 8, 4 and 2.
    dtype: computation type of the body; projector and classifier stay in float32.
  """
  errors.check_choice("simkd", models, body=body, teacher=teacher)
  errors.check_positive("simkd", factor=factor)
  student = models[body](num_classes=num_classes, width=width, dtype=dtype)
  try:
    # With one class, because their number is not asked for: configs are checked before it is known.
    teacher_outputs = introspection.output_shapes(
      models[teacher](num_classes=1, width=teacher_width), (32, 32, 3)
    )
  except ValueError as error:
    raise ValueError(f"simkd: teacher: {error}") from error
  return SimKDNet(student, teacher_outputs.embedding.shape[-1], num_classes, factor)
