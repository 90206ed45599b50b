"""A network's variables from a folder: an imported network, a run's workdir, or a checkpoint of variables alone."""

from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import numpy as np

from smskd_jax.errors import UserError
from smskd_jax.exchange import safetensors_file
from smskd_jax.models import spec
from smskd_jax.runtime import checkpoint, workdir
from smskd_jax.runtime.store import write_json

_VARIABLES, _ABOUT = "variables", "network.json"


class Given(NamedTuple):
  """Variables that no stage of the experiment has trained."""

  variables: Any
  fingerprint: str  # of every byte, with its name and shape
  source: str  # the folder that they were read from

  @property
  def key(self) -> str:
    """What they are called among the keys of stages."""
    return self.fingerprint[:16]


def save(folder: Path, variables: Any, about: dict[str, Any]) -> str:
  """Writes an imported network: its variables, and in network.json what they are. Returns their fingerprint."""
  fingerprint = checkpoint.digest(variables)
  checkpoint.save_variables(folder / _VARIABLES, variables)
  write_json(folder / _ABOUT, about | {"fingerprint": fingerprint})
  return fingerprint


def load(field: str, folder: str, network: str) -> Given:
  """The variables in a folder.

  Args:
    field: of the config, for messages.
    folder: of an imported network; a workdir, of which it is what the last stage of the network of this name left, or,
      where it has none, of the only network; of a checkpoint of variables; or a safetensors file of `smskd_jax.export`.
    network: a name.

  Raises:
    UserError: there are none, or some are not finite.
  """
  path = _find(field, Path(folder), network)
  variables = _read(field, path)
  if not isinstance(variables, dict) or "params" not in variables:
    raise UserError(f"{field}: {path} holds no variables of a network: it has no params")
  check_finite(field, variables)
  return Given(variables, checkpoint.digest(variables), str(path))


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


def _find(field: str, folder: Path, network: str) -> Path:
  if folder.suffix == ".safetensors":
    return folder
  if not folder.is_dir():
    raise UserError(f"{field}: there is no folder {folder}")
  if (folder / _ABOUT).is_file():
    return folder / _VARIABLES
  if not (folder / "config.json").is_file():
    return folder
  run = workdir.read_run(field, folder)
  trained = run.trained()
  name = trained[0] if len(trained) == 1 else network
  if name not in trained:
    raise UserError(
      f"{field}: the run in {folder} trained {', '.join(trained)}, but no {network!r}; name the network likewise"
    )
  return run.final(run.last_stage(name)["key"])


def check_finite(field: str, variables: Any) -> None:
  """Refuses variables that are not numbers.

  Raises:
    UserError: names the first that is not finite.
  """
  for path, x in traverse_util.flatten_dict(variables).items():
    if not np.isfinite(np.asarray(x, np.float64)).all():
      raise UserError(f"{field}: {'.'.join(path)} has values that are not finite")


def check_fits(field: str, variables: Any, expected: Any) -> None:
  """Refuses variables of another network than the shapes are of.

  Raises:
    UserError: names every variable that is missing, unexpected or of another shape.
  """
  ours, theirs = (
    {".".join(path): tuple(x.shape) for path, x in traverse_util.flatten_dict(tree).items()}
    for tree in (expected, variables)
  )
  problems = spec.misfits(ours, theirs)
  if problems:
    raise UserError(f"{field}: not of this network: {'; '.join(problems)}")


def as_host(variables: Any) -> Any:
  """The variables as float32 arrays of this machine."""
  return jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
