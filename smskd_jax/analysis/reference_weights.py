"""Variants of a study that differ in the weight of the last stage's reference term alone."""

from collections.abc import Mapping
import json
from typing import Any, NamedTuple

LEAST = 3  # different weights that make a line


class Variant(NamedTuple):
  """A variant's lambda_r, and all else in its config."""

  weight: float  # 0 where the last stage has no reference
  rest: str
  reference: str | None  # the other options of the reference term; None where there is none


def of_variant(config: Mapping[str, Any], network: str) -> Variant:
  """Split a resolved config at the last stage of a network.

  Raises:
    KeyError, TypeError, IndexError: it is no resolved config with a stage of this network.
  """
  stages = [dict(stage) for stage in config["stages"]]
  last = [stage for stage in stages if stage["network"] == network][-1]
  reference = dict(last.pop("reference"))
  del last["name"]
  rest = json.dumps({**config, "stages": stages, "seed": 0}, sort_keys=True)
  weight = float(reference.pop("weight"))
  if reference["stage"] == "none":
    return Variant(0.0, rest, None)
  return Variant(weight, rest, json.dumps(reference, sort_keys=True))


def lines(variants: Mapping[str, Mapping[str, Any]], network: str) -> dict[str, dict[str, float]]:
  """The families of variants that differ in lambda_r alone, where at least three values occur.

  A variant whose last stage has no reference belongs, with weight 0, to every family of its other fields.

  Args:
    variants: resolved configs by name.
    network: the study's.

  Returns:
    By the name of a family, of its first and last variant, the weights by the variants' names, from the smallest.
  """
  split = {}
  for name, config in variants.items():
    try:
      split[name] = of_variant(config, network)
    except (KeyError, TypeError, IndexError):
      continue  # of another version: its fields are not known
  families = dict.fromkeys((one.rest, one.reference) for one in split.values() if one.reference is not None)
  found = {}
  for rest, reference in families:
    members = {
      name: one.weight
      for name, one in split.items()
      if one.rest == rest and one.reference in (reference, None)
    }
    if len(set(members.values())) >= LEAST:
      ordered = dict(sorted(members.items(), key=lambda item: item[1]))
      names = list(ordered)
      found[f"{names[0]} … {names[-1]}"] = ordered
  return found
