"""Documentation of the methods from docstrings, factories and traits, and its command line.

python -m smskd_jax.losses            all methods and plug-ins, a line each
python -m smskd_jax.losses NAME ...   paper, formula, hyper-parameters and differences of the named ones
python -m smskd_jax.losses --markdown the page docs/methods.md
"""

from collections.abc import Callable, Mapping, Sequence
import inspect
from pathlib import Path
import re
import sys
import textwrap
from typing import NamedTuple

from smskd_jax.errors import UserError, print_error, suggestion
from smskd_jax.losses import FAMILIES, METHODS, PLUGINS
from smskd_jax.losses.contract import OUTPUTS, Method

PEERS_PATH = Path(__file__).with_name("peers.md")  # the last section of the page, written by hand


class MethodDoc(NamedTuple):
  """Documentation of one method or plug-in."""

  name: str
  family: str  # a name of FAMILIES, or 'plug-in'
  title: str  # one sentence
  paper: str  # authors, title, venue, link
  formula: str  # as in the module, not indented
  notes: str  # what the symbols mean, and every difference from the paper
  reads: str
  learns: str  # '' for nothing
  teacher_cache: str  # 'yes', 'no', or '-' without a teacher
  defaults: Mapping[str, object]  # hyper-parameters

  @property
  def cite(self) -> str:
    """First author and year."""
    year = re.search(r"\b(?:19|20)\d\d\b(?=[^\"]*$)", self.paper.partition("https://")[0])
    return f"{self.paper.split(',')[0]} {year.group() if year else ''}".strip()


def describe(name: str) -> MethodDoc:
  """Documentation of a method or of a plug-in."""
  factory = METHODS[name] if name in METHODS else PLUGINS[name]
  title, paper, formula, notes = _sections(inspect.getdoc(inspect.getmodule(factory)) or "")
  family = next((family for family, names in FAMILIES.items() if name in names), "plug-in")
  teacher_cache = "as the wrapped method"
  if name in METHODS:
    method = METHODS[name]()
    reads, learns = _format_reads(method), method.learns
    teacher_cache = ("yes" if method.cacheable else "no") if method.needs_teacher else "-"
  else:
    wrapped = METHODS["at" if name == "sakd" else "kd"]()
    method = PLUGINS[name](wrapped)
    reads = "logits" if method.transforms_logits else "as the wrapped method"
    if method.reads != wrapped.reads:
      own = method._replace(
        reads=method.reads - wrapped.reads, student_reads=method.student_reads - wrapped.reads
      )
      reads = f"{reads}, and {_format_reads(own)}"
    if method.reads_segments:
      reads, teacher_cache = f"{reads}; segments of the networks", "no"
    learns = method.learns or ("" if method.transforms_logits else "as the wrapped method, for each teacher")
  return MethodDoc(
    name, family, title, paper, formula, notes, reads, learns, teacher_cache, _defaults(factory)
  )


def describe_all() -> tuple[MethodDoc, ...]:
  """Documentation of all methods by family, then of all plug-ins."""
  names = [name for family in FAMILIES.values() for name in family]
  return tuple(describe(name) for name in (*names, *PLUGINS))


def _format_reads(method: Method) -> str:
  """Inputs of a method, in words."""

  def words(reads):
    return ", ".join(name.replace("_", " ") for name in OUTPUTS if name in reads)

  student, teacher = words(method.student_reads), words(method.reads)
  inputs = [student]
  if student != teacher:
    inputs = [f"student: {student}", f"teacher: {teacher}" if teacher else "no teacher"]
  if method.needs_labels:
    inputs.append("labels")
  if method.statistics is not None:
    inputs.append(f"the teacher's {words(method.statistics.reads)} on the training set")
  if method.per_example_memory:
    inputs.append("training indices")
  if method.multi_view:
    inputs.append(f"{method.min_views} views or more" if method.min_views > 1 else "all views of the stage")
  return "; ".join(inputs)


def _sections(text: str) -> tuple[str, str, str, str]:
  """(title, paper, formula, notes) of a module's docstring; formulas are indented."""
  title, paper, *rest = re.split(r"\n\n+", text.strip())
  is_formula = [paragraph.startswith("  ") for paragraph in rest]
  count = is_formula.index(False) if False in is_formula else len(rest)
  formula = "\n\n".join(textwrap.dedent(paragraph) for paragraph in rest[:count])
  return title, paper, formula, "\n\n".join(rest[count:])


def _defaults(factory: Callable) -> dict[str, object]:
  parameters = inspect.signature(factory).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def format_table() -> str:
  """Table of all methods, in plain text."""
  rows = [(c.name, c.family, c.cite, c.reads, c.learns or "-") for c in describe_all()]
  rows.insert(0, ("name", "family", "paper", "reads", "learns"))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return "\n".join("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def format_method(doc: MethodDoc) -> str:
  """Documentation of one method, in plain text."""
  defaults = ", ".join(f"{name}={value!r}" for name, value in doc.defaults.items()) or "none"
  facts = (
    ("family", doc.family),
    ("reads", doc.reads),
    ("learns", doc.learns or "nothing"),
    ("teacher cache", doc.teacher_cache),
    ("hyper-parameters", defaults),
  )
  facts_text = "\n".join(f"{name}: {value}" for name, value in facts)
  parts = (
    f"{doc.name}: {doc.title}",
    doc.paper,
    textwrap.indent(doc.formula, "  "),
    facts_text,
    doc.notes,
  )
  return "\n\n".join(filter(None, parts))


def format_markdown() -> str:
  """The page docs/methods.md."""
  lines = [
    "# Methods",
    "",
    "Written by `python -m smskd_jax.losses --markdown`; `python -m smskd_jax.losses NAME` explains one method.",
    "Every loss is per example: its mean over the batch is the formula's value. Outer weights are the config's.",
    "",
    "Outputs of a network: logits; the embedding, which the classifier reads; features and preactivations, the maps",
    "after and before their activation; the final map, whose mean is the embedding; the head, a linear classifier;",
    "norms, the batch norms of the preactivations; peer outputs, those of the other networks of a cohort.",
    "",
    "Families: a response method compares logits; a feature method maps, embeddings, or the logits of heads on them; a",
    "relation method relates examples or channels; an online method needs networks that train together. A teacher",
    "cache, a stage's `teacher_cache`, stores logits and embeddings: the methods with `yes` can use it.",
    "",
    "| name | family | paper | reads | learns or remembers | teacher cache |",
    "|---|---|---|---|---|---|",
  ]
  docs = describe_all()
  for c in docs:
    lines.append(
      f"| [{c.name}](#{c.name}) | {c.family} | {c.cite} | {c.reads} | {c.learns or '-'} | {c.teacher_cache} |"
    )
  for c in docs:
    defaults = ", ".join(f"`{name}={value!r}`" for name, value in c.defaults.items()) or "none"
    lines += ["", f"## {c.name}", "", c.title, "", c.paper, "", "```", c.formula, "```", ""]
    lines += [f"Hyper-parameters: {defaults}. Reads: {c.reads}. Learns: {c.learns or 'nothing'}."]
    if c.notes:
      lines += ["", c.notes]
  return "\n".join(lines) + "\n\n" + PEERS_PATH.read_text()


def main(argv: Sequence[str]) -> int:
  """Prints a table, a page or some methods; returns the exit status."""
  known = [*METHODS, *PLUGINS]
  if not argv:
    print(format_table())
  elif {"-h", "--help"} & set(argv):
    print(__doc__)
  elif argv == ["--markdown"]:
    print(format_markdown(), end="")
  else:
    for name in argv:
      if name not in known:
        hint = suggestion(name, known) or "; without a name, all are listed"
        return print_error(UserError(f"there is no method {name!a}{hint}"))
    print("\n\n".join(format_method(describe(name)) for name in argv))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
