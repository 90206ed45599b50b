"""Bad options, bad pairs of networks and bad shapes are refused in one line, for every method and plug-in."""

import inspect
import math

import jax
import numpy as np
import pytest

from method_examples import TRAITS, init_variables, make_example
from smskd_jax import losses
from smskd_jax.losses import METHODS, PLUGINS

FACTORIES = {**METHODS, **PLUGINS}
DEFAULTS = {
  name: {
    option: parameter.default
    for option, parameter in inspect.signature(factory).parameters.items()
    if parameter.default is not inspect.Parameter.empty
  }
  for name, factory in FACTORIES.items()
}
# Values that no option with a default of this type accepts.
BAD_VALUES = {
  float: (-1.0, math.nan, math.inf, "1", True, None),
  int: (1.5, "1", True, None),
  bool: (1, "no", None),
  str: ("other", "", None),
  tuple: (1, [1, 2], ("1",), None),
}
OPTIONS = [(name, option) for name, defaults in DEFAULTS.items() for option in defaults]


def make(name, **options):
  """The method, or the plug-in around plain KD, or around AT."""
  return FACTORIES[name](*[METHODS["at" if name == "sakd" else "kd"]()] * (name in PLUGINS), **options)


@pytest.mark.parametrize("name, option", OPTIONS)
def test_values_of_another_type_or_range_are_refused(name, option):
  for value in BAD_VALUES[type(DEFAULTS[name][option])]:
    with pytest.raises(ValueError, match=rf"^{name}: {option} must be .*, got ") as error:
      make(name, **{option: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "name, options, message",
  [
    *(
      (name, {option: 0.0}, f"{option} must be a positive number, got 0.0")
      for name, option in (
        ("ab", "margin"),
        ("afd", "eps"),
        ("afd", "hidden_ratio"),
        ("crd", "temperature"),
        ("crd_infonce", "temperature"),
        ("ctkd", "curriculum_epochs"),
        ("ctkd", "start"),
        ("dist", "temperature"),
        ("dkd", "temperature"),
        ("dml", "temperature"),
        ("ft", "rate"),
        ("ft", "reconstruction_weight"),
        ("gdkd", "temperature"),
        ("itrd", "alpha"),
        ("kd", "temperature"),
        ("ldrld", "temperature"),
        ("nkd", "temperature"),
        ("ofa", "temperature"),
        ("pkt", "eps"),
        ("pld", "temperature"),
        ("rld", "alpha_temperature"),
        ("rld", "temperature"),
        ("sdd", "temperature"),
        ("sakd", "gamma"),
        ("sakd", "policy_weight"),
        ("sakd", "tau"),
        ("sakd", "temperature"),
        ("simkd", "factor"),
        ("skd", "temperature"),
        ("skd", "tikhonov"),
        ("srd", "eps"),
        ("tfkd", "temperature"),
        ("ttm", "gamma"),
        ("uda", "temperature"),
        ("vid", "eps"),
        ("vid", "init_variance"),
        ("wkd_feature", "eps"),
        ("wkd_logit", "regularization"),
        ("wkd_logit", "sharpen"),
        ("wkd_logit", "temperature"),
        ("wsld", "temperature"),
        ("wttm", "gamma"),
      )
    ),
    *(
      (name, {option: 0}, f"{option} must be a positive integer, got 0")
      for name, option in (
        ("at", "p"),
        ("catkd", "size"),
        ("cc", "dimension"),
        ("crd", "dimension"),
        ("crd", "num_negatives"),
        ("crd_infonce", "dimension"),
        ("ft", "p1"),
        ("ft", "p2"),
        ("gdkd", "k"),
        ("kdsvd", "k"),
        ("ldrld", "k"),
        ("wkd_feature", "grid"),
        ("wkd_logit", "iterations"),
      )
    ),
    *(
      (name, {option: 1.1}, f"{option} must be a number from 0 to 1, got 1.1")
      for name, option in (
        ("crd", "momentum"),
        ("mgd", "mask_ratio"),
        ("tfkd", "correct"),
        ("uda", "threshold"),
      )
    ),
    ("logit_standardization", {"ddof": -1}, "ddof must be an integer >= 0, got -1"),
    ("mlkd", {"temperatures": ()}, "temperatures must be a .*positive numbers.*, got ()"),
    ("mlkd", {"temperatures": (2.0, 0.0)}, "temperatures must be a .*positive number.*, got "),
    ("ofa", {"gamma": 0.9}, "gamma must be a number >= 1, got 0.9"),
    ("srd", {"exponent": 0.5}, "exponent must be a number >= 1, got 0.5"),
    ("reviewkd", {"levels": (0,)}, "levels must be a positive integer, got 0"),
    ("sdd", {"scales": ()}, "scales must be a tuple of positive integers that begins with 1, got ()"),
    ("sdd", {"scales": (2, 4)}, "scales must be a tuple of .* that begins with 1, got .2, 4"),
    ("sdd", {"scales": (1, 0)}, "scales must be a tuple of positive integers .*, got .1, 0"),
    ("sakd", {"gamma": 0.5}, "gamma must be a number >= 1, got 0.5"),
    ("vid", {"init_variance": 1e-6}, "init_variance must be above eps = 1e-05, got 1e-06"),
    (
      "wkd_feature",
      {"decay_start_epoch": 9.0},
      "decay_end_epoch must be above decay_start_epoch = 9.0, got 0.0",
    ),
    (
      "wkd_logit",
      {"cost_matrix": ((0.0, 1.0),)},
      "cost_matrix must be a square matrix of finite numbers, got ",
    ),
    (
      "wkd_logit",
      {"decay_start_epoch": 9.0, "decay_end_epoch": 3.0},
      "decay_end_epoch must be above decay_start_epoch = 9.0, got 3.0",
    ),
    ("multi_teacher", {"weights": (1.0, -1.0)}, "weights must be a number >= 0, got -1.0"),
    ("multi_teacher", {"weights": (0.0, 0)}, "weights must not all be zero"),
    ("multi_teacher", {"weights": (1.0,), "weighting": "tcp"}, "weights and weighting='tcp' contradict"),
  ],
)
def test_values_out_of_range_are_refused(name, options, message):
  with pytest.raises(ValueError, match=f"^{name}: {message}"):
    make(name, **options)


@pytest.mark.parametrize("name", [name for name in METHODS if "student_layers" in DEFAULTS[name]])
def test_layers_of_both_networks_are_equally_many_and_exist(name):
  student, teachers, _ = make_example(name)
  with pytest.raises(ValueError, match=f"{name}: student_layers and teacher_layers must have one length"):
    METHODS[name](student_layers=(0, 1, 2), teacher_layers=(0, 1))
  for layers, message in (
    (((0, 3), (0, 1)), "layer 3 does not exist, the student has 3 feature maps"),
    (((0, 1), (-5, 1)), "layer -5 does not exist, the teacher has 4 feature maps"),
  ):
    method = METHODS[name](student_layers=layers[0], teacher_layers=layers[1])
    with pytest.raises(ValueError, match=f"{name}: {message}"):
      method.init(jax.random.key(0), student, teachers, None)


@pytest.mark.parametrize("name", [name for name in METHODS if "student_layer" in DEFAULTS[name]])
def test_a_layer_exists(name):
  student, teachers, _ = make_example(name)
  for layers, message in (
    ({"student_layer": 3}, r"layer 3 does not exist, the student has 3 feature maps \(0 to 2\)"),
    ({"teacher_layer": 4}, r"layer 4 does not exist, the teacher has 4 feature maps \(0 to 3\)"),
    ({"teacher_layer": -5}, r"layer -5 does not exist, the teacher has 4 feature maps"),
  ):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
      METHODS[name](**layers).init(jax.random.key(0), student, teachers, None)


@pytest.mark.parametrize(
  "name", [name for name in METHODS if "logits" in TRAITS[name].reads & TRAITS[name].student_reads]
)
def test_networks_of_different_classes_are_refused(name):
  student, (teacher,), _ = make_example(name)
  teacher = teacher._replace(logits=np.zeros((len(teacher.logits), 7)))
  with pytest.raises(ValueError, match=f"{name}: the student has 5 classes, the teacher 7"):
    TRAITS[name].init(jax.random.key(0), student, (teacher,), None)


@pytest.mark.parametrize("name", [name for name in METHODS if TRAITS[name].needs_teacher])
def test_any_other_number_of_teachers_is_refused(name):
  student, (teacher,), _ = make_example(name)
  for teachers in ((), (teacher, teacher)):
    with pytest.raises(ValueError, match=f"{name}: needs exactly one teacher, got {len(teachers)}"):
      init_variables(name, student, teachers)


LOGITS, EMBEDDING, MAP = (4, 5), (5, 4), (2, 3, 3, 2)
SHAPES = [  # methods, shapes of the first arguments, and bad shapes of the last ones
  (
    ("kd", "hard_label", "logits_mse", "logits_cosine", "uda", "dist", "ttm", "gdkd", "ldrld", "skd"),
    (LOGITS,),
    ((4, 6), (3, 5), (5,)),
  ),
  (("dkd", "nkd", "wsld", "rld", "pld", "ofa"), (LOGITS, LOGITS), ((3,), (4, 1))),
  (("sdd",), ((4, 2, 5),), ((4, 2, 6), (4, 3, 5), (4, 5))),
  (("cc", "srd"), (EMBEDDING,), ((5, 3), (4, 4), (5,))),
  (("pkt", "rkd"), (EMBEDDING,), ((4, 4), (5,), (5, 2, 2))),
  (("srrl",), (EMBEDDING,), (((5, 3), (4, 5)), ((3, 4), (4, 5)), ((5,), (4, 5)))),
  (("crd_infonce",), ((6, 4),), (((6, 3), (6,)), ((5, 4), (6,)), ((6, 4), (6, 1)))),
  (("wkd_feature",), (MAP,), ((2, 3, 3, 4), (2, 3, 2), (1, 3, 3, 2))),
  (("wkd_logit",), (LOGITS, LOGITS), (((4,), (4, 4)), ((3,), (5, 5)), ((4, 1), (5, 5)))),
  (("nd",), (EMBEDDING, EMBEDDING), (((5,), (3, 3)), ((4,), (3, 4)), ((5,), (4,)))),
  (("fitnet", "ickd", "mgd", "simkd"), (MAP,), ((2, 3, 3, 4), (2, 3, 2), (1, 3, 3, 2))),
  (("afd",), (MAP,), (((2, 3, 3, 4), (2, 4)), (MAP, (2, 3)), (MAP, (2,)))),
  (("pkd", "ab"), ([MAP],), ([(2, 3, 3, 4)], [(2, 3, 6)], [(1, 3, 3, 2)])),
  (("sfd",), ([MAP],), ([(2, 3, 3, 4)], [(1, 3, 3, 2)], [(2, 2)])),
  (("sp",), ([(4, 2, 2, 1)],), ([(3, 2, 2, 1)], [(4, 2)])),
  (("fsp",), ([(2, 4, 4, 3), (2, 4, 4, 4)],), ([(2, 4, 4, 3), (2, 4, 4, 6)],)),
]


def is_shape(x):
  return isinstance(x, tuple) and all(isinstance(n, int) for n in x)


@pytest.mark.parametrize(
  "name, good, bad", [(name, good, bad) for names, good, bads in SHAPES for name in names for bad in bads]
)
def test_arrays_of_other_shapes_are_refused(name, good, bad):
  last = (bad,) if is_shape(bad) or isinstance(bad, list) else bad
  arrays = jax.tree.map(
    lambda x: np.zeros(x, np.int32 if len(x) == 1 else np.float32), (*good, *last), is_leaf=is_shape
  )
  with pytest.raises(AssertionError):
    getattr(losses, name).loss(*arrays)
