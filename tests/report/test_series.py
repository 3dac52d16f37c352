"""Of a long run fewer points are drawn; the picture stays, and above all its extremes."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest

import geodiag
from geodiag.records import BUILT_IN, Record
from geodiag.report.series import COLUMNS, RunSeries, thinned

N = 100_000


def reference(steps, line):
    """For each stretch within one column: the ends, and the extremes; point by point."""
    low, high = min(steps), max(steps)
    columns = [math.floor((x - low) * (COLUMNS / max(high - low, 1))) for x in steps]
    stretches, kept = [[0]], set()
    for i in range(1, len(steps)):
        if columns[i] != columns[i - 1]:
            stretches.append([])
        stretches[-1].append(i)
    for each in stretches:
        known = [i for i in each if line[i] == line[i]]
        kept |= {each[0], each[-1]}
        kept |= {f(known, key=lambda i: line[i]) for f in (min, max)} if known else set()
    return sorted(kept)


def wild(rng, n):
    """A random walk with spikes, and gaps."""
    line = np.cumsum(rng.standard_normal(n))
    line[rng.integers(0, n, 50)] += 1e3 * rng.standard_normal(50)
    line[rng.random(n) < 0.3] = math.nan
    line[n // 3 : n // 2] = math.nan
    return line


@pytest.mark.parametrize("kind", ["even", "uneven", "resumed", "one step", "huge"])
def test_what_is_kept(kind):
    rng = np.random.default_rng(0)
    n = 20_000
    steps = {
        "even": np.arange(n),
        "uneven": np.cumsum(rng.integers(0, 50, n)),
        "resumed": np.concatenate([np.arange(n // 2), np.arange(n // 4, n // 4 + n // 2)]),
        "one step": np.full(n, 7),
        "huge": np.arange(n) * 2**38,
    }[kind].astype(float)
    line, other = wild(rng, n), wild(rng, n)
    assert thinned(steps, line).tolist() == reference(steps, line)
    both = set(reference(steps, line)) | set(reference(steps, other))
    assert thinned(steps, line, other).tolist() == sorted(both)


@pytest.mark.parametrize(
    ("note", "drawn"),
    [
        ("", 7.79),
        ("rounding: D ± 16, ζ ± 0.1", 0.006),
        ("the step; rounding below 32 bits: loss ± 2e-05, D ± 1.2e+01, ζ ± 3", 0.006),
        ("rounding: D ± inf", 0.006),
        ("rounding: D ± 0.38", 7.79),
        ("no D ± at all", 7.79),
        ("D ± ..., D ± 0.5.", 7.79),
    ],
)
def test_where_d_drowns_the_curvature_is_drawn(note, drawn):
    """Or nothing, where there is no curvature."""
    quantity = BUILT_IN["directional_smoothness"]
    record = Record(0, directional_smoothness=7.79, curvature=0.006, note=note)
    other = replace(record, curvature=math.nan)
    without = 7.79 if drawn == 7.79 else math.nan
    found = RunSeries([record, other]).values(quantity).tolist()
    assert found == pytest.approx([drawn, without], rel=0, nan_ok=True)
    assert RunSeries([record]).values(BUILT_IN["curvature"]).tolist() == [0.006]


def test_a_short_run_is_drawn_whole():
    n = 4 * COLUMNS
    assert thinned(np.arange(n, dtype=float), np.zeros(n)).tolist() == list(range(n))
    assert len(thinned(np.arange(n + 1, dtype=float), np.zeros(n + 1))) <= n


@pytest.fixture(scope="module")
def long_run():
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(N)
    noise[54321] = 40.0
    return [
        Record(
            step,
            loss=2.0 + math.sin(step / 9e3),
            sharpness=20.0 + x,
            upper=26.0 + x,
            directional_smoothness=15.0 + 2 * x,
            threshold=20.0,
            ratio=1.0 + x / 20,
        )
        for step, x in enumerate(noise)
    ]


def test_a_long_run_has_its_extremes_and_a_small_file(long_run, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.svg"
    figure = geodiag.plot(long_run, path)
    assert os.path.getsize(path) < 2e6  # drawn whole: 16 MB
    for axes, name in zip(figure.axes, ("loss", "sharpness", "ratio"), strict=True):
        values = [getattr(r, name) for r in long_run]
        line = next(line for line in axes.get_lines() if line.get_ydata()[0] == values[0] != 1.0)
        x, y = line.get_xdata(), line.get_ydata()
        assert len(x) <= 4 * (COLUMNS + 1)
        assert (min(y), max(y)) == (min(values), max(values))
        assert all(values[int(i)] == each for i, each in zip(x, y, strict=True))
        assert (x[0], x[-1]) == (0, N - 1)
    curvatures = figure.axes[1]
    dots = max(curvatures.get_lines(), key=lambda line: max(line.get_ydata()))
    assert max(dots.get_ydata()) == 15 + 2 * 40
    (band,) = curvatures.collections
    assert band.get_paths()[0].vertices[:, 1].max() == 66.0


def test_the_picture_is_the_same(long_run, monkeypatch):
    """Of a line without markers, in all but the smoothing of its edges, as it was drawn whole."""
    agg = pytest.importorskip("matplotlib.backends.backend_agg")

    def picture():
        canvas = agg.FigureCanvasAgg(geodiag.plot(long_run))
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].astype(float)

    thin = picture()
    monkeypatch.setattr("geodiag.report.series.COLUMNS", N)
    assert (np.abs(thin - picture()).max(axis=2) > 100).mean() < 0.01


def test_errors_that_the_notes_state_are_drawn():
    """Bars at dots, bands at lines; none at a curvature that is drawn in D's place."""
    note = "rounding below 32 bits: loss ± 0.25, dual norm ± 9, S ± 0.5, D ± {}, ζ ± 1e-1"
    values = {"loss": 2.0, "sharpness": 3.0, "bound": "LOWER", "realized_edge": 0.5}
    values |= {"directional_smoothness": 4.0, "curvature": 1.0, "ratio": 0.7}
    found = [Record(i, note=note.format(i + 1), **values) for i in range(4)]
    found.append(Record(4, **values))
    series = RunSeries(found)
    expected = {"loss": 0.25, "sharpness": 0.5, "realized_edge": 0.1}
    for name, error in expected.items():
        assert series.errors(BUILT_IN[name])[:4] == pytest.approx(error)
        assert math.isnan(series.errors(BUILT_IN[name])[4])
    errors = series.errors(BUILT_IN["directional_smoothness"])
    assert errors[:2].tolist() == [1, 2]
    assert np.isnan(errors[2:]).all()  # 3 and 4 are more than half of D
    assert series.errors(BUILT_IN["ratio"]) is None
    loss, curvature, edge = geodiag.plot(found).axes
    assert [len(axes.collections) for axes in (loss, curvature, edge)] == [1, 2, 1]
    assert edge.get_ylim()[0] < 0.4  # the ends of bars are in view
    assert curvature.get_ylim()[1] > 6
    (bars,) = edge.collections
    first = next(s[:, 1] for s in bars.get_segments() if len(s))
    assert first == pytest.approx([0.4, 0.6])
