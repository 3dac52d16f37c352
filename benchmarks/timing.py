"""Timing two things side by side: in turn, in one process, as a ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def ratio(
    a: Callable[[], Any], b: Callable[[], Any], repeats: int = 21
) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile) of time(a)/time(b), pair by pair."""
    for f in (a, b, a, b):  # warm up, compile
        f()
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        a()
        middle = time.perf_counter()
        b()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    low, median, high = statistics.quantiles(ratios, n=4)
    return median, low, high
