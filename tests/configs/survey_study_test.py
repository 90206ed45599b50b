"""Tests of configs/studies/survey.py: variants are the modes of configs/survey.py, and teachers are trained once."""

import functools
import json
from pathlib import Path

import pytest

import runs
from smskd_jax import data
from smskd_jax import study as study_program
from smskd_jax.config import resolve, study_schema
from smskd_jax.engine import summary
from smskd_jax.errors import UserError
from smskd_jax.recipes import survey
from smskd_jax.studies import stage_graph

SMALL = (
  "dataset=digits,image_size=16,padding=1,batch_size=128,epochs=1,pretrain_epochs=1,max_images=256,"
  "teacher=survey_resnet14,teachers=survey_resnet8,assistants=survey_resnet8"
)
CONFIG = "configs/studies/survey.py"


@functools.cache
def load(arg=""):
  return study_schema.resolve(runs.module(CONFIG).get_config(arg))


def trained_networks(experiment):
  return [stage["network"] for stage in experiment["stages"]]


def test_variants_have_the_student_stages_of_the_modes():
  config, study = runs.module("configs/survey.py"), load("unlabeled=digits,epochs=30")
  rows = runs.module(CONFIG).VARIANTS
  assert list(study["variants"]) == list(rows) and study["control"] == "nokd"
  assert {row["mode"] for row in rows.values()} == set(survey.MODES)
  for name, variant in study["variants"].items():
    fields = ",".join(f"{field}={value}" for field, value in rows[name].items())
    alone = resolve(config.get_config(f"unlabeled=digits,epochs=30,{fields}"))
    assert variant["stages"] == tuple(stage for stage in alone["stages"] if stage["network"] == "student")
    assert variant["data"] == alone["data"]
    assert set(variant["networks"]) == set(alone["networks"])


def test_teachers_are_trained_once_and_read_by_the_variants_that_need_them():
  study = load()
  chain = ["survey_resnet26", "survey_resnet20", "assistant_survey_resnet20"]
  assert trained_networks(study["teachers"]) == chain and "stl" not in study["variants"]
  assert [stage["max_images"] for stage in load("max_images=500")["teachers"]["stages"]] == [0, 0, 500]
  teachers = {
    name: {n for n in variant["networks"] if n != "student"} for name, variant in study["variants"].items()
  }
  assert teachers["nokd"] == teachers["uda_nokd"] == set() and teachers["kd"] == set(chain[:1])
  assert teachers["allkd"] == teachers["mkd_tcp"] == set(chain[:2]) and teachers["takd"] == {
    chain[0],
    chain[2],
  }
  for variant in study["variants"].values():
    assert {network["variables"] for n, network in variant["networks"].items() if n != "student"} <= {
      study_schema.FROM_STUDY
    }
    assert set(trained_networks(variant)) == {"student"}


def test_given_teachers_are_not_trained():
  study = load("modes=nokd+mkd+kd,teacher_variables=a+b")
  assert not study["teachers"]
  folders = {name: entry["variables"] for name, entry in study["variants"]["mkd"]["networks"].items()}
  assert folders == {"survey_resnet26": "a", "survey_resnet20": "b", "student": ""}
  with_takd = load("modes=takd,teacher_variables=a")
  assert trained_networks(with_takd["teachers"]) == ["assistant_survey_resnet20"]
  assert with_takd["teachers"]["networks"]["survey_resnet26"]["variables"] == "a"


def test_published_accuracies_are_quoted_for_the_setting_of_the_survey_only():
  assert load()["published"]["takd"] == 90.57 and "uda_nokd" not in load()["published"]
  assert load("epochs=350")["published"]["uda_nokd"] == 90.34
  assert load("modes=kd")["published"] == {"kd": 90.33} and load("modes=kd")["control"] == "kd"
  assert load("student=survey_resnet14")["published"] == load("dataset=cifar100")["published"] == {}


def test_each_shared_stage_is_trained_once(tmp_path):
  """Three teachers and assistants, a student for each of nokd, kd, takd and mkd, and one per teacher of allkd."""
  study = load(f"{SMALL},modes=nokd+kd+takd+mkd+allkd,seeds=0,validation=0.1")
  nodes = stage_graph.build_graph(study, functools.cache(data.load), tmp_path, {})
  assert len(nodes) == 3 + 4 + 1
  # With a validation set for both, kd is the first of allkd.
  assert ("kd", "allkd") in {node.used_by for node in nodes.values()}
  asked = 1 + (1 + 1) + (2 + 1) + (2 + 1) + (2 + 2)
  words = f"8 stages to train once each, which the variants would call for {asked} times"
  assert words in stage_graph.describe(nodes, study, None)


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("modes=kd+ude", "config argument modes: unknown 'ude'; did you mean 'uda'"),
    ("modes=stl", "unlabeled: mode=stl needs a source"),
    ("mode=kd", "unknown 'mode'; did you mean 'modes'"),
    ("seeds=0+x", r"seeds: '0\+x' are not whole numbers"),
    ("teacher_variables=a", "teacher_variables: 1 for the teachers survey_resnet26, survey_resnet20"),
  ],
)
def test_a_mistake_in_the_arguments_is_refused(arg, message):
  with pytest.raises(UserError, match=message):
    load(arg)


def test_a_dry_run_prints_the_stages_and_writes_nothing(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(summary, "timed_speed", lambda *arguments: None)
  flags = [f"--config={CONFIG}:{SMALL},modes=nokd+kd,seeds=0", f"--workdir={tmp_path / 'new'}"]
  assert study_program.main([*flags, "--dry_run", "--cpu_devices=1"]) == 0
  assert "3 stages to train once each" in capsys.readouterr().out
  assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_study_of_two_modes_trains_from_the_command_line(tmp_path):
  numbers = runs.study(tmp_path, f"{CONFIG}:{SMALL},modes=nokd+takd,seeds=0")
  assert set(numbers["variants"]) == {"nokd", "takd"} and not numbers["failures"]
  given = json.loads((tmp_path / "takd" / "seed0" / "result.json").read_text())["pretrained"]
  trained = json.loads((tmp_path / "teachers" / "result.json").read_text())["stages"]
  read = {one["network"]: Path(one["source"]).parent.name for one in given}
  assert read == {one["network"]: one["key"] for one in trained}
  assert "Compared with `nokd`" in (tmp_path / "report.md").read_text()
