"""Variables of a network in a folder: an imported network, a run, or a checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import numpy as np

from smskd_jax.config import merge
from smskd_jax.data.dataset import ChannelStats
from smskd_jax.errors import UserError
from smskd_jax.exchange import exported_network, normalization
from smskd_jax.models import introspection
from smskd_jax.runtime import checkpoint, workdir
from smskd_jax.runtime.integrity import read_json
from smskd_jax.runtime.store import StageEntry, key_of, write_json_with_checksum

_VARIABLES, _DESCRIPTION = "variables", "network.json"  # files of an imported network


class Pretrained(NamedTuple):
  """Variables that no stage of the experiment has trained."""

  variables: Any
  fingerprint: str  # digest of every byte, name and shape
  source: str  # path of the variables
  normalization: ChannelStats | None = None  # of the images in training; None: the data's
  network: str = ""  # architecture where the folder states it: NAME or NAME:option=value,...

  @property
  def key(self) -> str:
    """Key of the variables and their normalisation, unique among the keys of stages."""
    if self.normalization is None:
      return self.fingerprint[:16]
    return key_of({"fingerprint": self.fingerprint, **self.normalization._asdict()})

  def for_data(self, stats: ChannelStats) -> "Pretrained":
    """The variables for data of these statistics: an equal normalisation is dropped."""
    return self._replace(normalization=None) if self.normalization == stats else self


def save(folder: Path, variables: Any, description: dict[str, Any]) -> str:
  """Writes an imported network: its variables, and its description in network.json.

  Returns their fingerprint.
  """
  fingerprint = checkpoint.tree_digest(variables)
  checkpoint.save_variables(folder / _VARIABLES, variables)
  write_json_with_checksum(folder / _DESCRIPTION, description | {"fingerprint": fingerprint})
  return fingerprint


def load(field: str, folder: str, network: str) -> Pretrained:
  """Loads the variables in a folder.

  Args:
    field: of the config, for messages.
    folder: an imported network; a workdir, whose last stage of the network `network` (or, without one, of its only
      network) counts; a checkpoint of variables; or a safetensors file of `smskd_jax.export`.
    network: a name.

  Raises:
    UserError: the folder holds no variables, or some are not finite.
  """
  path, stats, architecture = _locate(field, Path(folder), network)
  variables = _read(field, path)
  if not isinstance(variables, dict) or "params" not in variables:
    raise UserError(f"{field}: {path} holds no variables of a network: it has no params")
  check_finite(field, variables)
  fingerprint = checkpoint.tree_digest(variables)
  description = path.parent / _DESCRIPTION
  imported = path.name == _VARIABLES and description.is_file()
  if imported and read_json(description).get("fingerprint") != fingerprint:
    raise UserError(
      f"{field}: {path} is damaged (its fingerprint is not the one in {_DESCRIPTION}); import it again"
    )
  return Pretrained(variables, fingerprint, str(path), stats, architecture)


def _read(field: str, path: Path) -> Any:
  if path.suffix == ".safetensors":
    try:
      return exported_network.read_variables(path)
    except UserError as error:
      raise UserError(f"{field}: {error}") from error
  try:
    return checkpoint.load_variables(path)
  except Exception as error:  # orbax and its storage raise errors of many types
    first = str(error).partition("\n")[0]
    raise UserError(f"{field}: {path} is no checkpoint of variables, or a damaged one ({first})") from error


def _locate(field: str, folder: Path, network: str) -> tuple[Path, ChannelStats | None, str]:
  """Path of the variables, and the normalisation and architecture beside them."""
  if folder.suffix == ".safetensors":
    return folder, _header_normalization(field, folder), ""
  if not folder.is_dir():
    raise UserError(f"{field}: there is no folder {folder}")
  if (folder / _DESCRIPTION).is_file():
    description = _read_description(field, folder)
    architecture = ""
    if "network" in description:
      architecture = merge.format_options(description["network"], description["options"])
    return folder / _VARIABLES, normalization.from_json(description.get("normalization")), architecture
  kind = workdir.folder_kind(folder)
  if kind in (workdir.STUDY, workdir.STORE, workdir.STAGE):
    raise UserError(f"{field}: {folder} is {kind}; name the workdir of a run, or the final/ of a stage")
  if (folder.parent / "stage.json").is_file():
    StageEntry(folder.parent.parent, folder.parent.name).verified(folder)
  if not (folder / "config.json").is_file():
    return folder, normalization.read_stored(folder), ""
  run = workdir.read_run(field, folder)
  trained = run.trained_networks()
  name = trained[0] if len(trained) == 1 else network
  if name not in trained:
    raise UserError(
      f"{field}: the run in {folder} trained {', '.join(trained)}, but no {network!r}; name the network likewise"
    )
  path = run.final(run.last_stage(name)["key"])
  return path, normalization.read_stored(path), ""


def _read_description(field: str, folder: Path) -> dict[str, Any]:
  try:
    description = read_json(folder / _DESCRIPTION)
  except ValueError:
    description = None
  if not isinstance(description, dict):
    raise UserError(f"{field}: {folder / _DESCRIPTION} is damaged; import the network again")
  return description


def _header_normalization(field: str, path: Path) -> ChannelStats | None:
  try:
    description = exported_network.read_description(path)
  except UserError as error:
    raise UserError(f"{field}: {error}") from error
  return None if description is None else normalization.from_json(description["images"])


def check_finite(field: str, variables: Any) -> None:
  """Refuses variables with infinities or NaN.

  Raises:
    UserError: names the first variable that is not finite.
  """
  for path, x in traverse_util.flatten_dict(variables).items():
    if not np.isfinite(np.asarray(x, np.float64)).all():
      raise UserError(f"{field}: {'.'.join(path)} has values that are not finite")


def check_fits(field: str, variables: Any, expected: Any, architecture: str = "") -> None:
  """Refuses variables whose names or shapes differ from those of a network.

  Args:
    field: for messages.
    variables: a tree of arrays.
    expected: the network's variables or their shapes.
    architecture: of `variables`, for messages; '': unknown.

  Raises:
    UserError: names variables that are missing, unexpected or of another shape.
  """
  ours, theirs = (
    {".".join(path): tuple(x.shape) for path, x in traverse_util.flatten_dict(tree).items()}
    for tree in (expected, variables)
  )
  problems = introspection.shape_mismatches(ours, theirs)
  if problems:
    suffix = f" but of {architecture}" if architecture else ""
    raise UserError(f"{field}: not of this network{suffix}: {'; '.join(problems)}")


def to_numpy(variables: Any) -> Any:
  """The variables as float32 NumPy arrays."""
  return jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
