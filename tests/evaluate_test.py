"""Tests of evaluate.py: metrics of trained networks from every source."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import golden
import runs
from smskd_jax import data, evaluate, import_torch
from smskd_jax.engine import experiment as experiment_lib
from smskd_jax.exchange import evaluation, exported_network, pretrained, variables
from smskd_jax.models import MODELS, torch_weights
from smskd_jax.runtime import eval_outputs, workdir
import torch_files

WIDTH = "width=0.125"


def import_resnet(folder, out, *flags, channels=1, num_classes=10, name="resnet8"):
  """An imported network of random weights."""
  made = MODELS[name](num_classes=num_classes, width=0.125)
  shapes = torch_weights.torch_shapes(made, (32, 32, channels))
  torch_files.write(
    folder / "x.pth", {k: x.astype(np.float32) for k, x in golden.state_dict(shapes, 0).items()}
  )
  arguments = [str(folder / "x.pth"), f"--network={name}:{WIDTH}", f"--out={folder / out}", *flags]
  assert import_torch.main(arguments) == 0
  return folder / out


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  return import_resnet(tmp_path_factory.mktemp("import"), "out", "--mean=0.4", "--std=0.25")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
  """A finished run of a teacher and a student."""
  folder = tmp_path_factory.mktemp("evaluate") / "run"
  teacher, *_, student = runs.tiny().stages
  student.reference.stage = "none"
  rarely = {"evaluate": {"feature_images": 0, "num_forgetting_images": 0}, "checkpoint": {"every_steps": 100}}
  made = runs.tiny("resnet8", stages=(teacher, student), **rarely)
  return folder, experiment_lib.run(made, folder, cpu_devices=2)


def run(*arguments):
  return evaluate.main([*map(str, arguments), "--data=digits"])


def printed(capsys):
  return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_an_imported_network_by_its_own_normalisation(imported, tmp_path, capsys):
  assert run(imported, f"--json={tmp_path / 'numbers.json'}") == 0
  lines = printed(capsys)
  test = data.load(source="digits").test
  tree = variables.load("field", str(imported), "").variables
  image = ((test.image / 255 - 0.4) / 0.25).astype(np.float32)
  logits = jax.jit(MODELS["resnet8"](num_classes=10, width=0.125).apply)(tree, image).logits
  logits = np.asarray(logits)
  accuracy = np.mean(np.argmax(logits, -1) == test.label)
  assert list(lines) == ["accuracy", "top5", "nll", "ece", "ace", "brier"]
  assert lines["accuracy"] == f"{100 * accuracy:.2f} %"
  found = json.loads((tmp_path / "numbers.json").read_text())
  assert found["metrics"]["accuracy"] == accuracy and found["images"] == len(test.label)
  assert found["normalization"] == {"mean": [0.4], "std": [0.25]} and found["network"] == f"resnet8:{WIDTH}"
  nll = -np.mean(jax.nn.log_softmax(logits)[np.arange(len(test.label)), test.label])
  assert found["metrics"]["nll"] == pytest.approx(float(nll), rel=1e-4)
  assert lines["nll"] == f"{found['metrics']['nll']:.4f}"


def test_the_normalisation_can_be_stated(imported, tmp_path):
  plain = import_resnet(tmp_path, "plain")
  own = evaluation.evaluate_network(imported, "digits").metrics
  assert (
    evaluation.evaluate_network(plain, "digits", mean="0.4", std="0.25").metrics
    == own
    != evaluation.evaluate_network(plain, "digits").metrics
  )
  moments = data.load(source="digits").channel_stats
  assert evaluation.evaluate_network(plain, "digits").normalization == moments


def test_every_place_of_a_runs_network_gives_the_runs_numbers(ran, tmp_path):
  folder, result = ran
  last = result["stages"][-1]
  expected = last["metrics"]["last"]["test/accuracy"], last["metrics"]["last"]["test/nll"]
  entry = folder / "store" / last["key"]
  trained = pretrained.load_run_network("field", workdir.read_run("field", folder), "student").exported
  exported_network.write(trained, tmp_path / "student.safetensors")
  for path, network in (
    (folder, None),
    (folder, "student"),
    (entry, None),
    (entry / "final", None),
    (tmp_path / "student.safetensors", None),
  ):
    found = evaluation.evaluate_network(path, "digits", network=network).metrics
    assert (found["accuracy"], found["nll"]) == pytest.approx(expected, rel=1e-5)


def test_beside_a_teacher(ran, capsys):
  folder, result = ran
  assert run(folder, "--network=student", f"--teacher={folder}", "--teacher_network=teacher") == 0
  lines, last = printed(capsys), result["stages"][-1]["metrics"]["last"]
  assert lines["teacher_agreement"] == f"{100 * last['test/teacher_agreement']:.2f} %"
  assert lines["teacher_kl"] == f"{last['test/teacher_kl']:.4f}"
  teacher = eval_outputs.logits(
    eval_outputs.read(folder / "store" / result["stages"][0]["key"] / "eval_outputs.npz")
  )["test"]
  label = data.load(source="digits").test.label
  right = np.mean(np.argmax(teacher, -1) == label)
  lost, won = (
    float(lines[f"teacher_{name}"].removesuffix(" %")) / 100 for name in ("regressions", "improvements")
  )
  assert last["test/accuracy"] == pytest.approx(right + won - lost, abs=2e-4)


def test_variables_alone_need_their_architecture(imported, tmp_path, capsys):
  alone = imported / "variables"
  assert evaluation.evaluate_network(
    alone, "digits", network=f"resnet8:{WIDTH}", mean="0.4", std="0.25"
  ).metrics == (evaluation.evaluate_network(imported, "digits").metrics)
  assert run(alone) == 2
  assert "--network: missing; " in capsys.readouterr().err


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--data="], "--data: unknown ''"),
    (["--data=digts"], "--data: unknown 'digts'; did you mean 'digits'?"),
    (["--data=npz:nowhere.npz"], "--data: "),
    (["--data=digits", "--image_size=2"], "--image_size: 2 is too small"),
  ],
)
def test_bad_data_is_one_line(flags, message, imported, capsys):
  assert evaluate.main([str(imported), *flags]) == 2
  err = capsys.readouterr().err
  assert err.startswith(f"error: {message}") and err.count("\n") == 1


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--network=resnet8"], "states its network; leave --network out"),
    (["--mean=0.1,0.2,0.3", "--std=0.1"], "--mean: 3 values, but the network's images have 1 channels"),
    (["--split=validation"], "--split: 'validation' is none of test, train"),
    (["--batch_size=0"], "--batch_size: 0 is too small"),
    (["--teacher=absent"], "--teacher: there is no absent"),
    (["--json=/"], "--json: / is a folder"),
  ],
)
def test_bad_flags_are_one_line(flags, message, imported, capsys):
  assert run(imported, *flags) == 2
  err = capsys.readouterr().err
  assert message in err and err.startswith("error: ") and err.count("\n") == 1


def test_what_is_not_for_the_data_is_one_line(ran, imported, tmp_path, capsys):
  folder, _ = ran
  (tmp_path / "empty").mkdir()
  (tmp_path / "x.pth").write_bytes(b"")
  for path, message in (
    (
      import_resnet(tmp_path, "many", num_classes=7),
      f"resnet8:{WIDTH} has 7 classes, but --data=digits has 10",
    ),
    (
      import_resnet(tmp_path, "rgb", channels=3),
      f"resnet8:{WIDTH} is for images of 3 channels, but --data=digits has 1",
    ),
    (
      import_resnet(tmp_path, "survey", name="survey_resnet8"),
      "; images are 8x8, and --image_size resizes them",
    ),
    (tmp_path / "absent", "PATH: there is no"),
    (tmp_path / "empty", "is no checkpoint of variables"),
    (tmp_path / "x.pth", "is a file; import PyTorch's by python -m smskd_jax.import_torch first"),
  ):
    assert run(path) == 2, path
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1, err
  assert run(folder, "--network=pupil") == 2
  assert "--network" in capsys.readouterr().err


def test_the_command(imported):
  command = [sys.executable, "-m", "smskd_jax.evaluate", str(imported), "--data=digits", "--split=train"]
  done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, check=True)
  assert done.stdout.startswith("accuracy ") and len(done.stdout.splitlines()) == 6
