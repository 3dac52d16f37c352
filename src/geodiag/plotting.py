"""Pictures of measurements (matplotlib, without a display)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Readable in grey and by the colour-blind: lightness and line style differ, not only hue.
SHARPNESS = {"color": "#0b3c6f", "linewidth": 1.8}
SMOOTHNESS = {"color": "#e08214", "linewidth": 1.0, "linestyle": "", "marker": ".", "markersize": 4}
EDGE = {"color": "black", "linewidth": 1.0, "linestyle": "--"}
LOSS = {"color": "#555555", "linewidth": 1.2}


def plot_demo(rows: list[dict[str, Any]], path: Path) -> None:
    """One column per method: the loss above; S, D and the edge 2/lr below."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(4.2 * len(methods), 5.6), layout="constrained")
    axes = figure.subplots(2, len(methods), squeeze=False, sharex="col", height_ratios=(1, 2))
    for column, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        steps = [row["step"] for row in own]
        top, bottom = axes[0, column], axes[1, column]
        top.plot(steps, [row["loss"] for row in own], **LOSS)
        top.set_yscale("log")
        top.set_title(f"{method}, lr = {own[0]['lr']:g}")
        d = [row["directional_smoothness"] for row in own]
        s = [row["sharpness"] for row in own]
        bottom.plot(steps, d, label="directional smoothness D", **SMOOTHNESS)
        bottom.plot(steps, s, label=_sharpness_label(own[0]), **SHARPNESS)
        bottom.axhline(own[0]["threshold"], label="edge of stability 2/lr", **EDGE)
        bottom.set_ylim(0, 1.25 * max(*s, own[0]["threshold"]))
        bottom.set_xlabel("step")
        bottom.legend(loc="lower right", fontsize=8)
    figure.suptitle(f"tanh MLP on digits, full batch, in {rows[0]['framework']}")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("curvature in the optimizer's norm")
    figure.savefig(path, dpi=130)


def _sharpness_label(row: dict[str, Any]) -> str:
    lower = ", lower bound" if row["bound"] == "LOWER" else ""
    return f"sharpness S ({row['norm']}{lower})"
