"""Tests of the section on fidelity in reports of runs."""

import json

import numpy as np
import pytest

from analysis import fake_outputs, fake_runs
from analysis.html_checks import EVIL, check_alone
from smskd_jax import report
from smskd_jax.analysis import (
  fidelity,
  fidelity_figures,
  figures,
  records,
  run_report,
)
from smskd_jax.analysis.document import Figure, Table
from smskd_jax.errors import UserError
from smskd_jax.training import metrics

ALL = ["reliability", "correlations", "cka", "embeddings", "classes"]


@pytest.fixture(autouse=True)
def undrawn_figures(monkeypatch):
  """Skips the encoding of figures, which takes most of the time."""
  monkeypatch.setattr(figures, "to_png", lambda figure, *, crop=False: b"\x89PNG")


@pytest.fixture
def drawn(monkeypatch):
  """Arguments of the last call that drew each figure, by the name of the figure."""
  found = {}

  def keep_arguments(name, draw):
    return lambda *args: found.update({name: args}) or draw(*args)

  functions = ("reliability", "correlation_gaps", "cka", "embeddings", "class_accuracy")
  for name, function in zip(ALL, functions, strict=True):
    monkeypatch.setattr(fidelity_figures, function, keep_arguments(name, getattr(fidelity_figures, function)))
  return found


def chapter(folder, embedding="pca"):
  """Parts of the section of a run by network; {} for no section."""
  found = run_report.fidelity_sections(records.read_run("WORKDIR", folder), embedding)
  return {section.title: section.parts for chapter in found for section in chapter.parts}


def figures_of(parts):
  return {part.name: part for part in parts if isinstance(part, Figure)}


def answers(folder, name):
  with np.load(folder / "store" / f"-{name}-0" / "eval_outputs.npz") as file:
    return dict(file)


def test_figures_of_a_run(tmp_path, drawn):
  folder = fake_runs.run(tmp_path / "run")
  label = fake_outputs.write(folder)
  parts = chapter(folder)
  assert list(parts) == ["student"]  # the teacher has no teacher
  assert list(figures_of(parts["student"])) == ALL
  assert all(figure.png.startswith(b"\x89PNG") for figure in figures_of(parts["student"]).values())
  last, teacher = (answers(folder, name)["test/logits"] for name in ("kd", "teacher"))
  (calibrated,) = drawn["reliability"]
  assert list(calibrated) == ["after kd", "its teacher", "its reference"]
  assert calibrated["after kd"].ece == metrics.expected_calibration_error(last, label)
  (gaps,) = drawn["correlations"]
  gap = np.abs(np.corrcoef(last.T) - np.corrcoef(teacher.T))
  np.testing.assert_allclose(gaps[1][1], gap, atol=1e-6)
  assert [title for title, _ in gaps][1] == f"kd\nmean {gap[np.triu_indices(10, 1)].mean():.3f}"


def test_table_and_captions_of_a_run(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder)
  table, *_ = parts = chapter(folder)["student"]
  assert isinstance(table, Table)
  assert [row[:2] for row in table.rows] == [["fitnet", "teacher"], ["kd", "teacher"]]
  assert [row[3] for row in table.rows] == ["0.700", "0.700"]
  captions = {name: figure.caption for name, figure in figures_of(parts).items()}
  assert "15 equally wide bins" in captions["reliability"]
  assert "on 14 test images" in captions["cka"]
  assert "of 14 test images of all classes" in captions["embeddings"]
  assert "at the end of kd on the test images of each class" in captions["classes"]
  assert "the reference of this stage" in captions["classes"]
  assert "first stage" not in captions["classes"]  # it is the reference
  assert not any("{" in caption for caption in captions.values())


def test_embeddings_are_of_the_same_images(tmp_path, drawn):
  folder = fake_runs.run(tmp_path / "run")
  label = fake_outputs.write(folder, k=12)
  made_of = answers(folder, "fitnet")
  caption = figures_of(chapter(folder)["student"])["embeddings"].caption
  panels, of_panels, names = drawn["embeddings"]
  assert [title for title, _ in panels] == ["teacher", "after fitnet", "after kd"]
  shown = label[made_of["index"]] < 10
  np.testing.assert_array_equal(of_panels, label[made_of["index"]][shown])
  own = fidelity.pca(made_of["test/embedding"][shown])
  np.testing.assert_allclose(np.abs(panels[1][1].points), np.abs(own.points))
  assert list(names.items())[::9] == [(0, "class 0"), (9, "class 9")]
  assert f"of {shown.sum()} test images of the first 10 of 12 classes" in caption
  different = {name: x for name, x in made_of.items() if name != "index"} | {"index": made_of["index"] + 1}
  np.savez(folder / "store" / "-fitnet-0" / "eval_outputs.npz", **different)
  chapter(folder)
  assert [title for title, _ in drawn["embeddings"][0]] == ["teacher", "after kd"]


def test_tsne_replaces_the_principal_components(tmp_path, drawn):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder)
  assert "t-SNE" in figures_of(chapter(folder, "tsne")["student"])["embeddings"].caption
  assert [embedded.explained_variance for _, embedded in drawn["embeddings"][0]] == [None] * 3


def test_no_section_without_outputs_or_teachers(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  assert chapter(folder) == {}
  fake_outputs.write(folder)
  fake_runs.run(tmp_path / "alone", [fake_runs.stage("teacher", "teacher")])
  fake_outputs.write(tmp_path / "alone")
  assert chapter(tmp_path / "alone") == {}


def test_outputs_without_features(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder, features=False)
  parts = chapter(folder)["student"]
  assert list(figures_of(parts)) == ["reliability", "correlations", "cka", "classes"]
  assert "the test images with saved features" in figures_of(parts)["cka"].caption


def test_without_labels_reliability_and_embeddings_are_left_out(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder)
  (folder / "labels.npz").unlink()
  assert list(figures_of(chapter(folder)["student"])) == ["correlations", "cka", "classes"]


def test_without_outputs_only_results_are_shown(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder)
  for path in (folder / "store").glob("*/eval_outputs.npz"):
    path.unlink()
  parts = chapter(folder)["student"]
  assert list(figures_of(parts)) == ["cka", "classes"]
  assert [row[2:] for row in parts[0].rows] == [["-", "0.700"]] * 2


def test_without_outputs_of_the_teacher(tmp_path, drawn):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder)
  (folder / "store" / "-teacher-0" / "eval_outputs.npz").unlink()
  assert "correlations" not in figures_of(chapter(folder)["student"])
  assert list(drawn["reliability"][0]) == ["after kd", "its reference"]
  assert [title for title, _ in drawn["embeddings"][0]] == ["after fitnet", "after kd"]


def test_several_teachers_one_of_them_pretrained(tmp_path, drawn):
  stages = fake_runs.stages(0)
  stages[2][0]["inputs"]["teachers"] = ["-teacher-0", "given-key"]
  given = [{"network": "large", "key": "given-key", "source": "x", "metrics": {"test/accuracy": 0.9}}]
  folder = fake_runs.run(tmp_path / "run", stages, given=given)
  label = fake_outputs.write(folder)
  parts = chapter(folder)["student"]
  assert [row[:2] for row in parts[0].rows] == [["fitnet", "teacher"], ["kd", "teacher"], ["kd", "large"]]
  with np.load(fake_outputs.path_of(folder, given[0])) as file:
    logits = [answers(folder, "teacher")["test/logits"], file["test/logits"]]
  together = drawn["reliability"][0]["its teachers, averaged"]
  assert together.ece == metrics.expected_calibration_error(metrics.ensemble_logits(logits), label)
  titles = [title.splitlines()[:2] for title, _ in drawn["correlations"][0]]
  assert titles == [["fitnet", "and teacher"], ["kd", "and teacher"], ["kd", "and large"]]
  assert [title for title, _ in drawn["cka"][0]] == ["\n".join(title) for title in titles]
  assert [title for title, _ in drawn["embeddings"][0]] == ["teacher", "large", "after fitnet", "after kd"]


@pytest.mark.parametrize("k, shown", [(2, 2), (20, 20), (100, 20)])
def test_few_and_many_classes(tmp_path, drawn, k, shown):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder, k=k, n=6 * k)
  parts = figures_of(chapter(folder)["student"])
  assert list(parts) == ALL
  accuracy, changes, names = drawn["classes"]
  assert len(names) == len(accuracy) == len(changes["its teacher"]) == shown
  if k == 100:
    assert names[:2] + names[-2:] == ["class 98", "class 97", "class 1", "class 0"]
    assert "the 10 of 100 classes with the largest gains" in parts["classes"].caption


def test_the_first_stage_where_it_is_not_the_reference(tmp_path, drawn):
  folder = fake_runs.run(tmp_path / "run", fake_runs.stages(0, anchored=False))
  fake_outputs.write(folder)
  chapter(folder)
  assert list(drawn["classes"][1]) == ["its teacher", "its first stage"]
  assert list(drawn["reliability"][0]) == ["after kd", "its teacher"]


def test_only_the_last_of_many_stages_are_shown(tmp_path, drawn):
  names = [f"stage{i:02d}" for i in range(10)]
  stages = [
    fake_runs.stages()[0],
    *(fake_runs.stage(b, start=a) for a, b in zip([None, *names], names, strict=False)),
  ]
  folder = fake_runs.run(tmp_path / "run", stages)
  fake_outputs.write(folder)
  parts = chapter(folder)["student"]
  assert len(parts[0].rows) == 10
  assert [title for title, _ in drawn["cka"][0]] == names[2:]
  assert len(drawn["correlations"][0]) == 8
  assert "Only the last 8 of 10 pairs of a stage and a teacher are shown." in figures_of(parts)["cka"].caption
  assert [title for title, _ in drawn["embeddings"][0]] == ["teacher", "after stage08", "after stage09"]


def test_bins_are_those_of_the_config(tmp_path, drawn):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder)
  settings = json.loads((folder / "config.json").read_text())
  settings["config"]["evaluate"] = {"calibration_bins": 7}
  (folder / "config.json").write_text(json.dumps(settings))
  chapter(folder)
  assert len(drawn["reliability"][0]["after kd"].images) == 7


@pytest.mark.parametrize("content", [b"", b"PK no", None])
def test_damaged_outputs_are_refused_in_one_line(tmp_path, content):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder)
  path = folder / "store" / "-kd-0" / "eval_outputs.npz"
  path.write_bytes(content) if content is not None else np.savez(path, other=np.zeros(1))
  with pytest.raises(UserError, match=r"^WORKDIR: .*eval_outputs.npz (is damaged|holds no)"):
    chapter(folder)


def test_names_never_become_markup_or_mathematics(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder, names=[EVIL, "$x^{$", "US$ or C$", *("abcdefg")])
  html, _ = report.run([folder], folder)
  check_alone(html.read_text())


def test_the_command_line(tmp_path, capsys, drawn):
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder)
  assert report.main([str(folder), "--embedding=tsne"]) == 0
  assert "t-SNE" in (folder / "report_full.md").read_text()
  assert "<h2>Fidelity" in (folder / "report.html").read_text()
  assert report.main([str(folder), "--embedding=umap"]) == 2
  assert "--embedding" in capsys.readouterr().err


def test_the_command_line_offers_all_projections(capsys):
  with pytest.raises(SystemExit):
    report.main(["--help"])
  assert "{" + ",".join(fidelity.EMBEDDINGS) + "}" in capsys.readouterr().out
  assert set(run_report.EMBEDDINGS) == set(fidelity.EMBEDDINGS)


def test_reports_of_studies_do_not_read_outputs(tmp_path, monkeypatch):
  folder = fake_runs.study(tmp_path / "study", seeds=(0,))
  for run in folder.glob("*/seed*"):
    (run / "store").symlink_to(folder / "store")
    fake_outputs.write(run)
  monkeypatch.setattr(records, "read_eval_outputs", None)
  html, _ = report.run([folder], folder)
  assert "Fidelity" not in html.read_text()
