"""Where a loss begins to rise along a step: a bracket of the multiple of it, by values alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

# Of the line by which the root is sought: its least slope, and how far, in ln α, it is followed.
FLAT, FURTHEST = 1e-3, 3.0
# How wide a bracket is by default; and beyond how many steps that is a part of ln α, not of α.
RTOL, NEAR = 1 / 16, 4.0
# How far the second loss is from where a search was told to begin, at most; and by how much more
# than before a search goes on beyond where the loss has not risen.
APART, GROWTH = 3.0, 4.0


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


@dataclass(frozen=True)
class Width:
    """How wide a bracket may be: 1 − lo/hi ≤ ``rtol``; where that is None, ``RTOL``.

    Then also, where lo is above ``NEAR``, ln(hi/lo) ≤ ``RTOL``·ln lo.
    """

    rtol: float | None = None

    @property
    def narrow(self) -> float:
        """The least lo/hi near the edge; a hundredth of the width is left for rounding."""
        return 1.0 - 0.99 * (self.rtol or RTOL)

    def met(self, lo: float, hi: float) -> bool:
        """Whether a bracket is as narrow as that."""
        if not (lo > 0.0 and hi < math.inf):
            return False
        far = self.rtol is None and lo > NEAR and math.log(hi / lo) <= RTOL * math.log(lo)
        return far or 1.0 - lo / hi <= (self.rtol or RTOL)

    def above(self, lo: float) -> float:
        """The largest hi that makes a bracket with ``lo``."""
        return lo * lo ** (0.99 * RTOL) if self.rtol is None and lo > NEAR else lo / self.narrow

    def below(self, hi: float) -> float:
        """The least lo that makes a bracket with ``hi``."""
        lo = hi ** (1.0 / (1.0 + 0.99 * RTOL)) if self.rtol is None and hi < math.inf else 0.0
        return lo if lo > NEAR else hi * self.narrow


def by_values(
    rise: Callable[[float], float],
    slope: float,
    bend: float,
    up: bool,
    rtol: float | None,
    most: int,
    earlier: Earlier | None = None,
) -> Crossing:
    """Bracket the root of v(u), with u = ln α and v = ln((rise(α)/α − slope)/−slope).

    On a quadratic v is a line of slope 1, and of slope p − 1 where the loss bends as α^p. ``up``:
    whether the loss rises at α = 1. ``rtol``: as in :class:`Width`.
    """
    lo, hi = (0.0, 1.0) if up else (1.0, math.inf)
    width, spent, row = Width(rtol), 1, 0
    lengths = [math.inf, math.inf]  # of the bracket, in ln α, two losses ago and one
    points = _logarithmic(1.0, slope + bend, slope)
    rate, root = 1.0, math.exp(-points[0][1]) if points else math.nan
    if earlier is not None:
        rate, root = earlier.rate, earlier.factor
    while spent < most and not width.met(lo, hi):
        length = math.log(hi / lo) if lo > 0.0 and hi < math.inf else math.inf
        alpha = _place(lo, hi, root, row, length > 0.5 * lengths[0], width)
        lengths = [lengths[1], length]
        if earlier is not None and spent == 2 and (lo > NEAR or NEAR < hi < math.inf):
            alpha = min(APART * lo, alpha) if hi == math.inf else max(hi / APART, alpha)
        if not lo < alpha < hi or not math.isfinite(alpha):
            alpha = 2.0 * lo if hi == math.inf else 0.5 * hi if hi > 4.0 * lo else 0.5 * (lo + hi)
        if not lo < alpha < hi:
            break  # no number is left between them
        spent += 1
        value = rise(alpha)
        before, rose = hi - lo, not value <= 0.0
        row = max(row, 0) + 1 if not rose else min(row, 0) - 1
        lo, hi = (lo, alpha) if rose else (alpha, hi)
        found = _logarithmic(alpha, value / alpha, slope)
        if found:
            quadratic = spent == 2 and earlier is None and alpha > NEAR
            points = [*sorted(points, key=lambda each: abs(each[1]))[:1], *found]
            if spent > 2 or earlier is None:
                rate = _rate(points)
            root = _root(points, rate)
            if quadratic and len(points) == 2:
                rate, root = _of_two_powers(points, rate, root)
        elif not math.isfinite(value) and spent < most and lo > 0.0 and hi - lo > 0.5 * before:
            root = 0.5 * (lo + hi)  # only its sign is known: bisect
    return Crossing(lo, hi, spent, rate)


def _place(lo: float, hi: float, root: float, row: int, stuck: bool, width: Width) -> float:
    """Where the next loss most probably makes the bracket, or does so in any case.

    Within ``width`` of a known end that is as far behind the root as the root is from that end,
    and at least ``width.narrow`` from that end; and twice missed on one side, as far as it may be.

    Args:
        lo: as of :class:`Crossing`, like ``hi``.
        hi: infinite: not known.
        root: where the loss is expected to begin to rise; NaN: not known.
        row: how many losses in a row have not risen; below 0, how many have.
        stuck: whether two losses have not halved ln(hi/lo).
        width: of the bracket.
    """
    above, below = width.above(lo), width.below(hi)
    if lo > 0.0 and root <= above:
        alpha = above if row > 1 else max(lo / width.narrow, min(root * root / lo, above))
    elif hi < math.inf and below <= root:
        alpha = below if row < -1 else min(hi * width.narrow, max(root * root / hi, below))
    else:
        alpha = root * (0.5 + 0.5 * width.narrow)
    if below <= above:
        return min(max(alpha, below), above)
    if stuck and hi > NEAR:
        return math.sqrt(lo * hi)
    if row > 2 and lo > NEAR and hi == math.inf and not root <= above:
        return max(GROWTH ** min(row - 1, 9) * lo, alpha)
    return alpha


def _of_two_powers(
    points: list[tuple[float, float]], rate: float, root: float
) -> tuple[float, float]:
    """(rate, root) of e^v = aα + bα², of a loss with a cubic term, through two points.

    One is at α = 1, where the first term is all. Both stay as they are where the root is larger.
    """
    (_, v), (u, there) = sorted(points)
    alpha, a = math.exp(u), math.exp(v)
    b = (math.exp(min(there, 100.0)) - a * alpha) / alpha**2
    if not b > 0.0:
        return rate, root
    other = 2.0 / (a + math.sqrt(a * a + 4.0 * b))
    return (rate, root) if other <= max(root, NEAR) else (2.0 - a * other, other)


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
        if not 0.0 < alpha < math.inf:
            break
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
