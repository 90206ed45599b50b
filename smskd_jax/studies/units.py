"""Units of a study: one variant with one seed or several.

Several seeds are trained in one program.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smskd_jax.errors import UserError
from smskd_jax.runtime.integrity import DamagedFileError, read_json


class Unit(NamedTuple):
  """A variant with one seed, or with several seeds that are trained in one program."""

  variant: str
  seeds: tuple[int, ...]

  def __str__(self) -> str:
    return f"{self.variant}:{','.join(map(str, self.seeds))}"

  @property
  def title(self) -> str:
    """'anchored, seed 1' or 'anchored, seeds 0, 1'."""
    return f"{self.variant}, {'seed' if len(self.seeds) == 1 else 'seeds'} {', '.join(map(str, self.seeds))}"

  def folder(self, workdir: Path) -> Path:
    """Workdir of the first seed's run."""
    return workdir / self.variant / f"seed{self.seeds[0]}"

  def result_paths(self, workdir: Path) -> tuple[Path, ...]:
    """The result.json of each seed, the file that a run writes last."""
    return tuple(unit.folder(workdir) / "result.json" for unit in self.split_seeds())

  def is_finished(self, workdir: Path) -> bool:
    """True if every seed has an undamaged result.json.

    Damaged files are written again, from the store.
    """
    return all(map(is_intact, self.result_paths(workdir)))

  def split_seeds(self) -> list["Unit"]:
    """One unit for each seed."""
    return [Unit(self.variant, (seed,)) for seed in self.seeds]


UnitErrors = Iterator[tuple[Unit, str | None]]  # units in the order in which they end, with error messages


def is_intact(path: Path) -> bool:
  """True if a JSON file exists and has the content that was written."""
  try:
    return bool(read_json(path))
  except DamagedFileError:
    return False


def study_units(
  study: Mapping[str, Any], parallel_seeds: int = 1, is_wanted: Callable[[Unit], bool] = lambda unit: True
) -> list[Unit]:
  """Units of a study in the order of training.

  All variants with the first seeds, then with the next ones.

  Args:
    study: resolved study.
    parallel_seeds: largest number of seeds of a unit.
    is_wanted: predicate on units of one seed; the others are left out.
  """
  units, seeds = [], study["seeds"]
  for i in range(0, len(seeds), parallel_seeds):
    for variant in study["variants"]:
      candidates = Unit(variant, seeds[i : i + parallel_seeds]).split_seeds()
      wanted = tuple(unit.seeds[0] for unit in candidates if is_wanted(unit))
      units += [Unit(variant, wanted)] if wanted else []
  return units


def numbered_title(unit: Unit, study: Mapping[str, Any], parallel_seeds: int) -> str:
  """Index and title among all units, finished ones included: 'unit 3 of 5: anchored, seed 1'."""
  units = study_units(study, parallel_seeds)
  number = 1 + next(
    i for i, one in enumerate(units) if one.variant == unit.variant and unit.seeds[0] in one.seeds
  )
  return f"unit {number} of {len(units)}: {unit.title}"


def find_unit(study: Mapping[str, Any], name: str) -> Unit:
  """Returns the unit that a value of --unit names.

  Args:
    study: resolved study.
    name: VARIANT:SEED, VARIANT:SEED,SEED,... or the index of a VARIANT:SEED, from 0.

  Raises:
    UserError: the study has no such unit.
  """
  units = {str(unit): unit for unit in study_units(study)}
  if name.isdigit():
    if int(name) >= len(units):
      raise UserError(f"--unit: {name}, but this study has {len(units)} units, 0 to {len(units) - 1}")
    return list(units.values())[int(name)]
  variant, _, seeds = name.rpartition(":")
  names = [f"{variant}:{seed}" for seed in seeds.split(",")]
  if not set(names) <= set(units):
    raise UserError(f"--unit: {name!r} is no VARIANT:SEED of this study; it has: {', '.join(units)}")
  return Unit(variant, tuple(units[one].seeds[0] for one in names))
