"""Outputs of networks on held-out images, generated for the runs of `fake_runs`."""

import json

import numpy as np

from analysis import fake_runs
from smskd_jax.runtime import eval_outputs, workdir
from smskd_jax.runtime.store import StageEntry

ROWS = 3  # every so many test images have their features kept
NAMES = ("feature_0", "feature_1", "embedding")


def arrays(label, k, seed, *, skill=2.0):
  """Arrays of an eval_outputs.npz: mostly correct logits, and features of every third image."""
  random = np.random.default_rng(seed)
  n, index = len(label), np.arange(0, len(label), ROWS, dtype=np.int32)
  logits = random.normal(size=(n, k)) + skill * np.eye(k)[label]
  features = {name: random.normal(size=(len(index), 4 + i)) for i, name in enumerate(NAMES)}
  found = {"test/logits": logits, **{f"test/{name}": x for name, x in features.items()}}
  return {"index": index} | {name: x.astype(np.float32) for name, x in found.items()}


def write(folder, *, k=10, n=fake_runs.IMAGES, features=True, names=None):
  """Adds outputs, and the results computed from them, to a run; returns the labels."""
  label = np.arange(n) % k
  workdir.write_labels(folder, {"test": label})
  result = json.loads((folder / "result.json").read_text())
  result["image_metadata"] = {"class_names": list(names or (f"class {i}" for i in range(k)))}
  for seed, one in enumerate((*result["stages"], *result["pretrained"])):
    found = arrays(label, k, seed)
    kept = found if features else {"test/logits": found["test/logits"]}
    eval_outputs.write(path_of(folder, one), kept)
  for stage in result["stages"]:
    stage |= {"by_class": {"test": by_class(stage, k)}, "similarity": similarity(stage)}
  (folder / "result.json").write_text(json.dumps(result))
  return label


def path_of(folder, one):
  """Path of the outputs of a stage or pretrained network."""
  given = "methods" not in one
  return (
    workdir.pretrained_outputs_path(folder, one["network"])
    if given
    else StageEntry(folder / "store", one["key"]).eval_outputs
  )


def by_class(stage, k):
  """Accuracies that change from -50 to +50 points, class by class; the last class has no images."""
  change = [*np.linspace(-0.5, 0.5, k - 1).tolist(), None]
  reads, found = stage["inputs"], {"accuracy": [0.5] * (k - 1) + [None]}
  there = {"teacher": reads["teachers"], "reference": reads["reference"], "earlier_1": reads["init"]}
  return found | {f"{role}_accuracy_delta": change for role, key in there.items() if key}


def similarity(stage):
  """CKA tables with one missing value for all teachers and the reference of a stage."""
  cka = [[0.9, 0.2, 0.1], [0.3, None, 0.2], [0.1, 0.2, 0.7]]
  reads = stage["inputs"]
  roles = ["teacher", *(f"teacher_{i}" for i in range(2, 9))][: len(reads["teachers"])]
  roles += ["reference"] if reads["reference"] else []
  return {role: {"student": list(NAMES), "other": list(NAMES), "cka": cka} for role in roles}
