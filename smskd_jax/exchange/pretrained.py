"""Loads trained networks: imported ones, runs, stages of a store, exported files."""

from pathlib import Path
from typing import Any, NamedTuple

from smskd_jax.config import merge
from smskd_jax.config.schema import NETWORK
from smskd_jax.data.dataset import ChannelStats
from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.exchange import exported_network, normalization, torch_import, variables
from smskd_jax.exchange.exported_network import ExportedNetwork
from smskd_jax.runtime import checkpoint, workdir
from smskd_jax.runtime.integrity import read_json
from smskd_jax.runtime.store import StageEntry

# Entries of a network's description that are not options of its model.
_NON_OPTIONS = ("model", "num_classes", "code")


class LoadedNetwork(NamedTuple):
  """A network, its variables and its images as far as they are stored."""

  model: str  # a name of smskd_jax.models.MODELS, or custom:package.module:Class
  options: dict[str, Any]
  variables: Any  # host arrays
  num_classes: int | None
  channels: int | None  # of its images
  normalization: ChannelStats | None  # of its images; None: the data's

  @property
  def architecture(self) -> str:
    """The model with its options, as --network takes it."""
    return merge.format_options(self.model, self.options)


class RunNetwork(NamedTuple):
  """A network of a finished run."""

  name: str
  exported: ExportedNetwork
  provenance: dict[str, Any]  # key, data, seed, test accuracy and versions, as JSON values
  teachers: tuple["RunNetwork", ...] = ()  # of its last stage


def load(field: str, path: Path, network: str | None = None) -> LoadedNetwork:
  """Loads a trained network.

  Args:
    field: names the path in messages.
    path: folder of an imported network; workdir of a run; stage of a store, or its `final` folder; folder of any
      checkpoint of variables; or a safetensors file of `smskd_jax.export`.
    network: of a run, the network's name in its config; None: the only trained network, or 'student'. Of variables
      without a stored architecture, NAME or NAME:option=value,... Otherwise None.

  Raises:
    UserError: `path` holds no network, or `network` is missing, unknown or not needed.
  """
  if not path.exists():
    raise UserError(f"{field}: there is no {path}")
  if path.is_file() and path.suffix != ".safetensors":
    raise UserError(f"{field}: {path} is a file; import PyTorch's by python -m smskd_jax.import_torch first")
  if (path / "config.json").is_file():
    run = workdir.read_run(field, path)
    return _from_exported(load_run_network(field, run, network or _default_name(run)).exported)
  if path.suffix == ".safetensors" and exported_network.read_description(path) is not None:
    _check_no_name(network, path)
    return _from_exported(exported_network.read(path))
  entry = path if (path / "stage.json").is_file() else path.parent
  loaded = variables.load(field, str(_variables_folder(field, path)), "")
  stored = _stored_description(path, entry)
  if stored is None:
    if network is None:
      raise UserError(f"--network: missing; {path} does not say of which network its variables are")
    stored = *torch_import.parse_network(network), None, None
  else:
    _check_no_name(network, path)
  model, options, num_classes, channels = stored
  return LoadedNetwork(model, options, loaded.variables, num_classes, channels, loaded.normalization)


def _variables_folder(field: str, path: Path) -> Path:
  """The `final` folder of a stage; other paths unchanged."""
  if not (path / "stage.json").is_file():
    return path
  if not (path / "final").is_dir():
    raise UserError(f"{field}: the stage in {path} is not finished; run it to its end first")
  return path / "final"


def _stored_description(path: Path, entry: Path) -> tuple[str, dict[str, Any], int | None, int | None] | None:
  """Model, options, number of classes and of channels as stored beside variables.

  None where they are not.
  """
  if (path / "network.json").is_file():
    network = read_json(path / "network.json")
    return network["network"], network["options"], network["num_classes"], _num_channels(network)
  stage = read_json(entry / "stage.json") if (entry / "stage.json").is_file() else {}
  described = stage.get("hashed", {}).get("network")
  if described is None:
    return None
  metadata = StageEntry(entry.parent, entry.name).metadata()
  options = merge.to_plain(merge.drop_keys(described, *_NON_OPTIONS))
  return described["model"], options, metadata.get("num_classes"), _num_channels(metadata)


def _num_channels(description: dict[str, Any]) -> int | None:
  return description["image_shape"][2] if "image_shape" in description else None


def _from_exported(network: ExportedNetwork) -> LoadedNetwork:
  stats = ChannelStats(tuple(network.mean), tuple(network.std))
  count, channels = len(network.class_names), network.image_shape[2]
  return LoadedNetwork(network.model, network.options, network.variables, count, channels, stats)


def _default_name(run: workdir.Run) -> str:
  """The only network that a run trained, or 'student'."""
  names = run.trained_networks()
  if len(names) > 1 and "student" not in names:
    raise UserError(f"--network: missing; the run in {run.folder} trained {', '.join(names)}")
  return "student" if "student" in names else names[0]


def _check_no_name(network: str | None, path: Path) -> None:
  if network is not None:
    raise UserError(f"--network: {network}, but {path} states its network; leave --network out")


def load_run_network(field: str, run: workdir.Run, name: str) -> RunNetwork:
  """Loads a network of a run, and the teachers of its last stage; needs no data set.

  Raises:
    UserError: the run has no network of this name, or an older version of this package wrote the folder.
  """
  trained = run.trained_networks()
  known = [*trained, *(one["network"] for one in run.result.get("pretrained", ()))]
  if name not in known:
    raise unknown_name_error("--network", name, known)
  if "image_metadata" not in run.result:
    raise UserError(
      f"{field}: {run.folder} was written by an older version; run its command again: it trains nothing anew"
    )
  if name not in trained:
    return _load_by_key(run, name, _pretrained_key(run, name))
  stage = run.last_stage(name)
  index = run.result["stages"].index(stage)
  pairs = zip(run.config["stages"][index]["teachers"], stage["inputs"]["teachers"], strict=True)
  teachers = tuple(_load_by_key(run, teacher, key) for teacher, key in pairs)
  return _load_by_key(run, name, stage["key"])._replace(teachers=teachers)


def _load_by_key(run: workdir.Run, name: str, key: str) -> RunNetwork:
  entry, images = run.config["networks"][name], run.result["image_metadata"]
  height, width, channels = images["image_shape"]
  final = run.final(key)
  stats = normalization.read_stored(final) or normalization.from_json(images)
  assert stats is not None
  exported = ExportedNetwork(
    entry["model"],
    merge.drop_keys(merge.to_plain(entry), *NETWORK),
    checkpoint.load_variables(final),
    (height, width, channels),
    *stats,
    tuple(images["class_names"]),
  )
  provenance = {
    "key": key,
    "data": run.result["data"],
    "seed": run.result["seed"],
    "test_accuracy": _test_accuracy(run, key),
    "versions": run.result["versions"],
  }
  return RunNetwork(name, exported, provenance)


def _test_accuracy(run: workdir.Run, key: str) -> float:
  stages = {stage["key"]: stage["metrics"]["last"] for stage in run.result["stages"]}
  pretrained = {one["key"]: one["metrics"] for one in run.result.get("pretrained", ())}
  return (pretrained | stages)[key]["test/accuracy"]


def _pretrained_key(run: workdir.Run, name: str) -> str:
  return next(one["key"] for one in run.result["pretrained"] if one["network"] == name)
