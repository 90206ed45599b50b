"""Tests of analysis/page.py: what a page holds, and that nothing it is given becomes markup."""

import base64
import re

import pytest

from analysis.pages import EVIL, check_alone
from smskd_jax.analysis import page
from smskd_jax.analysis.page import Code, Figure, Section, Table

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


def test_html_has_everything_inside():
  text = page.html(whole())
  parsed = check_alone(text)
  assert parsed.of("img")[0]["src"].partition(",")[2] == base64.b64encode(PNG).decode()
  assert parsed.of("img")[0]["alt"] == "What is seen."
  assert "<code>code</code> and <strong>words</strong>" in text
  assert "<ul><li>one</li><li>two</li></ul>" in text
  assert "<td class=number>82.00 %</td>" in text
  assert "<pre><code>ls\npwd</code></pre>" in text
  assert "prefers-color-scheme: dark" in text


def test_contents_lead_to_the_chapters_but_not_below_folded_ones():
  text = page.html(whole())
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
  parsed = check_alone(page.html(make(EVIL)))
  assert EVIL in "".join(parsed.text) or parsed.of("img")[0]["alt"] == EVIL
  markdown = page.markdown(make(EVIL))
  outside_code = re.sub(r"```\n.*?\n```", "", markdown, flags=re.DOTALL)
  assert "<script" not in outside_code


def test_markdown():
  text = page.markdown(whole(), "pictures")
  assert text.startswith("# A page\n\nSome `code` and **words**.\n\n## First\n\n| stage | test    |\n")
  assert "### Below\n\n![01-curve-of-x-y](pictures/01-curve-of-x-y.png)\n\nWhat is seen.\n" in text
  assert "```\nls\npwd\n```" in text


def test_markdown_cells_keep_to_themselves():
  text = page.markdown(Section("", [Table(["a|b"], [["c\nd"], ["[x](http://y)"], ["**z** `q`"]])]))
  rows = [line for line in text.splitlines() if line.startswith("|")]
  assert len(rows) == 5
  assert all(len(re.split(r"(?<!\\)\|", row)) == 3 for row in rows)
  assert r"[x]\(http://y)" in text
  assert r"\*\*z\*\* \`q\`" in text


def test_a_fence_is_longer_than_those_inside():
  assert "\n````\n```\n````\n" in page.markdown(Section("", [Code("```")]))


def test_parts_of_our_own_markdown():
  table = page.markdown_table(["", "n"], [["kd", "3"]])
  parts = page.parts_of(f"# Title\n\nWords of `kd`:\n\n{table}\n\n- failed: kd:1\n")
  assert parts == ["Words of `kd`:", Table(["", "n"], [["kd", "3"]]), "- failed: kd:1"]


def test_written_figures_have_names_of_their_own(tmp_path):
  twice = [Figure("../a b", PNG, "one"), Section("again", [Figure("../a b", b"\x89PNG 2", "two")])]
  html, markdown = page.write(Section("Page", twice), tmp_path / "new")
  assert [path.name for path in (html, markdown)] == ["report.html", "report_full.md"]
  files = sorted((tmp_path / "new" / "report_figures").iterdir())
  assert [file.name for file in files] == ["01-a-b.png", "02-a-b.png"]
  assert [file.read_bytes() for file in files] == [PNG, b"\x89PNG 2"]
  assert all(f"(report_figures/{file.name})" in markdown.read_text() for file in files)
