"""Tests of report.py: reports of runs and studies."""

import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from analysis import fake_runs
from analysis.html_checks import EVIL, check_alone
from smskd_jax import report
from smskd_jax.analysis import figures, records, run_report
from smskd_jax.analysis.document import Figure, Table
from smskd_jax.runtime import workdir

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def undrawn_figures(monkeypatch):
  """Skips the encoding of figures, which takes most of the time."""
  monkeypatch.setattr(figures, "to_png", lambda figure, *, crop=False: b"\x89PNG")


def page(*folders, out=None):
  """The report as HTML, parsed HTML and Markdown."""
  html, markdown = report.run(folders, out or folders[0])
  return html.read_text(), check_alone(html.read_text()), markdown.read_text()


def titles(html):
  return re.findall(r"<h[23]>([^<]*)", html)


def test_the_report_of_a_run(tmp_path):
  folder = fake_runs.run(tmp_path / "first & only", seed=3)
  (folder / "report.md").write_text("the run's own")
  html, parsed, markdown = page(folder)
  assert "<title>first &amp; only: digits, seed 3 (one seed only)</title>" in html
  assert "One seed only: a difference" in html
  assert titles(html) == [
    *("Results", "Compute", "Forgetting", "student", "Predictions of the test images", "teacher", "student"),
    *(
      "Weights of the reference",
      "student",
      "Gradients",
      "student",
      "Terms of the objective",
      "teacher",
      "student",
    ),
    "Provenance",
  ]
  assert len(parsed.of("img")) == 8
  assert markdown.count("![") == 8 == len(list((folder / "report_figures").iterdir()))
  assert (folder / "report.md").read_text() == "the run's own"
  for words in ("-kd-3", "abc", "2 x cpu", "jax 1", "python -m smskd_jax.report", '"batch_size": 64'):
    assert words in markdown
    assert words in "".join(parsed.text)


def rows_of(markdown, name):
  """Cells of the rows that begin with a name, in all tables."""
  lines = [line for line in markdown.splitlines() if line.startswith(f"| {name} ")]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_numbers_of_a_run(tmp_path):
  _, _, markdown = page(fake_runs.run(tmp_path / "run"))
  accuracy, calibration, teacher, reference, budget, *_ = rows_of(markdown, "kd")
  assert accuracy == ["kd", "student", "resnet8", "kd", "80.00 %", "80.00 %", "3", "95.00 %"]
  assert calibration == ["kd", "0.900", "0.030", "0.010", "0.400"]
  assert teacher == ["kd", "its teacher", "85.00 %", "3.00 %", "6.00 %", "0.300"]
  assert reference[:2] == ["kd", "its reference"]
  assert budget == ["kd", "student", "3", "30", "1,920", "1,920", "1,920", "1,920", "1 min 00 s"]
  assert ["student", "3,840", "3,840", "-", "1,920", "2 min 00 s"] in rows_of(markdown, "student")
  assert ["teacher", "1,280", "1,280", "3,840", "-", "40 s"] in rows_of(markdown, "teacher")
  assert rows_of(markdown, "all") == [["all", "", "", "80", "5,120", "5,120", "3,840", "1,920", "2 min 40 s"]]


FORGOTTEN = ["kd", "fitnet", "test", "23", "25", "20", "3 (13.0 %)", "5", "0.7143"]


def test_forgetting_has_a_table_and_bars(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  html, _, markdown = page(folder)
  assert FORGOTTEN in rows_of(markdown, "kd")
  assert "kept-and-forgotten.png" in markdown
  assert '<th class="number">IoU</th>' in html


@pytest.mark.parametrize(
  "spoil, words",
  [
    (lambda of: of.clear(), "no records of the test set"),
    (lambda of: of.update(test=None), "TypeError"),
    (lambda of: of["test"].clear(), "not of the earlier stages"),
    (lambda of: of["test"][0].update(key="other"), "not of the earlier stages"),
    (lambda of: of["test"][0].update(kept=-1), "are not counts"),
    (lambda of: of["test"][0].update(kept="20"), "are not counts"),
    (lambda of: of["test"][0].pop("gained"), "KeyError 'gained'"),
  ],
)
def test_invalid_forgetting_counts_give_a_warning(tmp_path, spoil, words):
  folder = fake_runs.run(tmp_path / "run")
  result = json.loads((folder / "result.json").read_text())
  spoil(result["stages"][2]["forgetting"])
  (folder / "result.json").write_text(json.dumps(result))
  _, _, markdown = page(folder)
  assert "no forgetting of stage `kd`: `forgetting` is missing or damaged in result.json" in markdown
  assert words in markdown
  assert FORGOTTEN not in rows_of(markdown, "kd")


def test_missing_data_are_left_out(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  shutil.rmtree(folder / "store")
  result = json.loads((folder / "result.json").read_text())
  for stage in result["stages"]:
    last = stage["metrics"]["last"]
    stage["metrics"]["last"] = {name: last[name] for name in ("step", "epoch", "test/accuracy")}
    del stage["metrics"]["oracle"], stage["backward_passes"], stage["model"], stage["methods"]
    del stage["forgetting"]
  for name in ("versions", "devices", "git_revision", "pretrained"):
    del result[name]
  (folder / "result.json").write_text(json.dumps(result))
  html, _, markdown = page(folder)
  assert titles(html) == ["Results", "Compute", "Forgetting", "student", "Provenance"]
  assert rows_of(markdown, "kd")[0] == ["kd", "student", "80.00 %"]
  assert "no forgetting of stage `kd`: `forgetting` is missing or damaged in result.json" in markdown
  assert "stage 'fitnet': -fitnet-0 is in no store" in markdown


def test_strings_of_files_are_escaped(tmp_path):
  evil = EVIL.replace("/", "")  # what can be the name of a folder
  made_stages = [fake_runs.stage(evil, "student")]
  made_stages[0][0].update(key="key", network=evil, methods=[evil], model=evil, extra_tests={evil: 0.5})
  given = [{"network": evil, "key": evil, "source": evil, "metrics": {"test/accuracy": 0.5}}]
  folder = fake_runs.run(tmp_path / evil, made_stages, given=given)
  _, parsed, markdown = page(folder)
  assert "".join(parsed.text).count(evil) > 10
  assert "<script" not in re.sub(r"```\n.*?\n```", "", markdown, flags=re.DOTALL)


def test_runs_that_differ_only_in_seeds_are_averaged(tmp_path):
  runs = [
    fake_runs.run(tmp_path / f"seed{seed}", fake_runs.stages(seed, accuracy=0.7 + 0.1 * seed), seed=seed)
    for seed in (0, 1)
  ]
  html, _, markdown = page(*runs, out=tmp_path / "pages")
  assert "one seed only" not in html
  assert ["seed0, seed1", "student", "2", "75.00 ± 7.07"] in rows_of(markdown, "seed0, seed1")
  assert titles(html)[:2] == ["seed0: digits, seed 0", "Results"]
  assert not (runs[0] / "report.html").exists()


def test_runs_of_different_configs_are_not_averaged(tmp_path):
  first = fake_runs.run(tmp_path / "first")
  second = fake_runs.run(tmp_path / "second", fake_runs.stages(1, anchored=False), seed=1)
  html, _, _ = page(first, second, out=tmp_path)
  assert html.count("one seed only") >= 2
  assert "±" not in html


def test_the_report_of_a_study(tmp_path):
  folder = fake_runs.study(tmp_path / "study", gain=0.05, published={"anchored": 70.0, "free": 80.25})
  html, parsed, markdown = page(folder)
  assert "<title>study: a study of 2 variants</title>" in html
  assert titles(html)[:2] == ["Results", "Comparison of the variants"]
  assert rows_of(markdown, "anchored")[0][:3] == ["anchored", "2", "70.50 ± 0.71"]
  assert rows_of(markdown, "free")[1][:3] == ["free", "2", "+5.00"]
  assert rows_of(markdown, "anchored")[1] == ["anchored", "2", "70.50 ± 0.71", "70.00", "+0.50", "+1.0"]
  assert "are quoted, not measured here" in html
  assert [attributes["id"] for attributes in parsed.of("details") if "id" in attributes] == ["s4", "s5"]
  assert "study-kd" not in markdown
  assert "anchored-kd-1" in markdown
  assert "Not finished" not in html


def test_an_unfinished_study(tmp_path):
  folder = fake_runs.study(tmp_path / "study")
  (folder / "free" / "seed1" / "result.json").unlink()
  told = {"variants": {}, "failures": {"free:0": f"no {EVIL}"}}
  (folder / "result.json").write_text(json.dumps(told))
  (folder / "free" / "seed0" / "result.json").unlink()
  (folder / "anchored" / "seed1" / "result.json").unlink()
  html, parsed, _ = page(folder)
  assert "a study of 2 variants (one seed only)" in html
  assert "Not finished yet: anchored:1, free:1." in html
  assert f"failed: free:0: no {EVIL}" in "".join(parsed.text)


def test_numbers_of_a_study_come_from_the_stores_not_from_markdown(tmp_path):
  folder = fake_runs.study(tmp_path / "study", gain=0.05, published={"free": 80.25})
  before = page(folder)[2]
  for path in (folder / "report.md", folder / "report_full.md", folder / "free" / "seed0" / "report.md"):
    path.write_text("| free | 99.99 |")
  assert page(folder)[2] == before
  for seed in (0, 1):
    path = folder / "free" / f"seed{seed}" / "result.json"
    result = json.loads(path.read_text())
    for stage in result["stages"]:
      stage["metrics"]["last"]["test/accuracy"] = 0.4321
    path.write_text(json.dumps(result))
  assert rows_of(page(folder)[2], "free")[0][:3] == ["free", "2", "43.21 ± 0.00"]


def test_html_and_markdown_show_the_same_numbers(tmp_path):
  for folder in (
    fake_runs.run(tmp_path / "run"),
    fake_runs.study(tmp_path / "study", published={"free": 70.0}),
  ):
    html, _, markdown = page(folder)
    table_rows = [re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall("<tr>(.*?)</tr>", html)]
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in line[1:-1].split("|")] for line in lines] == table_rows
    assert len(lines) > 30


def test_the_teachers_of_a_study(tmp_path):
  folder = fake_runs.study(tmp_path / "study")
  fake_runs.run(folder / "teachers", [fake_runs.stage("teacher", "teacher")])
  assert "Teachers shared by the variants" in titles(page(folder)[0])


def captions(record):
  parts = run_report._prediction_parts(record, record.stages[1:])
  return [part.caption for part in parts if isinstance(part, Figure)]


def test_predictions_are_compared_with_labels_if_known(tmp_path):
  record = records.read_run("WORKDIR", fake_runs.run(tmp_path / "run"))
  assert captions(record) == [run_report.EVENTS]
  workdir.write_labels(tmp_path / "run", {"test": np.zeros(fake_runs.IMAGES, int)})
  record = records.read_run("WORKDIR", tmp_path / "run")
  assert captions(record) == [run_report.LABELED_EVENTS, run_report.CONFUSION]
  table = next(run_report._prediction_parts(record, record.stages[1:]))
  assert isinstance(table, Table)
  assert [row[0] for row in table.rows] == ["fitnet", "kd"]


def command(*arguments):
  """Exit status, stdout and stderr of the command line."""
  line = [sys.executable, "-m", "smskd_jax.report", *map(str, arguments)]
  environment = os.environ | {"PYTHONWARNINGS": "error"}
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120)
  return done.returncode, done.stdout, done.stderr


def test_from_the_command_line(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  workdir.write_labels(folder, {"test": np.zeros(fake_runs.IMAGES, int)})
  status, out, err = command(folder, f"--out={tmp_path / 'new' / 'pages'}")
  assert (status, err) == (0, "")
  assert out == "".join(f"wrote {tmp_path}/new/pages/{name}\n" for name in ("report.html", "report_full.md"))
  check_alone((tmp_path / "new" / "pages" / "report.html").read_text())


def test_errors_on_the_command_line_are_one_line(tmp_path):
  status, out, err = command(tmp_path)
  assert (status, out) == (2, "")
  assert err.count("\n") == 1
