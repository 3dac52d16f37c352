"""The paper's figures: for each method the loss, and below it S, D and 2/lr over the steps.

Curves of normalized methods are divided by ‖g‖*, so that their edge is 2/lr too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from geodiag.experiments.reproduction.cells import METHODS, MODELS, Cell
from geodiag.experiments.reproduction.quadratics import ABOVE, BELOW, Quadratic
from geodiag.records import Record
from geodiag.report.plotting import EDGE, LOSS, SHARPNESS, SMOOTHNESS, new_figure

Run: TypeAlias = "tuple[Cell, Sequence[Record]]"
TOP = {"color": "#b2182b", "linewidth": 1.2, "linestyle": "-."}
HIGHEST, LOWEST = 2.5, -0.5  # of what is shown, in units of the edge
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
        top.plot([r.step for r in records], [r.loss for r in records], **LOSS)
        top.set_yscale("log")
        heading = MODELS[cell.model] if one_method else method.title
        top.set_title(f"{heading}\nlr = {cell.lr:g}", fontsize=10)
        _curvatures(bottom, records, method.normalized, cell.lr)
        bottom.set_xlabel("step")
        divided = ", divided by ‖g‖*" if method.normalized else ""
        if column == 0 or not one_method:
            bottom.set_ylabel(f"curvature in the {method.norm} norm{divided}")
        lines, labels = bottom.get_legend_handles_labels()
        legend |= dict(zip(labels, lines, strict=True))
    axes[0, 0].set_ylabel("loss")
    columns = min(4, 2 * len(runs))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=columns)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=DPI)


def _curvatures(axes: Any, records: Sequence[Record], normalized: bool, lr: float) -> None:
    steps, edge = [r.step for r in records], 2 / lr

    def curve(name: str) -> list[float]:
        return [getattr(r, name) / (r.dual_norm if normalized else 1.0) for r in records]

    lower = ", lower bound" if records[-1].bound == "LOWER" else ""
    axes.plot(
        steps, curve("directional_smoothness"), label="directional smoothness D", **SMOOTHNESS
    )
    axes.plot(steps, curve("sharpness"), label=f"sharpness S{lower}", **SHARPNESS)
    if "lambda_max" in records[0].extras:
        axes.plot(steps, curve("lambda_max"), label="λ_max, as Euclidean GD sees it", **TOP)
    axes.axhline(edge, label="edge of stability 2/lr", **EDGE)
    highest = max(*curve("sharpness"), 1.1 * edge)
    axes.set_ylim(
        max(min(0.0, *curve("directional_smoothness")), LOWEST * edge) - 0.04 * edge,
        min(1.1 * highest, HIGHEST * edge),
    )


def draw_quadratics(found: Sequence[Quadratic], path: Path) -> None:
    """The losses below the threshold from random starts, and above it from the line."""
    figure = new_figure(9.0, 3.8)
    below, above = figure.subplots(1, 2)
    for i, q in enumerate(found):
        for n, losses in enumerate(q.below):
            label = q.norm if n == 0 else None
            below.semilogy(losses, color=f"C{i}", linewidth=0.8, alpha=0.7, label=label)
        above.semilogy(q.above, color=f"C{i}", label=q.norm, linewidth=1.6, alpha=0.8)
    steps = range(len(found[0].above))
    above.semilogy([found[0].predicted ** k for k in steps], label="(1 − lr·S)²", **EDGE)
    below.set_title(f"lr = {BELOW} · 2/S, random starts")
    above.set_title(f"lr = {ABOVE} · 2/S, from the line of the maximiser")
    for axes in (below, above):
        axes.set_xlabel("step")
        axes.legend(fontsize=8)
    below.set_ylabel("loss, relative to the start")
    figure.savefig(path, dpi=DPI)
