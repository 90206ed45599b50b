"""Whole training runs of PyTorch, reproduced: losses, weights and the final student.

golden/README.md describes them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import golden
from smskd_jax.losses import kd
from smskd_jax.models import MODELS
from smskd_jax.models.torch_weights import from_torch, to_torch
from smskd_jax.training import optimizer
from smskd_jax.training.initialization import init_state
from smskd_jax.training.reference import REFERENCE_TO_STUDENT, Reference, sample_weights, weighting_inputs
from smskd_jax.training.stage import Stage, Term, student_variables
from smskd_jax.training.targets import Targets
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Batch, Frozen

# index.json: KL(reference || student), times tau^2, weighted by 1 - the teacher's TCP. published.json: Eq. 8 and 9 of
# SMSKD.
INDEXES = [golden.index("training", name) for name in ("index.json", "published.json")]
SHAPES = golden.index("models").get("models", {})
CASES = golden.params(
  (
    (case["file"], case | {"salt": index["salt"]}) for index in INDEXES for case in index.get("cases", [])
  ),
  slow=(
    "kd_resnet8.npz", "smskd_nesterov_vgg8.npz", "published_resnet8x4.npz", "published_resnet8x4_tcp4.npz",
  ),
)  # fmt: skip
# Options that the cases of index.json leave out, and a name of an earlier version.
EARLIER = {"divergence": REFERENCE_TO_STUDENT, "scale_by_temperature_squared": True}
WEIGHTINGS = {"one_minus_tcp": "one_minus_teacher_tcp"}
NUM_CLASSES = 100


def load_network(name, salt):
  module = MODELS[name](num_classes=NUM_CLASSES)
  shapes = {key: list(shape) for key, shape in SHAPES[name]["state_dict"].items()}
  return module, jax.tree.map(jnp.asarray, from_torch(module, golden.state_dict(shapes, salt)))


def make_stage(case, student, teacher):
  options = case["reference"]
  if options is not None:
    weighting = WEIGHTINGS.get(options["weighting"], options["weighting"])
    options = EARLIER | options | {"weighting": weighting}
  return Stage(
    student=student,
    optimizer=optimizer.sgd(
      case["learning_rate"],
      momentum=case["momentum"],
      nesterov=case["nesterov"],
      weight_decay=case["weight_decay"],
    ),
    teachers=(teacher,),
    terms=(Term("kd", case["distill_weight"], kd.method(temperature=case["distill_temperature"])),),
    task_weight=case["task_weight"],
    reference=None if options is None else Reference(**options),
  )


def make_weights(stage, frozen):
  """The compiled function (batch) -> weights of the reference term."""
  config = stage.reference

  def weights(batch):
    teacher = stage.teachers[0].apply(frozen.teachers[0], batch.image).logits
    reference = stage.student.apply(frozen.reference, batch.image).logits
    inputs = weighting_inputs(config, [teacher], reference, Targets(batch.label), jax.random.key(0))
    return sample_weights(inputs, weighting=config.weighting, normalize=config.normalize)

  return jax.jit(weights)


@pytest.mark.parametrize("case", CASES)
def test_training_equals_pytorch(case, float64):
  expected, salt, steps = golden.load("training", case["file"]), case["salt"], case["steps"]
  student, variables = load_network(case["student"], salt)
  teacher, teacher_variables = load_network(case["teacher"], salt + 1)
  stage = make_stage(case, student, teacher)
  reference = None if stage.reference is None else load_network(case["student"], salt + 2)[1]
  frozen = Frozen(jax.random.key(0), (teacher_variables,), reference)
  rng = np.random.RandomState(salt + 99)
  images = rng.standard_normal((steps, case["batch"], 32, 32, 3))
  labels = rng.randint(0, NUM_CLASSES, (steps, case["batch"])).astype(np.int32)
  np.testing.assert_array_equal(labels, expected["labels"])

  state = init_state(stage, jax.random.key(0), variables, frozen.teachers, images[0], labels[0])
  step = jax.jit(make_train_step(stage))
  names = {"loss": "loss", "task": "task", "distill": "distill/kd"}
  if reference is not None:
    names["reference"], weights = "reference", make_weights(stage, frozen)
  for i, (image, label) in enumerate(zip(images, labels, strict=True)):
    batch = Batch(image, label, np.arange(case["batch"], dtype=np.int32))
    state, metrics = step(state, frozen, batch)
    for theirs, ours in names.items():
      np.testing.assert_allclose(metrics[ours], expected[theirs][i], rtol=1e-6, err_msg=f"{theirs}, step {i}")
    if reference is not None:
      np.testing.assert_allclose(weights(batch), expected["tcp_weight"][i], rtol=1e-6)
  check_student(to_torch(jax.device_get(student_variables(state))), expected)


def check_student(state_dict, expected):
  for key in [key for key in expected if key.startswith("final.")]:
    np.testing.assert_allclose(
      state_dict[key.removeprefix("final.")], expected[key], rtol=1e-6, atol=1e-9, err_msg=key
    )
  norms = {key.removeprefix("norm."): value for key, value in expected.items() if key.startswith("norm.")}
  compared = {key for key in norms if not key.endswith("num_batches_tracked")}
  assert compared == set(state_dict)
  for key in compared:
    # PyTorch keeps the unbiased running variance, n / (n - 1) times ours.
    tolerance = 1e-2 if key.endswith("running_var") else 1e-6
    np.testing.assert_allclose(np.linalg.norm(state_dict[key]), norms[key], rtol=tolerance, err_msg=key)
