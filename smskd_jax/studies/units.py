"""What a study is run as: a variant with a seed, or with several at once."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smskd_jax.errors import UserError
from smskd_jax.runtime.integrity import DamagedFileError, read_json


class Unit(NamedTuple):
  """A variant with a seed, or with several that are trained at once."""

  variant: str
  seeds: tuple[int, ...]

  def __str__(self) -> str:
    return f"{self.variant}:{','.join(map(str, self.seeds))}"

  @property
  def title(self) -> str:
    """'anchored, seed 1' or 'anchored, seeds 0, 1'."""
    return f"{self.variant}, {'seed' if len(self.seeds) == 1 else 'seeds'} {', '.join(map(str, self.seeds))}"

  def folder(self, workdir: Path) -> Path:
    """The workdir of its first seed."""
    return workdir / self.variant / f"seed{self.seeds[0]}"

  def result_path(self, workdir: Path) -> Path:
    """What is written last of it: there = finished. Of several seeds the first one's."""
    return self.folder(workdir) / "result.json"

  def is_finished(self, workdir: Path) -> bool:
    """True if its result is there and whole. What is damaged is written anew, from the store."""
    path = self.result_path(workdir)
    try:
      return path.exists() and bool(read_json(path))
    except DamagedFileError:
      return False

  def split_seeds(self) -> list["Unit"]:
    """Its seeds as units of their own."""
    return [Unit(self.variant, (seed,)) for seed in self.seeds]


UnitErrors = Iterator[tuple[Unit, str | None]]  # each unit as it ends, with what went wrong


def study_units(
  study: Mapping[str, Any], parallel_seeds: int, is_wanted: Callable[[Unit], bool] = lambda unit: True
) -> list[Unit]:
  """What of a study is wanted, some seeds after others, all variants of these before the next."""
  units, seeds = [], study["seeds"]
  for i in range(0, len(seeds), parallel_seeds):
    for name in study["variants"]:
      some = [
        unit.seeds[0] for unit in Unit(name, seeds[i : i + parallel_seeds]).split_seeds() if is_wanted(unit)
      ]
      units += [Unit(name, tuple(some))] if some else []
  return units


def numbered_title(unit: Unit, study: Mapping[str, Any], parallel_seeds: int) -> str:
  """A unit's number and title: 'unit 3 of 5: anchored, seed 1'. Finished units count, too."""
  every = study_units(study, parallel_seeds)
  holds = lambda one: one.variant == unit.variant and unit.seeds[0] in one.seeds
  return f"unit {next(i for i, one in enumerate(every, start=1) if holds(one))} of {len(every)}: {unit.title}"


def find_unit(study: Mapping[str, Any], name: str) -> Unit:
  """The unit that --unit names: VARIANT:SEED, VARIANT:SEED,SEED,... or the place of one among all, from 0.

  Raises:
    UserError: the study has no such unit.
  """
  each = {str(unit): unit for unit in study_units(study, 1)}
  if name.isdigit():
    if int(name) >= len(each):
      raise UserError(f"--unit: {name}, but this study has {len(each)} units, 0 to {len(each) - 1}")
    return list(each.values())[int(name)]
  variant, _, seeds = name.rpartition(":")
  asked = [f"{variant}:{seed}" for seed in seeds.split(",")]
  if not set(asked) <= set(each):
    raise UserError(f"--unit: {name!r} is no VARIANT:SEED of this study; it has: {', '.join(each)}")
  return Unit(variant, tuple(seed for name in asked for seed in each[name].seeds))
