"""Tests of config/: defaults, merging, validation with one clear line for each mistake, and the generated page."""

import math
import pathlib

import pytest

from smskd_jax.config import (
  docs,
  experiment,
  merge,
  method,
  network,
  parse_arg,
  plugin,
  resolve,
  schema,
  stage,
)
from smskd_jax.errors import UserError


def three_stages():
  kd = {"teachers": ("teacher",), "methods": (method("kd", weight=0.9),)}
  return experiment(
    networks={"teacher": network("resnet14"), "student": network("resnet8", width=0.5)},
    stages=(
      stage("teacher", epochs=2),
      stage("student", **kd),
      stage("student", **kd, reference={"stage": "previous"}),
    ),
  )


def test_a_model_can_be_changed_alone():
  config = three_stages()
  config.networks.student.model = "vgg8"  # which has no shortcut; a ResNet's default says nothing of it
  assert "shortcut" not in resolve(config)["networks"]["student"]
  config.networks.student.shortcut = "A"
  with pytest.raises(UserError, match="config.networks.student: unknown 'shortcut'"):
    resolve(config)


def test_resolved_config_says_everything():
  resolved = resolve(three_stages())
  assert [s["name"] for s in resolved["stages"]] == ["teacher", "student_kd", "student_kd_2"]
  (term,) = resolved["stages"][1]["methods"]
  assert term == {"name": "kd", "weight": 0.9, "warmup_epochs": 0.0, "plugins": (), "temperature": 4.0}
  assert resolved["stages"][0]["optimizer"]["momentum"] == 0.9
  assert resolved["networks"]["student"] == {
    "model": "resnet8",
    "num_classes": 0,
    "variables": "",
    "width": 0.5,
    "shortcut": "B",
    "dtype": "float32",
  }
  assert set(resolved["stages"][0]) == set(schema.STAGE)
  assert resolve(resolved) == resolved


def test_plug_ins_are_entries_of_their_own():
  term = method("kd", weight=9, temperature=2, plugins=(plugin("logit_standardization"),))
  stages = (stage("teacher"), stage("student", teachers=("teacher",), methods=(term,)))
  networks = {"teacher": network("resnet14"), "student": network("resnet8")}
  resolved = resolve(experiment(networks=networks, stages=stages))
  (entry,) = resolved["stages"][1]["methods"][0]["plugins"]
  assert entry["name"] == "logit_standardization" and set(entry) > {"name"}


def test_plain_dicts_are_enough():
  plain = {
    "networks": {"student": {"model": "resnet8"}},
    "stages": [{"network": "student", "epochs": 3, "optimizer": {"learning_rate": 1}}],
  }
  resolved = resolve(plain)
  assert resolved["stages"][0]["optimizer"] == {
    "name": "sgd",
    "learning_rate": 1.0,
    "base_batch_size": 0,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "clip_norm": 0.0,
    "accumulate_steps": 1,
  }


def test_views_may_be_changed_alone():
  config = three_stages()
  config.stages[1].views = ("cutout", "plain")  # the options of crop_flip are still written out
  resolved = resolve(config)["stages"]
  assert set(resolved[1]["augment"]) == {"cutout", "plain"} and set(resolved[2]["augment"]) == {"crop_flip"}


def change(path, value):
  def apply(c):
    *parents, last = path
    for name in parents:
      c = c[name]
    c[last] = value

  return apply


STAGE_1, STAGE_2 = ("stages", 1), ("stages", 2)
KD = (*STAGE_1, "methods", 0)
MISTAKES = {
  "method": (
    change((*KD, "name"), "kdd"),
    r"stages\[1\].methods\[0\].name: unknown 'kdd'; did you mean 'kd'",
  ),
  "plug-in": (
    change((*KD, "plugins"), ({"name": "logit_standardisation"},)),
    r"methods\[0\].plugins\[0\].name: unknown 'logit_standardisation'; did you mean 'logit_standardization'",
  ),
  "option of a plug-in": (
    change((*KD, "plugins"), ({"name": "ctkd", "curriculum_epochs": -1.0},)),
    r"plugins\[0\]: ctkd: curriculum_epochs must be",
  ),
  "plug-in of logits around a method of features": (
    change((*STAGE_1, "methods"), ({"name": "at", "plugins": ({"name": "ctkd"},)},)),
    r"plugins\[0\]: 'ctkd' changes logits, but 'at' reads features; it wraps methods that read logits alone: kd",
  ),
  "warm-up of a weight": (
    change((*KD, "warmup_epochs"), -1.0),
    r"methods\[0\].warmup_epochs: -1.0 is too small",
  ),
  "network": (
    change(("networks", "student", "model"), "resnet9"),
    r"networks.student.model: unknown .*resnet8",
  ),
  "weighting": (
    change((*STAGE_2, "reference", "weighting"), "teacher_tpc"),
    "did you mean 'teacher_tcp'.*constant",
  ),
  "weighting of an earlier version": (
    change((*STAGE_2, "reference", "weighting"), "one_minus_tcp"),
    r"reference.weighting: 'one_minus_tcp' is now 'one_minus_teacher_tcp'",
  ),
  "divergence": (
    change((*STAGE_2, "reference", "divergence"), "reference_to_studnt"),
    "did you mean 'reference_to_student'",
  ),
  "factor without a temperature": (
    change((*STAGE_2, "reference", "scale_by_temperature_squared"), True),
    r"stages\[2\].reference.scale_by_temperature_squared: True, but temperature is 1",
  ),
  "optimizer": (change((*STAGE_1, "optimizer", "name"), "sgdm"), "unknown 'sgdm'; did you mean 'sgd'.*adamw"),
  "schedule": (change((*STAGE_1, "schedule", "name"), "cosin"), "unknown 'cosin'; did you mean 'cosine'"),
  "field of an optimizer": (change((*STAGE_1, "optimizer", "name"), "adamw"), "unknown 'momentum'"),
  "network of a stage": (change((*STAGE_1, "network"), "studnt"), "unknown 'studnt'; did you mean 'student'"),
  "teacher that does not exist": (change((*STAGE_1, "teachers"), ("assistant",)), "unknown 'assistant'"),
  "teacher not trained": (
    change(("stages", 0, "teachers"), ("student",)),
    "'student' is not trained by then",
  ),
  "no teacher": (change((*STAGE_1, "teachers"), ()), "'kd' needs a teacher"),
  "reference of a first stage": (
    change((*STAGE_1, "reference", "stage"), "previous"),
    "first stage of 'student'",
  ),
  "unknown reference": (change((*STAGE_2, "reference", "stage"), "teacher"), "unknown 'teacher'.*student_kd"),
  "init": (change((*STAGE_1, "init"), "last"), r"stages\[1\].init: unknown 'last'"),
  "no epochs": (change((*STAGE_1, "epochs"), 0), r"stages\[1\].epochs: 0 is too small"),
  "negative epochs": (change((*STAGE_1, "epochs"), -1), r"stages\[1\].epochs: -1 is too small"),
  "batch": (change((*STAGE_1, "batch_size"), 0), r"stages\[1\].batch_size: 0"),
  "temperature": (
    change((*KD, "temperature"), 0.0),
    r"methods\[0\]: kd: temperature must be a positive number, got 0.0",
  ),
  "reference temperature": (
    change((*STAGE_2, "reference", "temperature"), -4.0),
    "reference.temperature: -4.0",
  ),
  "tcp temperature": (change((*STAGE_2, "reference", "tcp_temperature"), 0.0), "tcp_temperature: 0.0"),
  "learning rate": (change((*STAGE_1, "optimizer", "learning_rate"), 0.0), "optimizer.learning_rate: 0.0"),
  "momentum": (
    change((*STAGE_1, "optimizer", "momentum"), 1.5),
    r"optimizer: momentum must be a number from 0 to below 1, got 1.5",
  ),
  "nan": (change((*KD, "weight"), math.nan), r"methods\[0\].weight: nan is not a finite number"),
  "infinity": (change((*STAGE_1, "task_weight"), math.inf), "task_weight: inf is not a finite number"),
  "negative weight": (change((*KD, "weight"), -1.0), r"methods\[0\].weight: -1.0"),
  "validation": (change(("data", "validation"), 1.0), r"data.validation: 1.0 is not in \[0, 1\)"),
  "width": (change(("networks", "student", "width"), 0.0), "networks.student: resnet: width must be"),
  "same name twice": (change((*STAGE_1, "name"), "teacher"), "is the name of an earlier stage too"),
  "name that is no file name": (change((*STAGE_1, "name"), "a/b"), "'a/b' is not a name of letters"),
  "no stages": (change(("stages",), ()), "config.stages: there are none"),
  "warm-up": (change((*STAGE_1, "schedule", "warmup_epochs"), 5.0), "warmup_epochs: 5.0 leaves nothing"),
  "views": (change((*STAGE_1, "views"), ("crop_flp",)), r"stages\[1\].views\[0\]: .*unknown part 'crop_flp'"),
  "no views": (change((*STAGE_1, "views"), ()), r"stages\[1\].views: empty"),
  "option of a view": (
    change((*STAGE_1, "augment"), {"crop_flip": {"pad": 4}}),
    "augment.crop_flip: unknown 'pad'",
  ),
  "a view's options without its name": (
    change((*STAGE_1, "augment"), {"padding": 4}),
    "augment: unknown 'padding'",
  ),
  "mix": (change((*STAGE_1, "mix", "name"), "mixp"), "unknown 'mixp'; did you mean 'mixup'"),
  "one view": (change((*STAGE_1, "methods"), ({"name": "uda"},)), "'uda' needs two or more, as"),
  "smoothing": (change((*STAGE_1, "label_smoothing"), 1.0), r"label_smoothing: 1.0 is not in \[0, 1\)"),
  "ema_decay": (change((*STAGE_1, "ema_decay"), -0.1), r"ema_decay: -0.1 is not in \[0, 1\)"),
  "images": (change((*STAGE_1, "images"), "unlabelled"), "unknown 'unlabelled'; did you mean 'unlabeled'"),
  "trainable": (change((*STAGE_1, "trainable"), "body"), r"trainable: unknown 'body' \(known: all, head\)"),
  "statistics": (change((*STAGE_1, "teacher_statistics"), "own"), "unknown 'own'.*running, batch"),
  "selection": (change((*STAGE_1, "keep_checkpoint"), "test"), "unknown 'test'.*last, validation"),
  "selection without validation": (
    change((*STAGE_1, "keep_checkpoint"), "validation"),
    "there is no validation set; set config.data",
  ),
  "no unlabelled source": (
    change((*STAGE_1, "unlabeled_batch_size"), 8),
    "8, but config.data.unlabeled names no",
  ),
  "accumulation": (
    change((*STAGE_1, "optimizer", "accumulate_steps"), 0),
    "accumulate_steps: 0 is too small",
  ),
  "scaling": (change((*STAGE_1, "optimizer", "base_batch_size"), -1), "base_batch_size: -1 is too small"),
  "clipping": (change((*STAGE_1, "optimizer", "clip_norm"), -1.0), "clip_norm: -1.0 is too small"),
}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"images": "unlabeled"}, r"images: 'unlabeled', which have no labels; set .*task_weight to 0"),
    (
      {"images": "unlabeled", "task_weight": 0.0, "unlabeled_batch_size": 8},
      "unlabeled_batch_size: 8, but .* already",
    ),
    (
      {"unlabeled_batch_size": 8, "mix": {"name": "mixup"}},
      "unlabeled_batch_size: 8, but 'mixup' mixes labels",
    ),
    ({"unlabeled_batch_size": 8, "methods": (method("dkd"),)}, "8, but 'dkd' needs the label of every image"),
  ],
)
def test_what_cannot_be_done_without_labels(fields, message):
  config = three_stages()
  config.data.unlabeled = "digits"
  config.stages[1].update(merge.to_config_dict(fields))
  with pytest.raises(UserError, match=message):
    resolve(config)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"teacher_cache": "float64"}, r"stages\[1\].teacher_cache: unknown 'float64'.*float16"),
    ({"teachers": (), "methods": ()}, "teacher_cache: 'float16', but the stage has no teachers"),
    (
      {"views": ("randaugment",)},
      r"but of the views .*randaugment.* there are too many; use plain or crop_flip",
    ),
    ({"views": ("plain", "crop_flip")}, "there are too many"),
    ({"mix": {"name": "mixup"}}, "but mix is 'mixup'; use 'none', or no cache: 'off'"),
    ({"teacher_statistics": "batch"}, "but teacher_statistics is 'batch'; use 'running'"),
    (
      {"methods": (method("fitnet"),)},
      "but 'fitnet' reads the teachers' maps, which are not stored; use 'off'",
    ),
    (
      {"methods": (method("pkt", plugins=(plugin("sakd"),)),)},
      "but 'pkt' or a plug-in runs parts of teachers, and a cache stores outputs; use 'off'",
    ),
  ],
)
def test_what_cannot_be_kept_of_teachers(fields, message):
  config = three_stages()
  config.stages[1].update(merge.to_config_dict({"teacher_cache": "float16"} | fields))
  with pytest.raises(UserError, match=message):
    resolve(config)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_field(mistake):
  spoil, message = MISTAKES[mistake]
  spoilt = three_stages()
  spoil(spoilt)
  with pytest.raises(UserError, match=message) as caught:
    resolve(spoilt)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"stages": [{"network": "student", "epoch": 3}]},
      r"stages\[0\]: unknown 'epoch'; did you mean 'epochs'",
    ),
    ({"sed": 1}, "unknown 'sed'; did you mean 'seed'"),
    ({"seed": "1"}, "config.seed: '1' is not of type int"),
    ({"seed": True}, "config.seed: True is not of type int"),
    ({"networks": {"a": {"model": "resnet8", "widht": 2}}}, "unknown 'widht'; did you mean 'width'"),
    ({"stages": [{"network": "s", "reference": {"lambda": 1}}]}, r"reference: unknown 'lambda'"),
    ({"stages": [{"network": "s", "methods": ["kd"]}]}, r"methods\[0\]: 'kd' is not of type dict"),
  ],
)
def test_wrong_fields_and_types(fields, message):
  with pytest.raises(UserError, match=message):
    resolve(fields)


def test_a_reference_weighted_by_the_teacher_needs_one():
  anchor = {"stage": "previous", "weighting": "teacher_tcp"}
  alone = experiment(
    networks={"student": network("resnet8")},
    stages=(stage("student"), stage("student", reference=anchor)),
  )
  with pytest.raises(UserError, match="'teacher_tcp' needs a teacher"):
    resolve(alone)
  for weighting in ("constant", "reference_tcp"):
    alone.stages[1].reference.weighting = weighting
    resolve(alone)


def test_any_earlier_stage_of_the_learner_can_anchor():
  c = three_stages()
  c.stages[2].reference.stage = "student_kd"
  assert resolve(c)["stages"][2]["reference"]["stage"] == "student_kd"


def test_parse_arg():
  defaults = {"epochs": 240, "student": "resnet20", "rate": 0.1, "joint": False}
  args = parse_arg("epochs=3,joint=true,rate=1", **defaults)
  assert (args.epochs, args.student, args.rate, args.joint) == (3, "resnet20", 1.0, True)
  assert parse_arg(None, **defaults).to_dict() == defaults
  for text, message in (
    ("epoch=3", "did you mean 'epochs'"),
    ("epochs=x", "'x' is not of type int"),
    ("joint=2", "bool"),
  ):
    with pytest.raises(UserError, match=message):
      parse_arg(text, **defaults)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"learner": "student"}, "config.stages\\[0\\]: 'learner' is now 'network'"),
    ({"select": "validation"}, "'select' is now 'keep_checkpoint'"),
    ({"optimizer": {"learning_rate_of": 256}}, "optimizer: 'learning_rate_of' is now 'base_batch_size'"),
    ({"init": "fresh"}, "config.stages\\[0\\].init: 'fresh' is now 'scratch'"),
    ({"methods": ({"name": "crd_in_batch"},)}, "methods\\[0\\].name: 'crd_in_batch' is now 'crd_infonce'"),
    ({"augment": {"crop_flip": {"views": 9}}}, "augment.crop_flip: 'views' is now 'num_views'"),
  ],
)
def test_a_renamed_field_gets_an_error_with_the_new_name(fields, message):
  networks = {"student": {"model": "resnet8"}}
  with pytest.raises(UserError, match=message):
    resolve({"networks": networks, "stages": ({"network": "student"} | fields,)})


def test_ranges_belong_to_fields_and_not_to_names(tmp_path, monkeypatch):
  (tmp_path / "own_network.py").write_text(
    "from smskd_jax.models import MODELS\n"
    "def make(*, num_classes, weight=-1.0): return MODELS['resnet8'](num_classes=num_classes)\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  networks = {"student": network("custom:own_network:make", weight=-2.0)}
  resolved = resolve(experiment(networks=networks, stages=(stage("student"),)))
  assert resolved["networks"]["student"]["weight"] == -2.0
  with pytest.raises(UserError, match="networks.student.weight: nan is not a finite number"):
    networks["student"].weight = math.nan
    resolve(experiment(networks=networks, stages=(stage("student"),)))


def test_the_page_of_the_schema_is_up_to_date():
  page = pathlib.Path(__file__).parents[2] / "docs" / "config.md"
  assert page.read_text() == docs.render(), "run: python -m smskd_jax.config.docs > docs/config.md"
