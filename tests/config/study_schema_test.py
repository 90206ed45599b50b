"""Tests of config/study_schema.py and of the configs of studies."""

import re

import pytest

import runs
from smskd_jax.analysis.records import variant_controls
from smskd_jax.config import experiment, network, stage
from smskd_jax.config import study_schema as studies
from smskd_jax.errors import UserError


def base(**fields):
  return experiment(networks={"student": network("resnet8")}, stages=(stage("student"),), **fields)


def load(name, arg=""):
  module = runs.module(f"configs/studies/{name}.py")
  return studies.resolve(module.get_config(arg) if name != "smoke" else module.get_config())


def test_changes_leave_the_base_alone():
  first = base()
  changes = {"stages[0].epochs": 7, "data.source": "digits", "stages[0].schedule": {"name": "step"}}
  second = studies.with_changes(first, changes)
  assert (second.stages[0].epochs, second.data.source) == (7, "digits")
  assert second.stages[0].schedule.to_dict() == {"name": "step"}
  assert (first.stages[0].epochs, first.data.source) == (1, "fashion_mnist_small")


@pytest.mark.parametrize(
  "path, message",
  [
    ("stages[1].epochs", "there is no config.stages[1]; config.stages has 1, counted from 0"),
    ("stages[0].epoch", "config.stages[0] has no field 'epoch'; did you mean 'epochs'?"),
    ("stage", "config has no field 'stage'; did you mean 'stages'?"),
    ("stages.first", "config.stages is a tuple of 1; name one of its items, as config.stages[0]"),
    ("stages[0]", "config.stages[0] cannot be replaced as a whole"),
    ("stages[0", "'stages[0' is no path of a field; write it as stages[0].epochs"),
  ],
)
def test_changes_of_fields_that_are_not_there_are_refused(path, message):
  with pytest.raises(UserError, match=re.escape(f"changes: {path!r}: {message}")):
    studies.with_changes(base(), {path: 1})


def test_variants_keep_their_order_and_may_have_dots():
  names = ["weight_0.5", "b", "a"]
  resolved = studies.resolve(studies.study(variants={name: base() for name in names}))
  assert list(resolved["variants"]) == names and resolved["control"] == "weight_0.5"


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"variants": {}}, "study.variants: there are none"),
    ({"seeds": ()}, "study.seeds: there are none"),
    ({"seeds": (1, 1)}, "names a seed twice"),
    ({"seeds": ("1",)}, "study.seeds: '1' is not of type int"),
    ({"control": "alon"}, "study.control: unknown 'alon'; did you mean 'alone'"),
    ({"controls": {"alon": "alone"}}, "study.controls: unknown 'alon'; did you mean 'alone'"),
    ({"controls": {"alone": "alon"}}, "study.controls: unknown 'alon'; did you mean 'alone'"),
    ({"published": {"x": 1.0}}, "study.published: unknown 'x'"),
    ({"network": "teacher"}, "study.variants.alone: study.network: unknown 'teacher'"),
    ({"variants": {"a/b": base()}}, "'a/b' is not a name of letters"),
    ({"variants": {"alone": base(seed=-1)}}, "study.variants.alone: config.seed: -1 is too small"),
    ({"sedes": (1,)}, "study: unknown 'sedes'; did you mean 'seeds'"),
  ],
)
def test_a_mistake_names_the_variant_and_the_field(fields, message):
  with pytest.raises(UserError, match=message):
    studies.resolve(studies.study(**{"variants": {"alone": base()}} | fields))


def test_networks_of_the_teachers_are_given_to_the_variants():
  teachers = experiment(networks={"teacher": network("resnet8")}, stages=(stage("teacher"),))
  taught = experiment(
    networks={"teacher": network("resnet8"), "student": network("resnet8")},
    stages=(stage("student", teachers=("teacher",)),),
  )
  resolved = studies.resolve(studies.study(variants={"kd": taught}, teachers=teachers))
  of_run = studies.seed_config(resolved["variants"]["kd"], 5, "/here")
  assert of_run["seed"] == 5
  assert {name: entry["variables"] for name, entry in of_run["networks"].items()} == {
    "teacher": "/here",
    "student": "",
  }


def test_a_variant_may_have_a_control_of_its_own():
  variants = {name: base() for name in ("a", "b", "c", "d")}
  assert variant_controls(studies.resolve(studies.study(variants=variants))) == {"b": "a", "c": "a", "d": "a"}
  resolved = studies.resolve(studies.study(variants=variants, controls={"c": "c", "d": "c"}))
  assert variant_controls(resolved) == {"b": "a", "d": "c"}


@pytest.mark.parametrize(
  ("claims", "message"),
  [
    ((("alone", "other", "+1.0"),), "study.claims: unknown 'other'"),
    ((("alone", "alone", "much"),), "study.claims: 'much' is neither a difference"),
  ],
)
def test_claims_of_no_variant_or_without_a_sign_are_refused(claims, message):
  with pytest.raises(UserError, match=message):
    studies.resolve(studies.study(variants={"alone": base()}, claims=claims))
