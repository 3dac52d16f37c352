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
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from geodiag.core.validation import as_number, is_iterable, is_whole
from geodiag.errors import ArgumentError, cut, import_optional, printable, shown
from geodiag.records import BUILT_IN, EDGE, RATES, Record, Run, read_runs, with_parts
from geodiag.records.header import Header
from geodiag.records.header import labels as labels_of
from geodiag.records.runs import by_run
from geodiag.report import interactive
from geodiag.report.html import page
from geodiag.report.panels import (
    Panels,
    Runs,
    draw,
    given_axes,
    known,
    legend_shape,
    run_keys,
    text,
)
from geodiag.report.series import RunSeries
from geodiag.report.styles import Style, chosen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf", ".html")
LARGEST_STEP = 2**53  # beyond it, not every whole number is a float
LOW = 0.7  # the height of a panel in which nothing is known
LARGEST_SIZE = 100.0  # of a figure, in inches

Log: TypeAlias = "str | os.PathLike[str] | Iterable[Record]"

_matplotlib = partial(
    import_optional, what="plots need matplotlib", do='pip install "geodiag[plot]"'
)


def plot(
    records: Log | Sequence[str | os.PathLike[str]] | Mapping[str, Log],
    path: str | os.PathLike[str] | None = None,
    *,
    ax: Any = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    style: str | None = None,
    size: tuple[float, float] | None = None,
    font: str | None = None,
) -> Figure:
    """Draw one run, or several over each other.

    The panels are the loss; the curvatures, which are the sharpness S with a band up to its
    certified upper bound, the directional smoothness D and the threshold; the ratio S/threshold
    with the realized edge ζ, where 1 is the edge, and the ratios of the parts of a step with
    several geometries, each by its name; and those of quantities from plugins, if a run has values
    of them. An axis that one value would flatten is linear where most values are, and
    logarithmic in the shaded part.

    Args:
        records: the records of a run (``monitor.records``); the path of a log, or a list of paths;
            or a dict that gives each run's records or path a label. A log of several runs is drawn
            as so many, with labels from its headers. Numbers beyond 1e100 are left out. Of more
            than 8,000 records, the least and the greatest value in each column of pixels are drawn.
        path: where to save the figure: ``.png``, ``.svg``, ``.pdf``, or ``.html``, which is one
            file that needs no network and holds a table of the last records too; with plotly
            installed it can be zoomed, runs hidden, and notes read under the pointer. Text stays
            text.
        ax: axes of your own figure to draw into: one, for the curvatures; a list, one for each
            panel in order; or a dict from quantities to axes, such as ``{"ratio": ax}``, for the
            panels of these.
        title: above the figure; default: the label of a single run.
        labels: one for each run, in place of the names of the files.
        style: "paper" (narrow, small letters), "slides" (large letters, thick lines) or "dark".
        size: width and height, in inches.
        font: a font family that matplotlib finds, or "serif", "sans-serif", "monospace".

    Returns:
        matplotlib.figure.Figure: the figure, with one axes object for each panel, in order. It
        shows itself in a notebook. With ``ax=``, the figure of these axes.

    Raises:
        ArgumentError: there is nothing to draw; a path, a style, a size, a font, labels or axes
            that cannot be used.
        MissingDependency: matplotlib is not installed.

    Examples:
        >>> records = [geodiag.Record(step, loss=1 / (1 + step), sharpness=2.0) for step in (0, 1)]
        >>> [axes.get_ylabel() for axes in geodiag.plot(records).axes][0]
        'loss'
    """
    runs = _labelled(_runs(records), labels)
    target = None if path is None else check_target(path)
    panels = _panels(runs)
    _matplotlib("matplotlib.figure")
    look, settings = chosen(style, font)
    inches = _size(size)
    with _matplotlib("matplotlib").rc_context(settings):
        if ax is None:
            figure = _new(runs, panels, look, inches)
            heading = next(iter(runs)) if title is None and len(runs) == 1 else title
            if heading:
                figure.suptitle(text(heading), fontsize="large")
        else:
            panels, grid = given_axes(ax, panels)
            figure = grid[0].figure.figure  # of a subfigure, the whole
            for axes, (panel, drawn) in zip(grid, panels.items(), strict=True):
                draw(axes, panel, drawn, runs, look, named=True)
                axes.set_xlabel(axes.get_xlabel() or "step")
            if title:
                grid[0].set_title(text(title), loc="left")
        if target is not None:
            made = partial(interactive.figure, runs, panels, look, title)
            _save(figure, runs, target, made)
    return figure


def _new(runs: Runs, panels: Panels, look: Style, inches: tuple[float, float] | None) -> Figure:
    """A figure of all panels, with the legend of runs below."""
    heights = [
        panel.height if any(known(each, runs).size for each in drawn) else min(panel.height, LOW)
        for panel, drawn in panels.items()
    ]
    columns, extra = legend_shape(runs, look)
    figure = new_figure(*(inches or (look.width, look.height * sum(heights) + extra)))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (panel, drawn) in zip(grid, panels.items(), strict=True):
        draw(axes, panel, drawn, runs, look, named=False)
    if len(runs) > 1:
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False}
        figure.legend(handles=run_keys(runs, look), fontsize="small", **place)
    grid[-1].set_xlabel("step")
    figure.align_ylabels()
    return figure


def _labelled(runs: Runs, labels: Any) -> Runs:
    if labels is None:
        return runs
    given = [labels] if isinstance(labels, str) else labels
    if not isinstance(given, Sequence) or not all(isinstance(x, str) for x in given):
        raise ArgumentError("labels= must be texts", got=shown(labels))
    if len(given) != len(runs) or len(set(given)) != len(given):
        raise ArgumentError(
            "labels= needs another text for each run",
            got=f"{len(given)} labels: {shown(list(given))}",
            do=f"the runs are {len(runs)}: {shown(list(runs))}",
        )
    return dict(zip(given, runs.values(), strict=True))


def _size(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    numbers = [as_number(x) for x in given] if isinstance(given, (tuple, list)) else []
    usable = [x for x in numbers if x is not None and 1.0 <= x <= LARGEST_SIZE]
    if len(numbers) != 2 or len(usable) != 2:
        what = f"size= must be width and height in inches, from 1 to {LARGEST_SIZE:g}"
        raise ArgumentError(what, got=shown(given))
    return usable[0], usable[1]


def _runs(source: Any) -> Runs:
    """The records of each run by its label."""
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    if isinstance(source, Mapping):
        runs = _split({str(label): _read(each) for label, each in source.items()})
    else:
        given = list(source) if is_iterable(source) else [source]
        if given and all(isinstance(each, (str, os.PathLike)) for each in given):
            named = _labels([Path(p) for p in given])
            runs = _split({label: _read(each) for label, each in named.items()})
        else:
            runs = _split({"": _read(given)})
    for label, found in runs.items():
        if not found:
            raise ArgumentError(
                "there are no records to draw",
                got=f"an empty log{label and f', {label}'}",
                do="wait for the first measurement of the run",
            )
        for r in found:
            whole = type(r.step) is int or is_whole(r.step)
            if not whole or abs(r.step) > LARGEST_STEP:
                raise ArgumentError("a step cannot be drawn", got=shown(r.step))
    if not runs:
        raise ArgumentError("there are no records to draw", got="no runs")
    return runs


def _split(logs: Mapping[str, list[Run]]) -> Runs:
    """Each run of each log: by the log's label, where it has one run; else by the run's too."""
    runs: Runs = {}
    for label, found in logs.items():
        if len(found) < 2:
            runs[label] = RunSeries(_in_order(found[0]) if found else [])
            continue
        alone = len(logs) == 1
        for own, run in zip(
            labels_of(Header(run.id, run.header) for run in found), found, strict=True
        ):
            runs[own if alone or not label else f"{label}: {own}"] = RunSeries(_in_order(run))
    return runs


def _in_order(run: Run) -> list[Record]:
    """The records of a run; of checkpoints the last ones of their steps, in the order of these.

    A log has them in the order in which they were measured, and one that was saved again twice.
    """
    if not run or "checkpoint" not in run[0].extras or not all(is_whole(r.step) for r in run):
        return run
    last = {r.step: r for r in run}
    return [last[step] for step in sorted(last)]


def _read(source: Any) -> list[Run]:
    if isinstance(source, (str, os.PathLike)):
        return read_runs(source)  # type: ignore[arg-type]
    if isinstance(source, Run):
        return [source]
    found = list(source) if is_iterable(source) else [source]
    wrong = [each for each in found if not isinstance(each, Record)]
    if wrong:
        raise ArgumentError(
            "a plot is of records",
            got=type(wrong[0]).__name__,
            do="pass monitor.records, the path of a log, a list of paths, or a dict of these",
        )
    return by_run(found)


def _labels(paths: list[Path]) -> dict[str, Path]:
    """A label for each file: its stem, or its path where two have the same."""
    stems = [p.stem for p in paths]
    return {str(p) if stems.count(p.stem) > 1 else p.stem: p for p in paths}


def check_target(given: Any) -> Path:
    """The path of a figure, where it can be one.

    Raises:
        ArgumentError: another suffix.
    """
    if not isinstance(given, (str, os.PathLike)):
        raise ArgumentError("path= must be the path of a figure", got=shown(given))
    path = Path(given)
    if path.suffix.lower() not in SUFFIXES:
        raise ArgumentError(
            "the figure's suffix is not known", got=str(path), do=f"use one of {SUFFIXES}"
        )
    return path


def written(path: Path) -> str:
    """What a command says of the figure that it has written."""
    text = f"figure: {printable(str(path))}"
    if path.suffix.lower() == ".html" and find_spec("plotly") is None:
        text += '\nit is a still picture; to zoom and to read points: pip install "geodiag[html]"'
    return text


def _panels(runs: Runs) -> Panels:
    """The quantities of each panel; those of plugins if there is anything to draw."""
    found: Panels = {}
    every = with_parts(r for run in runs.values() for r in run)
    for each in every.values():
        if each.panel is not None and (each.name in BUILT_IN or known(each, runs).size):
            panel = replace(each.panel, label=printable(cut(each.panel.label or each.title)))
            found.setdefault(panel, []).append(each)
    rates = found.pop(RATES)
    found[EDGE].sort(key=lambda each: each.name == "ratio" and not known(each, runs).size)
    # A note says why it is not known; of checkpoints it cannot be.
    if not any(known(each, runs).size for each in found[EDGE]) and not any(
        r.note and "checkpoint" not in r.extras for run in runs.values() for r in run
    ):
        del found[EDGE]
    return found | ({RATES: rates} if known(BUILT_IN["critical_lr"], runs).size else {})


def _save(figure: Figure, runs: Runs, path: Path, interactive: Any) -> None:
    html = path.suffix.lower() == ".html"
    svg = io.StringIO()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():  # a letter that the font does not have is drawn as a box
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(svg if html else path, format="svg" if html else None, dpi=150)
        if html:
            dark = sum(_matplotlib("matplotlib.colors").to_rgb(figure.get_facecolor())) < 1.5
            drawn = interactive(dark) or svg.getvalue()
            path.write_text(page(drawn, runs, dark), encoding="utf-8")
    except (OSError, ValueError) as e:  # a path with a NUL is a ValueError
        raise ArgumentError("the figure cannot be written", got=str(e)) from e


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, which shows itself in a notebook."""
    _matplotlib("matplotlib.figure")
    kind: type[Figure] = _matplotlib("geodiag.report.figure").RunFigure
    return kind(figsize=(width, height), layout="constrained")
