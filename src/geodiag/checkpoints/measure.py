"""``geodiag measure``: checkpoints to a table, a log and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geodiag.checkpoints.factory import made_by
from geodiag.checkpoints.measurement import along
from geodiag.errors import printable
from geodiag.records import BUILT_IN, Record, to_json, value_text
from geodiag.report import plotting

SHOWN = ("step", "loss", "sharpness", "upper", "num_hvps", "seconds", "status", "note")


def run(
    factory: str,
    checkpoints: Sequence[str],
    norms: Sequence[str] | None = None,
    log: Path | None = None,
    out: Path | None = None,
    as_json: bool = False,
    where: str | None = None,
    max_hvps: int | None = None,
    certificate: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> int:
    """Measure, and print a table, or with ``as_json`` a JSON line for each record. Returns 0.

    Raises:
        GeodiagError: nothing was measured, or only what is in the log.
    """
    if out is not None:
        plotting.check_target(out)
    arguments = made_by(factory)
    if where is not None:
        arguments["where"] = where
    records = along(
        arguments.pop("model"),
        checkpoints,
        norms or ("l2",),
        log=log,
        max_hvps=max_hvps,
        certificate=certificate,
        seed=seed,
        progress=not quiet,
        **arguments,
    )
    if as_json:
        print("\n".join(map(to_json, records)))
    else:
        print(table(records))
    if out is not None:
        by_norm: dict[str, list[Record]] = {}
        for record in records:
            by_norm.setdefault(str(record.extras["norm"]), []).append(record)
        plotting.plot(by_norm, out)
        if not as_json:
            print(plotting.written(out))
    return 0


def table(records: Sequence[Record]) -> str:
    """Records as lines of columns; those without a value are left out.

    >>> print(table([Record(5, sharpness=2.0, extras={"checkpoint": "a.pt", "norm": "l2"})]))
    checkpoint  norm  step  S
    a.pt        l2    5     2
    """
    columns = {name: [str(r.extras[name]) for r in records] for name in ("checkpoint", "norm")}
    for name in SHOWN:
        texts = [value_text(r, BUILT_IN[name]) for r in records]
        if any(text not in ("", "0") for text in texts) or name == "step":
            columns[BUILT_IN[name].column or name] = texts
    rows = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    rows = [[printable(" ".join(cell.split())) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in lines)
