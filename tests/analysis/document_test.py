"""Tests of analysis/document.py: content of HTML and Markdown, and that strings never become markup."""

import base64
import html
import re

import pytest

from analysis.html_checks import EVIL, check_alone
from smskd_jax.analysis import document
from smskd_jax.analysis.document import Code, Figure, Section, Table

PNG = b"\x89PNG not really"


def whole():
  return Section(
    "A page",
    [
      "Some `code` and **words**.",
      Section("First", [Table(["stage", "test"], [["kd", "82.00 %"], ["rkd", "-"]], "In percent.")]),
      Section("Second", [Section("Below", [Figure("curve of x/y", PNG, "What is seen.")]), "- one\n- two"]),
      Section("Third", [Code("ls\npwd"), Section("Hidden", [])], folded=True),
    ],
  )


def test_html_is_self_contained():
  text = document.render_html(whole())
  parsed = check_alone(text)
  assert parsed.of("img")[0]["src"].partition(",")[2] == base64.b64encode(PNG).decode()
  assert parsed.of("img")[0]["alt"] == "What is seen."
  assert "<code>code</code> and <strong>words</strong>" in text
  assert "<ul><li>one</li><li>two</li></ul>" in text
  assert '<td class="number">82.00 %</td>' in text
  assert "<pre><code>ls\npwd</code></pre>" in text
  assert "prefers-color-scheme: dark" in text


def test_contents_link_to_chapters_but_not_into_folded_ones():
  text = document.render_html(whole())
  links = re.findall('<a href="#([^"]*)">([^<]*)', text)
  assert [title for _, title in links] == ["First", "Second", "Below", "Third"]
  for name, title in links:
    assert re.search(rf'<(section|details) id="{name}">\s*(<summary>)?<h[23]>{title}', text)


@pytest.mark.parametrize(
  "make",
  [
    lambda text: Section(text, []),
    lambda text: Section("", [Section(text, [])]),
    lambda text: Section("", [text]),
    lambda text: Section("", [f"- {text}"]),
    lambda text: Section("", [f"`{text}`"]),
    lambda text: Section("", [Table([text], [[text]], text)]),
    lambda text: Section("", [Figure(text, PNG, text)]),
    lambda text: Section("", [Code(text)]),
  ],
)
def test_strings_never_become_markup(make, tmp_path):
  parsed = check_alone(document.render_html(make(EVIL)))
  assert EVIL in "".join(parsed.text) or parsed.of("img")[0]["alt"] == EVIL
  markdown = document.render_markdown(make(EVIL))
  outside_code = re.sub(r"```\n.*?\n```", "", markdown, flags=re.DOTALL)
  assert "<script" not in outside_code


def test_markdown():
  text = document.render_markdown(whole(), "pictures")
  assert text.startswith("# A page\n\nSome `code` and **words**.\n\n## First\n\n| stage | test    |\n")
  assert "### Below\n\n![curve-of-x-y](pictures/curve-of-x-y.png)\n\nWhat is seen.\n" in text
  assert "```\nls\npwd\n```" in text


def test_markdown_cells_are_escaped():
  text = document.render_markdown(Section("", [Table(["a|b"], [["c\nd"], ["[x](http://y)"], ["**z** `q`"]])]))
  rows = [line for line in text.splitlines() if line.startswith("|")]
  assert len(rows) == 5
  assert all(len(re.split(r"(?<!\\)\|", row)) == 3 for row in rows)
  assert r"[x]\(http://y)" in text
  assert r"\*\*z\*\* \`q\`" in text


def test_a_fence_is_longer_than_backticks_in_the_code():
  assert "\n````\n```\n````\n" in document.render_markdown(Section("", [Code("```")]))


def cells(text):
  """Rows of all tables of HTML or Markdown as lists of cells."""
  if text.startswith("<"):
    rows = re.findall("<tr>(.*?)</tr>", text)
    return [[html.unescape(cell) for cell in re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]
  lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|-")]
  rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
  return [[re.sub(r"\\([*`|])", r"\1", cell.strip()) for cell in row] for row in rows]


def test_html_and_markdown_show_the_same_tables():
  table = Table(["", "a|b", "n"], [["`x`", "-0.5", "**"], ["y", "1,000 ± 2", "-"]], "Caption.")
  section = Section("Page", [table, Section("Chapter", [table._replace(header=["stage", "test", "oracle"])])])
  rows = cells(document.render_markdown(section))
  assert rows == cells(document.render_html(section))
  assert rows[:3] == [table.header, *table.rows] and len(rows) == 6


def test_figures_are_written_with_unique_names(tmp_path):
  twice = [Figure("../a b", PNG, "one"), Section("again", [Figure("../a b", b"\x89PNG 2", "two")])]
  path = tmp_path / "new" / "report.md"
  document.write_markdown(Section("Page", twice), path, "images")
  files = sorted((tmp_path / "new" / "images").iterdir())
  assert [file.name for file in files] == ["a-b-2.png", "a-b.png"]
  assert [file.read_bytes() for file in files] == [b"\x89PNG 2", PNG]
  assert all(f"(images/{file.name})" in path.read_text() for file in files)
