"""Tests of packaging: requirements, the wheel, and scripts."""

import configparser
import importlib.metadata
import pathlib
import shutil
import stat
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def lines(text):
  return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


@pytest.fixture(scope="module")
def setup_cfg():
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel of a copy of the checkout: building leaves files behind."""
  if int(importlib.metadata.version("setuptools").partition(".")[0]) < 77:
    pytest.skip("needs the setuptools of the extra test")
  folder = tmp_path_factory.mktemp("wheel")
  source = folder / "source"
  unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")
  shutil.copytree(ROOT, source, ignore=unwanted)
  command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
  command += ["--disable-pip-version-check", "--wheel-dir", folder, source]
  done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  assert done.returncode == 0, done.stdout
  (path,) = folder.glob("smskd_jax-*.whl")
  return path


def test_requirements_txt_is_setup_cfg_with_gpus(setup_cfg):
  needed = lines(setup_cfg["options"]["install_requires"])
  gpu = lines(setup_cfg["options.extras_require"]["cuda12"])
  without_jax = [line for line in needed if not line.startswith("jax>")]
  assert len(without_jax) == len(needed) - 1
  assert sorted(lines((ROOT / "requirements.txt").read_text())) == sorted([*without_jax, *gpu])


def test_the_extras_ask_for_the_same_jax(setup_cfg):
  (jax,) = (line for line in lines(setup_cfg["options"]["install_requires"]) if line.startswith("jax>"))
  for extra in ("cuda12", "tpu"):
    assert lines(setup_cfg["options.extras_require"][extra]) == [jax.replace("jax", f"jax[{extra}]")]


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
  with zipfile.ZipFile(wheel) as file:
    names = set(file.namelist())
  ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "smskd_jax").rglob("*.py")}
  data = {f"smskd_jax/data/fashion_mnist_small.{suffix}" for suffix in ("npz", "LICENSE")}
  data |= {"smskd_jax/runtime/onednn.cc"}
  data |= {f"smskd_jax/recipes/{name}.csv" for name in ("literature", "literature_accuracy")}
  data |= {"smskd_jax/losses/peers.md"}
  data |= {f"smskd_jax/analysis/templates/report.{suffix}" for suffix in ("css", "html.j2", "md.j2")}
  assert {name for name in names if ".dist-info/" not in name} == ours | data
  licences = [name.rpartition("/")[2] for name in names if ".dist-info/licenses/" in name]
  assert sorted(licences) == ["LICENSE", "fashion_mnist_small.LICENSE"]


@pytest.mark.slow
def test_the_installed_wheel_reads_its_own_data(wheel, tmp_path):
  with zipfile.ZipFile(wheel) as file:
    file.extractall(tmp_path)
  code = f"""if True:
    import sys
    sys.path.insert(0, {str(tmp_path)!r})
    from smskd_jax import data
    assert data.__file__.startswith({str(tmp_path)!r}), data.__file__
    print(*data.load("fashion_mnist_small").train.image.shape)
  """
  command = [sys.executable, "-I", "-c", code]
  done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert (done.stdout, done.stderr) == ("6000 28 28 1\n", "")


def test_the_readme_has_one_test_command():
  text = (ROOT / "README.md").read_text()
  assert len([line for line in text.splitlines() if line.startswith("pip install -e '.[test]'")]) == 1


SCRIPTS = ("local.sh", "slurm.sbatch", "slurm_study.sbatch", "tpu_pod.sh")


@pytest.mark.parametrize("script", [".ci/run", *(f"launch/{name}" for name in SCRIPTS)])
def test_a_script_can_be_started(script):
  path = ROOT / script
  subprocess.run(["bash", "-n", path], check=True)
  assert path.stat().st_mode & stat.S_IXUSR
