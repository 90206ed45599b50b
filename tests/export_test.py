"""Tests of export.py: exported files give the same logits elsewhere."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import runs
from smskd_jax import data, export, import_torch
from smskd_jax.engine import experiment
from smskd_jax.exchange import exported_network, exporters, pretrained, variables
from smskd_jax.runtime.workdir import read_run

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="needs jax2onnx")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A finished run."""
  folder = tmp_path_factory.mktemp("export") / "run"
  teacher, *_, student = runs.tiny().stages
  student.reference.stage = "none"
  experiment.run(runs.tiny("resnet8", stages=(teacher, student)), folder, cpu_devices=2)
  return folder


@pytest.fixture(scope="module")
def test_images():
  return data.load(source="digits", folder="", validation=0.0, split_seed=0).test


@pytest.fixture(scope="module")
def student(workdir):
  return pretrained.load_run_network("WORKDIR", read_run("WORKDIR", workdir), "student")


def run(*arguments):
  return export.main([str(a) for a in arguments])


def serve(script, tmp_path, file, images):
  """Logits and accuracy computed by a script in a process that cannot import this package."""
  np.savez(tmp_path / "images.npz", image=images.image, label=images.label)
  blocked = "import sys\nfor name in ('smskd_jax', 'flax'): sys.modules[name] = None\n"
  command = [sys.executable, "-W", "ignore", "-c", blocked + script, str(file), str(tmp_path)]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return np.load(tmp_path / "logits.npy"), float(done.stdout)


WITH_JAX = """
import jax, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
found = np.load(sys.argv[2] + "/images.npz")
logits = np.concatenate([program.call(found["image"][:1]), program.call(found["image"][1:])])
np.save(sys.argv[2] + "/logits.npy", logits)
print((logits.argmax(-1) == found["label"]).mean())
"""

WITH_ONNXRUNTIME = """
sys.modules["jax"] = None
import onnxruntime, numpy as np
session = onnxruntime.InferenceSession(sys.argv[1])
found = np.load(sys.argv[2] + "/images.npz")
call = lambda images: session.run(["logits"], {"images": images})[0]
logits = np.concatenate([call(found["image"][:1]), call(found["image"][1:])])
np.save(sys.argv[2] + "/logits.npy", logits)
print((logits.argmax(-1) == found["label"]).mean())
"""


def check_served(script, file, tmp_path, images, student):
  logits, accuracy = serve(script, tmp_path, file, images)
  expected = np.asarray(jax.jit(student.exported.inference_fn())(images.image))
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
  assert accuracy == pytest.approx(
    student.provenance["test_accuracy"], abs=1.5 / len(images.label)
  )  # an image may be on the border


def test_stablehlo_is_served_by_jax_alone(workdir, tmp_path, test_images, student):
  assert run(workdir, "--format=stablehlo", f"--out={tmp_path / 'out'}") == 0
  check_served(WITH_JAX, tmp_path / "out" / "student.stablehlo", tmp_path, test_images, student)
  exported = jax.export.deserialize(bytearray((tmp_path / "out" / "student.stablehlo").read_bytes()))
  assert exported.platforms == ("cpu", "cuda", "tpu")


@needs_onnx
@pytest.mark.slow
def test_onnx_is_served_by_onnxruntime_alone(workdir, tmp_path, test_images, student):
  import onnx

  # In a process of its own, because jax2onnx changes Flax where it is imported.
  command = [sys.executable, "-m", "smskd_jax.export", str(workdir), "--format=onnx", f"--out={tmp_path}"]
  done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, check=True)
  assert "DEBUG" not in done.stdout and not done.stderr
  check_served(WITH_ONNXRUNTIME, tmp_path / "student.onnx", tmp_path, test_images, student)
  metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "student.onnx").metadata_props}
  assert json.loads(metadata["class_names"]) == [str(i) for i in range(10)]
  assert json.loads(metadata["images"])["mean"] == pytest.approx(student.exported.mean)


def test_onnx_without_jax2onnx_says_what_to_install(workdir, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "jax2onnx", None)
  assert run(workdir, "--format=onnx", f"--out={tmp_path}") == 2
  assert "smskd_jax[onnx]" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_safetensors_restore_the_network(workdir, tmp_path, test_images, student):
  assert run(workdir, "--format=safetensors", f"--out={tmp_path}") == 0
  back = exported_network.read(tmp_path / "student.safetensors")
  assert back._replace(variables=None) == student.exported._replace(variables=None)
  jax.tree.map(np.testing.assert_array_equal, back.variables, student.exported.variables)
  logits = jax.jit(back.inference_fn())(test_images.image[:8])
  np.testing.assert_array_equal(logits, jax.jit(student.exported.inference_fn())(test_images.image[:8]))


def test_torch_safetensors_go_back_through_the_importer(workdir, tmp_path, student):
  assert run(workdir, "--format=torch_safetensors", f"--out={tmp_path}") == 0
  flags = ["--network=resnet8:width=0.125", f"--out={tmp_path / 'again'}"]
  assert import_torch.main([str(tmp_path / "student.torch.safetensors"), *flags]) == 0
  back = variables.load("field", str(tmp_path / "again"), "student").variables
  jax.tree.map(np.testing.assert_array_equal, back, student.exported.variables)


def test_the_old_name_of_the_torch_format_names_the_new_one(workdir, tmp_path, capsys):
  assert run(workdir, "--format=torch", f"--out={tmp_path}") == 2
  err = capsys.readouterr().err
  assert "'torch' is now 'torch_safetensors'" in err and err.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_formats_of_the_command_are_those_of_the_exporters():
  assert tuple(exporters.FORMATS) == export.FORMATS


def test_the_table_has_costs_and_accuracies(workdir, tmp_path, capsys, student):
  assert run(workdir, "--format=safetensors", f"--out={tmp_path}") == 0
  header, of_student, of_teacher, *_ = capsys.readouterr().out.splitlines()
  assert header.split("  ")[1] == "network" and "FLOPs/image" in header
  result = json.loads((workdir / "result.json").read_text())
  accuracy = {stage["network"]: stage["metrics"]["last"]["test/accuracy"] for stage in result["stages"]}
  for line, name, parameters in ((of_student, "student", "1,384"), (of_teacher, "teacher", "5,142")):
    cells = line.split()
    assert cells[:3] == [name, "resnet8", parameters] and cells[-1] == f"{accuracy[name]:.2%}"
  about = json.loads((tmp_path / "student.json").read_text())
  assert about["class_names"] == [str(i) for i in range(10)] and about["images"]["shape"] == [8, 8, 1]
  assert about["made_by"]["test_accuracy"] == student.provenance["test_accuracy"]


def test_older_runs_are_refused(tmp_path, capsys):
  (tmp_path / "config.json").write_text('{"config": {}}')
  (tmp_path / "result.json").write_text('{"stages": [{"network": "student"}]}')
  assert run(tmp_path, "--format=safetensors") == 2
  assert "older version" in capsys.readouterr().err


def test_existing_files_need_overwrite(workdir, tmp_path, capsys):
  file = tmp_path / "student.safetensors"
  file.write_text("precious")
  assert run(workdir, "--format=safetensors", f"--out={tmp_path}") == 2
  assert "--overwrite" in capsys.readouterr().err
  assert file.read_text() == "precious"
  assert run(workdir, "--format=safetensors", f"--out={tmp_path}", "--overwrite") == 0
  assert exported_network.read(file).model == "resnet8"


def test_the_teacher_is_exported_too(workdir, tmp_path):
  assert run(workdir, "--network=teacher", "--format=safetensors", f"--out={tmp_path}") == 0
  assert exported_network.read(tmp_path / "teacher.safetensors").options["width"] == 0.25


def test_a_safetensors_file_is_a_teacher(workdir, tmp_path):
  assert run(workdir, "--network=teacher", "--format=safetensors", f"--out={tmp_path}") == 0
  given = variables.load("field", str(tmp_path / "teacher.safetensors"), "teacher")
  assert given.fingerprint == variables.load("field", str(workdir), "teacher").fingerprint
