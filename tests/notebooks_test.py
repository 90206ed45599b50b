"""Tests of the notebooks: stored outputs of one complete run, existing files, and a new run."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
# Assertions after the last cell.
ASSERTIONS = {
  "loss_experiments.ipynb": """
assert set(results) == {name for name in losses.METHODS if name not in ("dml", "uda")}
assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))
assert np.mean(teacher_class == labels) > np.mean(student_class == labels) > 0.5
np.testing.assert_allclose(jax.grad(mean_kd)(student.logits), by_hand, atol=1e-6)
assert cosines["kd"] > 0.999 > max(cosine for name, cosine in cosines.items() if name != "kd")
assert (np.nansum(table, axis=1) > 0).all(), "a method has no gradient"
assert by_group(values)[-1] < by_group(results["kd"][0])[-1] / 2
assert history["task"][-5:].mean() < history["task"][0]
assert history["distill/trusted"][-5:].mean() < history["distill/trusted"][0]
assert len(plt.get_fignums()) == 4
"""
}


def cells(path):
  return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_has_assertions():
  assert {path.name for path in FOLDER.glob("*.ipynb")} == set(ASSERTIONS)


@pytest.mark.parametrize("name", ASSERTIONS)
def test_the_stored_outputs_are_those_of_one_run(name):
  path = FOLDER / name
  for i, cell in enumerate(cells(path)):
    assert cell["execution_count"] == i + 1
    assert all(output["output_type"] != "error" for output in cell["outputs"])
    assert all(output.get("name") != "stderr" for output in cell["outputs"])
  assert str(pathlib.Path.home()) not in path.read_text()


@pytest.mark.parametrize("name", ASSERTIONS)
def test_the_files_that_a_notebook_names_exist(name):
  named = set(re.findall(r"(?:smskd_jax|configs|docs)/[\w/]+\.\w+", (FOLDER / name).read_text()))
  assert len(named) >= 2
  missing = {path for path in named if not (ROOT / path).is_file()}
  assert missing <= {"smskd_jax/losses/trusted.py"}, "only the file that the reader writes"


@pytest.mark.slow
@pytest.mark.parametrize("name", ASSERTIONS)
def test_a_notebook_runs_and_prints_as_many_lines_as_stored(name, tmp_path):
  code = "\n".join("".join(cell["source"]) for cell in cells(FOLDER / name))
  # The agg backend keeps figures open, so that they can be counted.
  environment = os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
  done = subprocess.run(
    [sys.executable, "-c", code + ASSERTIONS[name]],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=environment,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  printed = "".join(
    "".join(output["text"]) for cell in cells(FOLDER / name) for output in cell["outputs"] if "text" in output
  )
  assert done.stdout.count("\n") == printed.count("\n"), "the stored outputs belong to other code"
