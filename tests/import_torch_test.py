"""Tests of import_torch.py: imported networks, their use as teachers, and errors of one line."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import golden
import runs
from smskd_jax import import_torch
from smskd_jax.config import experiment, method, network, stage
from smskd_jax.exchange import variables
from smskd_jax.models import MODELS, torch_weights
from smskd_jax.runtime import integrity
import torch_files


def tensors(name="resnet8", width=0.125, num_classes=10, channels=1, prefix="", **options):
  made = MODELS[name](num_classes=num_classes, width=width, **options)
  shapes = torch_weights.torch_shapes(made, (32, 32, channels))
  return {prefix + k: x.astype(np.float32) for k, x in golden.state_dict(shapes, 0).items()}


@pytest.fixture
def checkpoint(tmp_path):
  path = tmp_path / "model.pth"
  torch_files.write(path, {"model": tensors(prefix="module."), "epoch": 240})
  return path


def run(*arguments):
  return import_torch.main([str(a) for a in arguments])


def imported(checkpoint, out):
  assert run(checkpoint, "--network=resnet8:width=0.125", f"--out={out}") == 0
  return variables.load("field", str(out), "teacher")


def test_imports(checkpoint, tmp_path, capsys):
  given = imported(checkpoint, tmp_path / "out")
  assert given.key in capsys.readouterr().out
  about = integrity.read_json(tmp_path / "out" / "network.json")
  assert about == {
    "network": "resnet8",
    "options": {"width": 0.125},
    "num_classes": 10,
    "image_shape": [32, 32, 1],
    "normalization": None,
    "source": "model.pth",
    "fingerprint": given.fingerprint,
  }
  back = torch_weights.to_torch(given.variables)
  expected = tensors()
  assert back.keys() == expected.keys()
  for key, x in expected.items():
    np.testing.assert_array_equal(back[key], x)


def test_safetensors(checkpoint, tmp_path):
  from safetensors.numpy import save_file

  save_file(tensors(), tmp_path / "model.safetensors")
  one = imported(tmp_path / "model.safetensors", tmp_path / "one")
  assert one.fingerprint == imported(checkpoint, tmp_path / "two").fingerprint


def test_half_precision_becomes_single(tmp_path):
  torch_files.write(tmp_path / "half.pth", {k: x.astype(np.float16) for k, x in tensors().items()})
  given = imported(tmp_path / "half.pth", tmp_path / "out")
  assert {x.dtype for x in jax.tree.leaves(given.variables)} == {np.dtype(np.float32)}


def changed(**changes):
  found = tensors() | changes
  return {key: x for key, x in found.items() if x is not None}


@pytest.mark.parametrize(
  "content, message",
  [
    (changed(**{"fc.weight": None}), "missing: fc.weight"),
    (changed(**{"bn1.bias": None}), "missing: bn1.bias"),
    (changed(**{"bn1.bias": None, "more": np.ones(3, np.float32)}), "missing: bn1.bias; unexpected: more"),
    (
      changed(**{"conv1.weight": np.ones((5, 1, 3, 3), np.float32)}),
      "of another shape: conv1.weight [5, 1, 3, 3] instead of [2, 1, 3, 3]",
    ),
    (
      changed(**{"bn1.bias": np.array([1, np.nan], np.float32)}),
      "params.bn1.bias has values that are not finite",
    ),
    (
      tensors("vgg8"),
      "these are the weights of vgg8:width=0.125, not of resnet8:width=0.125; give --network=vgg8:width=0.125",
    ),
    (tensors("survey_resnet8"), "these are the weights of survey_resnet8:width=0.125, not of resnet8"),
    (tensors("resnet8", shortcut="A"), "the weights of resnet8:width=0.125,shortcut=A, not of resnet8"),
    (tensors("resnet14"), "the weights of resnet14:width=0.125, not of resnet8:width=0.125"),
    (
      {key: x for key, x in tensors().items() if "layer2" not in key},
      "layer2.0.downsample.1.running_mean and 10 more",
    ),
  ],
)
def test_what_does_not_fit_is_named(content, message, tmp_path, capsys):
  torch_files.write(tmp_path / "model.pth", content)
  assert run(tmp_path / "model.pth", "--network=resnet8:width=0.125", f"--out={tmp_path / 'out'}") == 2
  err = capsys.readouterr().err
  assert err.startswith("error: ") and message in err and err.count("\n") == 1
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "FILE: missing"),
    (["x.pth", "--network=resnet8"], "--out: missing"),
    (["x.pth", "--network=resnet8", f"--out={__file__}/new"], "cannot be written to"),
    (["x.pth", "--network=resnet8", "--out=new"], "x.pth: there is no such file"),
    (["x.safetensors", "--network=resnet8", "--out=new"], "x.safetensors: there is no such file"),
    (["x.pth", "--network=resnet8:wide=2", "--out=new"], "did you mean 'width'"),
    (["x.pth", "--network=resnet8:width=wide", "--out=new"], "option width: 'wide' is not of type float"),
    (["x.pth", "--network=resnet_8", "--out=new"], "did you mean 'resnet8'"),
    (["x.pth", "--network=resnet8:shortcut=C", "--out=new"], "shortcut must be one of A, B, got 'C'"),
    (
      ["x.pth", "--network=resnet8", "--out=new", "--std=0.2"],
      "--mean: missing; --mean and --std go together",
    ),
    (["x.pth", "--network=resnet8", "--out=new", "--mean=a", "--std=0.2"], "--mean: 'a' are not numbers"),
    (["x.pth", "--network=resnet8", "--out=new", "--mean=125", "--std=63"], "--mean: 125 is not in [0, 1]"),
    (["x.pth", "--network=resnet8", "--out=new", "--mean=0.5", "--std=0"], "--std: 0 is not positive"),
    (["x.pth", "--network=resnet8", "--out=new", "--mean=0.5", "--std=nan"], "--std: 'nan' are not numbers"),
    ([str(runs.ROOT), "--network=resnet8", "--out=new"], "a folder; give the checkpoint's file"),
    (["x.pth", "--network=resnet8", "--out=new", "--image_size=-1"], "--image_size: -1 is not in 8 to 4096"),
    (["x.pth", "--network=resnet8", "--out=new", "--image_size=0"], "--image_size: 0 is not in 8 to 4096"),
    (["x.pth", "--network=resnet8", "--out=new", "--image_size=99999"], "--image_size: 99999 is not in 8 to"),
  ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
  assert run(*arguments) == 2
  err = capsys.readouterr().err
  assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
  "name, write, key, renames",
  [
    ("resnet8", torch_files.write_legacy, "model_state_dict", ()),
    ("resnet8", torch_files.write_legacy, "state_dict", (("fc.", "linear."), ("downsample", "shortcut"))),
    ("survey_resnet8", torch_files.write_legacy, "model_state_dict", ()),
    ("wrn_10_1", torch_files.write, "net", (("fc.", "linear."), ("block", "layer"))),
    ("ResNet18", torch_files.write, "model", (("linear.", "fc."), ("shortcut", "downsample"))),
  ],
)
def test_names_and_wrappers_of_public_code(name, write, key, renames, tmp_path):
  renamed = expected = tensors(name)
  for ours, theirs in renames:
    renamed = {k.replace(ours, theirs): x for k, x in renamed.items()}
  content = {f"module.{k}": x for k, x in renamed.items()} | {"module.bn1.num_batches_tracked": np.array(3)}
  write(tmp_path / "model.pth", {key: content, "epoch": 3})
  assert run(tmp_path / "model.pth", f"--network={name}:width=0.125", f"--out={tmp_path / 'out'}") == 0
  back = torch_weights.to_torch(variables.load("field", str(tmp_path / "out"), "teacher").variables)
  assert back.keys() == expected.keys()
  for k, x in expected.items():
    np.testing.assert_array_equal(back[k], x)


def test_shortcuts_without_parameters(tmp_path):
  torch_files.write(tmp_path / "model.pth", tensors(shortcut="A"))
  flags = "--network=resnet8:shortcut=A,width=0.125", f"--out={tmp_path / 'out'}"
  assert run(tmp_path / "model.pth", *flags) == 0
  about = integrity.read_json(tmp_path / "out" / "network.json")
  assert about["options"] == {"shortcut": "A", "width": 0.125}


def test_a_normalization_must_fit_the_images(checkpoint, tmp_path, capsys):
  flags = "--network=resnet8:width=0.125", f"--out={tmp_path / 'out'}", "--std=0.2"
  assert run(checkpoint, *flags, "--mean=0.1,0.2,0.3") == 2
  assert "--mean: 3 values, but the network's images have 1 channels" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_overwrites_nothing(checkpoint, tmp_path, capsys):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").write_text("precious")
  assert run(checkpoint, "--network=resnet8", f"--out={tmp_path / 'out'}") == 2
  assert "is not an empty folder" in capsys.readouterr().err
  assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_the_command(checkpoint, tmp_path):
  command = [sys.executable, "-m", "smskd_jax.import_torch"]
  listed = subprocess.run([*command, "--list"], cwd=runs.ROOT, capture_output=True, text=True, check=True)
  assert "ShuffleV2" in listed.stdout.split() and "cohort" not in listed.stdout.split()
  flags = [str(checkpoint), "--network=resnet8:width=0.125", f"--out={tmp_path / 'out'}"]
  subprocess.run([*command, *flags], cwd=runs.ROOT, check=True)
  assert (tmp_path / "out" / "network.json").exists()


def student_of(folder, **teacher):
  common = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
  return experiment(
    data={"source": "digits"},
    networks={
      "teacher": network("resnet8", width=0.125, variables=str(folder), **teacher),
      "student": network("resnet8", width=0.125),
    },
    stages=(stage("student", teachers=("teacher",), methods=(method("kd"),), epochs=1, **common),),
  )


def test_an_imported_teacher_teaches(checkpoint, tmp_path, capsys):
  from smskd_jax.engine import experiment as experiment_lib

  given = imported(checkpoint, tmp_path / "imported")
  result = experiment_lib.run(student_of(tmp_path / "imported"), tmp_path / "run", cpu_devices=2)
  (of_teacher,), (of_student,) = result["pretrained"], result["stages"]
  assert of_teacher["fingerprint"] == given.fingerprint and of_teacher["key"] == given.key
  assert of_student["inputs"]["teachers"] == (given.key,) or of_student["inputs"]["teachers"] == [given.key]
  shown = f"teacher: test accuracy {100 * of_teacher['metrics']['test/accuracy']:.2f} %"
  assert shown in capsys.readouterr().out
  assert given.key in (tmp_path / "run" / "report.md").read_text()
  # A run's workdir and a checkpoint of variables give the same teacher: nothing is trained again.
  store = tmp_path / "run" / "store"
  for folder in (store / given.key / "final", tmp_path / "imported"):
    again = experiment_lib.run(
      student_of(folder), tmp_path / f"again_{folder.name}", store=store, cpu_devices=2
    )
    assert again["stages"][0]["key"] == of_student["key"]
  student = variables.load("field", str(tmp_path / "run"), "student")
  assert student.source.endswith(f"{of_student['key']}/final")


@pytest.mark.parametrize(
  "teacher, message",
  [
    ({"width": 0.25}, "teacher.variables: not of this network but of resnet8:width=0.125: .* instead of"),
    ({"model": "vgg8"}, "teacher.variables: not of this network but of resnet8:width=0.125: missing: "),
  ],
)
def test_a_teacher_of_another_network_is_refused(teacher, message, checkpoint, tmp_path):
  from smskd_jax.engine import experiment as experiment_lib
  from smskd_jax.errors import UserError

  imported(checkpoint, tmp_path / "imported")
  config = student_of(tmp_path / "imported")
  config.networks.teacher.update(teacher)
  with pytest.raises(UserError, match=message):
    experiment_lib.run(config, tmp_path / "run", cpu_devices=2)
  assert not (tmp_path / "run").exists()


def test_folders_without_variables_are_refused(tmp_path):
  from smskd_jax.errors import UserError

  (tmp_path / "empty").mkdir()
  (tmp_path / "unfinished").mkdir()
  (tmp_path / "unfinished" / "config.json").write_text("{}")
  for folder, message in (
    ("absent", "no folder"),
    ("empty", "no checkpoint"),
    ("unfinished", "not finished"),
    ("absent.safetensors", "no such file"),
  ):
    with pytest.raises(UserError, match=f"field: .*{message}"):
      variables.load("field", str(tmp_path / folder), "teacher")
