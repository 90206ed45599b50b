"""Training metrics between two lines of metrics.jsonl, accumulated on the device."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import numpy as np

from smskd_jax.errors import UserError

# Programs handed to the devices and not waited for: enough to hide the host, few enough to stop soon.
MAX_IN_FLIGHT = 2


class NonFiniteError(UserError):
  """A term of the loss has become infinite or not a number."""

  def __init__(self, seed_index: int, message: str):
    """Notes which learner's it was."""
    super().__init__(message)
    self.seed_index = seed_index


class MetricAccumulator:
  """The training metrics of the steps since the last lines were written.

  They stay on the device until they are asked for, so that the next steps need not wait. What was fetched goes into a
  checkpoint's note: a continued run writes the same line.
  """

  def __init__(
    self,
    restored: Sequence[dict[str, Any] | None] = (None,),
    split: Callable[[dict[str, Any]], list[dict[str, Any]]] = lambda metrics: [metrics],
  ):
    """Takes what each learner's checkpoint's note tells, if anything, and what tells the learners' metrics apart."""
    self._fetched = [{name: list(v) for name, v in (note or {}).items()} for note in restored]
    self._split = split
    self._pending: list[dict[str, jax.Array]] = []

  def add(self, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a program; waits for those of the program before the ones in flight."""
    self._pending.append(metrics)
    if len(self._pending) > MAX_IN_FLIGHT:
      jax.block_until_ready(self._pending[-1 - MAX_IN_FLIGHT])

  def fetch(self, step: int) -> list[dict[str, list[float]]]:
    """All values of each learner by name, the last of them of the step before `step`.

    Raises:
      NonFinite: one is not a finite number.
    """
    programs = [self._split(metrics) for metrics in jax.device_get(self._pending)]
    for learner, fetched in enumerate(self._fetched):
      steps = [one for of_program in programs for one in _per_step(of_program[learner])]
      for i, metrics in enumerate(steps):
        at = step - len(steps) + i + 1
        # The cause before its effects.
        for name in sorted(metrics, key=lambda name: name in ("loss", "gradient_norm")):
          value = float(metrics[name])
          if not math.isfinite(value):
            raise NonFiniteError(
              learner,
              f"step {at}: {name} is {value}; lower the learning rate or the weight of that term",
            )
          fetched.setdefault(name, []).append(value)
    self._pending = []
    # Copies: a save goes on in the background.
    return [{name: list(values) for name, values in fetched.items()} for fetched in self._fetched]

  def flush(self, step: int) -> list[dict[str, float]]:
    """The mean of each metric of each learner, by 'train/NAME'; begins anew."""
    fetched = self.fetch(step)
    self._fetched = [{} for _ in fetched]
    return [
      {f"train/{name}": math.fsum(v) / len(v) for name, v in sorted(values.items())} for values in fetched
    ]


def _per_step(metrics: dict[str, Any]) -> list[dict[str, Any]]:
  """The metrics of each step of those of one, or of several as arrays."""
  count = max((np.size(value) for value in metrics.values()), default=0)
  return [{name: np.reshape(value, -1)[i] for name, value in metrics.items()} for i in range(count)]
