"""Reports in Chromium: no console messages, no requests, and tables that fit the window."""

import json
import re
import shutil
import subprocess

from PIL import Image
import pytest

from analysis import fake_outputs, fake_runs
from smskd_jax import report
from smskd_jax.analysis import figures

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
  *("--headless", "--disable-gpu", "--no-sandbox", "--hide-scrollbars", "--window-size=900,3000"),
  *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
  *("--disable-sync", "--enable-logging=stderr", "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND"),
)

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome here"),
]


def opened(page, folder):
  """Opens a page in a browser; returns the screenshot, console messages and requested addresses."""
  folder.mkdir()
  log, picture = folder / "net.json", folder / "page.png"
  command = [
    *(BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"),
    *(f"--screenshot={picture}", page.as_uri()),
  ]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  if done.returncode or not (log.is_file() and picture.is_file()):
    pytest.skip(f"{BROWSER} does not work here: {done.stderr[-300:]}")  # no page can be the cause of that
  asked = [event["params"] for event in json.loads(log.read_text())["events"] if "params" in event]
  # What the browser asks for of its own accord is of no origin.
  urls = [of["url"] for of in asked if of.get("initiator", "not an origin") != "not an origin"]
  with Image.open(picture) as image:
    return image.convert("L"), re.findall(r":CONSOLE[^\]]*\] (.*)", done.stderr), urls


def test_a_report_opens_without_messages_or_requests(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "DPI", 20)
  folder = fake_runs.run(tmp_path / "run")
  fake_outputs.write(folder)
  html, _ = report.run([folder], folder)
  picture, console, urls = opened(html, tmp_path / "browser")
  assert (console, urls) == ([], [])
  darkest, lightest = picture.getextrema()
  assert darkest < 100 < 200 < lightest  # something is written


def test_messages_and_requests_are_detected(tmp_path):
  page = tmp_path / "noisy.html"
  page.write_text(
    '<!DOCTYPE html><title>x</title><img src="http://pictures.example/x.png"><script>console.error(1)</script>'
  )
  _, console, urls = opened(page, tmp_path / "browser")
  assert len(console) == 1
  assert urls == ["http://pictures.example/x.png"]


NAMES = "at_then_kd_anchored", "at_then_kd_without_reference"
# Writes into the document how many tables are cut off, and whether the page itself is wider than the window.
MEASURE = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  const cut = [...document.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth);
  document.documentElement.dataset.cut = cut.map(one => one.innerText.slice(0, 40)).join("; ");
  document.documentElement.dataset.over = document.documentElement.scrollWidth - window.innerWidth;
})</script>"""


@pytest.mark.parametrize("width", [1400, 600])
def test_the_tables_of_a_study_fit_a_window_and_never_widen_the_page(tmp_path, monkeypatch, width):
  monkeypatch.setattr(figures, "DPI", 20)
  folder = fake_runs.study(
    tmp_path / "study", gain=0.01, variants=NAMES, published=dict.fromkeys(NAMES, 70.0)
  )
  html, _ = report.run([folder], folder)
  text = html.read_text()
  assert "undecided at 2 seeds" in text
  page = tmp_path / "measured.html"
  page.write_text(re.sub("<meta http-equiv[^>]*>", "", text).replace("</head>", f"{MEASURE}</head>"))
  flags = [f"--window-size={width},1000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
  done = subprocess.run([BROWSER, *FLAGS, *flags, page.as_uri()], capture_output=True, text=True, timeout=120)
  found = re.search(r'data-cut="([^"]*)" data-over="([^"]*)"', done.stdout)
  if found is None:
    pytest.skip(f"{BROWSER} does not work here: {done.stderr[-300:]}")
  assert int(found[2]) <= 0
  assert width < 1000 or not found[1]
