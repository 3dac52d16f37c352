"""Pictures of logs: what is drawn is what was recorded, and the files stand by themselves."""

from __future__ import annotations

import html.parser
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

import geodiag
from geodiag.cli import main
from geodiag.errors import ArgumentError, MissingDependency
from geodiag.records import Record
from geodiag.report.plotting import SUFFIXES
from geodiag.report.styles import STYLES
from geodiag.sinks import JSONL

pytest.importorskip("matplotlib")
STEPS = range(0, 50, 5)
RUN = [
    Record(
        step=step,
        loss=2.0 / (1 + step),
        sharpness=3.0 + step / 10,
        bound="LOWER",
        upper=4.0 + step / 10,
        directional_smoothness=2.5,
        threshold=5.0,
        ratio=(3.0 + step / 10) / 5,
    )
    for step in STEPS
]
BARE = [Record(step=0, loss=1.0, sharpness=2.0, note="no threshold: because"), Record(step=5)]


def save(path, records=RUN):
    sink = JSONL(path)
    for record in records:
        sink.write(record)
    sink.close()
    return path


def drawn(axes):
    """The y-values of every line, without NaN."""
    found = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    return [y[np.isfinite(y)].tolist() for y in found]


def labels(drawn_on):
    """The texts of the legend of axes, or of a figure."""
    legend = drawn_on.get_legend() if hasattr(drawn_on, "get_legend") else drawn_on.legends[0]
    return [] if legend is None else [t.get_text() for t in legend.get_texts()]


def heights(axes, *values):
    """Where values lie on the axis, as fractions of its height."""
    at = axes.transAxes.inverted().transform(axes.transData.transform([(0, y) for y in values]))
    return at[:, 1].tolist()


def test_what_was_recorded_is_drawn():
    figure = geodiag.plot(RUN)
    loss, curvature, ratio = figure.axes
    assert drawn(loss) == [[r.loss for r in RUN]]
    assert loss.get_yscale() == "log"
    for name in ("sharpness", "directional_smoothness", "threshold"):
        assert [getattr(r, name) for r in RUN] in drawn(curvature)
    (band,) = curvature.collections
    corners = {(int(x), round(float(y), 9)) for x, y in band.get_paths()[0].vertices}
    assert {(r.step, round(r.upper, 9)) for r in RUN} <= corners
    assert {(r.step, round(r.sharpness, 9)) for r in RUN} <= corners
    assert [r.ratio for r in RUN] in drawn(ratio)
    assert [1.0, 1.0] in drawn(ratio)
    assert loss.get_shared_x_axes().joined(loss, ratio)
    assert labels(curvature) == [
        "sharpness S (lower bound)",
        "up to the certified bound",
        "directional smoothness D",
        "edge of stability",
    ]


def test_what_is_not_known_is_not_drawn():
    figure = geodiag.plot(BARE)
    _, curvature, ratio = figure.axes
    assert not curvature.collections
    assert labels(curvature) == ["sharpness S"]
    assert [t.get_text() for t in ratio.texts] == ["not known: no threshold: because"]


def test_without_steps_there_is_no_panel_of_the_ratio():
    """As of checkpoints, whose notes say other things."""
    found = [Record(i, loss=1.0, sharpness=2.0, extras={"checkpoint": "a"}) for i in range(3)]
    found.append(Record(4, sharpness=2.0, note="budget", extras={"checkpoint": "b"}))
    assert [axes.get_ylabel() for axes in geodiag.plot(found).axes] == [
        "loss",
        "curvature in the measured norm",
    ]


def test_the_ratios_of_parts_have_their_names(tmp_path):
    """Of Muon beside AdamW, in the panel of the edge; neither is the run's, which is not known."""

    def of(step, muon):
        own = {"sharpness_muon": 2.0, "ratio_muon": muon, "sharpness_adam": 9.0, "ratio_adam": 0.93}
        return Record(step, loss=1.0, realized_edge=0.7, note="no threshold: why", extras=own)

    parts = [of(step, 0.1 * step) for step in range(4)]
    edge = geodiag.plot(parts).axes[2]
    names = ["S / threshold of muon alone", "S / threshold of adam alone", "realized edge ζ"]
    assert labels(edge) == names
    assert [0.93] * 4 in drawn(edge)
    assert pytest.approx([0.0, 0.1, 0.2, 0.3]) in drawn(edge)
    for suffix in ("html", "svg"):
        geodiag.plot(parts, tmp_path / f"run.{suffix}")
        text = (tmp_path / f"run.{suffix}").read_text("utf-8")
        assert all(name in text or name.encode("unicode_escape").decode() in text for name in names)
    both = geodiag.plot({"a": parts, "b": RUN}).axes[2]
    assert {*names, "S / threshold"} == set(labels(both))
    assert [r.ratio for r in RUN] in drawn(both)
    assert len(geodiag.plot(parts, ax={"ratio": both}).axes) == 3


def test_checkpoints_are_drawn_in_the_order_of_their_steps():
    """The last record of each, in whatever order they were measured."""
    order = [(100, 1.0), (50, 2.0), (100, 3.0), (75, 4.0)]
    found = [Record(i, loss=x, sharpness=x, extras={"checkpoint": str(i)}) for i, x in order]
    (line,) = geodiag.plot(found).axes[0].lines
    assert line.get_xydata().tolist() == [[50, 2], [75, 4], [100, 3]]
    (line,) = geodiag.plot([Record(i, loss=x) for i, x in order]).axes[0].lines
    assert line.get_xdata().tolist() == [100, 50, 100, 75]  # a run that was resumed


def test_records_of_failures_alone_can_be_drawn():
    figure = geodiag.plot([Record(step=1, note="the loss: NaN"), Record(step=2, loss=math.inf)])
    figure.savefig("/dev/null", format="png")


def test_one_wild_step_does_not_flatten_the_rest():
    wild = [*RUN, Record(step=50, directional_smoothness=1e9, sharpness=8.0, threshold=5.0)]
    _, curvature, _ = geodiag.plot(wild).axes
    low, high = heights(curvature, 0.0, 8.0)
    assert high - low > 0.35  # what is not wild fills most of the axis


def test_a_wide_range_is_logarithmic_and_a_negative_sharpness_is_not():
    rising = [Record(step=i, sharpness=10.0**i, threshold=1e3) for i in range(4)]
    assert geodiag.plot(rising).axes[1].get_yscale() == "log"
    axes = geodiag.plot([*rising, Record(step=4, sharpness=-1.0)]).axes[1]
    assert axes.get_ylim()[0] < -1


def test_several_runs_differ_by_colour_lightness_and_marker(tmp_path):
    paths = [save(tmp_path / f"{name}.jsonl") for name in ("first", "second", "third")]
    figure = geodiag.plot(paths)
    loss, curvature, _ = figure.axes
    assert labels(figure) == ["first", "second", "third"]
    lines = loss.get_lines()
    assert len({line.get_color() for line in lines}) == 3
    assert len({line.get_marker() for line in lines}) == 3
    assert len(curvature.collections) == 3


def test_neighbouring_colours_differ_in_grey():
    """By a tenth of the range, in the luminance of Rec. 709."""

    def grey(colour):
        linear = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    for style in STYLES.values():
        greys = [grey(c) for c in style.colours]
        assert min(np.abs(np.diff(greys))) > 0.1
        assert style.edge not in style.colours


def test_labels_of_files_with_one_name_are_their_paths(tmp_path):
    paths = [save(tmp_path / folder / "run.jsonl") for folder in "ab"]
    assert labels(geodiag.plot(paths)) == [str(p) for p in paths]


def test_labels_can_be_given(tmp_path):
    figure = geodiag.plot({"lr 0.1": RUN, "lr 0.2": save(tmp_path / "b.jsonl")})
    assert labels(figure) == ["lr 0.1", "lr 0.2"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_may_have_letters_that_the_font_has_not(tmp_path, suffix):
    label = "\N{CJK UNIFIED IDEOGRAPH-9510}"
    geodiag.plot({label: RUN}, tmp_path / f"out{suffix}")  # a warning would be an error here
    assert (tmp_path / f"out{suffix}").stat().st_size > 1000


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / "new" / f"out{suffix}"
    geodiag.plot(RUN, path)
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".html": b"<!DOCTYPE html>"}
    assert path.read_bytes().startswith(starts[suffix])


def test_a_page_stands_alone_and_is_no_way_in(tmp_path):
    """No script, nothing fetched, and a hostile label or note is only text."""
    path, evil = tmp_path / "out.html", "<script>alert(1)</script>"
    geodiag.plot({evil: [*RUN, Record(step=50, sharpness=1.0, note=evil)]}, path)
    page = path.read_text("utf-8")
    found = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    Reader().feed(page)
    tags = {tag for tag, _ in found}
    assert {"svg", "table"} <= tags
    assert not tags & {"script", "link", "img", "iframe", "object"}
    for _, attributes in found:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                assert value.startswith("#")
    assert not re.search(r"url\((?!#)|@import", page)
    assert "&lt;script&gt;" in page
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    ElementTree.fromstring(svg)  # well-formed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no records"),
        ({}, "no records"),
        ({"a": []}, "no records"),
        ("missing.jsonl", "cannot be read"),
        ([{"step": 1}], "a plot is of records"),
        (3, "a plot is of records"),
    ],
    ids=repr,
)
def test_nothing_to_draw_says_so(source, message):
    with pytest.raises(ArgumentError, match=message):
        geodiag.plot(source)


def test_bad_paths_say_so(tmp_path):
    with pytest.raises(ArgumentError, match="suffix"):
        geodiag.plot(RUN, tmp_path / "out.bmp")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="cannot be written"):
        geodiag.plot(RUN, tmp_path / "file" / "out.png")


def test_a_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r"geodiag\[plot\]"):
        geodiag.plot(RUN)


class TestCommand:
    def test_draws_the_logs(self, tmp_path, capsys):
        logs = [str(save(tmp_path / f"{name}.jsonl")) for name in "ab"]
        out = tmp_path / "both.svg"
        assert main(["plot", *logs, "-o", str(out)]) == 0
        assert out.exists()
        assert capsys.readouterr().out == f"figure: {out}\n"

    def test_is_named_after_the_first_log(self, tmp_path, capsys):
        assert main(["plot", str(save(tmp_path / "run.jsonl"))]) == 0
        assert (tmp_path / "run.png").exists()

    @pytest.mark.parametrize("content", [None, "", "hello\n"])
    def test_an_unusable_log_exits_with_2(self, tmp_path, capsys, content):
        path = tmp_path / "run.jsonl"
        if content is not None:
            path.write_text(content)
        assert main(["plot", str(path)]) == 2
        assert capsys.readouterr().err.startswith("geodiag: error: ")
