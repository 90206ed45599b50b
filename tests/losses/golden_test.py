"""The losses against public implementations: value and every gradient, in float64."""

import functools
import importlib
import json

import jax
import numpy as np
import pytest

import golden
from smskd_jax.losses import METHODS

# Of what public code computes in float32 along the way, and of singular vectors.
TOLERANCES = {"kdsvd": 1e-5, "ofd": 1e-5}


def module(name):
  return importlib.import_module(f"smskd_jax.losses.{name}")


def kd_logit_standardization(student_logits, teacher_logits, *, temperature, standardize, ddof, eps):
  assert standardize

  def z_score(z):
    return module("logit_standardization").standardize(z, ddof=ddof, eps=eps)

  return module("kd").loss(z_score(student_logits), z_score(teacher_logits), temperature=temperature)


def crd(*, positive_index, negative_index, num_negatives, momentum, num_examples, **inputs):
  """The loss; the updated banks are checked in their own test."""
  assert negative_index.shape[1] == num_negatives and inputs["memory_student"].shape[0] == num_examples
  return module("crd").loss(positive_index=positive_index, negative_index=negative_index, **inputs)


def ofd(*, bn_scale, bn_bias, **inputs):
  """The loss with given margins; the margins are checked in their own test."""
  del bn_scale, bn_bias
  return module("ofd").loss(**inputs)


def rld_logit_standardization(student_logits, teacher_logits, labels, **hparams):
  standardize = module("logit_standardization").standardize
  return module("rld").loss(standardize(student_logits), standardize(teacher_logits), labels, **hparams)


def sdd(inner, **inputs):
  return module("sdd").loss(inner=inner, public_code=True, **inputs)


def sdd_maps(*, labels, scales, **inputs):
  """The regions of both last maps, and the loss with dkd inside."""
  arrays = {
    who: [inputs.pop(f"{who}_{x}") for x in ("feature", "kernel", "bias")] for who in ("student", "teacher")
  }
  logits = {
    f"{who}_logits": module("sdd").region_logits(*arrays[who], scales=scales, public_code=True)
    for who in arrays
  }
  return sdd("dkd", labels=labels, **logits, **inputs)


def vid(student_feature, teacher_feature, *, log_scale, init_pred_var, eps, **regressors):
  del init_pred_var  # where log_scale comes from
  mean = student_feature
  for i in range(len(regressors)):
    mean = (mean if i == 0 else jax.nn.relu(mean)) @ regressors[f"regressor_{i}"]
  return module("vid").loss(mean, teacher_feature, log_scale, eps=eps)


# What the cases call a method, where it is not the module whose `loss` computes it.
LOSSES = {
  "crd": crd,
  "itrd_correlation": lambda **inputs: module("itrd").correlation_loss(**inputs),
  "itrd_mutual": lambda **inputs: module("itrd").mutual_loss(**inputs),
  "kd_logit_standardization": kd_logit_standardization,
  "mlkd_batch": lambda **inputs: module("mlkd").batch_loss(**inputs),
  "mlkd_class": lambda **inputs: module("mlkd").class_loss(**inputs),
  "multi_teacher_kd": lambda student_logits, teacher_logits, **hparams: module("multi_teacher").weighted_mean(
    [module("kd").loss(student_logits, teacher, **hparams) for teacher in teacher_logits]
  ),
  "nd": lambda **inputs: module("nd").loss(**inputs),
  "ofa": lambda *, eps, **inputs: module("ofa").loss(gamma=eps, modulate_all_classes=True, **inputs),
  "ofd": ofd,
  "reviewkd_hcl": lambda **inputs: module("reviewkd").loss(**inputs),
  "rld_logit_standardization": rld_logit_standardization,
  "sdd_dkd": functools.partial(sdd, "dkd"),
  "sdd_kd": functools.partial(sdd, "kd"),
  "sdd_maps": sdd_maps,
  "sdd_nkd": functools.partial(sdd, "nkd"),
  "skd": lambda **inputs: module("skd").loss(public_code=True, **inputs),
  "skd_direction": lambda **inputs: module("skd").direction_loss(**inputs),
  "skd_torchdistill": lambda **inputs: module("skd").loss(**inputs),
  "srd_normalized": lambda student_embedding, teacher_embedding, **hparams: module("srd").log_sum(
    student_embedding, teacher_embedding, **hparams
  ),
  "vid": vid,
  "wkd_transport": lambda **inputs: module("wkd_logit").wkd_transport(**inputs),
}

CASES = golden.params(
  (case["file"], case)
  for index in ("index.json", "index_2024.json")
  for case in golden.index("losses", index).get("cases", [])
)


def collect(arrays, prefix):
  """{name: array, or tuple of the arrays name.0, name.1, ...} of the keys that start with the prefix."""
  found = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
  names = dict.fromkeys(key.partition(".")[0] for key in found)

  def count(name):
    return sum(key.startswith(f"{name}.") for key in found)

  return {
    name: found[name] if name in found else tuple(found[f"{name}.{i}"] for i in range(count(name)))
    for name in names
  }


def case_of(case):
  """(inputs, gradients, hyper-parameters, all arrays) of a case."""
  arrays = golden.load("losses", case["file"])
  return collect(arrays, "in."), collect(arrays, "grad."), json.loads(str(arrays["hparams"])), arrays


@pytest.mark.parametrize("case", CASES)
def test_equals_public_implementation(case):
  method, tolerance = case["method"], TOLERANCES.get(case["method"], 1e-6)
  assert method in LOSSES or method in METHODS, f"no loss for {method}"
  inputs, gradients, hparams, arrays = case_of(case)
  hparams = {name: tuple(x) if isinstance(x, list) else x for name, x in hparams.items()}
  fixed = {name: value for name, value in inputs.items() if name not in gradients}
  loss = LOSSES[method] if method in LOSSES else module(method).loss

  def mean_loss(differentiated):
    return loss(**differentiated, **fixed, **hparams).mean()

  with jax.enable_x64(True):
    value, gradient = jax.jit(jax.value_and_grad(mean_loss))({name: inputs[name] for name in gradients})
    value, gradient = jax.tree.map(np.asarray, (value, gradient))
  np.testing.assert_allclose(value, arrays["loss"], rtol=tolerance)
  assert jax.tree.structure(gradient) == jax.tree.structure(gradients)
  for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradients), strict=True):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("case", CASES)
def test_equals_public_implementation_in_float32(case):
  if case["method"] == "kdsvd":
    pytest.skip("kdsvd's singular vectors are compared in float64 alone")
  inputs, _, hparams, arrays = case_of(case)
  hparams = {name: tuple(x) if isinstance(x, list) else x for name, x in hparams.items()}
  single = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, inputs)
  loss = LOSSES[case["method"]] if case["method"] in LOSSES else module(case["method"]).loss
  value = jax.jit(lambda inputs: loss(**inputs, **hparams).mean())(single)
  np.testing.assert_allclose(value, arrays["loss"], rtol=1e-4)


def cases_of(method):
  return [c for c in CASES if c.values[0] is None or c.values[0]["method"] == method]


@pytest.mark.parametrize("case", cases_of("ofd"))
def test_margins(case):
  inputs, *_ = case_of(case)
  with jax.enable_x64(True):
    margin = module("ofd").margin(inputs["bn_scale"], inputs["bn_bias"])
  np.testing.assert_allclose(margin, inputs["margin"], rtol=1e-5)


def has_class_outputs(case):
  return case is None or "aux.class_outputs" in golden.load("losses", case["file"])


@pytest.mark.parametrize("case", [c for c in cases_of("wkd_logit") if has_class_outputs(c.values[0])])
def test_cost_of_classes(case):
  inputs, _, _, arrays = case_of(case)
  with jax.enable_x64(True):
    wkd = module("wkd_logit")
    cost = wkd.class_cost(wkd.class_cka(arrays["aux.class_outputs"]), sharpen=float(arrays["aux.sharpen"]))
  np.testing.assert_allclose(cost, inputs["cost"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("case", cases_of("crd"))
def test_banks_after_the_update(case):
  inputs, _, hparams, arrays = case_of(case)
  with jax.enable_x64(True):
    for who in ("student", "teacher"):
      bank = module("crd").update_bank(
        inputs[f"memory_{who}"],
        inputs["positive_index"],
        inputs[f"{who}_embedding"],
        momentum=hparams["momentum"],
      )
      np.testing.assert_allclose(bank, arrays[f"out.memory_{who}"], rtol=1e-6)
