"""A network's variables from a folder: an imported network, a run's workdir, or a checkpoint of variables alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import numpy as np

from smskd_jax.config import merge
from smskd_jax.data.dataset import ChannelStats
from smskd_jax.errors import UserError
from smskd_jax.exchange import safetensors_file
from smskd_jax.models import introspection
from smskd_jax.runtime import checkpoint, file_kinds, workdir
from smskd_jax.runtime.integrity import read_json
from smskd_jax.runtime.store import StageEntry, key_of, write_json_with_checksum

_VARIABLES, _ABOUT = "variables", "network.json"


class Pretrained(NamedTuple):
  """Variables that no stage of the experiment has trained."""

  variables: Any
  fingerprint: str  # of every byte, with its name and shape
  source: str  # the folder that they were read from
  normalization: ChannelStats | None = None  # of the images that they were trained on; None: the data's
  network: str = ""  # their architecture, where the folder states it: NAME or NAME:option=value,...

  @property
  def key(self) -> str:
    """Key among those of stages, of the variables and the normalisation of their images."""
    if self.normalization is None:
      return self.fingerprint[:16]
    return key_of({"fingerprint": self.fingerprint, **self.normalization._asdict()})

  def on(self, moments: ChannelStats) -> "Pretrained":
    """For data of a normalisation: where it is theirs, they need none of their own."""
    return self._replace(normalization=None) if self.normalization == moments else self


def save(folder: Path, variables: Any, about: dict[str, Any]) -> str:
  """Writes an imported network: its variables, and in network.json what they are. Returns their fingerprint."""
  fingerprint = checkpoint.tree_digest(variables)
  checkpoint.save_variables(folder / _VARIABLES, variables)
  write_json_with_checksum(folder / _ABOUT, about | {"fingerprint": fingerprint})
  return fingerprint


def load(field: str, folder: str, network: str) -> Pretrained:
  """The variables in a folder.

  Args:
    field: of the config, for messages.
    folder: of an imported network; a workdir, of which it is what the last stage of the network of this name left, or,
      where it has none, of the only network; of a checkpoint of variables; or a safetensors file of `smskd_jax.export`.
    network: a name.

  Raises:
    UserError: there are none, or some are not finite.
  """
  path, stated, architecture = _find(field, Path(folder), network)
  variables = _read(field, path)
  if not isinstance(variables, dict) or "params" not in variables:
    raise UserError(f"{field}: {path} holds no variables of a network: it has no params")
  check_finite(field, variables)
  fingerprint = checkpoint.tree_digest(variables)
  about = path.parent / _ABOUT  # of an imported network
  if path.name == _VARIABLES and about.is_file() and read_json(about).get("fingerprint") != fingerprint:
    raise UserError(
      f"{field}: {path} is damaged (its fingerprint is not the one in {_ABOUT}); import it again"
    )
  return Pretrained(variables, fingerprint, str(path), stated, architecture)


def _read(field: str, path: Path) -> Any:
  if path.suffix == ".safetensors":
    try:
      return safetensors_file.variables(path)
    except UserError as error:
      raise UserError(f"{field}: {error}") from error
  try:
    return checkpoint.load_variables(path)
  except Exception as error:  # orbax and its storage raise what they like
    first = str(error).partition("\n")[0]
    raise UserError(f"{field}: {path} is no checkpoint of variables, or a damaged one ({first})") from error


def _find(field: str, folder: Path, network: str) -> tuple[Path, ChannelStats | None, str]:
  """Folder of the variables, with the normalisation and the architecture that are stored beside them."""
  if folder.suffix == ".safetensors":
    return folder, _in_header(field, folder), ""
  if not folder.is_dir():
    raise UserError(f"{field}: there is no folder {folder}")
  if (folder / _ABOUT).is_file():
    about = _about(field, folder)
    architecture = merge.format_options(about["network"], about["options"]) if "network" in about else ""
    return folder / _VARIABLES, of_json(about.get("normalization")), architecture
  if file_kinds.folder_kind(folder) in (file_kinds.STUDY, file_kinds.STORE, file_kinds.STAGE):
    raise UserError(
      f"{field}: {folder} is {file_kinds.folder_kind(folder)}; name the workdir of a run, or the final/ of a stage"
    )
  if (folder.parent / "stage.json").is_file():
    StageEntry(folder.parent.parent, folder.parent.name).verified(folder)
  if not (folder / "config.json").is_file():
    return folder, beside(folder), ""
  run = workdir.read_run(field, folder)
  trained = run.trained_networks()
  name = trained[0] if len(trained) == 1 else network
  if name not in trained:
    raise UserError(
      f"{field}: the run in {folder} trained {', '.join(trained)}, but no {network!r}; name the network likewise"
    )
  path = run.final(run.last_stage(name)["key"])
  return path, beside(path), ""


def _about(field: str, folder: Path) -> dict[str, Any]:
  try:
    about = read_json(folder / _ABOUT)
  except ValueError:
    about = None
  if not isinstance(about, dict):
    raise UserError(f"{field}: {folder / _ABOUT} is damaged; import the network again")
  return about


def beside(final: Path) -> ChannelStats | None:
  """The normalisation that a store's entry states of its variables, by their folder; None where it states none."""
  return of_json(StageEntry(final.parent.parent, final.parent.name).metadata().get("normalization"))


def of_json(stated: Mapping[str, Any] | None) -> ChannelStats | None:
  """The normalisation of {'mean': [c numbers], 'std': [c numbers]}."""
  return None if stated is None else ChannelStats(tuple(stated["mean"]), tuple(stated["std"]))


def _in_header(field: str, path: Path) -> ChannelStats | None:
  try:
    described = safetensors_file.description(path)
  except UserError as error:
    raise UserError(f"{field}: {error}") from error
  return None if described is None else of_json(described["images"])


def check_finite(field: str, variables: Any) -> None:
  """Refuses variables that are not numbers.

  Raises:
    UserError: names the first that is not finite.
  """
  for path, x in traverse_util.flatten_dict(variables).items():
    if not np.isfinite(np.asarray(x, np.float64)).all():
      raise UserError(f"{field}: {'.'.join(path)} has values that are not finite")


def check_fits(field: str, variables: Any, expected: Any, architecture: str = "") -> None:
  """Refuses variables of another network than the shapes are of.

  Raises:
    UserError: names variables that are missing, unexpected or of another shape, and their architecture if it is given.
  """
  ours, theirs = (
    {".".join(path): tuple(x.shape) for path, x in traverse_util.flatten_dict(tree).items()}
    for tree in (expected, variables)
  )
  problems = introspection.shape_mismatches(ours, theirs)
  if problems:
    whose = f" but of {architecture}" if architecture else ""
    raise UserError(f"{field}: not of this network{whose}: {'; '.join(problems)}")


def to_numpy(variables: Any) -> Any:
  """The variables as float32 arrays of this machine."""
  return jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
