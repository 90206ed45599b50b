"""Tests of configs/survey.py: stages, budgets and losses of every mode.

Losses of one batch are compared with the formulas of the survey's public code,
https://github.com/karanchahal/distiller, in NumPy, on the outputs of both networks for the views of that step.
"""

import functools
import json

import jax
import numpy as np
import pytest

import marks
import runs
from smskd_jax import data
from smskd_jax.config import resolve
from smskd_jax.engine import plan
from smskd_jax.errors import UserError
from smskd_jax.models import introspection
from smskd_jax.recipes import survey
from smskd_jax.training import batches, initialization
from smskd_jax.training.stage import frozen_outputs, frozen_outputs_batch_stats
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Frozen

SMALL = "dataset=digits,image_size=16,padding=2,teacher=survey_resnet14,teachers=survey_resnet8"
T, LAMBDA = 5.0, 0.5


def get_config(arg):
  return resolve(runs.module("configs/survey.py").get_config(f"{SMALL},{arg}"))


def student_stages(config):
  return [stage for stage in config["stages"] if stage["network"] == "student"]


# (teachers, methods with weights, task weight, epochs) of each student stage, by mode.
KD = [("kd", 0.5)]
RESNET14, RESNET8 = "survey_resnet14", "survey_resnet8"
MODES = {
  "nokd": [((), [], 1.0, 200)],
  "kd": [((RESNET14,), KD, 0.5, 200)],
  "allkd": [((RESNET14,), KD, 0.5, 200), ((RESNET8,), KD, 0.5, 200)],
  "kdparam,temperatures=1+20,weights=0.1+1.0": [((RESNET14,), [("kd", w)], 1 - w, 200) for w in (0.1, 1.0)]
  * 2,
  "triplet": [((RESNET14,), [("kd", 0.5), ("logits_cosine", 0.5)], 0.0, 200)],
  "mkd": [((RESNET14, RESNET8), KD, 0.5, 200)],
  "uda": [((RESNET14,), KD, 0.5, 200)],
  "uda,consistency=2.0": [((RESNET14,), [("kd", 0.5), ("uda", 2.0)], 0.5, 200)],
  "uda_nokd": [((), [], 1.0, 200)],
  "takd": [(("assistant_survey_resnet20",), KD, 0.5, 200)],
  "ab": [((RESNET14,), [("ab", 1.0)], 0.0, 10), ((RESNET14,), KD, 0.5, 200)],
  "oh": [((RESNET14,), [("ofd", 1e-3)], 1.0, 200)],
  "rkd": [((RESNET14,), [("kd", 0.5), ("rkd", 1.0)], 0.5, 200)],
  "rkd,attention=True": [((RESNET14,), [("kd", 0.5), ("rkd", 1.0), ("at", 50.0)], 0.5, 200)],
  "pkd": [((RESNET14,), [("kd", 0.5), ("pkd", 1.0)], 0.5, 200)],
  "sfd": [((RESNET14,), [("sfd", 1.0)], 1.0, 200)],
  "sfd,reduction=mean": [((RESNET14,), [("sfd", 1.0)], 1.0, 200)],
  "stl,unlabeled=digits": [
    ((RESNET14,), [("embedding_mse", 1.0)], 0.0, 100),
    ((RESNET14,), [("kd", 0.7)], 0.3, 200),
  ],
  "blind": [((RESNET14,), KD, 0.0, 200)],
}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_has_its_stages_teachers_methods_and_epochs(mode):
  config = get_config(f"mode={mode}")
  stages = [
    (
      s["teachers"],
      [(m["name"], m["weight"]) for m in s["methods"]],
      pytest.approx(s["task_weight"]),
      s["epochs"],
    )
    for s in student_stages(config)
  ]
  assert stages == MODES[mode]
  for stage in config["stages"]:
    assert (stage["batch_size"], stage["reference"]["stage"]) == (128, "none")
    if not stage["name"].startswith("stl_"):
      optimizer = stage["optimizer"]
      assert (optimizer["name"], optimizer["learning_rate"], optimizer["nesterov"]) == ("sgd", 0.1, True)
      assert (optimizer["momentum"], optimizer["weight_decay"]) == (0.9, 5e-4)
      drops = [round(m * stage["epochs"]) for m in stage["schedule"]["milestones"]]
      assert drops == [int(0.33 * stage["epochs"]), int(0.66 * stage["epochs"])]


def test_every_mode_is_tested():
  assert {mode.partition(",")[0] for mode in MODES} == set(survey.MODES)


def test_the_learning_rate_drops_at_the_epochs_of_the_survey():
  for epochs, drops in ((200, (66, 132)), (350, (115, 231))):
    (stage,) = get_config(f"mode=nokd,epochs={epochs}")["stages"]
    assert tuple(round(m * epochs) for m in stage["schedule"]["milestones"]) == drops


def test_options_of_the_modes_are_those_of_the_survey():
  grid = student_stages(get_config("mode=kdparam"))
  assert len(grid) == 25 and {s["init"] for s in grid} == {"scratch"}
  assert {s["methods"][0]["temperature"] for s in grid} == {1.0, 5.0, 10.0, 15.0, 20.0}
  for mode in ("allkd", "kdparam"):
    assert get_config(f"mode={mode}")["data"]["validation"] == 0.1
    assert get_config(f"mode={mode},validation=0.2")["data"]["validation"] == 0.2
  (uda,) = student_stages(get_config("mode=uda"))
  assert uda["views"] == ("crop_flip", "autoaugment") and uda["augment"]["autoaugment"] == {"fill": 128}
  chain = get_config("mode=takd,assistants=survey_resnet20+survey_resnet14,validation=0.1")["stages"]
  assert [s["teachers"] for s in chain] == [
    (), (RESNET14,), ("assistant_survey_resnet20",), ("assistant_survey_resnet14",)
  ]  # fmt: skip
  assert [s["keep_checkpoint"] for s in chain] == ["last", "validation", "validation", "last"]
  (oh,) = student_stages(get_config("mode=oh"))
  assert oh["teacher_statistics"] == "batch" and oh["methods"][0]["margin"] == "batch_norm"
  first, second = student_stages(get_config("mode=stl,unlabeled=digits"))
  assert (first["images"], first["optimizer"]["name"], first["optimizer"]["learning_rate"]) == (
    "unlabeled",
    "adam",
    1e-3,
  )
  assert (second["trainable"], second["methods"][0]["temperature"], second["init"]) == (
    "head",
    10.0,
    "previous",
  )
  (mkd,) = student_stages(get_config("mode=mkd,weighting=tcp"))
  assert mkd["methods"][0]["plugins"][0]["weighting"] == "tcp"
  stages = get_config("mode=takd,max_images=500,unlabeled=digits,unlabeled_batch_size=32")["stages"]
  assert [s["max_images"] for s in stages] == [0, 500, 500]
  assert [s["unlabeled_batch_size"] for s in stages] == [0, 32, 32]


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("mode=mdk", "config argument mode: unknown 'mdk'; did you mean 'mkd'"),
    ("mode=kd,weight=1.5", r"weight: 1.5 is not in \[0, 1\]"),
    ("mode=stl", "unlabeled: mode=stl needs a source"),
    ("mode=kdparam,temperatures=1+x", r"temperatures: '1\+x' are not numbers joined by \+"),
    (
      "mode=mkd,teacher_variables=runs/a",
      "teacher_variables: 1 for the teachers survey_resnet14, survey_resnet8",
    ),
    ("mode=sfd,reduction=sum", "reduction must be one of max, mean"),
  ],
)
def test_a_mistake_in_the_arguments_is_refused(arg, message):
  with pytest.raises(UserError, match=message):
    get_config(arg)


def log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def cross_entropy(student, label):
  return -log_softmax(student.logits)[np.arange(len(label)), label].mean()


def divergence(student, teacher, t=T):
  """KL(teacher || student) of the softened outputs, summed over classes, mean over the batch."""
  p, q = log_softmax(teacher.logits / t), log_softmax(student.logits / t)
  return (np.exp(p) * (p - q)).sum(-1).mean()


def kd_loss(student, teacher, label, t=T, weight=LAMBDA):
  return (1 - weight) * cross_entropy(student, label) + weight * t**2 * divergence(student, teacher, t)


def relations(e):
  """Distances between images of a batch, divided by their mean, and cosines of the angles of three images."""
  offset = e[:, None] - e[None]
  distance = np.linalg.norm(offset, axis=-1)
  unit = offset / np.where(distance, distance, 1)[..., None]
  return distance / distance[distance > 0].mean(), np.einsum("ijd,ikd->ijk", unit, unit)


def huber(x):
  return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5).mean()


def rkd_loss(student, teacher):
  pairs = zip(relations(student.embedding), relations(teacher.embedding), strict=True)
  return sum(weight * huber(s - t) for weight, (s, t) in zip((25, 50), pairs, strict=True))


def attention(feature):
  q = (feature**2).mean(-1).reshape(len(feature), -1)
  return q / np.linalg.norm(q, axis=1, keepdims=True)


def attention_loss(student, teacher):
  pairs = zip(block_maps(student), block_maps(teacher), strict=True)
  return sum(((attention(s) - attention(t)) ** 2).mean() for s, t in pairs)


def block_maps(outputs):
  return outputs.features[1:]


def pkd_loss(student, teacher):
  flat = [np.concatenate([f.reshape(len(f), -1) for f in block_maps(x)], axis=1) for x in (student, teacher)]
  return 10 * ((flat[0] - flat[1]) ** 2).mean()


def sfd_loss(student, teacher, reduce):
  pairs = zip(student.preactivations, teacher.preactivations, strict=True)
  return sum(reduce(np.linalg.norm(s.max((1, 2)) - t.max((1, 2)) + 1e-6, axis=1)) for s, t in pairs)


def ab_loss(student, teacher):
  total = 0
  for i, (s, t) in enumerate(zip(student.preactivations[1:], teacher.preactivations[1:], strict=True)):
    wrong_side = np.where(t > 0, (s - 1) ** 2 * (s <= 1), (s + 1) ** 2 * (s > -1))
    total += wrong_side.sum() / len(s) / 2 ** (2 - i)
  return 3 / 1000 * total


def cosine(student, teacher):
  s, t = student.logits, teacher.logits
  return (1 - (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)).mean()


# The survey's loss of one view from (student, teachers, labels), by mode.
LOSSES = {
  "nokd": lambda s, t, y: cross_entropy(s, y),
  "kd": lambda s, t, y: kd_loss(s, t[0], y),
  "allkd": lambda s, t, y: kd_loss(s, t[0], y),
  "kdparam,temperatures=20,weights=0.4": lambda s, t, y: kd_loss(s, t[0], y, 20, 0.4),
  "triplet": lambda s, t, y: (1 - LAMBDA) * cosine(s, t[0]) + LAMBDA * T**2 * divergence(s, t[0]),
  "mkd": lambda s, t, y: (kd_loss(s, t[0], y) + kd_loss(s, t[1], y)) / 2,
  "uda": lambda s, t, y: kd_loss(s, t[0], y),
  "uda_nokd": lambda s, t, y: cross_entropy(s, y),
  "takd": lambda s, t, y: kd_loss(s, t[0], y),
  "ab": lambda s, t, y: ab_loss(s, t[0]),
  "rkd": lambda s, t, y: kd_loss(s, t[0], y) + rkd_loss(s, t[0]),
  "rkd,attention=True": lambda s, t, y: (
    kd_loss(s, t[0], y)
    + rkd_loss(s, t[0])
    + 50 * attention_loss(s, t[0])
  ),
  "pkd": lambda s, t, y: kd_loss(s, t[0], y) + pkd_loss(s, t[0]),
  "sfd": lambda s, t, y: cross_entropy(s, y) + sfd_loss(s, t[0], np.max),
  "sfd,reduction=mean": lambda s, t, y: cross_entropy(s, y) + sfd_loss(s, t[0], np.mean),
  "stl,unlabeled=fashion_mnist_small": lambda s, t, y: ((s.embedding - t[0].embedding) ** 2).mean(),
  "blind": lambda s, t, y: LAMBDA * T**2 * divergence(s, t[0]),
}  # fmt: skip


@functools.cache
def make_plans(mode):
  config = get_config(f"mode={mode},batch_size=16,epochs=1,assistants=survey_resnet8")
  dataset = data.load(**{name: value for name, value in config["data"].items() if name != "extra_tests"})
  return plan.make_plans(config, dataset), dataset


def first_step(stage_plan, dataset):
  """Metrics of a stage's first step; (student, teachers) outputs of each view; labels."""
  image, key, stage = introspection.image_spec(dataset.image_shape), jax.random.key(0), stage_plan.stage

  def init(network, seed):
    return initialization.init_variables(network, jax.random.key(seed), image)

  teachers = tuple(init(network, 7 + i) for i, network in enumerate(stage.teachers))
  state = initialization.init_state(stage, key, init(stage.student, 1), teachers, image, dataset.train.label)
  frozen, batch = (
    Frozen(jax.random.key(5), teachers),
    next(batches.iterate_batches(stage_plan.input_spec, key, 0)),
  )

  @jax.jit
  def run(state, frozen, batch):
    _, metrics = make_train_step(stage)(state, frozen, batch)
    view_key, _ = jax.random.split(jax.random.fold_in(frozen.key, state.step))
    variables, outputs = {"params": state.params["student"], **state.model_state}, []
    for i, view in enumerate(stage.views):
      images = view(view_key if i == 0 else jax.random.fold_in(view_key, i), batch)
      student = frozen_outputs_batch_stats(stage.student, variables, images, None)
      pairs = zip(stage.teachers, frozen.teachers, strict=True)
      outputs.append((student, tuple(frozen_outputs(*pair, images) for pair in pairs)))
    # Without the metric that needs gradients the backward pass is not compiled.
    return {name: value for name, value in metrics.items() if name != "gradient_norm"}, outputs

  return *jax.device_get(run(state, frozen, batch)), batch.label


@pytest.mark.parametrize("mode", marks.quick(LOSSES, ("kd", "uda")))
def test_the_loss_equals_the_survey_s_formula(mode):
  plans, dataset = make_plans(mode)
  first = next(p for p in plans if p.config["network"] == "student")
  metrics, outputs, label = first_step(plans[-1] if mode == "takd" else first, dataset)
  expected = np.mean([LOSSES[mode](student, teachers, label) for student, teachers in outputs])
  np.testing.assert_allclose(metrics["loss"], expected, rtol=2e-4)


@pytest.mark.slow
def test_the_overhaul_loss_has_a_weight_of_a_thousandth():
  plans, dataset = make_plans("oh")
  metrics, ((student, _),), label = first_step(plans[-1], dataset)
  expected = cross_entropy(student, label) + metrics["distill/ofd"] / 1000
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_modes_without_labels_learn_from_unlabeled_images_and_noise():
  plans, dataset = make_plans("stl,unlabeled=fashion_mnist_small")
  _, embedding, classifier = plans
  images = embedding.input_spec.images
  assert images.image is dataset.unlabeled and (images.label == -1).all()
  assert classifier.stage.trainable == "head" and classifier.inputs.init == embedding.key
  (blind,) = [p for p in make_plans("blind")[0] if p.config["network"] == "student"]
  batch = next(batches.iterate_batches(blind.input_spec, jax.random.key(0), 0))
  noise = np.asarray(blind.stage.views[0](jax.random.key(1), batch))
  assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
  "mode",  # those of unusual stages, networks or images; the first step of every mode is tested above
  [
    *(mode for mode in MODES if mode.startswith(("kdparam", "mkd", "oh", "takd"))),
    "stl,unlabeled=fashion_mnist_small",
  ],
)
def test_a_mode_trains_from_the_command_line(mode, tmp_path):
  small = (
    "epochs=1,pretrain_epochs=1,ab_epochs=1,max_images=256,teacher=survey_resnet8,teachers=survey_resnet8"
  )
  arg = f"{SMALL},{small},assistants=survey_resnet8,mode={mode}"
  status, out, err = runs.main(tmp_path, f"--config=configs/survey.py:{arg}", "--cpu_devices=2")
  assert status == 0, err
  text = (tmp_path / "report.md").read_text()
  stages = [one["name"] for one in json.loads((tmp_path / "result.json").read_text())["stages"]]
  assert stages and all(name in text for name in stages) and "oracle" in text
