"""The ratios of the parts of a step with several geometries, as of Muon beside AdamW.

A record has them as extras: ``sharpness_muon``, ``threshold_muon``, ``ratio_muon``. The run has no
ratio then, so that of a part is shown under the part's name alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from geodiag.core.quantity import Quantity
from geodiag.records.record import EDGE, Record, quantities

RATIO, SHARPNESS = "ratio_", "sharpness_"
MARKS = ("line", "thin")


def with_parts(records: Iterable[Record]) -> dict[str, Quantity]:
    """All quantities by name, and after the ratio those of the parts that the records have."""
    found = quantities()
    labels = dict.fromkeys(
        name.removeprefix(RATIO)
        for r in records
        if r.extras
        for name in r.extras
        if name.startswith(RATIO) and name not in found
        if SHARPNESS + name.removeprefix(RATIO) in r.extras
    )
    ordered: dict[str, Quantity] = {}
    for name, each in found.items():
        ordered[name] = each
        if name == "ratio":
            for i, label in enumerate(labels):
                ordered[RATIO + label] = Quantity(
                    RATIO + label,
                    f"S / threshold of {label} alone",
                    panel=EDGE,
                    mark=MARKS[i % len(MARKS)],
                    column=f"{label}: S/threshold",
                )
    return ordered
