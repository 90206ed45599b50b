"""A run's folder: the config that it belongs to, and where things go."""

from collections.abc import Mapping
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import subprocess
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.errors import UserError
from smskd_jax.runtime import distributed, file_kinds, parallel, store
from smskd_jax.runtime.integrity import DamagedFileError, read_arrays, read_json

_PACKAGES = ("smskd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
  """Refuses a folder that cannot be written to or that belongs to another config. Writes nothing.

  Raises:
    UserError: names the first field that differs.
  """
  check_writable("--workdir", workdir)
  file_kinds.check_kind("--workdir", workdir, file_kinds.RUN, absent=True)
  path = workdir / "config.json"
  if not path.exists():
    return
  try:
    theirs = read_json(path, f"remove it: the same command writes it again, if {workdir} is its folder")
  except DamagedFileError as error:
    raise UserError(f"--workdir: {error}") from None
  theirs = theirs["config"] | {"num_workers": 0}
  ours = json.loads(json.dumps(config)) | {
    "num_workers": 0
  }  # as many as a machine likes: no result depends on it
  field = first_difference("config", theirs, ours)
  if field is not None:
    raise UserError(f"--workdir: {workdir} belongs to another config: {field}; choose another folder")


def check_writable(flag: str, folder: Path) -> None:
  """Refuses a folder that cannot be made or written to. Writes nothing."""
  existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
  if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
    raise UserError(f"{flag}: {folder} cannot be written to (because of {existing}); choose another folder")


def first_difference(field: str, one: Any, other: Any) -> str | None:
  """The first field in which two configs differ, with both values; None where they do not."""
  if isinstance(one, dict) and isinstance(other, dict):
    one, other = list(one.items()), list(other.items())
    pairs = [(f"{field}.{name}", value, dict(other).get(name, "absent")) for name, value in one]
    pairs += [(f"{field}.{name}", "absent", value) for name, value in other if name not in dict(one)]
  elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
    pairs = [(f"{field}[{i}]", *both) for i, both in enumerate(zip(one, other, strict=True))]
  else:
    return None if one == other else f"{field} is {_short_repr(one)} there and {_short_repr(other)} here"
  return next(filter(None, (first_difference(*pair) for pair in pairs)), None)


def check_processes_match(**own: Any) -> None:
  """Refuses to run where the processes of a run have not the same of what is given, by name. All must call it.

  Raises:
    UserError: in all of them; names the process and the first field that differs.
  """
  own = json.loads(json.dumps(own))
  first, *others = distributed.all_gather_json(own)
  for index, other in enumerate(others, start=1):
    for name, theirs in other.items():
      field = first_difference(name, first[name], theirs)
      if field is not None:
        raise UserError(
          f"process {index} is not like process 0: {field.replace(' there', '').replace(' here', '')}"
        )


def environment_fingerprint() -> dict[str, Any]:
  """What must be the same wherever parts of a run or a study are computed."""
  return {"code": _code_digest(), "versions": _versions()}


def fingerprint_mismatch(theirs: Mapping[str, Any]) -> str:
  """The first difference from the likeness of another process, in words; '' where there is none."""
  ours = environment_fingerprint()
  return next(filter(None, (first_difference(name, theirs.get(name), ours[name]) for name in ours)), "")


def _code_digest() -> str:
  """A fingerprint of this package's files."""
  package = Path(__file__).parents[1]
  sha = hashlib.sha256()
  for path in sorted(package.rglob("*.py")):
    sha.update(f"{path.relative_to(package)} {path.stat().st_size} ".encode() + path.read_bytes())
  return sha.hexdigest()[:16]


def write_config(workdir: Path, config: Mapping[str, Any], store_folder: Path, devices: Any) -> None:
  """Writes config.json: the resolved config, where its stages lie, and what it ran on."""
  where = {"store": str(store_folder.absolute())}
  store.write_json_with_checksum(workdir / "config.json", {"config": config, **where, **environment(devices)})


def write_labels(workdir: Path, labels: Mapping[str, np.ndarray]) -> None:
  """Writes labels.npz, the labels of the held-out sets: what is read later needs no data set."""
  store.write_arrays(workdir / "labels.npz", labels)


def read_labels(workdir: Path) -> dict[str, np.ndarray]:
  """The labels of the held-out sets by their names; none if the folder has none.

  Raises:
    Damaged: the file is.
  """
  path = workdir / "labels.npz"
  return read_arrays(path) if path.is_file() else {}


def pretrained_outputs_path(workdir: Path, network: str) -> Path:
  """Where the answers of a network that came with its variables are kept: no stage has an entry for them."""
  return workdir / "given" / f"{network}.npz"


class Run(NamedTuple):
  """A finished run, as its folder tells it."""

  folder: Path
  config: dict[str, Any]  # resolved
  result: dict[str, Any]

  def trained_networks(self) -> list[str]:
    """The names of the networks that its stages trained."""
    return list(dict.fromkeys(stage["network"] for stage in self.result["stages"]))

  def last_stage(self, network: str) -> dict[str, Any]:
    """What is kept of the last stage that trained the network of this name."""
    return [stage for stage in self.result["stages"] if stage["network"] == network][-1]

  def final(self, key: str) -> Path:
    """Where the variables of a key lie.

    Raises:
      UserError: they are in none of the run's stores, or damaged.
      Damaged: they are.
    """
    roots = stores(self.folder)
    for entry in (store.StageEntry(root, key) for root in roots):
      if entry.folder.is_dir():
        entry.verified(entry.final)
        if entry.final.is_dir():
          return entry.final
    raise UserError(f"{self.folder}: the variables of {key} are not in the run's store, {roots[0]}")


def stores(folder: Path) -> list[Path]:
  """Stores of a run's stages: the one that it names, and, for folders that were moved, its own.

  Raises:
    Damaged: config.json is.
  """
  named = read_config(folder).get("store")
  return [*([Path(named)] if named else []), folder / "store"]


def read_config(folder: Path) -> dict[str, Any]:
  """The content of a run's config.json.

  Raises:
    Damaged: it is, or is not there.
  """
  return read_json(folder / "config.json", "remove it and run the run's command again, which writes it anew")


def read_result(folder: Path) -> dict[str, Any]:
  """The content of a run's result.json.

  Raises:
    Damaged: it is, or is not there.
  """
  return read_json(folder / "result.json", "run the run's command again, which writes it anew")


def read_run(field: str, folder: Path) -> Run:
  """Reads a finished run.

  Raises:
    UserError: names the field that named the folder.
  """
  file_kinds.check_kind(field, folder, file_kinds.RUN, absent=True)
  if not (folder / "config.json").is_file():
    raise UserError(f"{field}: {folder} is no workdir of a run: it has no config.json")
  if not (folder / "result.json").is_file():
    raise UserError(
      f"{field}: the run in {folder} is not finished; the command that began it goes on with it"
    )
  try:
    return Run(folder, read_config(folder)["config"], read_result(folder))
  except DamagedFileError as error:
    raise UserError(f"{field}: {error}") from None


def environment(devices: Any) -> dict[str, Any]:
  """The versions, devices and git revision of this run; recorded, never hashed."""
  return {
    "versions": _versions(),
    "devices": parallel.describe(devices),
    "git_revision": _git_revision(),
  }


def _versions() -> dict[str, str | None]:
  return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git_revision() -> str | None:
  """The revision of the checkout that this code is in; None where it is installed without one."""
  here = Path(__file__).parent
  try:
    done = subprocess.run(
      ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
      cwd=here,
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def _short_repr(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
