"""Trained networks from any of the places that this package writes: an import, a run, a stage, an export."""

from pathlib import Path
from typing import Any, NamedTuple

from smskd_jax.config import merge
from smskd_jax.data.dataset import ChannelStats
from smskd_jax.errors import UserError
from smskd_jax.exchange import run_networks, safetensors_file, torch_import, variables
from smskd_jax.exchange.exported_network import ExportedNetwork
from smskd_jax.runtime import workdir
from smskd_jax.runtime.integrity import read_json
from smskd_jax.runtime.store import StageEntry

_OURS = (
  "model",
  "num_classes",
  "code",
)  # fields of a network's description that are not options of its model


class LoadedNetwork(NamedTuple):
  """A network, its variables and the images that it is for, as far as its place states them."""

  model: str  # a name of smskd_jax.models.MODELS, or custom:package.module:Class
  options: dict[str, Any]
  variables: Any  # host arrays
  num_classes: int | None
  channels: int | None  # of its images
  normalization: ChannelStats | None  # of its images; None: that of the data

  @property
  def architecture(self) -> str:
    """The model with its options, as --network takes it."""
    return merge.format_options(self.model, self.options)


def read(field: str, path: Path, network: str | None = None) -> LoadedNetwork:
  """Reads a trained network.

  Args:
    field: names the path in messages.
    path: the folder of an imported network; a run's workdir; a stage of a store, or its `final` folder; the folder of
      any checkpoint of variables; or a safetensors file of `smskd_jax.export`.
    network: of a run, the network's name in its config; None: the only one that it trained, or 'student'. Of variables
      whose place does not state their architecture, NAME or NAME:option=value,... Of others None.

  Raises:
    UserError: nothing of these is there, or `network` is missing, unknown or not needed.
  """
  if not path.exists():
    raise UserError(f"{field}: there is no {path}")
  if path.is_file() and path.suffix != ".safetensors":
    raise UserError(f"{field}: {path} is a file; import PyTorch's by python -m smskd_jax.import_torch first")
  if (path / "config.json").is_file():
    run = workdir.read_run(field, path)
    return _of_trained(run_networks.network(field, run, network or _only(field, run)).trained)
  if path.suffix == ".safetensors" and safetensors_file.description(path) is not None:
    _check_none(network, path)
    return _of_trained(safetensors_file.read(path))
  entry = path if (path / "stage.json").is_file() else path.parent
  given = variables.load(field, str(_final(field, path)), "")
  found = _stated(path, entry)
  if found is None:
    if network is None:
      raise UserError(f"--network: missing; {path} does not say of which network its variables are")
    found = *torch_import.parse(network), None, None
  else:
    _check_none(network, path)
  model, options, num_classes, channels = found
  return LoadedNetwork(model, options, given.variables, num_classes, channels, given.normalization)


def _final(field: str, path: Path) -> Path:
  """The folder of variables of a stage, or the path itself."""
  if not (path / "stage.json").is_file():
    return path
  if not (path / "final").is_dir():
    raise UserError(f"{field}: the stage in {path} is not finished; run it to its end first")
  return path / "final"


def _stated(path: Path, entry: Path) -> tuple[str, dict[str, Any], int | None, int | None] | None:
  """Model, options, number of classes and of channels as they are stored beside variables; None where they are not."""
  if (path / "network.json").is_file():
    about = read_json(path / "network.json")
    return about["network"], about["options"], about["num_classes"], _channels(about)
  stage = read_json(entry / "stage.json") if (entry / "stage.json").is_file() else {}
  described = stage.get("hashed", {}).get("network")
  if described is None:
    return None
  about = StageEntry(entry.parent, entry.name).metadata()
  options = merge.to_plain(merge.drop_keys(described, *_OURS))
  return described["model"], options, about.get("num_classes"), _channels(about)


def _channels(about: dict[str, Any]) -> int | None:
  return about["image_shape"][2] if "image_shape" in about else None


def _of_trained(trained: ExportedNetwork) -> LoadedNetwork:
  normalization = ChannelStats(tuple(trained.mean), tuple(trained.std))
  count, channels = len(trained.class_names), trained.image_shape[2]
  return LoadedNetwork(trained.model, trained.options, trained.variables, count, channels, normalization)


def _only(field: str, run: workdir.Run) -> str:
  """The only network that a run trained, or its student."""
  names = run.trained_networks()
  if len(names) > 1 and "student" not in names:
    raise UserError(f"--network: missing; the run in {run.folder} trained {', '.join(names)}")
  return "student" if "student" in names else names[0]


def _check_none(network: str | None, path: Path) -> None:
  if network is not None:
    raise UserError(f"--network: {network}, but {path} states its network; leave --network out")
