"""A quadratic for the Monitor, and training loops around it, by no code of the library.

The loss is ½⟨w, H w⟩ with H = diag(4, 1, ½). For any step s, D and the curvature are ⟨s, Hs⟩/‖s‖².
"""

from __future__ import annotations

from typing import Any

import numpy as np

from geodiag import Monitor
from geodiag.records import Record

H = np.diag([4.0, 1.0, 0.5])
W = np.array([1.0, -2.0, 3.0])
G = H @ W
LR = 0.1


def loss(w: Any) -> Any:
    return 0.5 * w["x"] @ H @ w["x"]


def gradient(w: Any) -> Any:
    return {"x": H @ w["x"]}


def pair(first: Any = loss, second: Any = gradient, norm: Any = "l2", **keywords: Any) -> Any:
    """A monitor of NumPy callables, and their parameters, to be written to in place."""
    w = {"x": W.copy()}
    return Monitor((first, second), norm, params=w, **{"lr": LR, "every": 1} | keywords), w


def run(monitor: Monitor, w: Any, steps: int = 3) -> list[Record]:
    """A training loop as users write it: in place."""
    for step in range(steps):
        if monitor.due(step):
            monitor.before(step)
        w["x"] -= LR * H @ w["x"]
        monitor.after()
    monitor.close()
    return monitor.records


def note(record: Record | None) -> str:
    """The record's note, but for what is always so of callables."""
    assert record is not None
    parts = record.note.split("; ")
    return "; ".join(p for p in parts if "central differences of the given gradient" not in p)
