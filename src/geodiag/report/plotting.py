"""Pictures of measurements (matplotlib, without a display).

:func:`plot` shows logged runs, one above the other on a shared axis of steps: the loss; the
sharpness S, the directional smoothness D and the threshold; and their ratio S/threshold.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from geodiag.core.validation import is_whole
from geodiag.errors import ArgumentError, MissingDependency, shown
from geodiag.records import Record, read_records
from geodiag.report.html import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Readable in grey and by the colour-blind: lightness and line style differ, not only hue.
SHARPNESS = {"color": "#0b3c6f", "linewidth": 1.8}
SMOOTHNESS = {"color": "#e08214", "linewidth": 1.0, "linestyle": "", "marker": ".", "markersize": 4}
EDGE = {"color": "black", "linewidth": 1.0, "linestyle": "--"}
LOSS = {"color": "#555555", "linewidth": 1.2}
# Of several runs: the colours of Okabe and Ito, neighbours of unlike lightness, each with a marker.
COLOURS = ("#0072B2", "#E69F00", "#000000", "#CC79A7", "#D55E00", "#56B4E9", "#009E73")
MARKERS = "osD^vP*"
SUFFIXES = (".png", ".svg", ".pdf", ".html")
MANY = 60  # points in a run beyond which a line needs no markers
LARGEST = 1e100  # a number that is drawn
LARGEST_STEP = 2**53  # beyond it, not every whole number is a float
WIDE = 30  # a range of S and threshold beyond which their axis is logarithmic

Runs: TypeAlias = dict[str, list[Record]]
Style: TypeAlias = dict[str, Any]
Log: TypeAlias = "str | os.PathLike[str] | Iterable[Record]"


def plot(
    records: Log | Sequence[str | os.PathLike[str]] | Mapping[str, Log],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw one run, or several over each other.

    Args:
        records: the records of a run (``monitor.records``); the path of a log, or a list of paths;
            or a dict that gives each run's records or path a label. Numbers beyond 1e100 are left
            out.
        path: where to save the picture: ``.png``, ``.svg``, ``.pdf``, or ``.html``, which is one
            file that needs no network and holds a table of the last records too.

    Returns:
        matplotlib.figure.Figure: the picture; its axes are the loss, the curvatures, the ratio.

    Raises:
        ArgumentError: there is nothing to draw, or a path that cannot be used.
        MissingDependency: matplotlib is not installed.
    """
    runs = _runs(records)
    target = None if path is None else _target(path)
    drawn = {label: [_drawable(r) for r in run] for label, run in runs.items()}
    figure = _figure(7.2, 7.4)
    loss, curvature, ratio = figure.subplots(3, 1, sharex=True, height_ratios=(1, 2, 1))
    for draw, axes in ((_loss, loss), (_curvature, curvature), (_ratio, ratio)):
        draw(axes, drawn)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    ratio.set_xlabel("step")
    figure.align_ylabels()
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)), fontsize=11)
    if target is not None:
        _save(figure, runs, target)
    return figure


def _runs(source: Any) -> Runs:
    """The records of each run by its label."""
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    if isinstance(source, Mapping):
        runs = {str(label): _read(each) for label, each in source.items()}
    else:
        given = list(source) if isinstance(source, Iterable) else [source]
        if given and all(isinstance(each, (str, os.PathLike)) for each in given):
            runs = {label: _read(each) for label, each in _labels([Path(p) for p in given]).items()}
        else:
            runs = {"": _read(given)}
    for label, found in runs.items():
        if not found:
            raise ArgumentError(
                "there are no records to draw",
                got=f"an empty log{label and f', {label}'}",
                do="wait for the first measurement of the run",
            )
    if not runs:
        raise ArgumentError("there are no records to draw", got="no runs")
    _check_steps(runs)
    return runs


def _read(source: Any) -> list[Record]:
    if isinstance(source, (str, os.PathLike)):
        return read_records(source)  # type: ignore[arg-type]
    found = list(source) if isinstance(source, Iterable) else [source]
    wrong = [each for each in found if not isinstance(each, Record)]
    if wrong:
        raise ArgumentError(
            "a plot is of records",
            got=type(wrong[0]).__name__,
            do="pass monitor.records, the path of a log, a list of paths, or a dict of these",
        )
    return found


def _drawable(r: Record) -> Record:
    """The record as an axis has room for it: beyond LARGEST left out, below its inverse zero."""
    changed: dict[str, Any] = {}
    for name, x in vars(r).items():
        if isinstance(x, float) and x and math.isfinite(x) and not 1 / LARGEST <= abs(x) <= LARGEST:
            changed[name] = math.nan if abs(x) > LARGEST else 0.0
    return replace(r, **changed)


def _check_steps(runs: Runs) -> None:
    for run in runs.values():
        for r in run:
            if not is_whole(r.step) or abs(r.step) > LARGEST_STEP:
                raise ArgumentError("a step cannot be drawn", got=shown(r.step))


def _labels(paths: list[Path]) -> dict[str, Path]:
    """A label for each file: its stem, or its path where two have the same."""
    stems = [p.stem for p in paths]
    return {str(p) if stems.count(p.stem) > 1 else p.stem: p for p in paths}


def _target(given: Any) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise ArgumentError("path= must be the path of a picture", got=shown(given))
    path = Path(given)
    if path.suffix.lower() not in SUFFIXES:
        raise ArgumentError(
            "the picture's suffix is not known", got=str(path), do=f"use one of {SUFFIXES}"
        )
    return path


def _loss(axes: Any, runs: Runs) -> None:
    for style, label, run in _styled(runs, LOSS):
        axes.plot(_steps(run), [r.loss for r in run], label=label, **style)
    if all(r.loss > 0 for run in runs.values() for r in run if math.isfinite(r.loss)):
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    if len(runs) > 1:
        axes.legend(fontsize=8, frameon=False)


def _curvature(axes: Any, runs: Runs) -> None:
    several = len(runs) > 1
    for style, _, run in _styled(runs, SHARPNESS):
        steps, s = _steps(run), [r.sharpness for r in run]
        colour = style["color"]
        dots = SMOOTHNESS | ({"color": colour, "marker": "x"} if several else {})
        axes.plot(steps, [r.directional_smoothness for r in run], zorder=3, **dots)
        upper = [max(r.upper, r.sharpness) for r in run]  # NaN, where there is none, stays
        if _any(upper):
            axes.fill_between(steps, s, upper, color=colour, alpha=0.22, linewidth=0)
        edge = EDGE | ({"color": colour} if several else {})
        axes.plot(steps, [r.threshold for r in run], **edge)
        axes.plot(steps, s, **style)
    _scale(axes, [r for run in runs.values() for r in run])
    axes.set_ylabel("curvature in the measured norm")
    axes.legend(handles=_key(runs), fontsize=8, frameon=False)


def _key(runs: Runs) -> list[Any]:
    """What the marks in the middle panel are, whatever the run."""
    lines = _matplotlib("matplotlib.lines")
    patches = _matplotlib("matplotlib.patches")
    every = [r for run in runs.values() for r in run]
    grey = {"color": "#444444"} if len(runs) > 1 else {}
    lower = " (lower bound)" if any(r.bound == "LOWER" for r in every) else ""
    handles = [lines.Line2D([], [], label=f"sharpness S{lower}", **SHARPNESS | grey)]
    if _any([r.upper for r in every]):
        colour = (SHARPNESS | grey)["color"]
        band = patches.Patch(color=colour, alpha=0.22, label="up to the certified bound")
        handles.append(band)
    if _any([r.directional_smoothness for r in every]):
        cross = {"marker": "x"} if grey else {}
        dots = SMOOTHNESS | grey | cross
        handles.append(lines.Line2D([], [], label="directional smoothness D", **dots))
    if _any([r.threshold for r in every]):
        handles.append(lines.Line2D([], [], label="edge of stability", **EDGE | grey))
    return handles


def _scale(axes: Any, records: list[Record]) -> None:
    """Limits by S and the threshold: single steps of large D must not flatten the rest."""
    shown = [x for r in records for x in (r.sharpness, r.upper, r.threshold) if math.isfinite(x)]
    positive = [x for x in shown if x > 0]
    if not shown:
        return
    if positive and len(positive) == len(shown) and max(positive) > WIDE * min(positive):
        axes.set_yscale("log")
        axes.set_ylim(min(positive) / 2, 2 * max(positive))
    elif max(shown) > 0:
        axes.set_ylim(min(0.0, 1.15 * min(shown)), 1.25 * max(shown))


def _ratio(axes: Any, runs: Runs) -> None:
    every = [r for run in runs.values() for r in run]
    known = [r.ratio for r in every if math.isfinite(r.ratio)]
    axes.axhline(1.0, **EDGE)
    for style, _, run in _styled(runs, SHARPNESS):
        axes.plot(_steps(run), [r.ratio for r in run], **style)
    axes.set_ylim(min([0.0, *known]), 1.15 * max([1.1, *known]))
    axes.set_ylabel("S / threshold")
    if not known:
        why = next((r.note for r in every if r.note), "no threshold")
        middle = {"transform": axes.transAxes, "ha": "center", "va": "center", "wrap": True}
        axes.text(0.5, 0.45, f"not known: {why}", fontsize=8, color="#555555", **middle)


def _styled(
    runs: Runs, alone: dict[str, Any]
) -> Iterable[tuple[dict[str, Any], str, list[Record]]]:
    """(style, label, records) of each run; ``alone`` is the style of a single one."""
    for i, (label, run) in enumerate(runs.items()):
        style = dict(alone)
        if len(runs) > 1:
            marker = MARKERS[i % len(MARKERS)]
            line = ("-", "-.", ":")[i // len(COLOURS) % 3]
            style |= {"color": COLOURS[i % len(COLOURS)], "linestyle": line, "marker": marker}
            style |= {"markersize": 4, "markevery": max(1, len(run) // 12)}
        elif len(run) <= MANY:
            style |= {"marker": "o", "markersize": 2.5}
        yield style, label, run


def _steps(run: list[Record]) -> list[int]:
    return [r.step for r in run]


def _any(values: Iterable[float]) -> bool:
    return any(math.isfinite(x) for x in values)


def _save(figure: Figure, runs: Runs, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".html":
            path.write_text(page(_svg(figure), runs), encoding="utf-8")
        else:
            with _any_letters():
                figure.savefig(path, dpi=150)
    except (OSError, ValueError) as e:  # a path with a NUL is a ValueError
        raise ArgumentError("the picture cannot be written", got=str(e)) from e


def _svg(figure: Figure) -> str:
    drawn = io.StringIO()
    with _any_letters():
        figure.savefig(drawn, format="svg")
    return drawn.getvalue()


@contextmanager
def _any_letters() -> Iterator[None]:
    """A run's label may have letters that the font has not; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def plot_demo(rows: list[dict[str, Any]], path: Path) -> None:
    """One column per method: the loss above; S, D and the edge 2/lr below."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = _figure(4.2 * len(methods), 5.6)
    axes = figure.subplots(2, len(methods), squeeze=False, sharex="col", height_ratios=(1, 2))
    for column, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        steps = [row["step"] for row in own]
        top, bottom = axes[0, column], axes[1, column]
        top.plot(steps, [row["loss"] for row in own], **LOSS)
        top.set_yscale("log")
        top.set_title(f"{method}, lr = {own[0]['lr']:g}")
        d = [row["directional_smoothness"] for row in own]
        s = [row["sharpness"] for row in own]
        bottom.plot(steps, d, label="directional smoothness D", **SMOOTHNESS)
        bottom.plot(steps, s, label=_sharpness_label(own[0]), **SHARPNESS)
        bottom.axhline(own[0]["threshold"], label="edge of stability 2/lr", **EDGE)
        bottom.set_ylim(0, 1.25 * max(*s, own[0]["threshold"]))
        bottom.set_xlabel("step")
        bottom.legend(loc="lower right", fontsize=8)
    figure.suptitle(f"tanh MLP on digits, full batch, in {rows[0]['framework']}")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("curvature in the optimizer's norm")
    figure.savefig(path, dpi=130)


def _sharpness_label(row: dict[str, Any]) -> str:
    lower = ", lower bound" if row["bound"] == "LOWER" else ""
    return f"sharpness S ({row['norm']}{lower})"


def _figure(width: float, height: float) -> Figure:
    kind: type[Figure] = _matplotlib("matplotlib.figure").Figure
    return kind(figsize=(width, height), layout="constrained")


def _matplotlib(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as e:
        raise MissingDependency(
            "plots need matplotlib", got=str(e), do='pip install "geodiag[plot]"'
        ) from e
