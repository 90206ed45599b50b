"""Tests of whole runs from Python: what they leave, what they reuse, how they go on, and what they refuse."""

import gc
import json

import jax
import numpy as np
import pytest

import runs
from smskd_jax import data, losses
from smskd_jax.config import method, network, resolve, stage
from smskd_jax.data import corruptions
from smskd_jax.data.augment import normalize
from smskd_jax.engine import evaluator, experiment, summary
from smskd_jax.engine.plan import make_plans
from smskd_jax.engine.stage_runner import StageTraining
from smskd_jax.errors import UserError
from smskd_jax.losses import Context
from smskd_jax.runtime import checkpoint, console, eval_outputs, integrity, parallel, store
from smskd_jax.runtime.writer import read_metrics
from smskd_jax.training import cka, loop
import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished")
  return workdir, experiment.run(runs.tiny(), workdir, cpu_devices=2)


def outputs_of(workdir, of_stage, dataset):
  """Outputs of the final network of a stage of `runs.tiny` for the test images."""
  variables = checkpoint.load_variables(workdir / "store" / of_stage["key"] / "final")
  width = 0.25 if of_stage["network"] == "teacher" else 0.125
  image = normalize(dataset.test.image, dataset.mean, dataset.std)
  return jax.jit(tiny.Small(num_classes=10, width=width).apply)(variables, image)


def test_what_a_run_leaves(finished):
  workdir, result = finished
  assert integrity.read_json(workdir / "result.json") == json.loads(json.dumps(result))
  assert [s["name"] for s in result["stages"]] == ["teacher", "fitnet", "kd"]
  of_kd = result["stages"][2]
  assert of_kd["steps"] == 22 and of_kd["epochs"] == 2
  assert of_kd["forward_passes"] == {"student": 22 * 128, "teachers": 22 * 128, "reference": 22 * 128}
  assert result["stages"][1]["forward_passes"]["reference"] == 0
  last = of_kd["metrics"]["last"]
  for name in ("accuracy", "top5", "nll", "ece", "teacher_agreement", "teacher_kl", "reference_agreement"):
    assert np.isfinite(last[f"test/{name}"])
  assert of_kd["metrics"]["best_by_validation"] is None
  folder = workdir / "store" / of_kd["key"]
  assert {path.name for path in folder.iterdir()} == {
    "stage.json",
    "metrics.jsonl",
    "predictions.npz",
    "eval_outputs.npz",
    "method_state.npz",
    "optimizer.npz",
    "final",
    "result.json",
    "lock",
  }
  assert (workdir / "figures" / "stages.png").stat().st_size > 10_000
  report = (workdir / "report.md").read_text()
  assert f"{100 * last['test/accuracy']:.2f} %" in report and of_kd["key"] in report
  assert {path.name for path in (workdir / "tensorboard").iterdir()} == {"teacher", "fitnet", "kd"}
  config = json.loads((workdir / "config.json").read_text())
  assert config["config"]["stages"][2]["reference"]["temperature"] == 1.0
  assert config["versions"]["jax"] == jax.__version__


def test_metrics_lines(finished):
  workdir, result = finished
  lines = read_metrics(workdir / "store" / result["stages"][2]["key"] / "metrics.jsonl")
  assert lines[0]["step"] == 0 and lines[0]["test/reference_agreement"] == 1.0
  assert lines[0]["test/accuracy"] == result["stages"][1]["metrics"]["last"]["test/accuracy"]
  train = [line for line in lines if "train/loss" in line]
  assert [line["step"] for line in train] == [3, 6, 9, 11, 12, 15, 18, 21, 22]
  for line in train:
    whole = line["train/task"] + line["train/distill/kd"] + 0.5 * line["train/reference"]
    np.testing.assert_allclose(line["train/loss"], whole, rtol=1e-5)
  assert [line["epoch"] for line in lines if "test/accuracy" in line] == [0, 1, 2]


def test_what_each_image_was_taken_for_and_what_was_forgotten(finished):
  workdir, result = finished
  test = data.load("digits").test
  _, fitnet, kd = (
    eval_outputs.read(workdir / "store" / one["key"] / "predictions.npz") for one in result["stages"]
  )
  lines = read_metrics(workdir / "store" / result["stages"][2]["key"] / "metrics.jsonl")
  evaluated = {line["step"]: line for line in lines if "test/accuracy" in line}
  assert kd["step"].tolist() == sorted(evaluated) == [0, 11, 22]
  np.testing.assert_array_equal(kd["test"][0], fitnet["test"][-1])
  before = fitnet["test"][-1] == test.label
  for step, chosen in zip(kd["step"], kd["test"], strict=True):
    now, line = chosen == test.label, evaluated[int(step)]
    assert line["test/accuracy"] == pytest.approx(now.mean())
    assert line["test/earlier_1_regressions"] == pytest.approx((before & ~now).mean())
    assert line["test/earlier_1_improvements"] == pytest.approx((~before & now).mean())
    assert line["test/earlier_1_iou"] == (before & now).sum() / (before | now).sum()
  assert not any("earlier_1" in name for name in result["stages"][1]["metrics"]["last"])
  of_teacher, of_fitnet, of_kd = (one["forgetting"] for one in result["stages"])
  assert of_teacher == of_fitnet == {"test": []}
  counts = {"kept": before & now, "forgotten": before & ~now, "gained": ~before & now}
  assert of_kd["test"] == [
    {"stage": "fitnet", "key": result["stages"][1]["key"]}
    | {name: int(of.sum()) for name, of in counts.items()}
    | {"iou": line["test/earlier_1_iou"]}
  ]
  assert f"| kd    | fitnet        | test | {before.sum()}" in (workdir / "report.md").read_text()


def test_losses_of_earlier_stages_are_those_of_their_methods_as_they_were_left(finished):
  workdir, result = finished
  digits, (teacher, fitnet, kd) = data.load("digits"), result["stages"]
  said = {one["name"]: outputs_of(workdir, one, digits) for one in result["stages"]}
  with np.load(workdir / "store" / fitnet["key"] / "method_state.npz") as file:
    leaves = [file[str(i)] for i in range(len(file))]
  regressor = losses.METHODS["fitnet"]()
  specs = [jax.eval_shape(lambda x: x, said[name]) for name in ("fitnet", "teacher")]
  fresh = regressor.init(jax.random.key(0), specs[0], (specs[1],), digits.train.label)
  aux = jax.tree.unflatten(jax.tree.structure(fresh), leaves)
  lines = read_metrics(workdir / "store" / kd["key"] / "metrics.jsonl")
  evaluated = [line["test/earlier_1_loss/fitnet"] for line in lines if "test/accuracy" in line]
  for one, logged in ((fitnet, evaluated[0]), (kd, evaluated[-1])):
    values = []
    for rows in (slice(0, 128), slice(128, 256)):  # the whole batches of 359 images

      def cut(x, rows=rows):
        return x[rows] if x.shape[:1] == (359,) else x

      learner, by = jax.tree.map(cut, [said[one["name"]], said["teacher"]])
      values.append(regressor.apply(aux.params, aux.state, learner, (by,), Context(None))[0])
    assert logged == pytest.approx(np.mean(values), rel=1e-4)
  assert len(evaluated) == 3 and evaluated[0] != pytest.approx(evaluated[-1], rel=1e-3)
  assert not any("earlier_1_loss" in name for name in teacher["metrics"]["last"] | fitnet["metrics"]["last"])


def test_what_is_kept_of_a_network_is_what_it_says(finished):
  workdir, result = finished
  digits, (_, fitnet, kd) = data.load("digits"), result["stages"]
  kept = {
    one["name"]: eval_outputs.read(workdir / "store" / one["key"] / "eval_outputs.npz")
    for one in result["stages"]
  }
  said = outputs_of(workdir, kd, digits)
  np.testing.assert_array_equal(kept["kd"]["index"], np.arange(359))
  np.testing.assert_allclose(kept["kd"]["test/logits"], said.logits, rtol=1e-4, atol=1e-4)
  features = eval_outputs.features(kept["kd"])
  assert list(features) == [*(f"feature_{i}" for i in range(len(said.features))), "embedding"]
  np.testing.assert_allclose(features["feature_1"], said.features[1].mean((1, 2)), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(features["embedding"], said.embedding, rtol=1e-4, atol=1e-5)
  alike = kd["similarity"]
  assert set(alike) == {"teacher", "reference"} and set(fitnet["similarity"]) == {"teacher"}
  theirs = eval_outputs.features(kept["fitnet"])
  assert alike["reference"]["cka"][1][2] == cka.linear_cka(features["feature_1"], theirs["feature_2"])
  hit = {name: np.argmax(of["test/logits"], -1) == digits.test.label for name, of in kept.items()}

  def of_class(name, k):
    return hit[name][digits.test.label == k].mean()

  told = kd["by_class"]["test"]
  assert told["accuracy"][3] == pytest.approx(of_class("kd", 3))
  for role, name in (("teacher", "teacher"), ("reference", "fitnet"), ("earlier_1", "fitnet")):
    assert told[f"{role}_accuracy_delta"][3] == pytest.approx(of_class("kd", 3) - of_class(name, 3))


def test_the_same_command_again_reads_everything(finished, monkeypatch):
  workdir, result = finished
  monkeypatch.setattr(loop, "run", lambda *args: pytest.fail("trained again"))
  again = experiment.run(runs.tiny(), workdir, cpu_devices=2)["stages"]
  assert json.dumps(again) == json.dumps(result["stages"])


def test_a_shared_store_gives_the_teacher_to_another_experiment(finished, tmp_path, monkeypatch):
  workdir, result = finished
  stages = runs.tiny().stages
  other = runs.tiny(stages=(stages[0], stage("student", name="alone", epochs=1, batch_size=128)))
  trained = []
  run = loop.run
  monkeypatch.setattr(loop, "run", lambda *args: (trained.append(1), run(*args))[1])
  others = experiment.run(other, tmp_path, store=workdir / "store", cpu_devices=2)
  assert others["stages"][0]["key"] == result["stages"][0]["key"]
  assert len(trained) == 1
  assert (tmp_path / "tensorboard" / "teacher").exists()


def test_forgetting_that_is_read_from_the_store_has_the_names_of_the_run_that_reads_it(
  finished, tmp_path, monkeypatch
):
  workdir, result = finished
  config = runs.tiny()
  config.stages[1].name = "first"
  monkeypatch.setattr(loop, "run", lambda *args: pytest.fail("trained again"))
  again = experiment.run(config, tmp_path, store=workdir / "store", cpu_devices=2)["stages"][2]
  ((before,), (renamed,)) = (one["forgetting"]["test"] for one in (result["stages"][2], again))
  assert renamed == before | {"stage": "first"} != before


def test_keys_follow_what_a_stage_reads(finished, tmp_path):
  """Another weight in the second stage is another second and third stage, and the same teacher."""
  keys = [s["key"] for s in finished[1]["stages"]]
  from smskd_jax import data
  from smskd_jax.engine import plan

  dataset = data.load("digits")

  def planned(c):
    return [p.key for p in plan.make_plans(resolve(c), dataset)]

  assert planned(runs.tiny()) == keys
  changed = runs.tiny()
  changed.stages[1].methods[0].weight = 2.0
  assert [a == b for a, b in zip(planned(changed), keys, strict=True)] == [True, False, False]
  changed = runs.tiny(seed=1)
  assert not set(planned(changed)) & set(keys)
  changed = runs.tiny(checkpoint={"every_steps": 9}, log_every_steps=7)
  assert planned(changed) == keys
  changed = runs.tiny()
  changed.stages[2].name = "another"
  assert planned(changed) == keys


class Crash(BaseException):
  """Not an Exception: nothing may catch it, as nothing catches a kill."""


def crash_after(monkeypatch, steps):
  """Ends the run, as a crash would, after so many steps from now."""
  left, add = [steps], loop.MetricAccumulator.add

  def crashing(self, metrics):
    left[0] -= 1
    if left[0] < 0:
      raise Crash
    add(self, metrics)

  monkeypatch.setattr(loop.MetricAccumulator, "add", crashing)


def test_a_crashed_run_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
  for steps in (2, 9, 13, 5, 14, 7):
    with monkeypatch.context() as patch, pytest.raises(Crash):
      crash_after(patch, steps)
      experiment.run(runs.tiny(), tmp_path, cpu_devices=2)
  experiment.run(runs.tiny(), tmp_path, cpu_devices=2)
  assert runs.left_by(tmp_path) == runs.left_by(finished[0])
  for one in finished[1]["stages"]:
    path = f"store/{one['key']}/metrics.jsonl"
    assert (tmp_path / path).read_text() == (finished[0] / path).read_text()
    ours, theirs = (
      eval_outputs.read(folder / "store" / one["key"] / "predictions.npz")
      for folder in (tmp_path, finished[0])
    )
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


# orbax drops reads of a damaged checkpoint that were under way; their errors come out when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_falls_back_to_the_one_before(finished, tmp_path, monkeypatch, capsys):
  with monkeypatch.context() as patch, pytest.raises(Crash):
    crash_after(patch, 14)
    experiment.run(runs.tiny(), tmp_path, cpu_devices=2)
  folder = tmp_path / "store" / finished[1]["stages"][0]["key"] / "checkpoints"
  assert {path.name for path in folder.iterdir()} == {"8", "12"}
  largest = max(
    (path for path in (folder / "12").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
  )
  largest.write_bytes(largest.read_bytes()[:100])
  experiment.run(runs.tiny(), tmp_path, cpu_devices=2)
  told = capsys.readouterr().out
  assert "checkpoints/12 is damaged" in told and "continues from step 8 of 22" in told
  assert runs.left_by(tmp_path) == runs.left_by(finished[0])
  gc.collect()


def test_probes_are_written_where_they_are_asked_for(tmp_path):
  config = runs.tiny(probe_every_steps=5)
  config.stages = config.stages[:2]
  for one in config.stages:
    one.epochs = 1
  probed = experiment.run(config, tmp_path / "probed", cpu_devices=2)["stages"]
  lines = read_metrics(tmp_path / "probed" / "store" / probed[1]["key"] / "metrics.jsonl")
  pulls = [line for line in lines if "train/gradient_norm/task" in line]
  assert [line["step"] for line in pulls] == [1, 6, 11]
  for line in pulls:
    assert line["train/gradient_norm/distill"] > 0 and -1 <= line["train/gradient_cosine/task_distill"] <= 1
  config.probe_every_steps = 0
  plain = experiment.run(config, tmp_path / "plain", cpu_devices=2)["stages"]
  assert [one["key"] for one in plain] == [one["key"] for one in probed]  # looking changes nothing
  assert runs.left_by(tmp_path / "plain")[1] == runs.left_by(tmp_path / "probed")[1]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_term(tmp_path):
  exploding = runs.tiny()
  exploding.stages[1].optimizer.learning_rate = 1e30
  with pytest.raises(
    UserError, match=r"stage 'fitnet', step \d+: .* is (nan|inf).*; there is no checkpoint yet"
  ):
    experiment.run(exploding, tmp_path, cpu_devices=2)
  assert not (tmp_path / "result.json").exists()


def test_a_stage_is_marked_as_finished_after_its_last_save(tmp_path, monkeypatch):
  """Orbax still deletes old checkpoints in a pending save, and fails if their folder is removed meanwhile."""
  used, pending = [], []
  save, mark_finished = checkpoint.Checkpoints.save, store.StageEntry.mark_finished

  def recording_save(self, *args):
    used.append(self)
    save(self, *args)

  def recording_mark_finished(self, result):
    pending.extend(one._pending for one in used)
    mark_finished(self, result)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", recording_save)
  monkeypatch.setattr(store.StageEntry, "mark_finished", recording_mark_finished)
  experiment.run(runs.tiny(stages=runs.tiny().stages[:1]), tmp_path, cpu_devices=2)
  assert used and pending and not any(pending)


def test_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
  fetch, seen = loop.MetricAccumulator.fetch, []

  def poisoned(self, step):
    seen.append(step)
    if len(seen) > 3:
      self._pending[-1]["task"] = np.float32("nan")
    return fetch(self, step)

  monkeypatch.setattr(loop.MetricAccumulator, "fetch", poisoned)
  with pytest.raises(
    UserError, match=r"stage 'teacher', step 8: task is nan.*; the last checkpoint is of step 4"
  ):
    experiment.run(runs.tiny(), tmp_path, cpu_devices=2)


def test_best_by_validation_never_looks_at_the_test_set(tmp_path):
  held_out = runs.tiny(data={"source": "digits", "validation": 0.2})
  held_out.stages = held_out.stages[:1]
  held_out.stages[0].epochs = 3
  result = experiment.run(held_out, tmp_path, cpu_devices=2)["stages"][0]
  lines = read_metrics(tmp_path / "store" / result["key"] / "metrics.jsonl")
  evaluated = [line for line in lines if "validation/accuracy" in line and line["step"]]
  best = max(line["validation/accuracy"] for line in evaluated)
  chosen = result["metrics"]["best_by_validation"]
  assert chosen == next(line for line in evaluated if line["validation/accuracy"] == best)
  assert "best by validation" in (tmp_path / "report.md").read_text()


def script_validation(monkeypatch, by_epoch):
  """Scripts the validation accuracy of each epoch; returns a dict that gets the digest of the network by its epoch."""
  look, evaluate, networks = StageTraining._evaluate, evaluator.Evaluator.evaluate_stage, {}

  def looking(self, step, variables):
    epoch = step // self.plan.loop_config.steps_per_epoch
    networks[epoch] = checkpoint.tree_digest(jax.device_get(variables))
    scripted = {"validation/accuracy": by_epoch[epoch]}

    def evaluated(self, *args, **kwargs):
      result = evaluate(self, *args, **kwargs)
      return result._replace(values=result.values | scripted)

    monkeypatch.setattr(evaluator.Evaluator, "evaluate_stage", evaluated)
    return look(self, step, variables)

  monkeypatch.setattr(StageTraining, "_evaluate", looking)
  return networks


def test_no_network_is_evaluated_twice(tmp_path, monkeypatch):
  predict, digests = evaluator.Evaluator._predict, []

  def predicting(self, network, variables):
    digests.append(checkpoint.tree_digest(jax.device_get(variables)))
    return predict(self, network, variables)

  monkeypatch.setattr(evaluator.Evaluator, "_predict", predicting)
  _, first, second = experiment.run(runs.tiny(), tmp_path, cpu_devices=2)["stages"]
  assert len(digests) == len(set(digests)), "a stage begins with the network that the previous one ended with"
  lines = read_metrics(tmp_path / "store" / second["key"] / "metrics.jsonl")
  assert lines[0]["step"] == 0 and lines[0]["test/accuracy"] == first["metrics"]["last"]["test/accuracy"]
  assert lines[0]["test/nll"] == first["metrics"]["last"]["test/nll"]
  assert lines[0]["test/reference_agreement"] == 1


def test_a_stage_may_end_with_its_best_epoch(tmp_path, monkeypatch):
  config = runs.tiny(data={"source": "digits", "validation": 0.2})
  config.stages = config.stages[:1]
  config.stages[0].update(epochs=4, keep_checkpoint="validation")
  networks = script_validation(monkeypatch, (0.99, 0.3, 0.6, 0.5, 0.6))  # the second of equals is not better
  one = experiment.run(config, tmp_path / "whole", cpu_devices=2)["stages"][0]
  assert one["metrics"]["best_by_validation"]["epoch"] == 2 and one["metrics"]["last"]["epoch"] == 4
  entry = tmp_path / "whole" / "store" / one["key"]
  final = checkpoint.load_variables(entry / "final")
  assert checkpoint.tree_digest(final) == networks[2] and len(set(networks.values())) == 5
  kept = eval_outputs.logits(eval_outputs.read(entry / "eval_outputs.npz"))["validation"]
  of_final = outputs_on(config, final, data.load("digits", validation=0.2).validation.image).logits
  np.testing.assert_allclose(kept, of_final, rtol=1e-4, atol=1e-4)
  assert not (entry / "best").exists()
  with monkeypatch.context() as patch, pytest.raises(Crash):
    crash_after(patch, 20)  # after the second epoch
    experiment.run(config, tmp_path / "crashed", cpu_devices=2)
  experiment.run(config, tmp_path / "crashed", cpu_devices=2)
  assert runs.left_by(tmp_path / "crashed") == runs.left_by(tmp_path / "whole")


def outputs_on(config, variables, image):
  """The outputs of the teacher of a config on images as stored, from its variables alone."""
  digits = data.load("digits", validation=config.data.validation)
  network = tiny.Small(num_classes=10, width=config.networks.teacher.width)
  return jax.jit(network.apply)(variables, normalize(image, digits.mean, digits.std))


def test_images_without_labels_parts_of_the_images_and_further_test_sets(tmp_path):
  of_data = {
    "source": "digits",
    "unlabeled": "fashion_mnist_small",
    "extra_tests": ("contrast:1", "contrast:5"),
  }
  config = runs.tiny(data=of_data)
  _, with_others, alone = config.stages
  with_others.update(max_images=512, unlabeled_batch_size=64, methods=config.stages[2].methods)
  alone.update(images="unlabeled", task_weight=0.0, epochs=1, max_images=1024)
  result = experiment.run(config, tmp_path, cpu_devices=2)
  teacher, with_others, alone = result["stages"]
  assert (with_others["steps"], alone["steps"]) == (512 // 128, 1024 // 128)
  assert with_others["forward_passes"]["teachers"] == 4 * (128 + 64)
  lines = read_metrics(tmp_path / "store" / alone["key"] / "metrics.jsonl")
  assert all(
    line["train/task"] == 0 and line["train/distill/kd"] > 0 for line in lines if "train/task" in line
  )
  final = checkpoint.load_variables(tmp_path / "store" / teacher["key"] / "final")
  test, accuracy = data.load("digits").test, {}
  for severity in (1, 5):
    image = corruptions.corrupt(test.image, "contrast", severity)
    logits = outputs_on(config, final, image).logits
    accuracy[f"contrast:{severity}"] = float(np.mean(np.argmax(logits, -1) == test.label))
  assert teacher["extra_tests"] == pytest.approx(accuracy, abs=1.5 / 359)  # an image may be on the border
  assert "contrast" in (tmp_path / "report.md").read_text()
  again = runs.tiny(data=of_data | {"extra_tests": ()})
  again.stages = config.stages
  keys = [
    s["key"]
    for s in experiment.run(again, tmp_path / "again", store=tmp_path / "store", cpu_devices=2)["stages"]
  ]
  assert keys == [s["key"] for s in result["stages"]]  # what is tested on trains nothing


def test_keys_know_the_images_without_labels_where_they_are_seen(finished):
  from smskd_jax import data
  from smskd_jax.engine import plan

  def keys(unlabeled, size):
    made = runs.tiny(data={"source": "digits", "unlabeled": unlabeled})
    made.stages[2].unlabeled_batch_size = size
    of_data = {"source": "digits", "unlabeled": unlabeled}
    return [p.key for p in plan.make_plans(resolve(made), data.load(**of_data))]

  known = [s["key"] for s in finished[1]["stages"]]
  assert keys("fashion_mnist_small", 0) == known
  some, others = keys("fashion_mnist_small", 32), keys("digits", 32)
  assert some[:2] == others[:2] == known[:2]
  assert len({some[2], others[2], known[2]}) == 3


def test_final_variables_reproduce_the_reported_accuracy(finished):
  workdir, result = finished
  digits = data.load("digits")
  logits = outputs_of(workdir, result["stages"][2], digits).logits
  accuracy = np.mean(np.argmax(logits, -1) == digits.test.label)
  np.testing.assert_allclose(
    accuracy, result["stages"][2]["metrics"]["last"]["test/accuracy"], atol=1.5 / 359
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data": {"source": "digit"}}, "unknown 'digit'; did you mean 'digits'"),
    (
      {"networks": {"teacher": network("resnet8", num_classes=5), "student": network("resnet8")}},
      "5, but the data has 10",
    ),
    ({"stages": (stage("student", batch_size=5000),)}, "only 1438 training images"),
    (
      {"stages": (stage("student", max_images=2),)},
      r"stages\[0\].max_images: 2 leaves class 0 without an image",
    ),
    ({"stages": (stage("student", max_images=5000),)}, r"max_images: 5000, but there are only 1438"),
    (
      {"data": {"source": "digits", "extra_tests": ("cifar10.1",), "folder": "/nowhere"}},
      "config.data.extra_tests: /nowhere/cifar10.1_v6_data.npy is missing",
    ),
    ({"stages": (stage("student", batch_size=63),)}, "63 images do not divide over 2 devices; .*: 62 or 64"),
    (
      {
        "stages": (
          stage("teacher", batch_size=64),
          stage(
            "student", batch_size=64, teachers=("teacher",), methods=(method("fitnet", student_layer=7),)
          ),
        )
      },
      r"config.stages\[1\]: fitnet: layer 7 does not exist",
    ),
  ],
)
def test_mistakes_are_found_before_anything_is_written(fields, message, tmp_path):
  with pytest.raises(UserError, match=message):
    experiment.run(runs.tiny(**fields), tmp_path / "new", cpu_devices=2)
  assert not (tmp_path / "new").exists()


def test_another_config_does_not_touch_the_workdir(finished):
  workdir, _ = finished
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
  with pytest.raises(UserError, match="belongs to another config: config.seed is 0 there and 1 here"):
    experiment.run(runs.tiny(seed=1), workdir, cpu_devices=2)
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_dry_run_writes_nothing(tmp_path, capsys):
  experiment.run(runs.tiny(), tmp_path / "new", cpu_devices=2, dry_run=True)
  told = capsys.readouterr().out
  assert not (tmp_path / "new").exists()
  assert "digits: 1,438 train, 359 test images" in told and '"temperature": 4.0' in told
  assert "to train: " in told and "estimated time: " in told and " on 2 x cpu" in told


def test_the_cost_of_training_counts_steps_evaluations_and_compilation(finished, tmp_path, monkeypatch):
  digits, devices = data.load("digits"), jax.devices()[:2]
  plans = make_plans(resolve(runs.tiny()), digits)
  monkeypatch.setattr(summary, "_time_forward", lambda network, shape: (0.5, 0.01))
  forward = [summary.introspection.forward_flops(plan.stage.student, digits.image_shape) for plan in plans]
  rate = 64 * forward[0] / 0.01  # the teacher is the largest
  evaluated = sum(f * 359 * (1 + epochs) for f, epochs in zip(forward, (2, 1, 2), strict=True))
  flops = sum(summary.step_flops(plan, digits) * plan.loop_config.num_steps for plan in plans) + evaluated
  seconds = console.format_duration(flops / rate + 3 * summary.COMPILE_FACTOR * 0.5)
  told = summary.estimate_cost(plans, digits, devices, tmp_path / "empty")
  assert told == f"to train: {console.format_si(flops)}FLOP; estimated time: {seconds} on 2 x cpu"
  assert "nothing" in summary.estimate_cost(plans, digits, devices, finished[0] / "store")
  monkeypatch.setattr(summary, "PEAKS", {"abacus": 100.0})
  hours = f"{flops / 10 / 3600:.2g}"
  told = summary.estimate_cost(plans, digits, devices, tmp_path / "empty")
  assert told.endswith(f"; at 10% of a chip's peak, estimated device-hours: {hours} of abacus")


def test_the_speed_of_stages_in_the_store_counts_all_their_seconds(finished, monkeypatch):
  workdir, result = finished
  digits, devices, store = data.load("digits"), jax.devices(), workdir / "store"
  plans = make_plans(resolve(runs.tiny()), digits)
  works = {plan.key: summary.stage_work(plan, digits) for plan in plans}
  speed = summary.stored_speed(works, store, devices[:2])
  assert sum(map(speed.seconds, works.values())) == pytest.approx(sum(s["seconds"] for s in result["stages"]))
  assert summary.stored_speed(works, store, devices[:1]) is None, "those were other devices"
  monkeypatch.setattr(summary.distributed, "process_count", lambda: 2)
  assert summary.timed_speed(plans, digits, devices[:2]) is None
  assert summary.format_estimate(None) == "estimated time: unknown until the first steps have run"


def test_the_seconds_of_a_stage_are_those_of_its_phases(finished):
  for one in finished[1]["stages"]:
    phases = one["seconds_by_phase"]
    assert set(phases) == {"prepare", "compile", "train", "evaluate", "save"} and min(phases.values()) > 0
    assert one["seconds"] == pytest.approx(sum(phases.values()))


def test_several_steps_as_one_program_are_the_same_steps(finished, tmp_path, monkeypatch):
  sent, shard_local_steps = [], parallel.shard_local_steps
  monkeypatch.setattr(
    parallel,
    "shard_local_steps",
    lambda trees, _: (sent.append(len(trees)), shard_local_steps(trees, _))[1],
  )
  config = runs.tiny(steps_per_call=3, checkpoint={"every_steps": 500})
  config.stages = config.stages[:2]
  together = experiment.run(config, tmp_path, cpu_devices=2)["stages"]
  for one, alone in zip(together, finished[1]["stages"], strict=False):
    assert one["key"] == alone["key"]
    lines, expected = (
      read_metrics(folder / "store" / one["key"] / "metrics.jsonl") for folder in (tmp_path, finished[0])
    )
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for a, b in zip(lines, expected, strict=True):
      if "train/loss" in a:
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-3)
  # An epoch has 11 steps, and metrics come after 3, 6, ...: one transfer for each three steps without a pause.
  assert sent == [3] * 9
