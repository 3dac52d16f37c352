"""Timing things side by side: in turn, in one process, as ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """``run()`` and its seconds."""
    start = time.perf_counter()
    answer = run()
    return answer, time.perf_counter() - start


def seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """The median seconds of a few calls."""
    return statistics.median(timed(run)[1] for _ in range(repeats))


def ratios(a: Callable[[], Any], b: Callable[[], Any], repeats: int = 21) -> list[float]:
    """time(a)/time(b), pair by pair."""
    for f in (a, b, a, b):  # warm up, compile
        f()
    return [timed(a)[1] / timed(b)[1] for _ in range(repeats)]
