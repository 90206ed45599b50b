"""Tests of a user's own method in a config, and of the errors where it will not do; see custom.py."""

import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from smskd_jax import data, losses
from smskd_jax.config import merge, method, network, plugin, resolve, schema, stage
from smskd_jax.engine import experiment, plan
from smskd_jax.errors import UserError
from smskd_jax.losses import METHODS
import tiny

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
(EXAMPLE,) = re.findall(r"^```python\n((?:(?!^```).)*stateless.*?)^```", README, re.MULTILINE | re.DOTALL)
(USE,) = re.findall(r"^is `(method\(\"custom:.*?\))` in a config", README, re.MULTILINE)
MINE = """
import jax.numpy as jnp
from smskd_jax.losses import make, stateless
from smskd_jax.types import MethodVariables

per_example = lambda student, teachers, context: jnp.mean((student.logits - teachers[0].logits) ** 2, axis=-1)


def method(*, power: float = 2.0):
  if power <= 0:
    raise ValueError(f"power must be positive, got {power}")
  return stateless(lambda *inputs: per_example(*inputs) ** power, reads=("logits",))


def remembers(*, size: int = 3):
  def apply(params, state, student, teachers, context):
    return params["scale"] * per_example(student, teachers, context), state + 1

  init = lambda *_: MethodVariables({"scale": jnp.ones(())}, jnp.zeros(size))
  return make(init, apply, reads=("logits",), learns="a scale")


def number(): return 3
def fails(): raise KeyError("lost\\n\\nand found")
def typo(): return stateless(per_example, reads=("logit",))
def no_default(*, power): return method(power=power)
def weighted(*, weight=1.0): return method()
def many(**options): return method()
def scalar(): return stateless(lambda *inputs: per_example(*inputs).mean(), reads=("logits",))
def by_class(): return stateless(lambda student, *_: jnp.mean(student.logits, axis=0), reads=("logits",))
def integers(): return stateless(lambda student, *_: jnp.argmax(student.logits, axis=1), reads=("logits",))
def nothing(): return stateless(lambda *_: None, reads=("logits",))
def broken(): return stateless(lambda student, *_: student.logit, reads=("logits",))
def no_aux(): return make(lambda *_: 3, per_example, reads=("logits",))
def no_state(): return make(lambda *_: MethodVariables(), lambda params, state, *inputs: per_example(*inputs), reads=())
def grows():
  apply = lambda params, state, *inputs: (per_example(*inputs), 1.0)
  return make(lambda *_: MethodVariables(), apply, reads=())
def undeclared(): return stateless(lambda student, teachers, _: teachers[0].features[0].mean((1, 2, 3)), reads=())
"""


@pytest.fixture(autouse=True)
def my_methods(tmp_path, monkeypatch):
  (tmp_path / "mine.py").write_text(MINE)
  (tmp_path / "my_methods.py").write_text(EXAMPLE)
  (tmp_path / "broken_methods.py").write_text("undefined_there\n")
  monkeypatch.syspath_prepend(tmp_path)
  yield
  for name in ("mine", "my_methods", "broken_methods"):
    sys.modules.pop(name, None)


def config(*methods, **fields):
  common = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}, "epochs": 1}
  taught = stage("student", teachers=("teacher",), methods=methods, **common | fields)
  networks = {"teacher": network(tiny.SMALL), "student": network(tiny.SMALL)}
  return runs.tiny(networks=networks, stages=(stage("teacher", **common), taught))


def plans(config):
  resolved = resolve(config)
  return plan.make_plans(resolved, data.load(**merge.drop_keys(resolved["data"], "extra_tests")))


def test_the_example_of_the_readme_trains_as_it_stands_there(tmp_path):
  assert len([line for line in EXAMPLE.splitlines() if line]) <= 10
  term = eval(USE, {"method": method})
  result = experiment.run(config(term), tmp_path / "run", cpu_devices=2)
  _, taught = result["stages"]
  assert taught["name"] == "student_total_variation"
  assert taught["methods"] == ["custom:my_methods:total_variation"]
  lines = (tmp_path / "run" / "store" / taught["key"] / "metrics.jsonl").read_text().splitlines()
  losses = [
    line["train/distill/total_variation"]
    for line in map(json.loads, lines)
    if "train/distill/total_variation" in line
  ]
  assert losses and all(0 < loss < 1 for loss in losses)


def test_one_that_learns_and_remembers_trains_beside_another_and_inside_a_plug_in():
  terms = (
    method("custom:mine:remembers", plugins=(plugin("logit_standardization"),)),
    method("kd"),
    method("custom:mine:method", power=1.0),
  )
  _, taught = plans(config(*terms))
  assert [term.name for term in taught.stage.terms] == ["remembers", "kd", "mine"]
  assert taught.name == "student_remembers+kd+mine"


def test_the_terms_of_one_name_are_numbered():
  _, taught = plans(config(method("custom:mine:method"), method("custom:mine:method", power=1.0)))
  assert [term.name for term in taught.stage.terms] == ["mine", "mine_2"]


def test_the_loss_is_that_of_the_file():
  entry = resolve(config(method("custom:mine:method", power=1.0)))["stages"][1]["methods"][0]
  from smskd_jax.losses import Context
  from smskd_jax.types import Outputs

  student, teacher = (Outputs(jnp.full((2, 3), x), None, (), ()) for x in (1.0, 3.0))
  loss, _ = losses.build_method(entry).apply((), (), student, (teacher,), Context(None))
  np.testing.assert_array_equal(loss, [4.0, 4.0])
  gradient = jax.grad(
    lambda t: losses.build_method(entry).apply((), (), student, (t,), Context(None))[0].sum()
  )
  assert not np.any(gradient(teacher).logits)


def test_the_code_belongs_to_the_key_of_its_stage_and_no_other(tmp_path):
  terms = method("custom:mine:method")
  before, again = (plans(config(terms)) for _ in range(2))
  (tmp_path / "mine.py").write_text(MINE.replace("axis=-1)", "axis=1)"))
  after = plans(config(terms))
  assert [one.key for one in before] == [one.key for one in again]
  assert before[0].key == after[0].key and before[1].key != after[1].key
  assert "method_code" not in plans(config(method("kd")))[1].description


@pytest.mark.parametrize(
  "name, options, message",
  [
    ("custom:mine", {}, "name: 'custom:mine' is not of the form custom:package.module:name"),
    ("custom:no_methods:method", {}, "name: .* cannot import no_methods: No module named"),
    ("custom:broken_methods:method", {}, "name: .* cannot import broken_methods: NameError: .*methods.py:1"),
    ("custom:mine:methd", {}, "name: .* mine has no class or function methd"),
    ("custom:mine:no_default", {}, "name: .*'power' has no default; give it one"),
    ("custom:mine:weighted", {}, "name: .*'weight' is a field of every such entry; rename the option"),
    ("custom:mine:many", {}, "name: .*options is not an argument with a name"),
    ("custom:mine:method", {"powr": 1.0}, "unknown 'powr'; did you mean 'power'"),
    ("custom:mine:method", {"power": "two"}, "power: 'two' is not of type float"),
  ],
)
def test_what_is_no_factory_is_refused_where_it_is_written(name, options, message):
  with pytest.raises(UserError, match=message) as error:
    method(name, **options)
  assert "\n" not in str(error.value) and str(error.value).startswith("method")


@pytest.mark.parametrize(
  "name, options, message",
  [
    ("method", {"power": -1.0}, "custom:mine:method: power must be positive, got -1.0"),
    ("number", {}, "custom:mine:number: returns a int, not a smskd_jax.losses.contract.Method"),
    ("fails", {}, r"custom:mine:fails: KeyError: .*mine.py:\d+\)"),
    ("typo", {}, "custom:mine:typo: reads: unknown 'logit'; the outputs of a network are logits, "),
    (
      "scalar",
      {},
      r"custom:mine:scalar: the loss of 11 images is \[\], not one number per image, \[b\] = \[11\]",
    ),
    ("by_class", {}, r"custom:mine:by_class: the loss of 11 images is \[10\], not"),
    ("integers", {}, "custom:mine:integers: the loss is of type int32, not of floats"),
    ("nothing", {}, "custom:mine:nothing: the loss of 11 images is NoneType, not"),
    (
      "broken",
      {},
      r"custom:mine:broken: AttributeError: 'Outputs' object has no attribute 'logit' .*mine.py:\d+",
    ),
    ("no_aux", {}, "custom:mine:no_aux: init does not return smskd_jax.types.MethodVariables"),
    ("no_state", {}, "custom:mine:no_state: apply does not return a pair of the loss"),
    ("grows", {}, "custom:mine:grows: apply returns a state whose shapes differ"),
  ],
)
def test_what_is_no_method_is_refused_before_anything_is_trained(name, options, message):
  with pytest.raises(UserError, match=message) as error:
    plans(config(method(f"custom:mine:{name}", **options)))
  assert "\n" not in str(error.value) and str(error.value).startswith("config.stages[1].methods[0]: ")


def test_an_output_that_the_teacher_cache_does_not_store_is_refused():
  plans(config(method("custom:mine:undeclared")))
  with pytest.raises(UserError, match=r"methods\[0\]: custom:mine:undeclared: IndexError: .*mine.py:\d+"):
    plans(config(method("custom:mine:undeclared"), teacher_cache="float32"))


def test_the_fields_of_an_entry_are_those_of_the_config():
  assert set(losses.METHOD_FIELDS) == set(schema.METHOD)
  assert set(losses.PLUGIN_FIELDS) == set(schema.PLUGIN)


def test_names_in_metrics():
  assert losses.metric_name("kd") == "kd"
  assert losses.metric_name("custom:my.papers.sad:method") == "sad"
  assert losses.metric_name("custom:my_methods:total_variation") == "total_variation"
  assert losses.factory("kd") is METHODS["kd"]
