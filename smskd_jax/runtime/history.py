"""The history of a stage in training: metrics, predictions, evaluations and its best network, beside its checkpoints.

All that the stage's result depends on is part of each checkpoint: the evaluations that it reports in the note, the best
network in the tree. The files metrics.jsonl and predictions.npz serve reports alone; a checkpoint's note holds their
digests, so that a stage which goes on tells of lines that were lost in the meantime.
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

MetricsLine = dict[str, Any]  # of a metrics.jsonl


class Evaluations(NamedTuple):
  """The evaluations that a stage's result reports, as lines of metrics.jsonl."""

  last: MetricsLine | None = None
  best_by_validation: MetricsLine | None = None  # never chosen by the test set
  oracle: MetricsLine | None = (
    None  # the best by the test set: reported, as the survey does, and used for nothing
  )

  def add(self, line: MetricsLine) -> "Evaluations":
    """The evaluations with one more. The first of equals is the best; step 0 is the stage before, and never is."""
    found = self._replace(last=line)
    if line["step"]:
      if _is_better(line, self.oracle, "test/accuracy"):
        found = found._replace(oracle=line)
      if "validation/accuracy" in line and _is_better(line, self.best_by_validation, "validation/accuracy"):
        found = found._replace(best_by_validation=line)
    return found


def _is_better(line: MetricsLine, other: MetricsLine | None, metric: str) -> bool:
  return other is None or line[metric] > other[metric]


class History:
  """Opened before a stage is trained, closed after it in any case. Has the `save` and `close` that the loop calls."""

  def __init__(
    self, entry: StageEntry, events: Path, variables_of: Callable[[Any], Any], *, keep: int, select: bool
  ):
    """Opens the entry's checkpoints.

    Args:
      entry: of the stage.
      events: gets the TensorBoard events.
      variables_of: the learner's variables in a state.
      keep: how many checkpoints to keep.
      select: keep the network that is best by validation too.
    """
    self._entry, self._events, self._variables_of, self._select = entry, events, variables_of, select
    self._checkpoints = checkpoint.Checkpoints(entry.checkpoints, keep=keep)
    self.evaluations = Evaluations()
    self.best: Any = None  # host arrays: the variables that are best by validation, where they are asked for

  def restore(self, state: Any, say: Callable[[str], None]) -> checkpoint.Restored | None:
    """The newest whole checkpoint, or None; opens the files that are written while the stage trains.

    Args:
      state: of the same structure, shapes and placement.
      say: told of damaged checkpoints and files.
    """
    restored = self._checkpoints.restore(self._tree(state), warn=say)
    step, note = (restored.step, restored.metadata) if restored else (-1, dict[str, Any]())
    if restored:
      self.evaluations = Evaluations(**note["evaluations"])
      if self._select:
        restored, best = restored._replace(state=restored.state["state"]), restored.state["best"]
        if self.evaluations.best_by_validation is not None:
          self.best = jax.device_get(best)
    self._choices = PredictionsWriter(self._entry.predictions, last_step=step, digest=note.get("choices"))
    self._writer = MetricsWriter(
      self._entry.metrics, self._events, last_step=step, digest=note.get("metrics")
    )
    for one, path in ((self._writer, self._entry.metrics), (self._choices, self._entry.predictions)):
      if one.discarded:
        say(
          f"{path} is not as it was at step {step}: what it told of the steps up to there is lost to reports; no "
          "result depends on it"
        )
    return restored

  def write(self, values: Mapping[str, Any]) -> None:
    """Appends a line of metrics."""
    self._writer.write(values)

  def add_evaluation(self, line: MetricsLine, choices: Mapping[str, np.ndarray], variables: Any) -> None:
    """Takes notice of an evaluation of variables, with the class [n] predicted for each image of each set."""
    self._choices.write(line["step"], choices)
    before, line = self.evaluations.best_by_validation, json.loads(json.dumps(line))
    self.evaluations = self.evaluations.add(line)
    if self._select and distributed.broadcast(self.evaluations.best_by_validation is not before):
      self.best = jax.device_get(variables)

  def save(self, step: int, state: Any, note: dict[str, Any]) -> None:
    """Starts to save a checkpoint, whose note gets more. What lies beside it is on the disk before."""
    self.sync()
    digests = {"metrics": self._writer.digest, "choices": self._choices.digest}
    note = note | digests | {"evaluations": self.evaluations._asdict()}
    self._checkpoints.save(step, self._tree(state), note)

  def sync(self) -> None:
    """Makes sure that the metrics are on the disk."""
    self._writer.sync()

  def checkpoint_steps(self) -> list[int]:
    """The steps of which there are whole checkpoints, once the one that is being saved is there, too."""
    with contextlib.suppress(Exception):  # who asks tells of another error already
      self._checkpoints.wait()
    return checkpoint.saved_steps(self._entry.checkpoints)

  def close(self) -> None:
    """Waits for what is being saved."""
    self._checkpoints.close()
    self._writer.close()

  def _tree(self, state: Any) -> Any:
    """Tree that a checkpoint stores. Before the first evaluation the best network is any network of the same shapes."""
    if not self._select:
      return state
    return {"state": state, "best": self._variables_of(state) if self.best is None else self.best}
