"""The interactive figure of the HTML page (plotly, whose script is written into the page).

Panels share the axis of steps: zooming one zooms all. A click in the legend hides a run, or a
quantity of a single run. What stands at a point, its note included, shows under the pointer.
Labels and notes are text: plotly takes some tags for markup, so they are escaped.
"""

from __future__ import annotations

import html
import textwrap
from importlib import import_module
from typing import Any

import numpy as np

from geodiag.errors import cut, printable
from geodiag.records import Panel, Quantity, Record, value_text
from geodiag.report.panels import LINE, LONGEST, Panels, Runs
from geodiag.report.series import RunSeries, thinned
from geodiag.report.styles import Style

PIXELS = 170  # of a panel of height 1
SPAN = 30.0  # between the values of a logarithmic axis
MODES = {"dots": "markers"}


def figure(runs: Runs, panels: Panels, look: Style, title: str | None, dark: bool) -> str | None:
    """The figure as a part of a page, with its script; None where plotly is not installed."""
    try:
        plotly, subplots = import_module("plotly.graph_objects"), import_module("plotly.subplots")
    except ImportError:
        return None
    heights = [panel.height for panel in panels]
    drawn = subplots.make_subplots(
        len(panels), 1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.03
    )
    named = set[str]()
    for row, (panel, quantities) in enumerate(panels.items(), 1):
        shown = [np.array([])]
        for number, (label, run) in enumerate(runs.items()):
            for quantity in quantities:
                trace = _trace(quantity, run, label, number, look, len(runs) > 1)
                if trace is not None:
                    trace["showlegend"] = trace["name"] not in named
                    named.add(trace["name"])
                    shown.append(trace["y"])
                    drawn.add_trace(plotly.Scatter(**trace), row, 1)
        drawn.update_yaxes(title_text=_text(panel.label), type=_axis(panel, shown), row=row, col=1)
        if panel.line is not None:
            line = {"dash": "dash", "color": look.edge, "width": 1}
            every = np.concatenate([run.steps for run in runs.values()])
            ends = {"x": [every.min(), every.max()], "y": [panel.line] * 2, "mode": "lines"}
            drawn.add_trace(
                plotly.Scatter(**ends, line=line, hoverinfo="skip", showlegend=False), row, 1
            )
    drawn.update_xaxes(title_text="step", row=len(panels), col=1)
    drawn.update_layout(
        title=_text(title or ""),
        template="plotly_dark" if dark else "plotly_white",
        height=int(PIXELS * sum(heights) + 120),
        hovermode="closest",
    )
    made: str = drawn.to_html(
        full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True}
    )
    return made


def _trace(
    quantity: Quantity, run: RunSeries, label: str, number: int, look: Style, several: bool
) -> dict[str, Any] | None:
    """A line or dots of one quantity in one run; None where no value is known."""
    values = run.values(quantity)
    if np.isnan(values).all():
        return None
    at = thinned(run.steps, values)
    color = (
        look.colours[number % len(look.colours)] if several else look.marks[quantity.mark]["color"]
    )
    error = run.errors(quantity)
    bars = {} if error is None else {"error_y": {"array": error[at], "thickness": 1, "width": 0}}
    dash = {"dashes": "dash", "band": "dot"}.get(quantity.mark, "solid")
    return {
        "x": run.steps[at],
        "y": values[at],
        "name": _text(label or "run") if several else _text(quantity.label or quantity.name),
        "legendgroup": str(number) if several else quantity.name,
        "mode": MODES.get(quantity.mark, "lines"),
        "line": {"color": color, "dash": dash, "width": 1 if quantity.mark == "thin" else 2},
        "marker": {"color": color, "size": 4},
        "hovertext": [_hover(run[i], quantity, label) for i in at],
        "hoverinfo": "text",
        **bars,
    }


def _hover(record: Record, quantity: Quantity, label: str) -> str:
    """What shows under the pointer: run, step, value, and the note."""
    said = f"{quantity.label or quantity.name}: {value_text(record, quantity)}"
    lines = [*([label] if label else []), f"step {record.step}", said]
    lines += textwrap.wrap(cut(record.note, LONGEST), 70)
    return "<br>".join(_text(line, LONGEST) for line in lines)


def _axis(panel: Panel, shown: list[Any]) -> str:
    """Logarithmic for the panels that ask for it, where all values are positive and far apart."""
    values = np.concatenate(shown)
    values = values[~np.isnan(values)]
    if panel.scale not in ("log", "wide") or not values.size or values.min() <= 0:
        return "linear"
    return "log" if panel.scale == "log" or values.max() > SPAN * values.min() else "linear"


def _text(text: str, most: int = LINE) -> str:
    """A text that plotly shows as it is."""
    return html.escape(printable(cut(text, most)))
