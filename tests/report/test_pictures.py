"""Pictures fit to print: everything is in view, nothing is covered, and the look can be chosen."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import geodiag
from geodiag.cli import main
from geodiag.errors import ArgumentError
from geodiag.records import Panel, Quantity, Record, to_json
from geodiag.report import plotting
from geodiag.report.styles import STYLES
from tests.report.pictures import GRIDS, draw_all, grid, run
from tests.report.test_plotting import RUN, drawn, heights, labels

matplotlib = pytest.importorskip("matplotlib")


def all_points(axes):
    """Every finite y that is drawn, as fractions of the height of the axis."""
    return heights(axes, *itertools.chain(*drawn(axes)))


SPIKES = [None, (400.0, -500.0), (4000.0, 30.0), (3.0, -1e6), (1e30, -1e30)]


@pytest.mark.parametrize("spike", SPIKES, ids=str)
def test_all_is_in_view_and_the_edge_is_seen_well(spike):
    """Negative D and ζ too; and a spike of S or D takes less than half of an axis."""
    figure = geodiag.plot({f"method number {i}": run(i, spike) for i in range(2)})
    _, curvature, ratio = figure.axes
    for axes in (curvature, ratio):
        assert all(-1e-9 <= y <= 1 + 1e-9 for y in all_points(axes))
        assert sum(len(y) for y in drawn(axes)) >= 40 * 2 * 2  # none was left out
    zero, one = heights(ratio, 0.0, 1.0)
    assert one - zero > 0.15
    zero, edge = heights(curvature, 0.0, 10.0)
    assert edge - zero > 0.12
    assert ratio.get_ylim()[1] >= 1.2


def test_the_edge_is_seen_far_below_it_and_far_above():
    for ratio in (1e-6, 1e6, -3.0):
        axes = geodiag.plot([Record(i, ratio=ratio, realized_edge=ratio) for i in (0, 1)]).axes[-1]
        assert 0.05 < heights(axes, 1.0)[0] < 0.95
        assert all(-1e-9 <= y <= 1 + 1e-9 for y in all_points(axes))


def covered(figure):
    """Pairs of legends, titles and axes that overlap, by more than a hair, in pixels."""
    figure.draw_without_rendering()
    boxes = {f"axes {i}": axes.get_window_extent() for i, axes in enumerate(figure.axes)}
    legends = [axes.get_legend() for axes in figure.axes] + list(figure.legends)
    boxes |= {f"legend {i}": x.get_window_extent() for i, x in enumerate(legends) if x is not None}
    if figure.get_suptitle():
        boxes["title"] = figure._suptitle.get_window_extent()
    whole = figure.bbox
    found = [
        (a, b)
        for (a, x), (b, y) in itertools.combinations(boxes.items(), 2)
        if min(x.x1, y.x1) - max(x.x0, y.x0) > 1 and min(x.y1, y.y1) - max(x.y0, y.y0) > 1
    ]
    found += [
        (name, "edge")
        for name, box in boxes.items()
        if min(box.x0 - whole.x0, box.y0 - whole.y0, whole.x1 - box.x1, whole.y1 - box.y1) < -1
    ]
    return found


@pytest.mark.parametrize("style", sorted(STYLES))
def test_legends_cover_nothing_and_are_not_cut(style):
    long = (
        "a run of method number {} with a long label" + 99 * "x" if style == "slides" else "run {}"
    )
    for count in (1, 10):
        runs = {long.format(i): run(i) for i in range(count)}
        assert covered(geodiag.plot(runs, style=style or None, title="What it is")) == []


def test_axes_are_readable():
    """No two numbers at an axis overlap."""
    figure = geodiag.plot(run(spike=(400.0, -500.0)))
    figure.draw_without_rendering()
    for axes in figure.axes:
        texts = [t for t in axes.get_yticklabels() if t.get_text()]
        boxes = sorted((t.get_window_extent() for t in texts), key=lambda b: b.y0)
        inside = [b for b in boxes if axes.bbox.y0 - 1 <= (b.y0 + b.y1) / 2 <= axes.bbox.y1 + 1]
        assert len(inside) >= 3
        assert all(a.y1 <= b.y0 + 1 for a, b in itertools.pairwise(inside))


def test_the_critical_rate_is_drawn_where_it_is_known():
    known = [Record(i, lr=0.1, critical_lr=0.2 * 10**i) for i in range(3)]
    *_, rates = geodiag.plot(known).axes
    assert rates.get_ylabel() == "learning rate"
    assert drawn(rates) == [[0.1] * 3, [0.2, 2.0, 20.0]]
    assert all(-1e-9 <= y <= 1 + 1e-9 for y in all_points(rates))
    assert len(geodiag.plot(RUN).axes) == 3


def test_why_nothing_is_known_stays_within_its_panel():
    long = "no threshold: " + "the rule of these parameters has none that is established " * 5
    for style in ("paper", "slides", None):
        figure = geodiag.plot([Record(i, loss=1.0, note=long) for i in (0, 1)], style=style)
        figure.draw_without_rendering()
        for axes in figure.axes[1:]:
            (said,) = axes.texts
            inside, box = axes.get_window_extent(), said.get_window_extent()
            assert inside.x0 <= box.x0
            assert box.x1 <= inside.x1
            assert inside.y0 <= box.y0
            assert box.y1 <= inside.y1


@pytest.mark.parametrize("low", [1.0, 1.9, 2.12, 3.1, 4.6, 7.0])
@pytest.mark.parametrize("factor", [1.0001, 1.3, 2.0, 4.0, 30.0, 1e4])
def test_numbers_at_a_logarithmic_axis_are_round(low, factor):
    axes = geodiag.plot([Record(0, loss=low), Record(1, loss=low * factor)]).axes[0]
    bottom, top = axes.get_ylim()
    seen = [x for x in axes.get_yticks() if bottom <= x <= top]
    assert len(seen) >= (1 if factor < 1.5 else 2)
    assert all(float(f"{x:.2g}") == pytest.approx(x) for x in seen)


def test_standard_errors_are_bands():
    class Plugin:
        @geodiag.hookimpl
        def geodiag_quantities(self):
            return [Quantity("noise", panel=Panel(), error="noise_error"), Quantity("noise_error")]

    geodiag.register(Plugin(), "noise")
    try:
        known = [Record(i, extras={"noise": 2.0, "noise_error": 0.5}) for i in range(3)]
        axes = geodiag.plot(known).axes[-1]
        (band,) = axes.collections
        assert {y for _, y in band.get_paths()[0].vertices} == {1.5, 2.5}
    finally:
        geodiag.plugins.registry._manager.unregister(name="noise")


class TestLook:
    def test_title_labels_size_and_font(self, tmp_path):
        figure = geodiag.plot(
            {"x": run(0), "y": run(1)},
            title="Two runs, $5", labels=["first", "second"], size=(6, 4), font="monospace",
        )  # fmt: skip
        assert figure.get_suptitle() == r"Two runs, \$5"
        assert labels(figure) == ["first", "second"]
        assert figure.get_size_inches().tolist() == [6, 4]
        assert figure.axes[0].yaxis.label.get_family() == ["monospace"]

    def test_styles_differ_in_size_colours_and_letters(self):
        found = {name: geodiag.plot(RUN, style=name) for name in ("paper", "slides", "dark")}
        sizes = {name: f.axes[0].yaxis.label.get_size() for name, f in found.items()}
        assert sizes["paper"] < sizes["dark"] < sizes["slides"]
        assert found["paper"].get_figwidth() < found["slides"].get_figwidth()
        assert sum(found["dark"].get_facecolor()[:3]) < 0.5
        assert sum(matplotlib.colors.to_rgb(found["dark"].axes[0].yaxis.label.get_color())) > 2

    def test_settings_of_matplotlib_are_left_as_they_are(self):
        before = dict(matplotlib.rcParams)
        geodiag.plot(RUN, style="dark", font="serif")
        assert dict(matplotlib.rcParams) == before

    @pytest.mark.parametrize("suffix", [".svg", ".html", ".pdf"])
    def test_text_is_text(self, tmp_path, suffix):
        path = tmp_path / f"out{suffix}"
        geodiag.plot(RUN, path, title="A title of ours")
        if suffix == ".pdf":
            assert b"/Type3" not in path.read_bytes()
        else:
            assert "A title of ours" in path.read_text("utf-8")

    @pytest.mark.parametrize(
        ("look", "message"),
        [
            ({"style": "poster"}, "no such style"),
            ({"style": 3}, "no such style"),
            ({"font": "No Such Font"}, "no such font"),
            ({"size": (0, 3)}, "size= must be"),
            ({"size": (3,)}, "size= must be"),
            ({"size": 3}, "size= must be"),
            ({"size": ("a", 3)}, "size= must be"),
            ({"labels": ["a", "b"]}, "another text for each run"),
            ({"labels": [1]}, "labels= must be texts"),
            ({"ax": []}, "one axes for each panel"),
            ({"ax": 3}, "must be axes"),
            ({"ax": {}}, "not drawn"),
            ({"ax": {"noise": 1}}, "not drawn"),
            ({"ax": {"ratio": 1}}, "must be axes"),
        ],
        ids=str,
    )
    def test_what_cannot_be_used_says_so(self, look, message):
        with pytest.raises(ArgumentError, match=message):
            geodiag.plot(RUN, **look)


class TestOwnAxes:
    def test_one_gets_the_curvatures(self):
        figure = plotting.new_figure(6, 4)
        axes = figure.subplots()
        assert geodiag.plot(RUN, ax=axes) is figure
        assert figure.axes == [axes]
        assert [r.sharpness for r in RUN] in drawn(axes)

    def test_a_list_gets_all_and_a_dict_those_named(self):
        figure = plotting.new_figure(6, 4)
        left, middle, right = grid = figure.subfigures(1, 2)[0].subplots(1, 3)  # an array of them
        assert geodiag.plot({"a": RUN, "b": run()}, ax=grid) is figure
        assert right.get_xlabel() == "step"
        assert [r.loss for r in RUN] in drawn(left)
        assert labels(middle)[:2] == ["a", "b"]
        figure = plotting.new_figure(6, 4)
        left, right = figure.subplots(1, 2)
        geodiag.plot(RUN, ax={"ratio": left, "loss": right}, title="mine")
        assert [r.ratio for r in RUN] in drawn(left)
        assert [r.loss for r in RUN] in drawn(right)
        assert left.get_title(loc="left") == "mine"


def test_a_figure_shows_itself_without_pyplot():
    assert geodiag.plot(RUN)._repr_png_().startswith(b"\x89PNG")


def test_the_command_takes_the_look(tmp_path, capsys):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("".join(to_json(r) + "\n" for r in RUN))
    out = tmp_path / "out.svg"
    logs = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    look = ["--title", "Ours", "--label", "one", "--label", "two", "--style", "paper"]
    assert main(["plot", *logs, "-o", str(out), *look, "--size", "6x4", "--font", "serif"]) == 0
    svg = out.read_text("utf-8")
    assert all(text in svg for text in ("Ours", "one", "two", 'width="432pt"'))
    assert main(["plot", *logs, "--style", "poster"]) == 2
    assert "use one of 'paper', 'slides', 'dark'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plot", *logs, "--size", "big"])
    assert not list(tmp_path.glob("*.png"))  # nothing written half


def test_every_type_of_picture_looks_as_it_did(tmp_path):
    """In a coarse grid, so that letters may differ; see the module for how to renew it."""
    known = json.loads(GRIDS.read_text("utf-8"))
    found = {path.stem: grid(path) for path in draw_all(tmp_path)}
    assert set(found) == set(known)
    for name in known:
        apart = np.abs(np.array(found[name]) - np.array(known[name]))
        assert apart.mean() < 6, name  # per mille of a field; a legend elsewhere gives 10 and more
        assert apart.max() < 150, name
