"""Results: a cell's records as a few numbers, and in a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from geodiag.experiments.reproduction.cells import METHODS, MODELS, Cell
from geodiag.experiments.reproduction.quadratics import Quadratic
from geodiag.records import Record

LATE, EARLY = 0.8, 0.05  # fractions of a run: its late phase, and where growth is counted from
AT_THE_EDGE = (0.9, 1.5)
GROWTH = 1.5


@dataclass(frozen=True)
class Outcome:
    """A finished cell. Ratios are S·lr/2, or S·lr/(2‖g‖*) for normalized methods."""

    cell: Cell
    loss: tuple[float, float]  # first, last
    early: float  # ratio at 5% of the run
    late: float  # median ratio of the last fifth
    late_d: float  # the same of D
    late_top: float  # the same of λ_max; NaN where it is not shown
    identity: float  # the largest; NaN for normalized methods
    quadrature: float  # the largest relative difference of D and its integral

    @property
    def growth(self) -> float:
        """By how much S, or S/‖g‖*, rose from 5% of the run to the late phase."""
        return self.late / self.early

    @property
    def sharpened(self) -> bool:
        """Whether sharpness rose, or was at the edge already."""
        return self.growth >= GROWTH or self.early >= AT_THE_EDGE[0]

    @property
    def at_the_edge(self) -> bool:
        """Whether the late phase is in the range that counts as the edge of stability."""
        return AT_THE_EDGE[0] <= self.late <= AT_THE_EDGE[1]


def outcome(cell: Cell, records: Sequence[Record]) -> Outcome:
    """The numbers of a cell."""
    early = next((r for r in records if r.step >= EARLY * cell.steps), records[-1])
    late = [r for r in records if r.step >= LATE * cell.steps] or [records[-1]]

    def median(name: str) -> float:
        return float(np.median([getattr(r, name, math.nan) / r.threshold for r in late]))

    differences = [
        abs(r.directional_smoothness / r.quadrature - 1)
        for r in records
        if "quadrature" in r.extras
    ]
    return Outcome(
        cell,
        loss=(records[0].loss, records[-1].loss),
        early=early.ratio,
        late=median("sharpness"),
        late_d=median("directional_smoothness"),
        late_top=median("lambda_max"),
        identity=max((r.identity for r in records if "identity" in r.extras), default=math.nan),
        quadrature=max(differences, default=math.nan),
    )


def table(outcomes: Iterable[Outcome], failed: dict[str, str]) -> str:
    """Markdown: one table for each model."""
    found = list(outcomes)
    parts = []
    for model, title in MODELS.items():
        own = [o for o in found if o.cell.model == model]
        if own:
            parts.append(f"### {title[0].upper()}{title[1:]}\n\n" + _model_table(own))
    parts += [f"{key}: not finished: {why}" for key, why in failed.items()]
    return "\n\n".join(parts) + "\n"


def _model_table(outcomes: list[Outcome]) -> str:
    head = (
        "method", "lr", "steps", "loss", "S/edge at 5%", "S/edge late", "D/edge late",
        "λ_max/edge late", "ΔL identity", "D vs integral", "sharpened", "at the edge",
    )  # fmt: skip
    rows = [
        (
            METHODS[o.cell.method].title,
            f"{o.cell.lr:g}",
            f"{o.cell.steps}",
            f"{o.loss[0]:.3g} → {o.loss[1]:.3g}",
            f"{o.early:.3f}",
            f"{o.late:.3f}",
            f"{o.late_d:.3f}",
            _known(o.late_top, ".2g"),
            _known(o.identity, ".0e"),
            _known(o.quadrature, ".0e"),
            "yes" if o.sharpened else "no",
            "yes" if o.at_the_edge else "no",
        )
        for o in outcomes
    ]
    return markdown(head, rows)


def quadratics_table(found: Iterable[Quadratic]) -> str:
    """Markdown: what descent did below and above 2/S."""
    head = ("norm", "S", "slowest rate below", "worst step below", "factor above", "(1 − ηS)²")
    rows = [
        (
            q.norm,
            f"{q.sharpness:.5g}",
            f"{q.rate:.4f}",
            f"{q.worst_factor:.4f}",
            f"{q.growth:.6f}",
            f"{q.predicted:.6f}",
        )
        for q in found
    ]
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def _known(x: float, form: str) -> str:
    return "–" if x != x else format(x, form)
