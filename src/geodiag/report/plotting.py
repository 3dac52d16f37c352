"""Figures of measurements (matplotlib, without a display).

:func:`plot` shows logged runs, panel above panel on a shared axis of steps. Which quantity is drawn
where, and how, is part of its declaration: see :class:`geodiag.records.Quantity`.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from geodiag.core.validation import is_whole
from geodiag.errors import ArgumentError, cut, import_optional, printable, shown
from geodiag.records import BUILT_IN, Panel, Quantity, Record, quantities, read_records
from geodiag.report.html import page
from geodiag.report.series import Floats, Run, thinned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Readable in grey and by the colour-blind: lightness and line style differ, not only hue.
SHARPNESS = {"color": "#0b3c6f", "linewidth": 1.8}
SMOOTHNESS = {"color": "#e08214", "linewidth": 1.0, "linestyle": "", "marker": ".", "markersize": 4}
EDGE = {"color": "black", "linewidth": 1.0, "linestyle": "--"}
LOSS = {"color": "#555555", "linewidth": 1.2}
MARKS = {"line": SHARPNESS, "thin": LOSS, "dots": SMOOTHNESS, "dashes": EDGE, "band": SHARPNESS}
GREY = "#444444"  # of a legend that holds for several runs
# Of several runs: the colours of Okabe and Ito, neighbours of unlike lightness, each with a marker.
COLOURS = ("#0072B2", "#E69F00", "#000000", "#CC79A7", "#D55E00", "#56B4E9", "#009E73")
MARKERS = "osD^vP*"
SUFFIXES = (".png", ".svg", ".pdf", ".html")
MANY = 60  # points in a run beyond which a line needs no markers
LARGEST_STEP = 2**53  # beyond it, not every whole number is a float
WIDE = 30  # a range of values beyond which a "wide" axis is logarithmic
HEIGHT = 1.85  # of a panel of height 1, in inches
LONGEST = 200  # characters of a label or a note

Runs: TypeAlias = dict[str, Run]
Style: TypeAlias = dict[str, Any]
Log: TypeAlias = "str | os.PathLike[str] | Iterable[Record]"

_matplotlib = partial(
    import_optional, what="plots need matplotlib", do='pip install "geodiag[plot]"'
)


def plot(
    records: Log | Sequence[str | os.PathLike[str]] | Mapping[str, Log],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw one run, or several over each other.

    The panels are the loss; the curvatures, which are the sharpness S, its certified upper bound,
    the directional smoothness D and the threshold; the ratio S/threshold; and those of quantities
    from plugins, if a run has values of them.

    Args:
        records: the records of a run (``monitor.records``); the path of a log, or a list of paths;
            or a dict that gives each run's records or path a label. Numbers beyond 1e100 are left
            out. Of more than 8,000 records, the least and the greatest value in each column of
            pixels are drawn.
        path: where to save the figure: ``.png``, ``.svg``, ``.pdf``, or ``.html``, which is one
            file that needs no network and holds a table of the last records too.

    Returns:
        matplotlib.figure.Figure: the figure, with one axes object for each panel, in order.

    Raises:
        ArgumentError: there is nothing to draw, or a path that cannot be used.
        MissingDependency: matplotlib is not installed.

    Examples:
        >>> records = [geodiag.Record(step, loss=1 / (1 + step), sharpness=2.0) for step in (0, 1)]
        >>> [axes.get_ylabel() for axes in geodiag.plot(records).axes][0]
        'loss'
    """
    runs = _runs(records)
    target = None if path is None else _target(path)
    panels = _panels(runs)
    heights = [panel.height for panel in panels]
    figure = new_figure(7.2, HEIGHT * sum(heights))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (panel, drawn) in zip(grid, panels.items(), strict=True):
        _draw(axes, panel, drawn, runs)
    if len(runs) > 1:
        lines = grid[0].get_lines()[: len(runs)]
        grid[0].legend(lines, [_text(label) for label in runs], fontsize=8, frameon=False)
    else:
        figure.suptitle(_text(next(iter(runs))), fontsize=11)
    grid[-1].set_xlabel("step")
    figure.align_ylabels()
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
        for r in found:
            if not is_whole(r.step) or abs(r.step) > LARGEST_STEP:
                raise ArgumentError("a step cannot be drawn", got=shown(r.step))
    if not runs:
        raise ArgumentError("there are no records to draw", got="no runs")
    return runs


def _read(source: Any) -> Run:
    if isinstance(source, (str, os.PathLike)):
        return Run(read_records(source))  # type: ignore[arg-type]
    found = list(source) if isinstance(source, Iterable) else [source]
    wrong = [each for each in found if not isinstance(each, Record)]
    if wrong:
        raise ArgumentError(
            "a plot is of records",
            got=type(wrong[0]).__name__,
            do="pass monitor.records, the path of a log, a list of paths, or a dict of these",
        )
    return Run(found)


def _labels(paths: list[Path]) -> dict[str, Path]:
    """A label for each file: its stem, or its path where two have the same."""
    stems = [p.stem for p in paths]
    return {str(p) if stems.count(p.stem) > 1 else p.stem: p for p in paths}


def _target(given: Any) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise ArgumentError("path= must be the path of a figure", got=shown(given))
    path = Path(given)
    if path.suffix.lower() not in SUFFIXES:
        raise ArgumentError(
            "the figure's suffix is not known", got=str(path), do=f"use one of {SUFFIXES}"
        )
    return path


def _panels(runs: Runs) -> dict[Panel, list[Quantity]]:
    """The quantities of each panel; those of plugins if there is anything to draw."""
    found: dict[Panel, list[Quantity]] = {}
    for each in quantities().values():
        if each.panel is not None and (each.name in BUILT_IN or _known(each, runs).size):
            panel = replace(each.panel, label=printable(cut(each.panel.label or each.title)))
            found.setdefault(panel, []).append(each)
    return found


def _draw(axes: Any, panel: Panel, drawn: list[Quantity], runs: Runs) -> None:
    base = next((each for each in drawn if each.mark in ("line", "thin")), drawn[0])
    if panel.line is not None:
        axes.axhline(panel.line, **EDGE)
    for i, (label, run) in enumerate(runs.items()):
        for each in drawn:
            values, style = run.values(each), _style(each, drawn, i, runs)
            if each.mark != "band":
                at = thinned(run.steps, values)
                if "markevery" in style:
                    style["markevery"] = max(1, len(at) // 12)
                axes.plot(run.steps[at], values[at], label=_text(label), **style)
            elif not np.isnan(values).all():
                low = run.values(base)
                high = np.where(values < low, low, values)  # NaN stays
                at = thinned(run.steps, low, high)
                axes.fill_between(run.steps[at], low[at], high[at], **style)
    solid = [_known(each, runs) for each in drawn if each.mark != "dots"]
    _scale(axes, panel, np.concatenate([np.empty(0), *solid]))
    axes.set_ylabel(panel.label)
    if len(drawn) > 1:
        axes.legend(handles=_key(drawn, runs), fontsize=8, frameon=False)
    if not any(_known(each, runs).size for each in drawn):
        why = next((r.note for run in runs.values() for r in run if r.note), "no value")
        middle = {"transform": axes.transAxes, "ha": "center", "va": "center", "wrap": True}
        axes.text(0.5, 0.45, f"not known: {_text(why)}", fontsize=8, color="#555555", **middle)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _text(text: str) -> str:
    """A label or a note as it is drawn: cut, and with dollar signs that begin no formula."""
    return printable(cut(text, LONGEST)).replace("$", r"\$")


def _style(quantity: Quantity, drawn: list[Quantity], run: int, runs: Runs) -> Style:
    """How a quantity of the ``run``-th run is drawn: by its mark; several by colour."""
    mark, several = quantity.mark, len(runs) > 1
    style: Style = dict(MARKS[mark])
    lines = [each for each in drawn if each.mark == mark]
    if several:
        style["color"] = COLOURS[run % len(COLOURS)]
    elif quantity is not lines[0]:  # the second line of a panel
        style["color"] = COLOURS[lines.index(quantity) % len(COLOURS)]
    if mark == "band":
        return {"color": style["color"], "alpha": 0.22, "linewidth": 0}
    if mark == "dots":
        return style | {"zorder": 3} | ({"marker": "x"} if several else {})
    if mark == "dashes":
        return style
    length = len(list(runs.values())[run])
    if several:
        style |= {"marker": MARKERS[run % len(MARKERS)], "markersize": 4, "zorder": 2.1}
        style |= {"linestyle": ("-", "-.", ":")[run // len(COLOURS) % 3]}
        style |= {"markevery": max(1, length // 12)}
    elif length <= MANY:
        style |= {"marker": "o", "markersize": 2.5}
    return style | {"zorder": 2.1}


def _key(drawn: list[Quantity], runs: Runs) -> list[Any]:
    """The legend of a panel: what each mark is, whatever the run."""
    lines, patches = _matplotlib("matplotlib.lines"), _matplotlib("matplotlib.patches")
    every = [r for run in runs.values() for r in run]
    handles = []
    for each in drawn:
        if not _known(each, runs).size:
            continue
        style = _style(each, drawn, 0, runs) | ({"color": GREY} if len(runs) > 1 else {})
        lower = each.bound and any(getattr(r, each.bound) == "LOWER" for r in every)
        label = f"{printable(cut(each.label or each.name))}{' (lower bound)' if lower else ''}"
        if each.mark == "band":
            handles.append(patches.Patch(label=label, **style))
        else:
            if each.mark != "dots":
                style.pop("marker", None)
            style.pop("markevery", None)
            handles.append(lines.Line2D([], [], label=label, **style))
    return handles


def _scale(axes: Any, panel: Panel, values: Floats) -> None:
    """The scale and the limits of the vertical axis, by what is not drawn as dots.

    Single steps of large D must not flatten the rest.
    """
    values = values if panel.line is None else np.append(values, panel.line)
    if not values.size or panel.scale == "linear":
        return
    low, high = float(values.min()), float(values.max())
    if low > 0 and panel.scale == "log":
        axes.set_yscale("log")
    elif low > 0 and panel.scale == "wide" and high > WIDE * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 2, 2 * high)
    elif high > 0 and panel.scale != "log":
        axes.set_ylim(min(0.0, 1.15 * low), 1.25 * high)


def _known(quantity: Quantity, runs: Runs) -> Floats:
    values: Floats = np.concatenate([run.values(quantity) for run in runs.values()])
    known: Floats = values[~np.isnan(values)]
    return known


def _save(figure: Figure, runs: Runs, path: Path) -> None:
    html = path.suffix.lower() == ".html"
    svg = io.StringIO()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():  # a letter that the font does not have is drawn as a box
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(svg if html else path, format="svg" if html else None, dpi=150)
        if html:
            path.write_text(page(svg.getvalue(), runs), encoding="utf-8")
    except (OSError, ValueError) as e:  # a path with a NUL is a ValueError
        raise ArgumentError("the figure cannot be written", got=str(e)) from e


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    kind: type[Figure] = _matplotlib("matplotlib.figure").Figure
    return kind(figsize=(width, height), layout="constrained")
