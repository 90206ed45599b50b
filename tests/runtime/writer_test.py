"""Tests of runtime/writer.py: lines that survive a crash, and none twice."""

import json

from tensorboardX.proto import event_pb2

from smskd_jax.runtime import writer


def lines(*steps):
  return [{"step": s, "epoch": s / 10, "train/loss": 1.0 / (s + 1)} for s in steps]


def write(path, events, values, last_step=-1):
  one = writer.MetricsWriter(path, events, last_step=last_step)
  for value in values:
    one.write(value)
  one.close()


def events_of(folder):
  """(step, value) of every event: records are a length, its check, the bytes and their check."""
  found = []
  for file in folder.iterdir():
    data = file.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      found += [(event.step, v.tag, round(v.simple_value, 6)) for v in event.summary.value]
      data = data[16 + size :]
  return sorted(found)


def test_lines_and_events(tmp_path):
  write(tmp_path / "m.jsonl", tmp_path / "events", lines(0, 5, 9))
  assert writer.read_metrics(tmp_path / "m.jsonl") == lines(0, 5, 9)
  assert events_of(tmp_path / "events") == [
    (0, "train/loss", 1.0),
    (5, "train/loss", 0.166667),
    (9, "train/loss", 0.1),
  ]


def test_a_continued_run_shows_no_step_twice(tmp_path):
  path, events = tmp_path / "m.jsonl", tmp_path / "events"
  write(path, events, lines(0, 5, 9))
  write(path, events, lines(9, 12), last_step=5)
  assert writer.read_metrics(path) == lines(0, 5, 9, 12)
  assert [step for step, _, _ in events_of(events)] == [0, 5, 9, 12]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
  path = tmp_path / "m.jsonl"
  write(path, None, lines(0, 5))
  path.write_text(path.read_text() + json.dumps(lines(9)[0])[:10])
  assert writer.read_metrics(path) == lines(0, 5)
  write(path, None, lines(9), last_step=9)
  assert writer.read_metrics(path) == lines(0, 5, 9)


def test_a_line_is_on_the_disk_at_once(tmp_path):
  one = writer.MetricsWriter(tmp_path / "m.jsonl", None, last_step=-1)
  one.write(lines(3)[0])
  assert writer.read_metrics(tmp_path / "m.jsonl") == lines(3)
  one.close()


def test_events_of_a_stage_that_was_only_read(tmp_path):
  write(tmp_path / "m.jsonl", None, lines(0, 5))
  writer.mirror_events(tmp_path / "m.jsonl", tmp_path / "events")
  assert [step for step, _, _ in events_of(tmp_path / "events")] == [0, 5]
  assert writer.read_metrics(tmp_path / "none.jsonl") == []


def test_it_may_be_closed_twice(tmp_path):
  one = writer.MetricsWriter(tmp_path / "m.jsonl", tmp_path / "events", last_step=-1)
  one.write(lines(3)[0])
  one.close()
  one.close()
  assert writer.read_metrics(tmp_path / "m.jsonl") == lines(3)
