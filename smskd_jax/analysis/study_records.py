"""Studies as their folders tell of them, finished or on the way."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smskd_jax.analysis import records
from smskd_jax.analysis.records import Record
from smskd_jax.errors import UserError
from smskd_jax.runtime.integrity import DamagedFileError, read_json

FILE = "study.json"
TEACHERS = "teachers"  # the folder of the run that trains them


class StudyRecord(NamedTuple):
  """A study, and those of its runs that are finished."""

  folder: Path
  study: dict[str, Any]  # resolved
  found: dict[str, dict[int, Record]]  # by variant and seed
  teachers: Record | None
  failures: dict[str, str]  # by VARIANT:SEED

  @property
  def missing(self) -> list[str]:
    """The runs that are neither finished nor known to have failed."""
    units = [
      (name, seed) for name in self.found for seed in self.study["seeds"] if seed not in self.found[name]
    ]
    return [f"{name}:{seed}" for name, seed in units if f"{name}:{seed}" not in self.failures]

  @property
  def left_out(self) -> list[str]:
    """A line on each file of its finished runs, and of its teachers' run, that is missing or damaged."""
    runs = [run for seeds in self.found.values() for run in seeds.values()]
    lines = [line for run in (*runs, *([self.teachers] if self.teachers else [])) for line in run.left_out]
    if self.study.get(TEACHERS) and self.teachers is None:
      lines.append(f"{self.folder / TEACHERS / 'result.json'} is missing; the teachers are left out")
    return list(dict.fromkeys(lines))

  @property
  def seeds(self) -> int:
    """Of the variant that has most."""
    return max(map(len, self.found.values()))


def compared(study: Mapping[str, Any]) -> dict[str, str]:
  """The control of each variant of a resolved study that is compared with one."""
  controls = study.get("controls", {})
  of_all = {name: controls.get(name, study["control"]) for name in study["variants"]}
  return {name: control for name, control in of_all.items() if name != control}


def is_study(folder: Path) -> bool:
  """Whether a folder is that of a study."""
  return (folder / FILE).is_file()


def read(field: str, folder: Path) -> StudyRecord:
  """Reads a study.

  Args:
    field: what named the folder, for messages.
    folder: its workdir.

  Raises:
    UserError: none of its runs is finished, or its files are damaged.
  """
  try:
    told = read_json(folder / FILE, "remove it and run the study's command again, which writes it anew")
    study, stores = told["study"], [Path(told["store"]), folder / "store"]
    path = folder / "result.json"
    again = "run the study's command again, which writes it anew"
    failures = read_json(path, again)["failures"] if path.is_file() else {}
    names, seeds = list(study["variants"]), study["seeds"]
  except DamagedFileError as error:
    raise UserError(f"{field}: {error}") from None
  except (KeyError, TypeError) as error:
    raise UserError(f"{field}: the files of the study in {folder} are damaged: {error}") from None
  of = lambda where: records.read(field, where, stores) if (where / "result.json").is_file() else None
  found = {
    name: {seed: one for seed in seeds if (one := of(folder / name / f"seed{seed}")) is not None}
    for name in names
  }
  if not any(found.values()):
    raise UserError(f"{field}: no run of the study in {folder} is finished; run it first")
  return StudyRecord(folder, study, found, of(folder / TEACHERS), failures)
