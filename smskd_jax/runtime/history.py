"""History of a stage in training: checkpoints, evaluations, best network, metrics.

A checkpoint contains everything that the stage's result depends on: the reported evaluations in the metadata, the best
network in the tree. The files metrics.jsonl and predictions.npz serve only reports; the metadata holds their digests,
so that a continued stage detects lost lines.
"""

from collections.abc import Callable, Mapping
import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from smskd_jax.runtime import checkpoint, distributed
from smskd_jax.runtime.eval_outputs import PredictionsWriter
from smskd_jax.runtime.store import StageEntry
from smskd_jax.runtime.writer import MetricsWriter

MetricsLine = dict[str, Any]  # a line of metrics.jsonl


class Evaluations(NamedTuple):
  """Evaluations that a stage's result reports, as lines of metrics.jsonl."""

  last: MetricsLine | None = None
  best_by_validation: MetricsLine | None = None  # first of the best; the test set is not used
  oracle: MetricsLine | None = None  # best by the test set: reported as in the survey, and not used otherwise

  def add(self, line: MetricsLine) -> "Evaluations":
    """The evaluations with a new line.

    The first of equals is best; step 0, before the stage, is never best.
    """
    result = self._replace(last=line)
    if line["step"]:
      if _is_better(line, self.oracle, "test/accuracy"):
        result = result._replace(oracle=line)
      if "validation/accuracy" in line and _is_better(line, self.best_by_validation, "validation/accuracy"):
        result = result._replace(best_by_validation=line)
    return result


def _is_better(line: MetricsLine, other: MetricsLine | None, metric: str) -> bool:
  return other is None or line[metric] > other[metric]


class History:
  """Files of a stage in training; open before training, closed after it in any case."""

  def __init__(
    self, entry: StageEntry, events: Path, variables_of: Callable[[Any], Any], *, keep: int, select: bool
  ):
    """Opens the entry's checkpoints.

    Args:
      entry: of the stage.
      events: folder of the TensorBoard events.
      variables_of: returns the student's variables of a state.
      keep: number of checkpoints to keep.
      select: also store the network that is best by validation.
    """
    self._entry, self._events, self._variables_of, self._select = entry, events, variables_of, select
    self._checkpoints = checkpoint.Checkpoints(entry.checkpoints, max_to_keep=keep)
    self.evaluations = Evaluations()
    self.best: Any = None  # host arrays: variables that are best by validation, with `select`

  def restore(self, state: Any, log: Callable[[str], None]) -> checkpoint.Restored | None:
    """Restores the newest intact checkpoint, or None; opens the metrics and predictions files.

    Args:
      state: of the same structure, shapes and placement.
      log: receives a line about each damaged checkpoint or file.
    """
    restored = self._checkpoints.restore(self._tree(state), warn=log)
    step, metadata = (restored.step, restored.metadata) if restored else (-1, dict[str, Any]())
    if restored:
      self.evaluations = Evaluations(**metadata["evaluations"])
      if self._select:
        restored, best = restored._replace(state=restored.state["state"]), restored.state["best"]
        if self.evaluations.best_by_validation is not None:
          self.best = jax.device_get(best)
    self._predictions = PredictionsWriter(
      self._entry.predictions, last_step=step, digest=metadata.get("predictions")
    )
    self._writer = MetricsWriter(
      self._entry.metrics, self._events, last_step=step, digest=metadata.get("metrics")
    )
    for one, path in ((self._writer, self._entry.metrics), (self._predictions, self._entry.predictions)):
      if one.discarded:
        log(
          f"{path} differs from its content at step {step}: reports lack the metrics of earlier steps; no "
          "result depends on them"
        )
    return restored

  def write(self, values: Mapping[str, Any]) -> None:
    """Appends a line of metrics."""
    self._writer.write(values)

  def add_evaluation(self, line: MetricsLine, predictions: Mapping[str, np.ndarray], variables: Any) -> None:
    """Records an evaluation of the variables, with the predicted classes [n] of each set."""
    self._predictions.write(line["step"], predictions)
    before, line = self.evaluations.best_by_validation, json.loads(json.dumps(line))
    self.evaluations = self.evaluations.add(line)
    if self._select and distributed.broadcast(self.evaluations.best_by_validation is not before):
      self.best = jax.device_get(variables)

  def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
    """Starts to save a checkpoint with extended metadata.

    Metrics and predictions are on the disk before.
    """
    self._writer.sync()
    digests = {"metrics": self._writer.digest, "predictions": self._predictions.digest}
    metadata = metadata | digests | {"evaluations": self.evaluations._asdict()}
    self._checkpoints.save(step, self._tree(state), metadata)

  def sync(self) -> None:
    """Waits for the pending save and flushes the metrics to the disk."""
    self._checkpoints.wait()
    self._writer.sync()

  def checkpoint_steps(self) -> list[int]:
    """The steps with complete checkpoints, after the pending save."""
    with contextlib.suppress(Exception):  # the caller reports another error already
      self._checkpoints.wait()
    return checkpoint.saved_steps(self._entry.checkpoints)

  def close(self) -> None:
    """Waits for the pending save and closes all files."""
    try:
      self._checkpoints.close()
    finally:
      self._writer.close()

  def _tree(self, state: Any) -> Any:
    """Tree of a checkpoint."""
    if not self._select:
      return state
    return {"state": state, "best": self._variables_of(state) if self.best is None else self.best}
