"""Checks that a report is one well-formed, self-contained HTML file without scripts."""

from html import parser
import re

EVIL = '<script src="http://evil.example/x.js"></script>&"\'|'
VOID = {"meta", "img", "br", "link"}


class Parsed(parser.HTMLParser):
  """Tags and text of an HTML file, whose tags must be nested correctly."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text, self._open = [], [], []
    self.feed(text)
    self.close()
    assert not self._open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self._open.append(tag)

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)

  def of(self, name):
    """Attributes of all tags of a name."""
    return [attributes for tag, attributes in self.tags if tag == name]


def check_alone(text):
  """Checks that the file parses, has no scripts and loads nothing; returns the parsed file."""
  parsed = Parsed(text)
  assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
  ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
  assert len(ids) == len(set(ids))
  for tag, attributes in parsed.tags:
    assert not [name for name in attributes if name.startswith("on")]
    # Whatever else could load something: srcset, style, poster. Only the words for a picture may name an address.
    assert not [
      name
      for name, value in attributes.items()
      if name != "alt" and "//" in re.sub("^data:.*", "", value or "")
    ]
    if tag == "img":
      assert attributes["src"].startswith("data:image/png;base64,")
    else:
      assert "src" not in attributes
    if "href" in attributes:
      assert attributes["href"].removeprefix("#") in ids
  style = re.search("<style>(.*?)</style>", text, re.DOTALL).group(1)
  assert "url(" not in style
  assert "@import" not in style
  assert "default-src 'none'" in parsed.of("meta")[1]["content"]
  return parsed
