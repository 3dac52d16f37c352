"""The panels of a figure: what is drawn on one set of axes, and the legends."""

from __future__ import annotations

import textwrap
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from geodiag.errors import ArgumentError, cut, import_optional, printable, shown
from geodiag.records import Panel, Quantity
from geodiag.report.scales import fit
from geodiag.report.series import Floats, RunSeries, thinned
from geodiag.report.styles import LINES, MARKERS, Style

BAND = 0.22  # the opacity of a band
MANY = 60  # points in a run beyond which a line needs no markers
LONGEST = 200  # characters of a note
COLUMN = 75  # of a line of it
LINE = 90  # characters of a label, of which a legend has one to a line
ALONE = "sharpness"  # the quantity whose panel is drawn where there is one set of axes

Runs: TypeAlias = dict[str, RunSeries]
Panels: TypeAlias = dict[Panel, list[Quantity]]
Look: TypeAlias = dict[str, Any]

_matplotlib = partial(
    import_optional, what="plots need matplotlib", do='pip install "geodiag[plot]"'
)


def given_axes(ax: Any, panels: Panels) -> tuple[Panels, list[Any]]:
    """The panels that are drawn into axes of the user, and the axes of each.

    Raises:
        ArgumentError: they are no axes, too few or too many, or of an unknown quantity.
    """
    if not isinstance(ax, dict):
        several = isinstance(ax, (list, tuple, np.ndarray))
        given = list(np.ravel(np.asarray(ax, dtype=object))) if several else [ax]
        if several and len(given) != len(panels):
            raise ArgumentError(
                "ax= needs one axes for each panel",
                got=f"{len(given)} for {len(panels)}: {', '.join(p.label for p in panels)}",
                do='pass as many, or a dict such as {"ratio": ax}',
            )
        firsts = [drawn[0].name for drawn in panels.values()]
        ax = dict(zip(firsts if several else [ALONE], given, strict=True))
    of = {each.name: panel for panel, drawn in panels.items() for each in drawn}
    unknown = [name for name in ax if name not in of]
    if unknown or not ax:
        raise ArgumentError(
            "ax= names a quantity that is not drawn",
            got=shown(unknown or ax),
            do=f"use one of {', '.join(of)}",
        )
    wrong = [each for each in ax.values() if not hasattr(each, "fill_between")]
    if wrong or len({of[name] for name in ax}) < len(ax):
        what = "ax= must be axes of matplotlib, one for a panel"
        raise ArgumentError(what, got=shown(wrong[0] if wrong else list(ax)))
    return {of[name]: panels[of[name]] for name in ax}, list(ax.values())


def draw(
    axes: Any, panel: Panel, drawn: list[Quantity], runs: Runs, look: Style, named: bool
) -> None:
    """Draw the quantities of one panel, and above it the key of what each mark is.

    ``named``: the key says too which run is which.
    """
    base = next((each for each in drawn if each.mark in ("line", "thin")), drawn[0])
    if panel.line is not None:
        axes.axhline(panel.line, **look.marks["dashes"])
    for i, (label, run) in enumerate(runs.items()):
        for each in drawn:
            values, kind = run.values(each), _look(each, drawn, i, runs, look)
            if each.mark == "band":
                base_line = run.values(base)
                high = np.where(values < base_line, base_line, values)  # NaN stays
                _fill(axes, run, base_line, high, kind)
                continue
            at = thinned(run.steps, values)
            if "markevery" in kind:
                kind["markevery"] = max(1, len(at) // 12)
            axes.plot(run.steps[at], values[at], label=text(label), **kind)
            error = run.errors(each)
            if error is not None and each.mark == "dots":
                bars = {"ecolor": kind["color"], "alpha": 0.5, "elinewidth": 0.8 * look.lines}
                axes.errorbar(run.steps[at], values[at], error[at], fmt="none", **bars)
            elif error is not None:
                band = {"color": kind["color"], "alpha": BAND / len(runs) ** 0.5, "linewidth": 0}
                _fill(axes, run, values - error, values + error, band)
    lines = [known(each, runs) for each in drawn if each.mark != "dots"]
    dots = [known(each, runs) for each in drawn if each.mark == "dots"]
    if panel.scale != "log":  # the ends of bars and bands are in view
        dots += [ends for each in drawn for run in runs.values() for ends in run.ends(each)]
    solid, single = (np.concatenate([np.empty(0), *each]) for each in (lines, dots))
    fit(axes, solid, single, panel.scale, panel.line)
    axes.set_ylabel(panel.label)
    keys = key(drawn, runs, look) if len(drawn) > 1 else []
    if named and len(runs) > 1:
        keys = [*run_keys(runs, look), *keys]
    if keys:  # in rows above the axes, where it covers nothing
        longest = max(len(str(key.get_label())) for key in keys)
        place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.1}
        tight = {"fontsize": "small", "frameon": False, "columnspacing": 1.2, "handlelength": 1.6}
        axes.legend(handles=keys, ncols=max(1, min(4, 110 // (longest + 6))), **place, **tight)
    if not any(known(each, runs).size for each in drawn):
        why = next((r.note for run in runs.values() for r in run if r.note), "no value")
        middle = {"transform": axes.transAxes, "ha": "center", "va": "center", "alpha": 0.7}
        said = textwrap.fill(f"not known: {text(why)}", COLUMN)
        axes.text(0.5, 0.45, said, fontsize="small", linespacing=1.1, **middle)
        axes.set_yticks([])
    now = _matplotlib("matplotlib").rcParams
    axes.grid(color=now["grid.color"], linewidth=now["grid.linewidth"])
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _fill(axes: Any, run: RunSeries, low: Floats, high: Floats, look: Look) -> None:
    if not np.isnan(high - low).all():
        at = thinned(run.steps, low, high)
        axes.fill_between(run.steps[at], low[at], high[at], **look)


def text(text: str, most: int = LONGEST) -> str:
    """A label or a note as it is drawn: cut, and with dollar signs that begin no formula."""
    return printable(cut(text, most)).replace("$", r"\$")


def line(label: str) -> str:
    """A label as a legend has it."""
    return text(label, LINE)


def _look(quantity: Quantity, drawn: list[Quantity], run: int, runs: Runs, look: Style) -> Look:
    """How a quantity of the ``run``-th run is drawn: by its mark; several by colour."""
    mark, several = quantity.mark, len(runs) > 1
    style: Look = dict(look.marks[mark])
    lines = [each for each in drawn if each.mark == mark]
    if several:
        style["color"] = look.colours[run % len(look.colours)]
    elif quantity is not lines[0]:  # the second line of a panel
        style["color"] = look.colours[lines.index(quantity) % len(look.colours)]
    if mark == "band":
        return {"color": style["color"], "alpha": BAND / len(runs) ** 0.5, "linewidth": 0}
    if mark == "dots":
        return style | {"zorder": 3} | ({"marker": "x"} if several else {})
    if mark == "dashes":
        return style
    length = len(list(runs.values())[run])
    if several:
        style |= {"marker": MARKERS[run % len(MARKERS)], "markersize": 4 * look.lines}
        style |= {"linestyle": LINES[run // len(look.colours) % len(LINES)]}
        style |= {"markevery": max(1, length // 12)}
    elif length <= MANY:
        style |= {"marker": "o", "markersize": 2.5 * look.lines}
    return style | {"zorder": 2.1}


def key(drawn: list[Quantity], runs: Runs, look: Style) -> list[Any]:
    """The legend of a panel: what each mark is, whatever the run."""
    lines, patches = _matplotlib("matplotlib.lines"), _matplotlib("matplotlib.patches")
    every = [r for run in runs.values() for r in run]
    handles = []
    for each in drawn:
        if not known(each, runs).size:
            continue
        style = _look(each, drawn, 0, runs, look)
        style |= {"color": look.grey} if len(runs) > 1 else {}
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


def run_keys(runs: Runs, look: Style) -> list[Any]:
    """The legend of runs: colour, line and marker of each."""
    lines = _matplotlib("matplotlib.lines").Line2D
    mark = Quantity("run")
    return [
        lines([], [], label=line(label), **_look(mark, [mark], i, runs, look))
        for i, label in enumerate(runs)
    ]


def legend_shape(runs: Runs, look: Style) -> tuple[int, float]:
    """The columns of the legend of runs, and the height of its rows, in inches."""
    if len(runs) == 1:
        return 1, 0.0
    longest = max(len(line(label)) for label in runs)
    columns = int(max(1, min(4, len(runs), 120 * look.width / 7.2 // (longest + 8))))
    return columns, 0.19 * look.height / 1.85 * -(-len(runs) // columns)


def known(quantity: Quantity, runs: Runs) -> Floats:
    """The finite values of a quantity in all runs."""
    values: Floats = np.concatenate([run.values(quantity) for run in runs.values()])
    found: Floats = values[~np.isnan(values)]
    return found
