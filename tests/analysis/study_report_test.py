"""Tests of the summary of analysis/study_report.py: variants, controls and claims of a paper."""

import pytest

from analysis import fake_runs
from smskd_jax.analysis import document, records, statistics, study_report


def text(*arguments):
  return document.render_markdown(study_report.summary(*arguments))


def outcomes(*accuracies):
  return {
    seed: records.Outcome(accuracy, accuracy, None, None, 100, 0, 1.0)
    for seed, accuracy in enumerate(accuracies)
  }


FOUND = {
  "one.kd": outcomes(70.0, 71.0),
  "one.nokd": outcomes(68.0, 68.5),
  "two.kd": outcomes(60.0, 61.0),
  "two.nokd": outcomes(59.0, 59.5),
}


def rows(**fields):
  study = {"network": "student", "published": {}, "control": "one.nokd", "variants": dict.fromkeys(FOUND)}
  markdown = text("title", study | fields, FOUND, {})
  words, table_ = markdown.split("\n\n")[-2:]
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_.strip().splitlines()[2:]]
  return words, {row[0]: row for row in cells}


def test_all_are_compared_with_one_control():
  words, found = rows()
  assert words == "Compared with `one.nokd`, seed by seed:"
  assert {name: row[2] for name, row in found.items()} == {
    "one.kd": "+2.25",
    "two.kd": "-7.75",
    "two.nokd": "-9.00",
  }


def test_each_is_compared_with_its_own_control_and_all_are_one_family():
  words, found = rows(controls={"two.kd": "two.nokd", "two.nokd": "two.nokd"})
  assert words.startswith("Each compared with its control")
  assert {name: row[2] for name, row in found.items()} == {
    "one.kd against one.nokd": "+2.25",
    "two.kd against two.nokd": "+1.25",
  }
  p = statistics.paired_comparison({0: 70.0, 1: 71.0}, {0: 68.0, 1: 68.5}).t_p
  raw, corrected = found["one.kd against one.nokd"][6].strip(")").split(" (")
  assert float(raw) == pytest.approx(p, abs=1e-3) and float(corrected) == pytest.approx(2 * p, abs=1e-3)


def test_variants_that_are_their_own_controls_are_not_compared():
  words, _ = rows(controls={name: name for name in FOUND})
  assert words.startswith("Test accuracy")


def test_both_tests_give_a_verdict():
  steady = {"new": outcomes(70.0, 71.0, 72.0), "old": outcomes(60.0, 61.1, 61.9)}
  study = {"network": "student", "published": {}, "control": "old", "variants": dict.fromkeys(steady)}
  row = text("title", study, steady, {}).strip().splitlines()[-1].strip("|").split("|")
  assert [cell.strip() for cell in row[-2:]] == ["undecided at 3 seeds, about 6 needed", "better"]


def test_cost_counts_all_stages_of_the_network():
  """Cost counts stages from scratch and is a mean over seeds: one seed may compute cached outputs for all."""

  def stage(name, network, reference=None):
    return {
      "name": name,
      "network": network,
      "key": name,
      "inputs": {"init": None, "teachers": [], "reference": reference},
      "backward_passes": 10,
      "forward_passes": {"student": 10, "teachers": 3, "reference": 2},
      "seconds": 1.0,
      "metrics": {"last": {"test/accuracy": 0.5}, "oracle": {"test/accuracy": 0.5}},
    }

  stages = [stage("t", "teacher"), stage("1", "student"), stage("2", "student", reference="1")]
  found = records.run_outcome(stages, "student")
  assert (found.images, found.frozen, found.seconds) == (20, 10, 2)
  study = {"network": "student", "published": {}, "control": "a", "variants": {"a": None}}
  markdown = text("title", study, {"a": {0: found, 1: found._replace(frozen=30)}}, {})
  assert [cell.strip() for cell in markdown.strip().splitlines()[-1].split("|")][8:10] == ["20", "20"]


def claims(found, paper, **fields):
  study = {"network": "student", "published": {}, "control": "old", "variants": dict.fromkeys(found)}
  told = [{"variant": "new", "control": "old", "paper": paper}]
  lines = text("title", study | {"claims": told} | fields, found, {}).strip().splitlines()
  return [cell.strip() for cell in lines[-1].strip("|").split("|")], lines


STEADY = {"new": outcomes(70.0, 71.0, 72.0), "old": outcomes(60.0, 61.1, 61.9)}
WORSE = {"new": STEADY["old"], "old": STEADY["new"]}
CLOSE = {"new": outcomes(60.0, 61.0, 62.0), "old": outcomes(60.1, 60.5, 62.3)}


@pytest.mark.parametrize(
  ("found", "paper", "verdict"),
  [
    (STEADY, "+1.80", "confirmed"),
    (STEADY, "-0.29", "contradicted"),
    (WORSE, "-", "confirmed"),
    (WORSE, "+", "contradicted"),
    (STEADY, "", "better"),
    (CLOSE, "+1.80", "undecided at 3 seeds"),
  ],
)
def test_verdicts_on_the_claims_of_a_paper(found, paper, verdict):
  row, _ = claims(found, paper)
  assert row[:2] == ["new against old", paper or "-"]
  assert row[7].startswith(verdict) and row[8].startswith("undecided"), (
    "the exact test decides nothing at 3 seeds"
  )


def test_the_paper_beside_ours_with_the_interval_of_our_mean():
  _, lines = claims(STEADY, "+", published={"new": 72.16}, quoted={"new.sakd": 71.5}, notes=("A note.",))
  new, old, quoted = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[6:9])
  half = 4.302653 / 3**0.5  # Student's t of two degrees of freedom, deviation 1
  assert new[-2:] == ["72.16", f"-1.16 ({-1.16 - half:+.2f} to {-1.16 + half:+.2f})"]
  assert old[-2:] == ["-", "-"] and quoted[:2] == ["new.sakd", "0"] and quoted[-2:] == ["71.50", "-"]
  assert "- A note." in lines


def test_forgetting_of_the_first_stage_is_a_mean_over_seeds():
  """Compares the last of three stages with the first; a variant of one stage has no forgetting."""

  def outcome(kept, forgotten, gained):
    names, stages = ("at", "vid", "kd"), []
    for i, name in enumerate(names):
      of_first = fake_runs.overlap("at", "key-at", kept, forgotten, gained)
      others = [of_first, fake_runs.overlap("vid", "key-vid", 1, 1, 1)][:i]
      one, *_ = fake_runs.stage(name, start=names[i - 1] if i else None)
      reads = one["inputs"] | {"init": f"key-{names[i - 1]}" if i else None}
      stages.append(one | {"key": f"key-{name}", "inputs": reads, "forgetting": {"test": others}})
    return records.run_outcome(stages, "student"), records.run_outcome(stages[:1], "student")

  (first, alone), (second, _) = outcome(60, 20, 20), outcome(80, 10, 10)
  assert (first.iou, first.forgotten, second.iou, second.forgotten) == (0.6, 20, 0.8, 10)
  assert alone.iou is alone.forgotten is None
  found = {"stages": {0: first, 1: second}, "alone": {0: alone, 1: alone}}
  study = {"network": "student", "published": {}, "control": "alone", "variants": dict.fromkeys(found)}
  cells = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in text("title", study, found, {}).splitlines()
    if line.startswith("|")
  ]
  header, _, stages, one = cells[:4]
  assert header[5:7] == ["IoU with stage 1", "forgotten"]
  assert stages[5:7] == ["0.7000 ± 0.1414", "15.0 ± 7.1"]
  assert one[5:7] == ["-", "-"]
