"""The interactive page: everything in one file, texts stay texts, and it works in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys

import pytest

import geodiag
from geodiag.records import Record
from geodiag.report.plotting import written

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")
EVIL = (
    "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


def records(note="", spike=0.0, steps=20):
    return [
        Record(i, loss=1 / (1 + i), sharpness=2.0, ratio=0.5 + spike * (i == 7), note=note)
        for i in range(steps)
    ]


@pytest.fixture
def page(tmp_path):
    """The page of two runs, one with a hostile label and hostile notes."""
    path = tmp_path / "run.html"
    geodiag.plot({EVIL: records(EVIL, 3.0), "other": records()}, path)
    return path


def test_it_holds_its_script_and_no_hostile_tag(page):
    text = page.read_text("utf-8")
    assert len(text) > 3_000_000
    assert not re.search(r"<script[^>]*\ssrc=|<link\s", text)
    assert "<img src=x" not in text
    assert "<script>document.title" not in text


def test_of_a_long_run_the_extremes_are_kept(tmp_path):
    """A spike of one record in 20,000."""
    path, short = tmp_path / "run.html", tmp_path / "short.html"
    geodiag.plot(records(steps=20, spike=3.0), short)
    long = [Record(i, ratio=0.5 + 3.0 * (i == 17_777)) for i in range(20_000)]
    geodiag.plot(long, path)
    text = path.read_text("utf-8")
    assert "step 17777" in text
    assert len(text) < len(short.read_text("utf-8")) + 1_500_000


def test_without_plotly_it_is_a_page_without_a_script(tmp_path, monkeypatch):
    assert "html" not in written(tmp_path / "run.html").partition("\n")[2]
    monkeypatch.setattr("geodiag.report.plotting.find_spec", lambda name: None)
    assert 'pip install "geodiag[html]"' in written(tmp_path / "run.html")
    assert "pip" not in written(tmp_path / "run.svg")
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    geodiag.plot(records(), tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text("utf-8")
    assert "<svg" in text
    assert "<script" not in text


# Zooms the first panel, hides a run by a click, shows the text at a point, and writes what came.
ACTIONS = """
<script>
window.addEventListener("load", async () => {
  const plot = document.querySelector(".plotly-graph-div"), said = {};
  const wait = ms => new Promise(done => setTimeout(done, ms));
  await Plotly.relayout(plot, {"xaxis.range": [5, 9]});
  said.linked = Object.keys(plot._fullLayout).filter(k => /^xaxis/.test(k))
    .every(k => Math.abs(plot._fullLayout[k].range[0] - 5) < 1e-6);
  said.names = [...plot.querySelectorAll(".legendtext")].map(x => x.textContent);
  const trace = plot._fullData.findIndex(t => t.legendgroup === "0");
  Plotly.Fx.hover(plot, [{curveNumber: trace, pointNumber: 7}], "xy");
  await wait(300);
  said.hover = plot.querySelector(".hoverlayer").textContent;
  const toggle = plot.querySelector(".legendtoggle"), box = toggle.getBoundingClientRect();
  const at = {bubbles: true, clientX: box.x + 2, clientY: box.y + 2};
  for (const kind of ["mousedown", "mouseup"])
    toggle.dispatchEvent(new MouseEvent(kind, at));
  await wait(800);
  said.hidden = plot._fullData.filter(t => t.visible === "legendonly").map(t => t.legendgroup);
  said.title = document.title;
  const out = document.createElement("pre"); out.id = "said";
  out.textContent = JSON.stringify(said); document.body.append(out);
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser(page, tmp_path):
    text = page.read_text("utf-8")
    page.write_text(text.replace("</body>", ACTIONS), "utf-8")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --dump-dom"
    options += " --disable-background-networking --disable-component-update --disable-sync"
    options += " --window-size=1200,1000 --virtual-time-budget=20000"
    command = [CHROMIUM, *options.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    said = json.loads(html.unescape(found[1]))
    assert said["linked"]
    assert said["title"] != "owned"
    assert any(name.startswith("<img src=x") for name in said["names"])  # as letters
    assert "step 7" in said["hover"]
    assert "<img src=x" in said["hover"]
    assert set(said["hidden"]) == {"0"}
