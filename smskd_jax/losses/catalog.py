"""What there is to say of each method: parsed from its module and its factory, for the command line and the docs."""

from collections.abc import Callable, Mapping
import inspect
import re
import textwrap
from types import MappingProxyType
from typing import NamedTuple

from smskd_jax.losses import FAMILIES, METHODS, PLUGINS

# Name -> (what of the networks it reads, what learns with the student or is remembered from step to step).
_PARTS: Mapping[str, tuple[str, str]] = MappingProxyType(
  {
    "ab": ("preactivations of the stages", "connectors where shapes differ"),
    "afd": ("maps of the stages", "attention over channels"),
    "at": ("maps of the stages", ""),
    "catkd": ("map before pooling, classifier", ""),
    "cc": ("pooled", "embeddings of both networks"),
    "crd": ("pooled, labels", "embeddings of both networks; remembers two memory banks"),
    "crd_in_batch": ("pooled, labels", "embeddings of both networks"),
    "ctkd": ("logits", "the temperature"),
    "dist": ("logits", ""),
    "dkd": ("logits, labels", ""),
    "dml": ("logits of a cohort", ""),
    "embedding_mse": ("pooled", "a projection where widths differ"),
    "every_teacher": (
      "as the wrapped method; for some weightings logits and labels",
      "as the wrapped method, for each teacher",
    ),
    "fitnet": ("one map", "a regressor"),
    "fsp": ("all maps", "projections where channels differ"),
    "ft": ("last map", "paraphraser and translator"),
    "hard_label": ("logits", ""),
    "ickd": ("last map", "a connector"),
    "irg": ("two maps, pooled, logits", ""),
    "kd": ("logits", ""),
    "kdsvd": ("maps of the stages", "projections where channels differ"),
    "logit_standardization": ("logits", ""),
    "logits_cosine": ("logits", ""),
    "logits_mse": ("logits", ""),
    "mlkd": ("logits, of all views of the stage", ""),
    "nkd": ("logits, labels", ""),
    "nst": ("maps of the stages", ""),
    "ofd": ("preactivations of the stages, their batch norms", "connectors"),
    "pkd": ("maps of the stages", "projections where channels differ"),
    "pkt": ("pooled", ""),
    "reviewkd": ("maps, pooled; the teacher's preactivations", "fusion modules"),
    "rkd": ("pooled", ""),
    "sfd": ("preactivations, stem too", "projections where channels differ"),
    "simkd": ("map before pooling; the teacher's classifier", "a projector"),
    "sp": ("last map", ""),
    "srrl": ("map before pooling, pooled; the teacher's classifier", "a connector"),
    "tfkd": ("logits, labels; no teacher", ""),
    "ttm": ("logits", ""),
    "uda": ("logits, of two views of the stage or more; no teacher", ""),
    "vid": ("maps of the stages", "regressors and variances"),
    "wsld": ("logits, labels", ""),
    "wttm": ("logits", ""),
  }
)


class Card(NamedTuple):
  """One method or plug-in, in words."""

  name: str
  family: str  # a name of FAMILIES, or 'plug-in'
  title: str  # one sentence
  paper: str  # authors, title, venue, link
  formula: str  # as in the module, not indented
  notes: str  # what the symbols mean, and every difference from the paper
  reads: str
  learns: str  # '' for nothing
  defaults: Mapping[str, object]  # hyper-parameters

  @property
  def cite(self) -> str:
    """First author and year."""
    year = re.search(r"\b(?:19|20)\d\d\b(?=[^\"]*$)", self.paper.partition("https://")[0])
    return f"{self.paper.split(',')[0]} {year.group() if year else ''}".strip()


def card(name: str) -> Card:
  """The card of a method or of a plug-in."""
  factory = METHODS[name] if name in METHODS else PLUGINS[name]
  title, paper, formula, notes = _sections(inspect.getdoc(inspect.getmodule(factory)) or "")
  family = next((family for family, names in FAMILIES.items() if name in names), "plug-in")
  reads, learns = _PARTS[name]
  return Card(name, family, title, paper, formula, notes, reads, learns, _defaults(factory))


def cards() -> tuple[Card, ...]:
  """All of them: methods by family, then plug-ins."""
  names = [name for family in FAMILIES.values() for name in family]
  return tuple(card(name) for name in (*names, *PLUGINS))


def _sections(text: str) -> tuple[str, str, str, str]:
  """(title, paper, formula, notes) of a module's docstring: paragraphs, of which the indented ones are formulas."""
  title, paper, *rest = re.split(r"\n\n+", text.strip())
  is_formula = [paragraph.startswith("  ") for paragraph in rest]
  count = is_formula.index(False) if False in is_formula else len(rest)
  formula = "\n\n".join(textwrap.dedent(paragraph) for paragraph in rest[:count])
  return title, paper, formula, "\n\n".join(rest[count:])


def _defaults(factory: Callable) -> dict[str, object]:
  parameters = inspect.signature(factory).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def listing() -> str:
  """A table of all methods, in plain text."""
  rows = [(c.name, c.family, c.cite, c.reads, c.learns or "-") for c in cards()]
  rows.insert(0, ("name", "family", "paper", "reads", "learns"))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return "\n".join("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def explanation(card: Card) -> str:
  """All there is to say of one method, in plain text."""
  defaults = ", ".join(f"{name}={value!r}" for name, value in card.defaults.items()) or "none"
  facts = (
    ("family", card.family),
    ("reads", card.reads),
    ("learns", card.learns or "nothing"),
    ("hyper-parameters", defaults),
  )
  facts_text = "\n".join(f"{name}: {value}" for name, value in facts)
  parts = (
    f"{card.name}: {card.title}",
    card.paper,
    textwrap.indent(card.formula, "  "),
    facts_text,
    card.notes,
  )
  return "\n\n".join(filter(None, parts))


def markdown() -> str:
  """The page docs/methods.md."""
  lines = [
    "# Methods",
    "",
    "Written by `python -m smskd_jax.losses --markdown`; `python -m smskd_jax.losses NAME` explains one method.",
    "Every loss is per example: its mean over the batch is the formula's value. Outer weights are the config's.",
    "",
    "| name | family | paper | reads | learns or remembers |",
    "|---|---|---|---|---|",
  ]
  everything = cards()
  for c in everything:
    lines.append(f"| [{c.name}](#{c.name}) | {c.family} | {c.cite} | {c.reads} | {c.learns or '-'} |")
  for c in everything:
    defaults = ", ".join(f"`{name}={value!r}`" for name, value in c.defaults.items()) or "none"
    lines += ["", f"## {c.name}", "", c.title, "", c.paper, "", "```", c.formula, "```", ""]
    lines += [f"Hyper-parameters: {defaults}. Reads: {c.reads}. Learns: {c.learns or 'nothing'}."]
    if c.notes:
      lines += ["", c.notes]
  return "\n".join(lines) + "\n"
