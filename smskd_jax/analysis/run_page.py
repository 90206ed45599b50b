"""The chapters of a page about one run."""

from collections.abc import Iterator, Mapping, Sequence
import json
import shlex
from typing import Any

from smskd_jax.analysis import curves, fidelity_page, figures, forgetting, forgetting_figures, records, tables
from smskd_jax.analysis.forgetting_figures import Bar
from smskd_jax.analysis.page import Code, Figure, Part, Section, Table
from smskd_jax.analysis.records import Record, Stage

ACCURACY = (
  "Accuracy on the test set in percent, along the epochs of each network's training. Names above are the stages; grey "
  "dashes are teachers at their end, dots the reference of a stage, which stays where the stage before ended. Stages "
  "that end below the dots have forgotten more than they have learned."
)
COUNTS = (
  "Test images that the network classifies correctly at the end of a stage and of an earlier one (kept), of the "
  "earlier one alone (forgotten), and of the later one alone (gained)."
)
FORGOTTEN = (
  "Forgetting on the test set. Above, the share of all test images that an earlier stage got right at its end and "
  "the network now gets wrong, in percent; then, in the same colours, the IoU of the set of images that the earlier "
  "stage got right and of the set that the network now gets right. Then the losses that earlier stages minimised, on "
  "as many test images as `config.evaluate.num_forgetting_images` says, in proportion to what each was when its stage "
  "ended: above 1 it is being given up. Below, how many images get the same answer from the network and from the "
  "frozen reference of its stage, and the mean divergence between their probabilities. A stage without a reference "
  "has a gap."
)
TERMS = (
  "Above, the terms of the objective on training images, before their weights, and the loss, their weighted sum "
  "(dashed); each point is a mean over steps. Below, the accuracy: on training images as they are augmented and in "
  "training mode, and on test images."
)
WEIGHTS = (
  "The weight that the reference term gives to each training image. Above, how many images of an epoch have a weight "
  "in which tenth, in percent; below, the mean weight of all images, of those that the student gets right at that "
  "moment, and of the others, images without a label among them."
)
GRADIENTS = (
  "Gradients of the student's parameters, probed before single steps. Above, the norm of the gradient by each part of "
  "the objective with its weight; below, the cosine between two of them: at 1 they pull the same way, at -1 against "
  "each other."
)
EVENTS = (
  "Test images by the number of evaluations of a stage at which their answer ceased to be, and became again, the one "
  "that the network gave when the stage began; the scale is logarithmic above 1. The answers were recorded without the "
  "labels: a given-up answer may have been wrong."
)
LABELED_EVENTS = (
  "Test images by the number of evaluations of a stage at which they were forgotten, right before and now wrong, and "
  "learned; the scale is logarithmic above 1."
)
CONFUSION = (
  "Test images of each class (rows) by what they are taken for (columns): how many more, or fewer, at the end of the "
  "last stage than at the end of the first, in percent of the class."
)


def sections(record: Record, more: Sequence[Section] = (), *, embedding: str = "pca") -> list[Section]:
  """All that a run's folder and store tell.

  Args:
    record: the run.
    more: further chapters, of what had to be computed anew.
    embedding: how embeddings are drawn, a name of `fidelity.EMBEDDINGS`.
  """
  return [
    Section("Results", list(results(record))),
    Section("Budget", [tables.budget(record.stages), tables.ledger(record)]),
    *fidelity_page.sections(record, embedding),
    *training(record),
    *more,
    provenance(record),
  ]


def results(record: Record) -> Iterator[Part]:
  """What the run's networks are worth."""
  yield tables.accuracy(record.stages)
  given = record.run.result.get("given", ())
  if given:
    rows = [[one["network"], tables.percent(one["metrics"]["test/accuracy"])] for one in given]
    yield Table(
      ["given network", "test"], rows, "Networks that came with their variables, and were not trained here."
    )
  yield Figure("accuracy", figures.accuracy(record.stages, record.curves, given), ACCURACY)
  yield tables.calibration(record.stages)
  optional = tables.beside_others(record.stages), tables.further(record.stages)
  yield from (table for table in optional if table is not None)


def training(record: Record) -> list[Section]:
  """The chapters of what went on in training; those of which nothing was recorded are left out."""
  stages, lines = record.stages, record.curves
  labeled = {entry["name"]: _labeled(entry) for entry in record.run.config.get("stages", ())}
  kinds = {
    "Forgetting": lambda own: [
      *_counts(own, stages),
      *_picture("forgetting", curves.forgotten(own, stages, lines), FORGOTTEN),
    ],
    "Answers, image by image": lambda own: list(_answers(record, own)),
    "Weights of the reference": lambda own: _picture("weights", curves.weights(own, lines, labeled), WEIGHTS),
    "Gradients": lambda own: _picture("gradients", curves.gradients(own, lines), GRADIENTS),
    "Terms of the objective": lambda own: _picture("terms", curves.terms(own, lines), TERMS),
  }
  chapters = []
  networks = records.by_network(stages)
  for title, make in kinds.items():
    found = {network: parts for network, own in networks.items() if (parts := make(own))}
    if len(networks) == 1:
      parts = [part for of_network in found.values() for part in of_network]
    else:
      parts = [Section(network, of_network) for network, of_network in found.items()]
    if found:
      chapters.append(Section(title, parts))
  return chapters


def _picture(name: str, png: bytes | None, caption: str) -> list[Part]:
  return [Figure(name, png, caption)] if png is not None else []


def _counts(own: Sequence[Stage], stages: Sequence[Stage]) -> list[Part]:
  """Kept, forgotten and gained images of a network's stages, as a table and as bars, and a line on missing counts."""
  names = {stage["name"] for stage in own}
  pairs, problems = forgetting.pairs(stages, names)
  table = tables.forgotten(pairs)
  bars = [Bar(f"{p.stage} after {p.earlier}", *p.counts) for p in pairs if p.split == "test"]
  parts: list[Part] = ["\n".join(problems)] if problems else []
  if table is not None:
    parts += [table, *_picture("kept and forgotten", forgetting_figures.counts(bars), COUNTS)]
  return parts


def _labeled(entry: Mapping[str, Any]) -> float:
  """The share of a stage's images that have a label."""
  if entry.get("images", "train") == "unlabeled":
    return 0.0
  beside = entry.get("unlabeled_batch_size", 0)
  return entry["batch_size"] / (entry["batch_size"] + beside) if beside else 1.0


def _answers(record: Record, own: Sequence[Stage]) -> Iterator[Part]:
  """How answers came and went; against the labels where they are known, else against what the stage began with."""
  names = [stage["name"] for stage in own]
  choices = {name: record.choices[name] for name in names if "test" in record.choices.get(name, {})}
  if not choices:
    return
  # What a stage begins with says something only where it goes on from another.
  goes_on = {stage["name"] for stage in own if stage["inputs"]["init"] is not None}
  yield tables.answers(choices, goes_on)
  label = record.labels.get("test")
  if label is not None:
    found = {name: forgetting.events(of["test"], label) for name, of in choices.items()}
    words, caption = ("forgotten", "learned"), LABELED_EVENTS
  else:
    kept = {name: of["test"] for name, of in choices.items() if name in goes_on}
    found = {name: forgetting.events(answers, answers[0]) for name, answers in kept.items()}
    words, caption = ("the answer of its beginning was given up", "it was taken up again"), EVENTS
  yield from _picture("answers", curves.events(found, words), caption)
  last = [choices[name]["test"][-1] for name in names if name in choices]
  if label is not None and len(last) > 1:
    k = 1 + int(max(label.max(), last[0].max(), last[-1].max()))
    changed = forgetting.confusion(last[-1], label, k) - forgetting.confusion(last[0], label, k)
    yield from _picture("confusion", curves.confusion_change(changed, (names[0], names[-1])), CONFUSION)


def provenance(record: Record) -> Section:
  """Keys, versions, commands and the config."""
  result, config = record.run.result, record.run.config
  devices, versions = result.get("devices", {}), result.get("versions", {})
  words = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
  folder = shlex.quote(str(record.run.folder))
  commands = [
    f"python -m smskd_jax.report {folder}",
    f"python -m smskd_jax.export {folder} --network={shlex.quote(record.stages[-1]['network'])} --format=safetensors",
  ]
  return Section(
    "Where this comes from",
    [
      f"Run `{record.run.folder.absolute()}`, seed {record.seed}, on {devices.get('count', '?')} x "
      f"{devices.get('kind', '?')}; {words or 'versions unknown'}; revision {result.get('git_revision') or 'unknown'}.",
      tables.keys(record),
      "This page again, and the network that the last stage trained as a file:",
      Code("\n".join(commands)),
      "The config, resolved:",
      Code(json.dumps(config, indent=2), folded=True),
    ],
  )
