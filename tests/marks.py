"""Which of a test's cases are run by default, where all of them take long."""

import pytest


def quick(cases, by_default):
  """The cases, all but those of `by_default` marked slow."""
  assert set(by_default) <= set(cases)
  return [case if case in by_default else pytest.param(case, marks=pytest.mark.slow) for case in cases]
