"""Where a loss begins to rise along a step: a bracket of the multiple of it, by values alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

# Of the line by which the root is sought: its least slope, and how far, in ln α, it is followed.
FLAT, FURTHEST = 1e-3, 3.0


class Earlier(NamedTuple):
    """What a search before this one tells: where to begin, and the slope that ``v`` had there."""

    factor: float
    rate: float


@dataclass(frozen=True)
class Crossing:
    """Multiples of a step: the loss has not risen at ``lo``, and has at ``hi``."""

    lo: float
    hi: float
    num_losses: int
    rate: float = math.nan  # dv/du at the crossing, see :func:`by_values`

    @property
    def bracketed(self) -> bool:
        """Whether both ends were found."""
        return self.lo > 0.0 and self.hi < math.inf

    @property
    def middle(self) -> float:
        """The value between them."""
        return 0.5 * (self.lo + self.hi)

    @property
    def note(self) -> str:
        """Why there is no value; "" if there is one."""
        if self.bracketed:
            return ""
        if self.hi == math.inf:
            return f"no bracket in {self.num_losses} losses: none rises up to {self.lo:.3g} steps"
        return f"no bracket in {self.num_losses} losses: all rise down to {self.hi:.3g} steps"


def by_values(
    rise: Callable[[float], float],
    slope: float,
    bend: float,
    up: bool,
    rtol: float,
    most: int,
    earlier: Earlier | None = None,
) -> Crossing:
    """Bracket the root of v(u), with u = ln α and v = ln((rise(α)/α − slope)/−slope).

    On a quadratic v is a line of slope 1, and of slope p − 1 where the loss bends as α^p. ``up``:
    whether the loss rises at α = 1.
    """
    lo, hi = (0.0, 1.0) if up else (1.0, math.inf)
    narrow, spent = 1.0 - 0.99 * rtol, 1
    points = _logarithmic(1.0, slope + bend, slope)
    rate, root = 1.0, math.exp(-points[0][1]) if points else math.nan
    if earlier is not None:
        rate, root = earlier.rate, earlier.factor
    while spent < most and not (lo > 0.0 and hi < math.inf and 1.0 - lo / hi <= rtol):
        wide = hi > 4.0 * lo
        if lo > 0.0 and lo >= root * narrow:
            alpha = lo / narrow
        elif hi < math.inf and hi * narrow <= root:
            alpha = hi * narrow
        else:
            alpha = root * (0.5 + 0.5 * narrow)
        if not lo < alpha < hi or not math.isfinite(alpha):
            alpha = 2.0 * lo if hi == math.inf else 0.5 * hi if wide else 0.5 * (lo + hi)
        spent += 1
        value = rise(alpha)
        before = hi - lo
        lo, hi = (alpha, hi) if value <= 0.0 else (lo, alpha)
        found = _logarithmic(alpha, value / alpha, slope)
        if found:
            points = [*sorted(points, key=lambda each: abs(each[1]))[:1], *found]
            if spent > 2 or earlier is None:
                rate = _rate(points)
            root = _root(points, rate)
        elif not math.isfinite(value) and spent < most and lo > 0.0 and hi - lo > 0.5 * before:
            root = 0.5 * (lo + hi)  # only its sign is known: bisect
    return Crossing(lo, hi, spent, rate)


def _logarithmic(alpha: float, h: float, slope: float) -> list[tuple[float, float]]:
    """The point (u, v) of h = rise(α)/α; none where v is not known."""
    ratio = (h - slope) / -slope
    return [(math.log(alpha), math.log(ratio))] if 0.0 < ratio < math.inf else []


def _rate(points: list[tuple[float, float]]) -> float:
    """The slope of the line through two points; 1 where there is one, NaN where it falls."""
    if len(points) < 2 or points[0][0] == points[1][0]:
        return 1.0
    (u, v), (x, y) = points
    rate = (y - v) / (x - u)
    return rate if rate > FLAT else math.nan


def _root(points: list[tuple[float, float]], rate: float) -> float:
    """Where the line through the better point crosses zero; NaN where that is too far to be it."""
    u, v = min(points, key=lambda each: abs(each[1]))
    return math.exp(u - v / rate) if abs(v) <= FURTHEST * rate else math.nan


def search(
    rises: Callable[[float], bool],
    start: float,
    rtol: float,
    most: int,
    *,
    close: bool = False,
    known: tuple[float, float] = (0.0, math.inf),
    spent: int = 0,
) -> Crossing:
    """Bracket a multiple at which the loss begins to rise.

    Args:
        rises: whether the loss at a multiple is above that at w, or not finite.
        start: the first multiple.
        rtol: the bracket's largest 1 − lo/hi.
        most: the largest number of calls.
        close: whether ``start`` is an estimate: the first two multiples are then just below and
            just above it.
        known: multiples at which the loss is known not to have risen, and to have.
        spent: calls before this one.
    """
    lo, hi = known
    narrow = 1.0 - 0.99 * rtol
    alpha = start * (0.5 + 0.5 * narrow) if close else start
    while spent < most and not (lo > 0.0 and hi < math.inf and 1.0 - lo / hi <= rtol):
        spent += 1
        up = rises(alpha)
        lo, hi = (lo, min(hi, alpha)) if up else (max(lo, alpha), hi)
        if close:
            alpha, close = (alpha * narrow if up else alpha / narrow), False
        elif lo > 0.0 and hi < math.inf:
            alpha = 0.5 * (lo + hi)
        else:
            alpha = hi / 2.0 if hi < math.inf else 2.0 * lo
    return Crossing(lo, hi, spent)
