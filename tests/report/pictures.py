"""The types of pictures, and what each looks like in a coarse grid: where there is how much ink.

``python -m tests.report.pictures`` writes the grids anew, to be looked at and committed;
``python -m tests.report.pictures FOLDER`` writes the pictures there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import geodiag
from geodiag.experiments.reproduction import figures, quadratics
from geodiag.experiments.reproduction.cells import Cell
from geodiag.records import Record

GRIDS = Path(__file__).with_suffix(".json")
ROWS, COLUMNS = 16, 12


def run(seed=0, spike=None, steps=40):
    """A run to the edge, whose D and ζ are negative at times; ``spike``: S, D at one step."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(steps):
        s, d = min(3 + 0.25 * i, 10.0), 2 * rng.normal() + (9 if i > 28 else 0)
        if i == 20 and spike:
            s, d = spike
        records.append(
            Record(10 * i, 1 / (1 + i), 0.2, s, "LOWER", 1.2 * s, 1.0, d, d, 10.0, s / 10,
                   realized_edge=d / 10)
        )  # fmt: skip
    return records


def quadratic(norm, rate):
    """Losses that fall and grow as those of the reproduction's quadratics."""
    below = tuple(tuple(float(rate ** (k * (1 + 0.1 * n))) for k in range(60)) for n in range(3))
    return quadratics.Quadratic(norm, 1.0, below, tuple(1.21**k for k in range(30)), 1.21)


def draw_all(folder: Path) -> list[Path]:
    """Each type of picture, as a PNG."""
    geodiag.plot(run(spike=(400.0, -500.0)), folder / "run.png", title="A run")
    geodiag.plot({f"run {i}": run(i) for i in range(10)}, folder / "runs.png", style="dark")
    cells = [
        Cell("torch", method, "mlp", 0.2, 400, 40, 0, "") for method in ("gd", "signgd", "muon")
    ]
    shown = [(cell, run(i, spike=(60.0, -40.0))) for i, cell in enumerate(cells)]
    figures.draw("Three methods", shown, folder / "methods.png")
    found = [quadratic(norm, 0.6 + 0.05 * i) for i, norm in enumerate(("l2", "linf", "block"))]
    figures.draw_quadratics(found, folder / "quadratics.png")
    return sorted(folder.glob("*.png"))


def grid(path: Path) -> list[list[int]]:
    """How far each field of a picture is from its background, in per mille."""
    from matplotlib.image import imread

    grey = imread(path)[..., :3].mean(axis=2)
    ink = np.abs(grey - grey[0, 0])
    rows = [np.array_split(row, COLUMNS, axis=1) for row in np.array_split(ink, ROWS)]
    return [[round(1000 * float(field.mean())) for field in row] for row in rows]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        pictures = draw_all(Path(sys.argv[1] if len(sys.argv) > 1 else scratch))
        if len(sys.argv) == 1:
            GRIDS.write_text(json.dumps({p.stem: grid(p) for p in pictures}) + "\n", "utf-8")
