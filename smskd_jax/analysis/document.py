"""Documents of text, tables and figures, rendered to HTML and Markdown.

One content, two templates.

A document is a `Section` whose parts are shown in order; nested sections are chapters. Strings are shown literally and
never become markup, except `code` between backticks and **bold** in paragraphs. The HTML is one self-contained file;
Markdown has its figures as files in a folder.
"""

import base64
from collections.abc import Iterator, Sequence
import functools
from pathlib import Path
import re
from typing import Any, NamedTuple, Union

TEMPLATES = Path(__file__).parent / "templates"
WIDE_CELL = 20  # characters; longer cells may be wrapped


class Table(NamedTuple):
  """Cells of text; the first column names the rows."""

  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  caption: str = ""


class Figure(NamedTuple):
  """A PNG image; the name becomes the name of its file in Markdown."""

  name: str
  png: bytes
  caption: str


class Code(NamedTuple):
  """Verbatim lines; folded ones are hidden in HTML until opened."""

  text: str
  folded: bool = False


class Section(NamedTuple):
  """A title and parts; folded ones are hidden in HTML until opened."""

  title: str
  parts: Sequence["Part"]
  folded: bool = False


Part = Union[str, Table, Figure, Code, Section]  # noqa: UP007  # `|` does not take forward references


def render_html(document: Section) -> str:
  """Renders a self-contained HTML file, without scripts or links to other files."""
  return _environment().get_template("report.html.j2").render(document=document)


def render_markdown(document: Section, figures: str = "figures") -> str:
  """Renders Markdown that reads its images from the folder `figures`."""
  text = _environment().get_template("report.md.j2").render(document=_unique_names(document), figures=figures)
  return text.strip() + "\n"


def write_html(document: Section, path: Path) -> None:
  """Writes the document as one HTML file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(render_html(document), encoding="utf-8")


def write_markdown(document: Section, path: Path, figures: str) -> None:
  """Writes the document as Markdown, with its figures in the folder beside the file."""
  folder = path.parent / figures
  folder.mkdir(parents=True, exist_ok=True)
  for figure in all_figures(_unique_names(document)):
    (folder / f"{figure.name}.png").write_bytes(figure.png)
  path.write_text(render_markdown(document, figures), encoding="utf-8")


def all_figures(section: Section) -> Iterator[Figure]:
  """Yields the figures of a section and its subsections, in order."""
  for part in section.parts:
    if isinstance(part, Section):
      yield from all_figures(part)
    elif isinstance(part, Figure):
      yield part


def _unique_names(section: Section, names: set[str] | None = None) -> Section:
  """Returns the section with the names of its figures made valid, unique names of files."""
  names = set() if names is None else names
  parts: list[Part] = []
  for part in section.parts:
    if isinstance(part, Section):
      part = _unique_names(part, names)
    elif isinstance(part, Figure):
      stem = re.sub(r"[^A-Za-z0-9]+", "-", part.name).strip("-") or "figure"
      numbered = (f"{stem}-{i}" if i > 1 else stem for i in range(1, len(names) + 2))
      part = part._replace(name=next(name for name in numbered if name not in names))
      names.add(part.name)
    parts.append(part)
  return section._replace(parts=parts)


@functools.cache
def _environment() -> Any:
  """Jinja2 environment of the templates; HTML templates escape every string."""
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=lambda name: name is not None and name.endswith(".html.j2"),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  for kind in (Table, Figure, Code, Section):
    environment.tests[kind.__name__.lower()] = lambda part, kind=kind: isinstance(part, kind)
  environment.filters |= {
    "column_classes": _column_classes,
    "data_uri": _data_uri,
    "fence": _fence,
    "inline_html": _inline_html,
    "inline_markdown": _escape_markdown,
    "list_items": _list_items,
    "literal_markdown": _literal_markdown,
    "markdown_table": markdown_table,
    "sections": _subsections,
  }
  return environment


def _subsections(section: Section) -> list[Section]:
  return [part for part in section.parts if isinstance(part, Section)]


def _data_uri(png: bytes) -> str:
  return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _column_classes(table: Table) -> list[str]:
  """CSS classes of the columns: right-aligned numbers, and long cells that may be wrapped."""
  columns = [[row[i] for row in table.rows] for i in range(len(table.header))]
  numeric = [
    i > 0 and all(re.match(r"[-+]?\d|-$|$", cell) for cell in column) for i, column in enumerate(columns)
  ]
  wide = [max(map(len, column), default=0) > WIDE_CELL for column in columns]
  return [
    " ".join((*(["number"] if is_number else []), *(["words"] if is_wide else [])))
    for is_number, is_wide in zip(numeric, wide, strict=True)
  ]


def _list_items(text: str) -> list[str]:
  """Items of a text whose lines all begin with '- '; [] for other texts."""
  lines = text.splitlines()
  return [line[2:] for line in lines] if lines and all(line.startswith("- ") for line in lines) else []


def _inline_html(text: str) -> Any:
  """HTML of a paragraph: escaped first, so that only code and bold become markup."""
  import markupsafe

  pieces = re.split(r"`([^`]+)`", str(markupsafe.escape(text)))
  pieces[::2] = [re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", piece) for piece in pieces[::2]]
  return markupsafe.Markup(
    "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
  )


def _escape_markdown(text: str) -> str:
  """Markdown of a paragraph line by line: code and bold stay, other markup is escaped."""
  lines = (re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(line.split())) for line in text.splitlines())
  return "\n".join(line.replace("|", "\\|").replace("](", "]\\(") for line in lines)


def _literal_markdown(text: str) -> str:
  """Markdown of one line that shows the text literally."""
  return re.sub(r"([*`])", r"\\\1", _escape_markdown(" ".join(text.split())))


def _fence(text: str) -> str:
  """Backticks that enclose a block of code: more than the block has in a row."""
  return "`" * max((3, *(len(run) + 1 for run in re.findall("`+", text))))


def markdown_table(table: Table) -> str:
  """Markdown of a table that is aligned in plain text too."""
  cells = [[_literal_markdown(cell) for cell in row] for row in (table.header, *table.rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(table.header))]
  lines = [
    "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells
  ]
  rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
  return "\n".join((lines[0], rule, *lines[1:]))
