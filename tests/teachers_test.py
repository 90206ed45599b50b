"""Public teachers, imported and evaluated by the command lines, reach the accuracies that others measured.

They and the images lie in the folder SMSKD_DATA, by default `shared/data` beside the checkout. Its README says
whose they are; its `unpack.py` makes files of the images. Without it these tests are skipped.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from smskd_jax import evaluate, import_torch

_DEFAULT = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDER = pathlib.Path(os.environ.get("SMSKD_DATA", _DEFAULT))
STREAMLINED = "--mean=.5071,.4867,.4408", "--std=.2675,.2565,.2761"
SURVEY = {
  "cifar10": ("--mean=.4914,.4822,.4465", "--std=.2023,.1994,.2010"),
  "cifar100": ("--mean=.507,.487,.441", "--std=.267,.256,.276"),
}
IMAGENET = "--mean=.485,.456,.406", "--std=.229,.224,.225"

# File, network, normalisation, accuracy in per cent: measured by an independent forward pass, or claimed.
TEACHERS = [
  ("cifar100_resnet56.pth", "resnet56", STREAMLINED, 71.59),
  ("cifar100_resnet20.pth", "resnet20", STREAMLINED, 66.09),
  ("cifar100_survey_resnet20.pth", "survey_resnet20", SURVEY["cifar100"], 69.69),
  ("cifar100_survey_resnet32.pth", "survey_resnet32", SURVEY["cifar100"], 71.69),
  ("cifar10_survey_resnet8.pth", "survey_resnet8", SURVEY["cifar10"], 89.59),
  ("cifar10_survey_resnet20.pth", "survey_resnet20", SURVEY["cifar10"], 93.02),
  ("cifar10_survey_resnet26.pth", "survey_resnet26", SURVEY["cifar10"], 93.41),
  ("cifar10_survey_wrn_10_1.pth", "wrn_10_1", SURVEY["cifar10"], 88.06),
  ("cifar10_option_a_resnet56-4bfd9763.th", "resnet56:shortcut=A", IMAGENET, 93.39),
]

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not (FOLDER / "teachers").is_dir(), reason=f"no teachers in {FOLDER}"),
]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
  """A data set's name -> its source, unpacked once."""
  folder, made = tmp_path_factory.mktemp("images"), {}

  def source(name):
    if name not in made:
      file = folder / f"{name}.npz"
      subprocess.run([sys.executable, FOLDER / "unpack.py", name, file], check=True)
      made[name] = f"npz:{file}"
    return made[name]

  return source


@pytest.mark.parametrize("file, network, normalization, accuracy", TEACHERS, ids=[row[0] for row in TEACHERS])
def test_accuracy(file, network, normalization, accuracy, images, tmp_path, capsys):
  path, out = FOLDER / "teachers" / file, tmp_path / "out"
  if not path.is_file():
    pytest.skip(f"no {path}")
  assert import_torch.main([str(path), f"--network={network}", f"--out={out}", *normalization]) == 0
  capsys.readouterr()
  data = images(file.partition("_")[0])
  assert evaluate.main([str(out), f"--data={data}", f"--json={tmp_path / 'numbers.json'}"]) == 0
  found = json.loads((tmp_path / "numbers.json").read_text())
  assert found["images"] == 10_000
  assert capsys.readouterr().out.startswith(f"accuracy {100 * found['metrics']['accuracy']:.2f} %\n")
  assert 100 * found["metrics"]["accuracy"] == pytest.approx(accuracy, abs=0.0301)


@pytest.mark.parametrize("file, network", [(row[0], row[1]) for row in TEACHERS])
def test_another_network_is_told_whose_weights_these_are(file, network, tmp_path, capsys):
  other = "resnet32"
  path = FOLDER / "teachers" / file
  assert import_torch.main([str(path), f"--network={other}", f"--out={tmp_path / 'out'}"]) == 2
  assert f"these are the weights of {network}, not of {other}" in capsys.readouterr().err
