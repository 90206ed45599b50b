"""Predicted classes of the held-out images that the stages of a run left in its store."""

from collections.abc import Mapping
import zipfile

import numpy as np

from smskd_jax.runtime import choices
from smskd_jax.runtime.store import Entry


def read(
  entries: Mapping[str, Entry | None], keys: Mapping[str, str]
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
  """Predictions of stages by their names, and a line for each stage that has none or whose file is damaged.

  Args:
    entries: of the stages, by their names; None: in no store.
    keys: of the stages, by their names.

  Returns:
    By the stage's name 'step' [evaluations] and by the name of a set the predicted classes [evaluations, n]; the lines.
  """
  found, problems = {}, []
  for name, entry in entries.items():
    if entry is None:
      problems.append(
        f"- stage `{name}`: no store has its entry `{keys[name]}`; its curves and predictions are left out"
      )
      continue
    try:
      found[name] = choices.read(entry.choices)
      if "test" not in found[name]:
        raise ValueError("it holds no predictions of the test set")
    except FileNotFoundError:
      problems.append(f"- stage `{name}`: `{entry.choices}` is missing; its predictions are left out")
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
      found.pop(name, None)
      words = " ".join(str(error).split())
      problems.append(
        f"- stage `{name}`: `{entry.choices}` is damaged ({words}); its predictions are left out"
      )
  return found, problems
