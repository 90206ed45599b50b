"""A page of text, tables and figures: as one HTML file that needs nothing beside it, and as Markdown.

A page is a `Section` whose parts are shown in order; sections among them are its chapters. Whatever a string holds is
shown as it is and never becomes markup, but for `code` between backticks and **bold** in paragraphs.
"""

import base64
from collections.abc import Iterator, Sequence
import html as html_lib
import itertools
from pathlib import Path
import re
from typing import NamedTuple, Union

from smskd_jax.analysis.style import STYLE

# Nothing is loaded from anywhere, whatever the page holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SUMMARY_OF_LONG = "Show"
LONG = 20  # characters of a cell that may be broken into lines


class Table(NamedTuple):
  """Cells of text; the first column names the rows."""

  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  caption: str = ""


class Figure(NamedTuple):
  """A picture. Its name is that of its file where it cannot be embedded."""

  name: str
  png: bytes
  caption: str


class Code(NamedTuple):
  """Lines that are shown as they are; long ones can be folded away."""

  text: str
  folded: bool = False


class Section(NamedTuple):
  """A title, and what stands below it; a folded one is opened by its reader."""

  title: str
  parts: Sequence["Part"]
  folded: bool = False


Part = Union[str, Table, Figure, Code, Section]  # noqa: UP007  # `|` knows no names that are yet to come


def html(page: Section) -> str:
  """The page as a file of HTML: figures and style are in it, scripts and links to elsewhere are not."""
  first = [part for part in page.parts if not isinstance(part, Section)]
  chapters = [part for part in page.parts if isinstance(part, Section)]
  numbered = [(f"s{i}", chapter) for i, chapter in enumerate(chapters, start=1)]
  title = html_lib.escape(page.title)
  return "\n".join(
    (
      f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
      f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
      *map(_html_of, first),
      *([f'<nav aria-label="Contents">{_contents(numbered)}</nav>'] if chapters else ()),
      *(_chapter(name, chapter, 2) for name, chapter in numbered),
      "</body>\n</html>\n",
    )
  )


def _contents(numbered: Sequence[tuple[str, Section]], depth: int = 2) -> str:
  items = []
  for name, section in numbered:
    # What is folded away is one line here too.
    below = _contents(_numbered(name, section), depth - 1) if depth > 1 and not section.folded else ""
    items.append(f'<li><a href="#{name}">{html_lib.escape(section.title)}</a>{below}</li>')
  return f"<ul>{''.join(items)}</ul>" if items else ""


def _numbered(name: str, section: Section) -> list[tuple[str, Section]]:
  own = [part for part in section.parts if isinstance(part, Section)]
  return [(f"{name}-{i}", part) for i, part in enumerate(own, start=1)]


def _chapter(name: str, section: Section, level: int) -> str:
  heading = f"<h{level}>{html_lib.escape(section.title)}</h{level}>"
  inner, names = [], iter(_numbered(name, section))
  for part in section.parts:
    inner.append(_chapter(*next(names), min(level + 1, 6)) if isinstance(part, Section) else _html_of(part))
  body = "\n".join(inner)
  if section.folded:
    return f'<details id="{name}">\n<summary>{heading}</summary>\n{body}\n</details>'
  return f'<section id="{name}">\n{heading}\n{body}\n</section>'


def _html_of(part: Part) -> str:
  if isinstance(part, Table):
    return _html_table(part)
  if isinstance(part, Figure):
    data, words = base64.b64encode(part.png).decode(), _inline(part.caption)
    alt = html_lib.escape(part.caption)
    return (
      f'<figure>\n<img alt="{alt}" src="data:image/png;base64,{data}">\n'
      f"<figcaption>{words}</figcaption>\n</figure>"
    )
  if isinstance(part, Code):
    code = f"<pre><code>{html_lib.escape(part.text)}</code></pre>"
    if part.folded:
      return f"<details>\n<summary>{SUMMARY_OF_LONG}</summary>\n{code}\n</details>"
    return code
  lines = str(part).splitlines()
  if lines and all(line.startswith("- ") for line in lines):
    return "<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>"
  return f"<p>{_inline(str(part))}</p>"


def _html_table(table: Table) -> str:
  columns = [[row[i] for row in table.rows] for i in range(len(table.header))]
  numeric = [bool(i) and _is_numeric(column) for i, column in enumerate(columns)]
  # Long cells may be broken into lines, so that a table of many columns fits the page.
  long = [max(map(len, column), default=0) > LONG for column in columns]
  classes = ["", " class=number", " class=words", ' class="number words"']
  cell = lambda tag, text, i: f"<{tag}{classes[numeric[i] + 2 * long[i]]}>{html_lib.escape(text)}</{tag}>"
  line = lambda tag, row: (
    "<tr>" + "".join(cell(tag if i else "th", text, i) for i, text in enumerate(row)) + "</tr>"
  )
  caption = f"\n<figcaption>{_inline(table.caption)}</figcaption>" if table.caption else ""
  rows = "\n".join(line("td", row) for row in table.rows)
  # It scrolls by the keyboard too, where it is wider than the page.
  return (
    f'<figure>\n<div class="scroll" tabindex="0">\n<table>\n<thead>{line("th", table.header)}</thead>\n'
    f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>{caption}\n</figure>"
  )


def _is_numeric(cells: Sequence[str]) -> bool:
  return all(re.match(r"[-+]?\d|-$|$", cell) for cell in cells)


def _inline(text: str) -> str:
  """A paragraph's inside: escaped first, so that its two kinds of marks are all that can become markup."""
  escaped = html_lib.escape(text)
  pieces = re.split(r"`([^`]+)`", escaped)
  pieces[::2] = [re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", piece) for piece in pieces[::2]]
  return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))


def markdown(page: Section, figures: str = "figures") -> str:
  """The page as Markdown; its figures are files in a folder beside it, by their names with a number before."""
  return "\n\n".join(_markdown_of(_named(page, itertools.count(1)), 1, figures)) + "\n"


def _markdown_of(part: Part, level: int, figures: str) -> Iterator[str]:
  if isinstance(part, Section):
    yield f"{'#' * min(level, 6)} {_plain(part.title)}"
    for inner in part.parts:
      yield from _markdown_of(inner, level + 1, figures)
  elif isinstance(part, Table):
    rows = [[_plain(cell) for cell in row] for row in (part.header, *part.rows)]
    yield markdown_table(rows[0], rows[1:])
    if part.caption:
      yield _plain(part.caption, marks=True)
  elif isinstance(part, Figure):
    yield f"![{_plain(part.name)}]({figures}/{part.name}.png)"
    yield _plain(part.caption, marks=True)
  elif isinstance(part, Code):
    fence = "`" * max((3, *(len(run) + 1 for run in re.findall("`+", part.text))))
    yield f"{fence}\n{part.text}\n{fence}"
  else:
    yield "\n".join(_plain(line, marks=True) for line in part.splitlines())


def _plain(text: str, marks: bool = False) -> str:
  """Text that Markdown shows as it is; with `marks`, code and bold stay."""
  escaped = " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")
  return escaped if marks else re.sub(r"([*`])", r"\\\1", escaped)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table whose columns line up in plain text too; the first is text, the others numbers."""
  widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
  line = lambda row: "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
  rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
  return "\n".join((line(header), rule, *map(line, rows)))


def parts_of(text: str) -> list[Part]:
  """The paragraphs and tables of Markdown that this package wrote; its title is left out."""
  parts: list[Part] = []
  for block in re.split(r"\n\n+", text.strip()):
    if block.startswith("|"):
      header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
      )
      parts.append(Table(header, rows))
    elif not block.startswith("# "):
      parts.append(block)
  return parts


def write(page: Section, folder: Path) -> tuple[Path, Path]:
  """Writes FOLDER/report.html, and FOLDER/report_full.md with its figures in FOLDER/report_figures."""
  figures = folder / "report_figures"
  figures.mkdir(parents=True, exist_ok=True)
  for figure in figures_of(_named(page, itertools.count(1))):
    (figures / f"{figure.name}.png").write_bytes(figure.png)
  paths = folder / "report.html", folder / "report_full.md"
  paths[0].write_text(html(page), encoding="utf-8")
  paths[1].write_text(markdown(page, figures.name), encoding="utf-8")
  return paths


def figures_of(section: Section) -> Iterator[Figure]:
  """All figures of a section, in order."""
  for part in section.parts:
    if isinstance(part, Section):
      yield from figures_of(part)
    elif isinstance(part, Figure):
      yield part


def _named(section: Section, numbers: Iterator[int]) -> Section:
  """The section with figures of different names, which can be names of files."""
  parts: list[Part] = []
  for part in section.parts:
    if isinstance(part, Section):
      part = _named(part, numbers)
    elif isinstance(part, Figure):
      part = part._replace(name=f"{next(numbers):02d}-{re.sub(r'[^A-Za-z0-9]+', '-', part.name).strip('-')}")
    parts.append(part)
  return section._replace(parts=parts)
