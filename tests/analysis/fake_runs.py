"""Generated workdirs of runs and studies, without training."""

import json

import numpy as np

IMAGES = 40  # of the test set
CLASSES = 10
STEPS = 10  # of an epoch


def stage(
  name, network="student", *, seed=0, epochs=3, start=None, reference=None, accuracy=0.8, tag="", **fields
):
  """Result of a stage in result.json, its lines of metrics.jsonl, and its predictions."""

  def key(name):
    return f"{tag}-{name}-{seed}"

  random = np.random.default_rng([seed, len(name)])
  has_teacher = network != "teacher"
  lines = []
  for epoch in range(epochs + 1):
    if epoch:
      lines += _training_lines(epoch, name if has_teacher else None, reference, random)
    lines.append(
      {"step": STEPS * epoch, "epoch": float(epoch)}
      | _evaluation(epoch, epochs, accuracy, has_teacher, start, reference)
    )
  evaluations = [line for line in lines if "test/accuracy" in line]
  images = 64 * STEPS * epochs
  result = {
    "name": name,
    "network": network,
    "key": key(name),
    "model": "resnet8",
    "methods": [name] if has_teacher else [],
    "epochs": epochs,
    "steps": STEPS * epochs,
    "forward_passes": {
      "student": images,
      "teachers": images * has_teacher,
      "reference": images * bool(reference),
    },
    "backward_passes": images,
    "metrics": {"last": evaluations[-1], "best_by_validation": None, "oracle": evaluations[-1]},
    "inputs": {
      "init": start and key(start),
      "teachers": [key("teacher")] if has_teacher else [],
      "reference": reference and key(reference),
    },
    "forgetting": {"test": [overlap(start, key(start), 20, 3, 5)] if start else []},
    "seconds": 20.0 * epochs,
  }
  choices = {
    "step": np.arange(epochs + 1, dtype=np.int32) * STEPS,
    "test": random.integers(0, 2, (epochs + 1, IMAGES)).astype(np.uint16),
  }
  return result | fields, lines, choices


def overlap(name, key, kept, forgotten, gained):
  """Record of 'forgetting' in result.json against the stage of this name and key."""
  iou = kept / (kept + forgotten + gained)
  return {"stage": name, "key": key, "kept": kept, "forgotten": forgotten, "gained": gained, "iou": iou}


def _evaluation(epoch, epochs, accuracy, has_teacher, start, reference):
  """Metrics of an evaluation."""
  values = {
    "accuracy": accuracy * (0.5 + 0.5 * epoch / epochs),
    "top5": 0.95,
    "nll": 0.9,
    "ece": 0.03,
    "ace": 0.01,
    "brier": 0.4,
  }
  roles = [
    *(["teacher"] if has_teacher else []),
    *(["reference"] if reference else []),
    *(["earlier_1"] if start else []),
  ]
  for role in roles:
    values |= {f"{role}_agreement": 1 - 0.05 * epoch, f"{role}_kl": 0.1 * epoch}
    values |= {
      f"{role}_regressions": 0.01 * epoch,
      f"{role}_improvements": 0.02 * epoch,
      f"{role}_iou": 1 - 0.03 * epoch,
    }
  if start:
    values["earlier_1_loss/fitnet"] = 0.5 + 0.1 * epoch
  return {f"test/{name}": value for name, value in values.items()}


def _training_lines(epoch, method, reference, random):
  """Lines of an epoch of training: gradient statistics, and two windows of unequal length."""
  parts = ["task", *(["distill"] if method else []), *(["reference"] if reference else [])]
  probe = {f"train/gradient_norm/{part}": 1.0 + random.random() for part in parts}
  probe |= {f"train/gradient_cosine/task_{part}": random.uniform(-1, 1) for part in parts[1:]}
  lines = [{"step": STEPS * (epoch - 1) + 1, "epoch": epoch - 1 + 1 / STEPS} | (probe if method else {})]
  for share in (0.6, 1.0):
    values = {"loss": 3.0 / epoch, "task": 2.0 / epoch, "accuracy": 0.5, "gradient_norm": 1.0}
    if method:
      values[f"distill/{method}"] = 1.0 / epoch
    if reference:
      values |= {
        "reference": 0.5,
        "reference_weight": 0.4,
        "reference_weight_if_correct": 0.1,
        "teacher_tcp": 0.6,
      }
      shares = random.dirichlet(np.ones(10))
      values |= {f"reference_weight_fraction/{i}": float(x) for i, x in enumerate(shares)}
    at = epoch - 1 + share
    lines.append(
      {"step": round(STEPS * at), "epoch": at} | {f"train/{name}": x for name, x in values.items()}
    )
  return lines


def stages(seed=0, *, anchored=True, accuracy=0.8, tag=""):
  """A teacher, and a student in two stages; `tag` changes the keys."""
  common = {"seed": seed, "tag": tag}
  return [
    stage("teacher", "teacher", epochs=2, accuracy=0.9, **common),
    stage("fitnet", accuracy=accuracy - 0.2, **common),
    stage("kd", accuracy=accuracy, start="fitnet", reference="fitnet" if anchored else None, **common),
  ]


def config(seed, made):
  """The fields of a resolved config that reports read, and some that can differ."""
  entries = [
    {
      "name": result["name"],
      "student": result["network"],
      "teachers": ["teacher"] if result["inputs"]["teachers"] else [],
      "epochs": result["epochs"],
      "batch_size": 64,
      "unlabeled_batch_size": 0,
      "images": "train",
      "reference": {"stage": "previous" if result["inputs"]["reference"] else "none"},
    }
    for result, *_ in made
  ]
  return {"seed": seed, "data": {"source": "digits", "folder": "", "image_size": 0}, "stages": entries}


ENVIRONMENT = {
  "versions": {"python": "3.11", "jax": "1", "flax": "2", "optax": "3", "smskd_jax": "4"},
  "devices": {"kind": "cpu", "count": 2, "processes": 1},
  "git_revision": "abc",
}


def run(folder, made=None, *, seed=0, store=None, given=()):
  """Writes the workdir of a finished run and its entries of the store; returns the workdir."""
  made = stages(seed) if made is None else made
  store = store or folder / "store"
  settings = {"config": config(seed, made), "store": str(store)} | ENVIRONMENT
  _write(folder / "config.json", settings)
  result = {"seed": seed, "data": "digits", "pretrained": list(given), "stages": [one for one, *_ in made]}
  _write(folder / "result.json", result | ENVIRONMENT)
  for one, lines, choices in made:
    entry = store / one["key"]
    _write(entry / "stage.json", {"format": 2, "hashed": {}, "about": ENVIRONMENT})
    (entry / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.savez_compressed(entry / "predictions.npz", **choices)
  return folder


def study(folder, *, seeds=(0, 1), gain=0.0, variants=("anchored", "free"), published=None):
  """Writes the workdir of a finished study; `gain` is added to the accuracy of every variant but the first."""
  store = folder / "store"
  made = {
    (name, seed): stages(seed, anchored=not i, accuracy=0.7 + 0.01 * seed + (gain if i else 0.0), tag=name)
    for i, name in enumerate(variants)
    for seed in seeds
  }
  described = {
    "seeds": list(seeds),
    "teachers": {},
    "variants": {name: config(0, made[name, seeds[0]]) for name in variants},
    "control": variants[0],
    "network": "student",
    "published": dict(published or {}),
  }
  _write(folder / "study.json", {"study": described, "store": str(store)})
  _write(folder / "result.json", {"variants": {}, "failures": {}})
  for (name, seed), of in made.items():
    run(folder / name / f"seed{seed}", of, seed=seed, store=store)
  return folder


def _write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))
