"""Pictures of what went on in one network's training, stage after stage; None where nothing of it was recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smskd_jax.analysis import figures, forgetting, records
from smskd_jax.analysis.records import Lines, Stage

TENTHS = 10  # of the weights between 0 and 1, as training reports them
SHARES = tuple(f"train/reference_weight_share/{i}" for i in range(TENTHS))
WEIGHTS = ("train/accuracy", "train/reference_weight", "train/reference_weight_of_right")
MOST_EVENTS = 8  # images with more are counted with these


def terms(own: Sequence[Stage], curves: Mapping[str, Lines]) -> bytes | None:
  """The terms of the objective before their weights, and the accuracy on training and test images."""
  first = ("train/task", "train/reference", "train/loss")
  found = _names(own, curves, lambda name: name in first or name.startswith("train/distill/"))
  names = [name for name in first if name in found] + [name for name in found if name not in first]
  if not names:
    return None
  figure, (above, below) = figures.panels(3.2, 2.4)
  for color, name in zip(figures.COLORS * len(names), names, strict=False):
    style = {"linestyle": "--", "color": figures.GREY} if name == "train/loss" else {"color": color}
    _draw(above, own, curves, name, label=name.removeprefix("train/").removeprefix("distill/"), **style)
  _log_where_positive(above, curves, names)
  above.set_ylabel("mean over images")
  for color, of in zip(figures.COLORS, ("train", "test"), strict=False):
    _draw(below, own, curves, f"{of}/accuracy", scale=100, color=color, label=of)
  below.set_ylabel("accuracy [%]")
  return _finished(figure, own, above, below)


def forgotten(own: Sequence[Stage], stages: Sequence[Stage], curves: Mapping[str, Lines]) -> bytes | None:
  """What earlier stages got right and is lost, their losses, and how far the network moved from its reference."""
  earlier = _names(own, curves, lambda name: name.startswith("test/earlier_") and name.endswith("_lost"))
  references = [
    (name, label, scale)
    for name, label, scale in (
      ("test/reference_agreement", "same answer as\nthe reference [%]", 100.0),
      ("test/reference_kl", "KL from the\nreference [nats]", 1.0),
    )
    if _names(own, curves, lambda other, name=name: other == name)
  ]
  ious = _names(own, curves, lambda name: name.startswith("test/earlier_") and name.endswith("_iou"))
  losses = _names(own, curves, lambda name: name.startswith("test/earlier_") and "_loss/" in name)
  if not earlier and not references:
    return None
  optional = ((3.0, earlier), (1.9, ious), (2.4, losses))
  heights = (*(height for height, names in optional if names), *(1.9 for _ in references))
  figure, axes = figures.panels(*heights)
  if earlier:
    for color, name in zip(figures.COLORS * len(earlier), earlier, strict=False):
      label = f"of what {_earlier(own, stages, int(name.split('_')[1]))} got right"
      _draw(axes[0], own, curves, name, scale=100, color=color, label=label)
    axes[0].set_ylabel("lost [% of test images]")
  for color, name in zip(figures.COLORS * len(ious), ious, strict=False):
    _draw(axes[1], own, curves, name, color=color)
    axes[1].set_ylabel("IoU of images\nthat are right")
  if losses:
    _draw_losses(axes[bool(earlier) + bool(ious)], own, stages, curves, losses)
  for one, (name, label, scale) in (
    zip(axes[-len(references) :], references, strict=True) if references else ()
  ):
    _draw(one, own, curves, name, scale=scale, color=figures.COLORS[0])
    one.set_ylabel(label)
  return _finished(figure, own, *axes)


def weights(own: Sequence[Stage], curves: Mapping[str, Lines], labeled: Mapping[str, float]) -> bytes | None:
  """How the weights of the reference term are distributed, epoch by epoch, and their means over images.

  Args:
    own: a network's stages.
    curves: metrics by the stage's name.
    labeled: by the stage's name, the share of its images that have a label; 1 of those that are not there.
  """
  names = [stage["name"] for stage in own if any(SHARES[0] in line for line in curves[stage["name"]])]
  if not names:
    return None
  from matplotlib import cm, colormaps, colors

  figure, (above, below) = figures.panels(3.2, 2.6)
  shades = colormaps["viridis"].resampled(TENTHS)
  for name, start in records.starts(own).items():
    if name not in names:
      continue
    ends, shares = records.by_epoch(curves[name], SHARES)
    edges = start + np.concatenate((ends[:1] - 1, ends))
    heights = [100 * np.append(shares[share], shares[share][-1:]) for share in SHARES]
    above.stackplot(edges, heights, colors=shades(range(TENTHS)), step="post", linewidth=0)
    _draw_means(below, curves[name], start, labeled.get(name, 1.0), first=name == names[0])
  scale = cm.ScalarMappable(colors.BoundaryNorm(np.linspace(0, 1, TENTHS + 1), TENTHS), shades)
  bar = figure.colorbar(
    scale, ax=above, label="weight; the last tenth holds all above", ticks=np.linspace(0, 1, 6)
  )
  bar.ax.yaxis.label.set_size(8)
  above.set_ylim(0, 100)
  above.set_ylabel("share of images [%]")
  below.set_ylabel("mean weight")
  return _finished(figure, own, above, below)


def of_right_and_wrong(
  means: Mapping[str, np.ndarray], labeled: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
  """The mean weights of the images that the network has right, and of all others; NaN where there is none.

  Args:
    means: by the names of `WEIGHTS`, [e]: the accuracy is that of images with labels, the weights are those of all,
      and the last counts zero where the network is wrong.
    labeled: the share of the images that have a label. The others are none that the network has right.
  """
  accuracy, weight, of_right = (means[name] for name in WEIGHTS)
  right = labeled * accuracy
  # Shares of few images that rounding keeps from being zero would make any number of nothing.
  safe = lambda share: np.where(share > 1e-6, share, np.nan)
  return of_right / safe(right), (weight - of_right) / safe(1 - right)


def gradients(own: Sequence[Stage], curves: Mapping[str, Lines]) -> bytes | None:
  """How hard each part of the objective pulls on the network, and how far they pull the same way."""
  norms = _names(own, curves, lambda name: name.startswith("train/gradient_norm/"))
  cosines = _names(own, curves, lambda name: name.startswith("train/gradient_cosine/"))
  if not norms:
    return None
  figure, axes = figures.panels(2.8, *((2.4,) if cosines else ()))
  for color, name in zip(figures.COLORS * len(norms), norms, strict=False):
    _draw(axes[0], own, curves, name, color=color, label=name.rpartition("/")[2])
  _log_where_positive(axes[0], curves, norms)
  axes[0].set_ylabel("norm of the gradient")
  for color, name in zip(figures.COLORS * len(cosines), cosines, strict=False):
    label = " and ".join(name.rpartition("/")[2].split("_"))
    _draw(axes[-1], own, curves, name, color=color, label=label)
  if cosines:
    axes[-1].axhline(0, color=figures.GREY, linewidth=0.8)
    axes[-1].set_ylim(-1.05, 1.05)
    axes[-1].set_ylabel("cosine")
  return _finished(figure, own, *axes)


def events(found: Mapping[str, forgetting.Events], words: tuple[str, str]) -> bytes | None:
  """How many images had how many of both kinds of events, by the stage's name; `words` say lost and gained."""
  if not found:
    return None
  figure, axes = figures.panels(2.2, 2.2, shared=False)
  most = max(1, *(int(counts.max(initial=0)) for of_stage in found.values() for counts in of_stage))
  bars = np.arange(min(most, MOST_EVENTS) + 1)
  width = 0.8 / len(found)
  for one, word, kind in zip(axes, words, ("lost", "gained"), strict=True):
    for i, (color, (name, of_stage)) in enumerate(
      zip(figures.COLORS * len(found), found.items(), strict=False)
    ):
      counts = forgetting.histogram(getattr(of_stage, kind), bars[-1])
      one.bar(bars + (i - (len(found) - 1) / 2) * width, counts, width, color=color, label=name)
    one.set_yscale("symlog", linthresh=1)
    one.set_ylim(0)
    one.set_xticks(bars, [*map(str, bars[:-1]), f"{bars[-1]}{' or more' * (most > MOST_EVENTS)}"])
    one.set_ylabel("images")
    one.set_xlabel(f"times {word}")
  axes[0].legend(fontsize=8, ncols=3)
  return figures.png(figure)


def confusion_change(change: np.ndarray, stages: tuple[str, str]) -> bytes:
  """A change of the confusion [k, k], in percentage points, from the end of one stage to that of another."""
  figure, (axes,) = figures.panels(4.5)
  most = max(1.0, float(np.abs(change).max()))
  image = axes.imshow(change, cmap="RdBu_r", vmin=-most, vmax=most)
  figure.colorbar(image, ax=axes, label="percentage points")
  axes.set_xlabel("taken for")
  axes.set_ylabel("class")
  axes.set_title(f"{stages[0]} to {stages[1]}", fontsize=10)
  return figures.png(figure)


def _draw_means(axes: Any, lines: Lines, start: float, labeled: float, first: bool) -> None:
  ends, means = records.by_epoch(lines, WEIGHTS)
  right, wrong = of_right_and_wrong(means, labeled)
  for color, label, values in zip(
    (figures.GREY, *figures.COLORS),
    ("all images", "the student is right", "it is wrong"),
    (means[WEIGHTS[1]], right, wrong),
    strict=False,
  ):
    points = [(start + end - 0.5, y) for end, y in zip(ends, values, strict=True)]
    if points:
      figures.line(axes, points, color=color, label=label if first else None)


def _draw_losses(axes: Any, own, stages, curves, names: Sequence[str]) -> None:
  """Earlier stages' losses, each in proportion to what it was when its stage ended."""
  for color, name in zip(figures.COLORS * len(names), names, strict=False):
    first = next(line[name] for stage in own for line in curves[stage["name"]] if name in line)
    if first:
      term, of = name.rpartition("/")[2], _earlier(own, stages, int(name.split("_")[1]))
      label = term if term == of else f"{term} of {of}"
      _draw(axes, own, curves, name, scale=1 / first, color=color, label=label)
  axes.axhline(1, color=figures.GREY, linewidth=0.8)
  axes.set_ylabel("loss / loss at the\nend of its stage")


def _draw(axes: Any, own, curves, name: str, **style: Any) -> None:
  """Draws a metric as one line, broken between stages; its label is said once."""
  for points in records.series(own, curves, name).values():
    figures.line(axes, points, **style)
    style["label"] = None


def _earlier(own: Sequence[Stage], stages: Sequence[Stage], number: int) -> str:
  """What metrics call 'earlier_NUMBER', by its name where all stages of the network go on from the same."""
  chains = [records.chain(stages, stage) for stage in own]
  found = {chain[number - 1]["name"] for chain in chains if len(chain) > number}
  return found.pop() if len(found) == 1 else f"stage {number}"


def _finished(figure: Any, own: Sequence[Stage], *axes: Any) -> bytes:
  for i, one in enumerate(axes):
    figures.mark_boundaries(one, own, named=i == 0)
    if one.get_legend_handles_labels()[1]:
      one.legend(fontsize=8)
  axes[-1].set_xlabel(figures.EPOCHS)
  return figures.png(figure)


def _names(own, curves, wanted) -> list[str]:
  """The metrics of a network's stages that are wanted, in the order in which they first appear."""
  lines = (line for stage in own for line in curves[stage["name"]])
  return list(dict.fromkeys(name for line in lines for name in line if wanted(name)))


def _log_where_positive(axes: Any, curves, names) -> None:
  values = [line[name] for lines in curves.values() for line in lines for name in names if name in line]
  if min(values) > 0:
    axes.set_yscale("log")
