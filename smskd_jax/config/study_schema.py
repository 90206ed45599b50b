"""Schema, builder and validation of a study's config: variants times seeds."""

from collections.abc import Mapping, Sequence
import copy
import re
import types
from typing import Any

from ml_collections import ConfigDict

from smskd_jax.config import builders, fields, merge, schema
from smskd_jax.config.fields import Field
from smskd_jax.errors import UserError, unknown_name_error

STUDY: dict[str, Any] = {
  "seeds": Field((0, 1, 2), "Seeds; each takes the place of the experiments' own `seed`."),
  "teachers": Field(
    {},
    "`experiment(...)` that is run once; its networks are given to networks of the same name in the "
    "variants.",
  ),
  "variants": Field((), "`{'name', 'experiment'}` of each variant, in the order of the table."),
  "control": Field("", "Variant that the others are compared with. Empty: the first."),
  "controls": Field(
    (),
    "`{'variant', 'control'}` of variants with a control of their own; a variant that is its own control "
    "is compared with none.",
  ),
  "network": Field(
    "student",
    "Network whose last stage is compared; of several stages from scratch, the best by validation accuracy.",
  ),
  "published": Field(
    (), "`{'variant', 'accuracy'}`: test accuracy in percent that a paper reports, quoted as the paper's."
  ),
  "quoted": Field(
    (), "`{'variant', 'accuracy'}` of variants that the study does not run, for the table alone."
  ),
  "claims": Field(
    (),
    "`{'variant', 'control', 'paper'}`: comparisons that a paper makes, instead of those with the "
    "control. `paper` is its difference in points, as `+1.80`, its sign, `+` or `-`, or empty.",
  ),
  "notes": Field((), "Sentences for the report."),
}


def study(
  *,
  variants: Mapping[str, Any],
  controls: Mapping[str, str] = types.MappingProxyType({}),
  published: Mapping[str, float] = types.MappingProxyType({}),
  quoted: Mapping[str, float] = types.MappingProxyType({}),
  claims: Sequence[tuple[str, str, str]] = (),
  **others: Any,
) -> ConfigDict:
  """Config of a study, with the fields of `STUDY`.

  Args:
    variants: `experiment(...)` by the name of the variant, in the order of the table.
    controls: name of the control by that of the variant, where it is not the study's.
    published: test accuracy in percent by the name of the variant, where a paper reports one.
    quoted: test accuracy in percent of variants that the study does not run.
    claims: (variant, control, difference or sign in the paper) of each comparison that a paper makes.
    **others: further fields.
  """
  listed = {
    "variants": tuple({"name": name, "experiment": one} for name, one in variants.items()),
    "controls": tuple({"variant": name, "control": control} for name, control in controls.items()),
    "published": tuple({"variant": name, "accuracy": value} for name, value in published.items()),
    "quoted": tuple({"variant": name, "accuracy": value} for name, value in quoted.items()),
    "claims": tuple(
      {"variant": variant, "control": control, "paper": paper} for variant, control, paper in claims
    ),
  }
  return merge.to_config_dict(_merge_defaults(listed | others))


def with_changes(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
  """A copy of a config with some fields changed.

  Args:
    config: as `smskd_jax.config.experiment` makes it.
    changes: value by field, as the command line names it: {"stages[1].reference.weight": 0.0}.

  Raises:
    UserError: there is no such field.
  """
  made = copy.deepcopy(config)
  for path, value in changes.items():
    _set_field(made, path, merge.to_config_dict(merge.to_plain(value)))
  return made


def _set_field(config: Any, path: str, value: Any) -> None:
  """Sets one field of a config."""
  try:
    holder, last = merge.find_field(config, path)
  except UserError as error:
    raise UserError(f"changes: {path!r}: {error}") from None
  with holder.ignore_type():
    holder[last] = value


def resolve(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
  """Validates a study; returns plain dicts and tuples with every experiment resolved.

  Raises:
    UserError: the first mistake found; names the variant.
  """
  resolved = _merge_defaults(merge.to_plain(config))
  resolved["variants"] = _variants_by_name(resolved["variants"])
  resolved["controls"] = {one["variant"]: one["control"] for one in resolved["controls"]}
  for name in ("published", "quoted"):
    resolved[name] = {one["variant"]: float(one["accuracy"]) for one in resolved[name]}
  _check(resolved)
  resolved["control"] = resolved["control"] or next(iter(resolved["variants"]))
  _check_names(resolved)
  if resolved["teachers"]:
    resolved["teachers"] = _resolve_experiment("study.teachers", resolved["teachers"])
  for name, variant in resolved["variants"].items():
    resolved["variants"][name] = _resolve_variant(name, variant, resolved)
  return resolved


def _check(resolved: Mapping[str, Any]) -> None:
  if not resolved["variants"]:
    raise UserError("study.variants: there are none; add at least one, name: experiment(...)")
  if not resolved["seeds"]:
    raise UserError("study.seeds: there are none; name at least one, as (0, 1, 2)")
  if len(set(resolved["seeds"])) < len(resolved["seeds"]):
    raise UserError(f"study.seeds: {resolved['seeds']} names a seed twice")
  for claim in resolved["claims"]:
    if not re.fullmatch(r"|[+-]|[+-]\d+(\.\d+)?", claim["paper"]):
      raise UserError(
        f"study.claims: {claim['paper']!r} is neither a difference, as '+1.80', nor its sign, '+' or '-'"
      )


def _check_names(resolved: Mapping[str, Any]) -> None:
  """Checks that every field that names a variant names one of this study."""
  names = [
    ("control", resolved["control"]),
    *(("controls", name) for pair in resolved["controls"].items() for name in pair),
    *(("published", name) for name in resolved["published"]),
    *(("claims", claim[side]) for claim in resolved["claims"] for side in ("variant", "control")),
  ]
  for field, name in names:
    if name not in resolved["variants"]:
      raise unknown_name_error(f"study.{field}", name, resolved["variants"])


def _variants_by_name(variants: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for i, given in enumerate(variants):
    entry = merge.merge(f"study.variants[{i}]", {"name": "", "experiment": {}}, given, skip=("experiment",))
    if entry["name"] in found:
      raise UserError(f"study.variants[{i}].name: {entry['name']!r} is the name of an earlier variant too")
    found[entry["name"]] = entry["experiment"]
  return found


def _resolve_variant(name: str, variant: Mapping[str, Any], study_: Mapping[str, Any]) -> dict[str, Any]:
  field = f"study.variants.{name}"
  if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
    raise UserError(f"{field}: {name!r} is not a name of letters, digits and _ . + -")
  given = teacher_names(study_)
  networks = {
    own: dict(entry) | ({"variables": FROM_STUDY} if own in given else {})
    for own, entry in variant.get("networks", {}).items()
  }
  resolved = _resolve_experiment(field, dict(variant) | {"networks": networks})
  learners = [stage["network"] for stage in resolved["stages"]]
  if study_["network"] not in learners:
    raise unknown_name_error(f"{field}: study.network", study_["network"], learners)
  return resolved


# Placeholder of `variables` for networks that the study's teachers give, until these are trained.
FROM_STUDY = "(the study's teachers)"


def teacher_names(study_: Mapping[str, Any]) -> list[str]:
  """Names of the networks that are trained once for all variants."""
  stages = study_["teachers"].get("stages", ()) if study_["teachers"] else ()
  return list(dict.fromkeys(stage["network"] for stage in stages))


def seed_config(variant: Mapping[str, Any], seed: int, teachers: str) -> dict[str, Any]:
  """Resolved variant with one seed.

  Networks that the study's teachers give are read from the folder `teachers`.
  """
  networks = {
    name: entry | {"variables": teachers} if entry["variables"] == FROM_STUDY else entry
    for name, entry in variant["networks"].items()
  }
  return dict(variant) | {"seed": seed, "networks": networks}


def _resolve_experiment(field: str, given: Mapping[str, Any]) -> dict[str, Any]:
  try:
    return builders.resolve(given)
  except UserError as error:
    raise UserError(f"{field}: {error}") from error


def _merge_defaults(entry: Mapping[str, Any]) -> dict[str, Any]:
  merged = merge.merge("study", fields.defaults(STUDY), entry, skip=("teachers",))
  merged["teachers"] = merge.coerce({}, "study.teachers", merge.to_plain(entry.get("teachers", {})))
  for name, field in STUDY.items():
    if isinstance(field.default, tuple):
      merged[name] = merge.to_plain(merged[name])
  for seed in merged["seeds"]:
    fields.check_field("study.seeds", schema.EXPERIMENT["seed"], merge.coerce(0, "study.seeds", seed))
  return merged
