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
USED = "Optimizers as people use them"
AT_THE_EDGE = (0.9, 1.5)
GROWTH = 1.5


@dataclass(frozen=True)
class Outcome:
    """A finished cell. Ratios are S/threshold, the late phase is the last fifth."""

    cell: Cell
    loss: tuple[float, float]  # first, last
    early: float  # ratio at 5% of the run
    late: float  # the late median of the ratio
    late_zeta: tuple[float, float, float]  # the late quartiles of ζ, the median second
    late_batch: tuple[float, float, float]  # the same of ζ on mini-batches; NaN without
    occupation: float  # the late median
    timing: float  # the late median
    ascents: tuple[int, int]  # late steps that do not descend, so that they have no ζ; and all
    late_top: float  # the late median of λ_max/threshold; NaN where it is not shown
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
    edges = [r.realized_edge for r in late]
    # −2⟨g, s⟩/‖s‖² = D/ζ
    timings = [r.directional_smoothness / (r.realized_edge or math.nan) / edge_of(r) for r in late]

    differences = [
        abs(r.directional_smoothness / r.quadrature - 1)
        for r in records
        if "quadrature" in r.extras
    ]
    return Outcome(
        cell,
        loss=(records[0].loss, records[-1].loss),
        early=early.sharpness / edge_of(early),
        late=_quartiles([r.sharpness / edge_of(r) for r in late])[1],
        late_zeta=_quartiles(edges),
        late_batch=_quartiles([r.extras.get("realized_edge_batch", math.nan) for r in late]),
        occupation=_quartiles([r.occupation for r in late])[1],
        timing=_quartiles(timings)[1],
        ascents=(sum(map(math.isnan, edges)), len(edges)),
        late_top=_quartiles([r.extras.get("lambda_max", math.nan) / edge_of(r) for r in late])[1],
        identity=max((r.identity for r in records if "identity" in r.extras), default=math.nan),
        quadrature=max(differences, default=math.nan),
    )


def edge_of(record: Record) -> float:
    """The threshold on S: the record's own, or the one by hand."""
    known = math.isfinite(record.threshold)
    return record.threshold if known else record.extras.get("threshold_by_hand", math.nan)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Of those that are known."""
    known = [x for x in values if math.isfinite(x)] or [math.nan]
    low, middle, high = (float(q) for q in np.quantile(known, (0.25, 0.5, 0.75)))
    return low, middle, high


def table(outcomes: Iterable[Outcome], failed: dict[str, str]) -> str:
    """Markdown: one table for each model, and one of the optimizers as people use them."""
    found = list(outcomes)
    used = [o for o in found if METHODS[o.cell.method].optimizer]
    parts = []
    for model, title in MODELS.items():
        own = [o for o in found if o.cell.model == model and o not in used]
        if own:
            parts.append(f"### {title[0].upper()}{title[1:]}\n\n" + _model_table(own))
    if used:
        parts.append(f"### {USED}: {MODELS['mlp']}\n\n" + _used_table(used))
    parts += [f"{key}: not finished: {why}" for key, why in failed.items()]
    return "\n\n".join(parts) + "\n"


# The columns of both tables, after the name.
FIRST = ("lr", "steps", "loss", "S/edge at 5%", "S/edge late", "ζ late (quartiles)")


def _first_cells(o: Outcome) -> tuple[str, ...]:
    return (
        METHODS[o.cell.method].title,
        f"{o.cell.lr:g}",
        f"{o.cell.steps}",
        f"{o.loss[0]:.3g} → {o.loss[1]:.3g}",
        f"{o.early:.3f}",
        f"{o.late:.3f}",
        _spread(o.late_zeta),
    )


def _model_table(outcomes: list[Outcome]) -> str:
    head = (
        "method", *FIRST, "occupation late", "λ_max/edge late", "ΔL identity", "D vs integral",
        "sharpened", "at the edge",
    )  # fmt: skip
    rows = [
        (
            *_first_cells(o),
            f"{o.occupation:.3f}",
            _known(o.late_top, ".2g"),
            _known(o.identity, ".0e"),
            _known(o.quadrature, ".0e"),
            "yes" if o.sharpened else "no",
            "yes" if o.at_the_edge else "no",
        )
        for o in outcomes
    ]
    return markdown(head, rows)


def _used_table(outcomes: list[Outcome]) -> str:
    head = (
        "optimizer", *FIRST, "ζ on the batch late", "occupation late", "timing late",
        "steps without ζ",
    )  # fmt: skip
    rows = [
        (
            *_first_cells(o),
            _spread(o.late_batch),
            f"{o.occupation:.3f}",
            f"{o.timing:.3f}",
            f"{o.ascents[0]} of {o.ascents[1]}",
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


def _spread(quartiles: tuple[float, float, float]) -> str:
    low, middle, high = quartiles
    return "–" if middle != middle else f"{middle:.3f} ({low:.3f}–{high:.3f})"


def _known(x: float, form: str) -> str:
    return "–" if x != x else format(x, form)
