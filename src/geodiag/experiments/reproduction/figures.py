"""The paper's figures: for each method the loss, and below it S, D and 2/lr over the steps.

Curves of normalized methods are divided by ‖g‖*, so that their edge is 2/lr too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from geodiag.experiments.reproduction.cells import METHODS, MODELS, Cell
from geodiag.experiments.reproduction.quadratics import ABOVE, BELOW, Quadratic
from geodiag.records import Record
from geodiag.report.plotting import new_figure
from geodiag.report.scales import fit, logarithmic
from geodiag.report.styles import STYLES

Run: TypeAlias = "tuple[Cell, Sequence[Record]]"
LOOK = STYLES[""]
SHARPNESS = ("sharpness S (lower bound)", "sharpness S (in some norms a lower bound)")
TOP = {"color": "#b2182b", "linewidth": 1.2, "linestyle": "-."}
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
        top.set_title(f"{heading}\nlr = {cell.lr:g}", fontsize=10)
        _curvatures(bottom, records, method.normalized, cell.lr)
        bottom.set_xlabel("step")
        divided = ",\ndivided by ‖g‖*" if method.normalized else ""
        if column == 0 or not one_method:
            bottom.set_ylabel(f"curvature in the {method.norm} norm{divided}")
        lines, labels = bottom.get_legend_handles_labels()
        legend |= dict(zip(labels, lines, strict=True))
    axes[0, 0].set_ylabel("loss")
    bounds = {records[-1].bound for _, records in runs}
    names = [SHARPNESS[len(bounds) > 1] if x == "S" and "LOWER" in bounds else x for x in legend]
    names = ["sharpness S" if x == "S" else x for x in names]
    columns = min(4, 2 * len(runs))
    figure.legend(legend.values(), names, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=DPI)


def _curvatures(axes: Any, records: Sequence[Record], normalized: bool, lr: float) -> None:
    steps, edge = [r.step for r in records], 2 / lr

    def curve(name: str) -> list[float]:
        return [getattr(r, name) / (r.dual_norm if normalized else 1.0) for r in records]

    marks, dots, lines = LOOK.marks, curve("directional_smoothness"), curve("sharpness")
    axes.plot(steps, dots, label="directional smoothness D", **marks["dots"])
    axes.plot(steps, lines, label="S", **marks["line"])
    if "lambda_max" in records[0].extras:
        axes.plot(steps, curve("lambda_max"), label="λ_max, as Euclidean GD sees it", **TOP)
    axes.axhline(edge, label="edge of stability 2/lr", **marks["dashes"])
    solid, single = (
        np.array([x for x in values if math.isfinite(x)])
        for values in ([*lines, *([edge] * len(steps))], dots)
    )
    fit(axes, solid, single, "zero")


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
