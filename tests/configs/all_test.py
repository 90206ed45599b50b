"""Tests of every file in configs/: valid defaults, and a docstring with the command and the cost."""

import pytest

import runs
from smskd_jax.config import resolve, study_schema

CONFIGS = sorted(str(path.relative_to(runs.ROOT)) for path in (runs.ROOT / "configs").rglob("*.py"))


def is_study(path):
  return path.startswith("configs/studies/")


@pytest.mark.parametrize("path", CONFIGS)
def test_the_defaults_are_valid(path):
  config = runs.module(path).get_config()
  (study_schema.resolve if is_study(path) else resolve)(config)


@pytest.mark.parametrize("path", CONFIGS)
def test_the_docstring_has_the_command_and_the_cost(path):
  text = runs.module(path).__doc__
  program = "smskd_jax.study" if is_study(path) else "smskd_jax.main"
  assert f"python -m {program} " in text and f"--config={path}" in text and "--workdir=" in text
  assert "Cost:" in text
