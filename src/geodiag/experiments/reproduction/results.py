"""Results: a cell's rows in a file, as a few numbers, and in a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from geodiag.experiments.reproduction.cells import METHODS, MODELS, Cell
from geodiag.experiments.reproduction.quadratics import Quadratic
from geodiag.records import Record, to_json

Row: TypeAlias = "dict[str, Any]"
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


def to_line(record: Record, extra: Mapping[str, Any]) -> str:
    """A row as a line of JSON: the record's fields and further ones; null is NaN or infinite."""
    known = {
        k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in extra.items()
    }
    row = json.loads(to_json(record)) | known
    return json.dumps(row, allow_nan=False, ensure_ascii=False)


def from_line(line: str) -> Row:
    """The row of a line; null is NaN."""
    return {k: math.nan if x is None else x for k, x in json.loads(line).items()}


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that end, which another process may be writing."""
    # Not by splitlines: it also splits at characters that may stand in a note.
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def read(path: Path) -> list[Row]:
    """The rows of a cell's file."""
    return [from_line(line) for line in whole_lines(path)]


def outcome(cell: Cell, rows: Sequence[Row]) -> Outcome:
    """The numbers of a cell."""
    early = next((r for r in rows if r["step"] >= EARLY * cell.steps), rows[-1])
    late = [r for r in rows if r["step"] >= LATE * cell.steps] or [rows[-1]]

    def median(key: str) -> float:
        return float(np.median([r.get(key, math.nan) / r["threshold"] for r in late]))

    differences = [
        abs(r["directional_smoothness"] / r["quadrature"] - 1) for r in rows if "quadrature" in r
    ]
    return Outcome(
        cell,
        loss=(rows[0]["loss"], rows[-1]["loss"]),
        early=early["ratio"],
        late=median("sharpness"),
        late_d=median("directional_smoothness"),
        late_top=median("lambda_max"),
        identity=max((r["identity"] for r in rows if "identity" in r), default=math.nan),
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
