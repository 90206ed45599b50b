"""Workdir of a run, and the kinds of folders that this package writes.

The workdir has config, environment and result.
"""

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
from smskd_jax.runtime import distributed, onednn, store
from smskd_jax.runtime.integrity import DamagedFileError, read_arrays, read_json

# Kinds of folders, as messages name them.
RUN = "the workdir of a run"
STUDY = "the folder of a study"
STORE = "a store of stages"
STAGE = "a stage in a store"
NETWORK = "an imported network"
_KIND_FILES = {"study.json": STUDY, "config.json": RUN, "stage.json": STAGE, "network.json": NETWORK}

_PACKAGES = ("smskd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def folder_kind(folder: Path) -> str | None:
  """Kind of a folder, by its files; None for a folder that this package has not written."""
  for name, kind in _KIND_FILES.items():
    if (folder / name).exists():
      return kind
  return STORE if next(folder.glob("*/stage.json"), None) else None


def check_kind(field: str, folder: Path, kind: str, *, allow_unknown: bool = False) -> None:
  """Refuses a folder of another kind.

  Args:
    field: named the folder, for messages.
    folder: need not exist.
    kind: the expected kind.
    allow_unknown: accept a folder of no kind, too.

  Raises:
    UserError: names the kind of the folder.
  """
  found = folder_kind(folder)
  if found != kind and not (found is None and allow_unknown):
    raise UserError(f"{field}: {folder} is {found or 'of no known kind'}, not {kind}; name another folder")


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
  """Refuses a folder that cannot be written to or belongs to another config; writes nothing.

  Raises:
    UserError: names the first field that differs.
  """
  check_writable("--workdir", workdir)
  check_kind("--workdir", workdir, RUN, allow_unknown=True)
  path = workdir / "config.json"
  if not path.exists():
    return
  try:
    stored = read_json(path, f"remove it: the same command writes it again, if {workdir} is its folder")
  except DamagedFileError as error:
    raise UserError(f"--workdir: {error}") from None
  # No result depends on the number of workers, which differs between machines.
  theirs = stored["config"] | {"num_workers": 0}
  ours = json.loads(json.dumps(config)) | {"num_workers": 0}
  field = first_difference("config", theirs, ours)
  if field is not None:
    raise UserError(f"--workdir: {workdir} belongs to another config: {field}; choose another folder")


def check_writable(flag: str, folder: Path) -> None:
  """Refuses a folder that cannot be created or written to; writes nothing.

  Raises:
    UserError: names the parent folder that refuses.
  """
  existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
  if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
    raise UserError(f"{flag}: {folder} cannot be written to (because of {existing}); choose another folder")


def first_difference(field: str, one: Any, other: Any) -> str | None:
  """Path and both values of the first field in which two configs differ.

  None for equal configs.
  """
  if isinstance(one, dict) and isinstance(other, dict):
    pairs = [(f"{field}.{name}", value, other.get(name, "absent")) for name, value in one.items()]
    pairs += [(f"{field}.{name}", "absent", value) for name, value in other.items() if name not in one]
  elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
    pairs = [(f"{field}[{i}]", *both) for i, both in enumerate(zip(one, other, strict=True))]
  else:
    return None if one == other else f"{field} is {_short_repr(one)} there and {_short_repr(other)} here"
  return next(filter(None, (first_difference(*pair) for pair in pairs)), None)


def check_processes_match(**values: Any) -> None:
  """Refuses a run whose processes have different values (configs, versions).

  A collective call.

  Raises:
    UserError: in all processes; names the process and the first field that differs.
  """
  first, *others = distributed.all_gather_json(json.loads(json.dumps(values)))
  for index, other in enumerate(others, start=1):
    for name, theirs in other.items():
      field = first_difference(name, first[name], theirs)
      if field is not None:
        difference = field.replace(" there", "").replace(" here", "")
        raise UserError(f"process {index} is not like process 0: {difference}")


def environment_fingerprint() -> dict[str, Any]:
  """Code digest and package versions; oneDNN's if the CPU's convolutions are oneDNN's.

  They must be equal wherever parts of a run or a study are computed.
  """
  return {"code": _code_digest(), "versions": _versions()}


def fingerprint_mismatch(theirs: Mapping[str, Any]) -> str:
  """The first difference from another process's environment_fingerprint; '' for none."""
  ours = environment_fingerprint()
  return next(filter(None, (first_difference(name, theirs.get(name), ours[name]) for name in ours)), "")


def _code_digest() -> str:
  """First 16 hexadecimal digits of the SHA-256 of this package's files."""
  package = Path(__file__).parents[1]
  sha = hashlib.sha256()
  for path in sorted([*package.rglob("*.py"), *package.rglob("*.cc")]):
    sha.update(f"{path.relative_to(package)} {path.stat().st_size} ".encode() + path.read_bytes())
  return sha.hexdigest()[:16]


def write_config(workdir: Path, config: Mapping[str, Any], store_folder: Path, devices: Any) -> None:
  """Writes config.json: the resolved config, the store, and the environment."""
  folder = {"store": str(store_folder.absolute())}
  store.write_json_with_checksum(
    workdir / "config.json", {"config": config, **folder, **environment(devices)}
  )


def write_labels(workdir: Path, labels: Mapping[str, np.ndarray]) -> None:
  """Writes labels.npz, the labels of the held-out sets, so that reports need no data set."""
  store.write_arrays(workdir / "labels.npz", labels)


def read_labels(workdir: Path) -> dict[str, np.ndarray]:
  """The labels of the held-out sets by name; {} without labels.npz.

  Raises:
    DamagedFileError: the file is damaged.
  """
  path = workdir / "labels.npz"
  return read_arrays(path) if path.is_file() else {}


def pretrained_outputs_path(workdir: Path, network: str) -> Path:
  """Evaluation outputs of a network with variables from elsewhere.

  No stage has an entry for them.
  """
  return workdir / "pretrained" / f"{network}.npz"


class Run(NamedTuple):
  """A finished run, read from its workdir."""

  folder: Path
  config: dict[str, Any]  # resolved
  result: dict[str, Any]

  def trained_networks(self) -> list[str]:
    """Names of the networks that its stages trained, in order."""
    return list(dict.fromkeys(stage["network"] for stage in self.result["stages"]))

  def last_stage(self, network: str) -> dict[str, Any]:
    """The result of the last stage that trained a network."""
    return [stage for stage in self.result["stages"] if stage["network"] == network][-1]

  def final(self, key: str) -> Path:
    """Folder of the variables of a key.

    Raises:
      UserError: the variables are in none of the run's stores.
      DamagedFileError: they are damaged.
    """
    roots = stores(self.folder)
    for entry in (store.StageEntry(root, key) for root in roots):
      if entry.folder.is_dir():
        entry.verified(entry.final)
        if entry.final.is_dir():
          return entry.final
    raise UserError(f"{self.folder}: the variables of {key} are not in the run's store, {roots[0]}")


def stores(folder: Path) -> list[Path]:
  """Stores of a run's stages: the one in config.json, and the folder's own `store`.

  The second is for moved workdirs.

  Raises:
    DamagedFileError: config.json is damaged.
  """
  named = read_config(folder).get("store")
  return [*([Path(named)] if named else []), folder / "store"]


def read_config(folder: Path) -> dict[str, Any]:
  """The content of a run's config.json.

  Raises:
    DamagedFileError: the file is damaged or missing.
  """
  return read_json(folder / "config.json", "remove it and run the run's command again, which writes it anew")


def read_result(folder: Path) -> dict[str, Any]:
  """The content of a run's result.json.

  Raises:
    DamagedFileError: the file is damaged or missing.
  """
  return read_json(folder / "result.json", "run the run's command again, which writes it anew")


def read_run(field: str, folder: Path) -> Run:
  """Reads a finished run.

  Raises:
    UserError: the folder is of no finished run; names the field that named the folder.
  """
  check_kind(field, folder, RUN, allow_unknown=True)
  if not (folder / "config.json").is_file():
    raise UserError(f"{field}: {folder} is no workdir of a run: it has no config.json")
  if not (folder / "result.json").is_file():
    raise UserError(f"{field}: the run in {folder} is not finished; the command that began it continues it")
  try:
    return Run(folder, read_config(folder)["config"], read_result(folder))
  except DamagedFileError as error:
    raise UserError(f"{field}: {error}") from None


def environment(devices: Any) -> dict[str, Any]:
  """Versions, devices and git revision of this run; stored in config.json, not hashed."""
  from smskd_jax.runtime import parallel  # imports JAX, which commands that read workdirs do not need

  return {
    "versions": _versions(),
    "devices": parallel.describe(devices),
    "git_revision": _git_revision(),
  }


def _versions() -> dict[str, str | None]:
  packages = {name: _version(name) for name in _PACKAGES}
  return {"python": platform.python_version(), **packages, "onednn": onednn.version()}


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git_revision() -> str | None:
  """Revision of the checkout that this code is in.

  None for an installation without a checkout.
  """
  command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
  folder = Path(__file__).parent
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def _short_repr(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
