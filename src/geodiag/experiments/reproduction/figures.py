"""The paper's figures: for each method the loss, and below it S and ζ over the steps.

S is in units of its threshold, and D in the same units is ζ: the edge of stability is at 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from geodiag.experiments.reproduction.cells import METHODS, MODELS, Cell
from geodiag.experiments.reproduction.quadratics import ABOVE, BELOW, Quadratic
from geodiag.experiments.reproduction.results import edge_of
from geodiag.records import Record
from geodiag.report.plotting import new_figure
from geodiag.report.scales import fit, logarithmic
from geodiag.report.styles import STYLES

Run: TypeAlias = "tuple[Cell, Sequence[Record]]"
LOOK = STYLES[""]
EDGE = "S / threshold"
BOUNDS = (" (S: a lower bound)", " (S: in some norms a lower bound)")
BY_HAND = "S / threshold by hand"
TOP = {"color": "#b2182b", "linewidth": 1.2, "linestyle": "-."}
ON_BATCH = {"color": "#009E73", "linestyle": "", "marker": "x", "markersize": 3}
DPI = 90


def draw(title: str, runs: Sequence[Run], path: Path) -> None:
    """A column for each run: of one method on several models, or of several methods on one."""
    figure = new_figure(4.4 * len(runs), 5.6)
    axes = figure.subplots(2, len(runs), squeeze=False, sharex="col", height_ratios=(1, 2))
    one_method = len({cell.method for cell, _ in runs}) == 1
    legend: dict[str, Any] = {}
    for column, (cell, records) in enumerate(runs):
        top, bottom = axes[0, column], axes[1, column]
        method = METHODS[cell.method]
        losses = [r.loss for r in records]
        top.plot([r.step for r in records], losses, **LOOK.marks["thin"])
        usable = [x for x in losses if 0.0 < x < math.inf]
        if len(usable) == len(losses):
            logarithmic(top, min(usable), max(usable))
        heading = MODELS[cell.model] if one_method else method.title
        top.set_title(f"{heading}\nlr = {cell.lr:g}, {method.norm} norm", fontsize=10)
        _edges(bottom, records)
        bottom.set_xlabel("step")
        lines, labels = bottom.get_legend_handles_labels()
        legend |= dict(zip(labels, lines, strict=True))
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("S / threshold, ζ")
    bounds = {records[-1].bound for _, records in runs}
    bound = BOUNDS[len(bounds) > 1] if "LOWER" in bounds else ""
    names = [x + bound if x in (EDGE, BY_HAND) else x for x in legend]
    columns = min(len(names), 2 * len(runs))
    figure.legend(legend.values(), names, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=DPI)


def _edges(axes: Any, records: Sequence[Record]) -> None:
    """S and ζ in one panel, whose edge is at 1."""
    steps, marks = [r.step for r in records], LOOK.marks
    by_hand = "threshold_by_hand" in records[-1].extras
    dots = [r.realized_edge for r in records]
    lines = [r.sharpness / edge_of(r) for r in records]
    if "realized_edge_batch" in records[0].extras:
        on_batch = [r.realized_edge_batch for r in records]
        axes.plot(steps, on_batch, label="ζ on the mini-batch", **ON_BATCH)
        dots = dots + on_batch
    axes.plot(steps, dots[: len(steps)], label="realized edge ζ", **marks["dots"])
    look = marks["line"] | ({"linestyle": ":"} if by_hand else {})
    axes.plot(steps, lines, label=BY_HAND if by_hand else EDGE, **look)
    if "lambda_max" in records[0].extras:
        top = [r.lambda_max / edge_of(r) for r in records]
        axes.plot(steps, top, label="λ_max / threshold, as Euclidean GD sees it", **TOP)
        lines = lines + top
    axes.axhline(1.0, label="edge of stability", **marks["dashes"])
    solid, single = (np.array([x for x in each if math.isfinite(x)]) for each in (lines, dots))
    fit(axes, solid, single, "zero", edge=1.0)


def draw_quadratics(found: Sequence[Quadratic], path: Path) -> None:
    """The losses below the threshold from random starts, and above it from the line."""
    figure = new_figure(9.6, 4.2)
    below, above = figure.subplots(1, 2)
    for i, q in enumerate(found):
        for n, losses in enumerate(q.below):
            label = q.norm if n == 0 else None
            below.semilogy(losses, color=f"C{i}", linewidth=0.8, alpha=0.7, label=label)
        # All grow by one factor: the first is the widest, so that each is seen.
        above.semilogy(q.above, color=f"C{i}", label=q.norm, linewidth=1.4 * (len(found) - i))
    steps = range(len(found[0].above))
    above.semilogy(
        [found[0].predicted ** k for k in steps], label="(1 − lr·S)²", **LOOK.marks["dashes"]
    )
    below.set_title(f"lr = {BELOW} · 2/S, random starts")
    above.set_title(f"lr = {ABOVE} · 2/S, on the line of the maximiser")
    for axes in (below, above):
        axes.set_xlabel("step")
        axes.title.set_fontsize(10)
    figure.legend(
        *above.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False
    )
    below.set_ylabel("loss, relative to the start")
    figure.savefig(path, dpi=DPI)
