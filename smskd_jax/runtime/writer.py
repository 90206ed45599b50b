"""Writes metrics: metrics.jsonl, one JSON object a line, mirrored as TensorBoard events."""

from collections.abc import Iterable, Mapping
import hashlib
import json
import os
from pathlib import Path
import shutil
import time
from typing import Any

from smskd_jax.runtime import distributed


class MetricsWriter:
  """Appends to a stage's metrics.jsonl, and mirrors the file in TensorBoard events.

  The events are rewritten from the file whenever a stage is opened, so that a continued run shows no step twice.
  """

  def __init__(self, path: Path, events: Path | None, *, last_step: int, digest: str | None = None):
    """Opens the file, cut after `last_step`; a continued run writes later lines again.

    Only process 0 writes.

    Args:
      path: of the file.
      events: folder of the TensorBoard events; None: no events.
      last_step: of the lines to keep.
      digest: value of the property `digest` at `last_step`. Lines with another digest are discarded, and `discarded` is
        True; None: no check.
    """
    self._events, self._file = None, None
    self._sha, self.discarded = hashlib.sha256(), False
    if not distributed.is_primary():
      return
    self._events = _Events(events) if events is not None else None
    lines = [line for line in read_metrics(path) if line["step"] <= last_step]
    self.discarded = digest is not None and digest != _lines_digest(lines).hexdigest()
    lines = [] if self.discarded else lines
    self._sha = _lines_digest(lines)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(_json_line(values) for values in lines))
    temporary.replace(path)
    for values in lines:
      self._mirror(values)
    self._file = open(path, "a")  # noqa: SIM115  # open as long as the stage runs

  def write(self, values: Mapping[str, Any]) -> None:
    """Appends a line, {"step", "epoch", names: numbers}, flushed to the operating system."""
    if self._file is None:
      return
    line = _json_line(values)
    self._file.write(line)
    self._file.flush()
    self._sha.update(line.encode())
    self._mirror(values)

  @property
  def digest(self) -> str:
    """SHA-256 of all lines."""
    return self._sha.hexdigest()

  def sync(self) -> None:
    """Flushes all lines to the disk."""
    if self._file is not None:
      os.fsync(self._file.fileno())

  def close(self) -> None:
    """Flushes and closes all files; a second call does nothing."""
    self.sync()
    file, events, self._file, self._events = self._file, self._events, None, None
    for one in (file, events):
      if one is not None:
        one.close()

  def _mirror(self, values: Mapping[str, Any]) -> None:
    if self._events is not None:
      self._events.write(values)


def mirror_events(metrics: Path, events: Path) -> None:
  """Writes the TensorBoard events of a finished stage from its metrics.jsonl."""
  if not distributed.is_primary():
    return
  mirror = _Events(events)
  for values in read_metrics(metrics):
    mirror.write(values)
  mirror.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl, up to the first incomplete line; [] without the file."""
  return list(_complete_lines(path.read_bytes().splitlines())) if path.exists() else []


def _complete_lines(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
  for line in lines:
    try:
      values = json.loads(line)
    except ValueError:
      return
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
      return
    yield values


def _lines_digest(lines: Iterable[Mapping[str, Any]]) -> Any:
  return hashlib.sha256("".join(map(_json_line, lines)).encode())


def _json_line(values: Mapping[str, Any]) -> str:
  return json.dumps(dict(values)) + "\n"


class _Events:
  """TensorBoard events in a new folder.

  Written synchronously so that the caller gets the errors.
  """

  def __init__(self, folder: Path):
    from tensorboardX import event_file_writer  # a late import, for --help

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    self._writer = event_file_writer.EventsWriter(str(folder / "events"))

  def write(self, values: Mapping[str, Any]) -> None:
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    scalars = [summary.scalar(name, x) for name, x in values.items() if name not in ("step", "epoch")]
    for scalar in scalars:
      event = event_pb2.Event(step=values["step"], wall_time=time.time(), summary=scalar)
      self._writer.write_event(event)

  def close(self) -> None:
    self._writer.close()
