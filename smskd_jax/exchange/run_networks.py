"""The networks of a finished run, from its folder alone: the data that it was trained on is not needed."""

from typing import Any, NamedTuple

from smskd_jax.config import merge
from smskd_jax.config.schema import NETWORK
from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.exchange import variables
from smskd_jax.exchange.exported_network import ExportedNetwork
from smskd_jax.runtime import checkpoint, workdir


class RunNetwork(NamedTuple):
  """A network of a run."""

  name: str
  trained: ExportedNetwork
  about: dict[str, Any]  # where it comes from and how right it is, for JSON
  teachers: tuple["RunNetwork", ...] = ()  # of its last stage


def network(field: str, run: workdir.Run, name: str) -> RunNetwork:
  """The network of a name, as its last stage or the folder of its variables left it, and its teachers.

  Raises:
    UserError: there is none of this name, or an older version of this package has written the folder.
  """
  trained = run.trained_networks()
  known = [*trained, *(one["network"] for one in run.result.get("given", ()))]
  if name not in known:
    raise unknown_name_error("--network", name, known)
  if "image_metadata" not in run.result:
    raise UserError(
      f"{field}: {run.folder} was written by an older version; run its command again: it trains nothing anew"
    )
  if name not in trained:
    return _of_key(run, name, _key_of_given(run, name))
  stage = run.last_stage(name)
  place = run.result["stages"].index(stage)
  read = zip(run.config["stages"][place]["teachers"], stage["inputs"]["teachers"], strict=True)
  teachers = tuple(_of_key(run, of_teacher, key) for of_teacher, key in read)
  return _of_key(run, name, stage["key"])._replace(teachers=teachers)


def _of_key(run: workdir.Run, name: str, key: str) -> RunNetwork:
  entry, inputs = run.config["networks"][name], run.result["image_metadata"]
  height, width, channels = inputs["image_shape"]
  final = run.final(key)
  own = variables.beside(final) or variables.of_json(inputs)
  assert own is not None
  trained = ExportedNetwork(
    entry["model"],
    merge.drop_keys(merge.to_plain(entry), *NETWORK),
    checkpoint.load_variables(final),
    (height, width, channels),
    *own,
    tuple(inputs["class_names"]),
  )
  about = {
    "key": key,
    "data": run.result["data"],
    "seed": run.result["seed"],
    "test_accuracy": _accuracy(run, key),
    "versions": run.result["versions"],
  }
  return RunNetwork(name, trained, about)


def _accuracy(run: workdir.Run, key: str) -> float:
  of_stages = {stage["key"]: stage["metrics"]["last"] for stage in run.result["stages"]}
  of_given = {one["key"]: one["metrics"] for one in run.result.get("given", ())}
  return (of_given | of_stages)[key]["test/accuracy"]


def _key_of_given(run: workdir.Run, name: str) -> str:
  return next(one["key"] for one in run.result["given"] if one["network"] == name)
