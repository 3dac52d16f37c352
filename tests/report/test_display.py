"""Results, records and monitors show themselves in a notebook; hostile texts stay text."""

from __future__ import annotations

import html.parser
import sys

import numpy as np
import pytest

import geodiag
from geodiag.estimators.progress import ProgressBar

EVIL = "</td><script>alert(1)</script>\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}&amp;"
H = np.diag([18.0, 4.0, 1.0])
PAIR = (lambda w: w["x"] @ H @ w["x"] / 2, lambda w: {"x": H @ w["x"]})
W = {"x": np.ones(3)}
STEP = {"x": -0.1 * H @ np.ones(3)}


class Named(geodiag.norms.L2):
    def __repr__(self):
        return EVIL


def monitor():
    watched = geodiag.Monitor(PAIR, Named(), params=W, lr=0.1, every=1)
    for step in range(12):
        watched.observe(step, W, {"x": W["x"] + STEP["x"]})
    watched.records.append(geodiag.Record(99, note=EVIL, extras={"kind": EVIL}))
    return watched


THINGS = {
    "result": (lambda: geodiag.sharpness(H, Named()), "18"),
    "certified": (lambda: geodiag.sharpness(H, "linf", certificate=True), "certified upper"),
    "threshold": (lambda: geodiag.threshold(0.1, momentum=0.9), "38"),
    "no threshold": (lambda: geodiag.threshold(0.1, momentum=0.9, normalized=True), "none"),
    "edge": (lambda: geodiag.realized_edge(PAIR, STEP, params=W), "ζ"),
    "critical": (lambda: geodiag.critical_lr(PAIR, STEP, 0.1, params=W), "between"),
    "uphill": (lambda: geodiag.critical_lr(PAIR, {"x": np.ones(3)}, 0.1, params=W), "descend"),
    "smoothness": (lambda: geodiag.directional_smoothness(PAIR, STEP, Named(), params=W), "D:"),
    "record": (lambda: monitor().records[3], "S / threshold"),
    "hostile record": (lambda: monitor().records[-1], "alert"),
    "monitor": (monitor, "13 records"),
    "run": (lambda: geodiag.records.Run(monitor().records, EVIL, {"norm": EVIL}), "13 records"),
    "empty monitor": (lambda: geodiag.Monitor(H, lr=0.1), "0 records"),
}


class Reader(html.parser.HTMLParser):
    """The tags and the texts; every tag is closed in its order."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.texts = set(), [], []

    def handle_starttag(self, tag, attributes):
        assert all(name == "style" for name, _ in attributes)
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("name", THINGS)
def test_each_shows_itself_as_a_table_and_as_text(name):
    make, expected = THINGS[name]
    thing = make()
    reader = Reader()
    reader.feed(thing._repr_html_())
    assert reader.open == []
    assert reader.tags <= {"div", "table", "caption", "b", "thead", "tbody", "tr", "th", "td"}
    said = " ".join(reader.texts)
    assert expected in said
    assert "nan" not in said
    assert not set(said) & {"\x1b", "\N{RIGHT-TO-LEFT OVERRIDE}"}
    assert 5 < len(str(thing)) < 2000


def test_texts_say_what_the_value_is():
    assert str(geodiag.sharpness(H, "l2")).startswith("S = 18 in L2()")
    assert str(geodiag.sharpness(H, "linf", estimator="ascent")).startswith("S ≥ ")
    record = geodiag.Record(7, loss=0.5, sharpness=2.0, bound="LOWER", ratio=0.25, note="why")
    assert str(record) == "step 7: loss 0.5, S ≥ 2, S/threshold 0.25\n  note: why"
    assert repr(geodiag.Monitor(H, lr=0.1)) == "Monitor(norm L2(), 0 records)"


@pytest.mark.parametrize("installed", [True, False], ids=["tqdm", "line"])
def test_progress_says_how_much_is_left(capsys, monkeypatch, installed):
    if installed:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    norm = geodiag.norms.Linf()
    geodiag.sharpness(PAIR, norm, params=W, progress=True, max_hvps=20, estimator="ascent")
    said = capsys.readouterr().err
    assert "S ≥ " in said
    assert "20" in said
    assert ("HVP" in said and "<" in said) if installed else "s left" in said
    assert said.endswith("\n")


def test_progress_beyond_its_budget_has_no_end(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    bar = ProgressBar(0)
    bar.show(3, 1.0)
    bar.close()
    assert capsys.readouterr().err == "\rS ≥ 1 after 3 HVPs\n"
