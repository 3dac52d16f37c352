"""Vertical axes on which the edge is seen, negative values too, and no spike flattens the rest.

An axis is linear as long as everything drawn fits. Else it is linear where most of the values are,
and logarithmic beyond: ``symlog`` of matplotlib. The logarithmic parts are shaded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from geodiag.report.series import Floats

WIDE = 30  # a range of the usual values beyond which an axis is logarithmic
USUAL = (0.05, 0.95)  # the quantiles between which values are usual
STRETCH = 1.4  # of a linear axis beyond the usual values: what lies further out is a spike
FITS = 2.5  # the same, of an axis that is linear as a whole
TICKS = 7
LEAST = 1.6  # the factor that a logarithmic axis spans, so that it has a round number
ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
GAP = 0.11  # between two ticks, of the height of the axis


def fit(axes: Any, lines: Floats, dots: Floats, scale: str, edge: float | None = None) -> None:
    """Choose the vertical scale, its limits and its ticks.

    Args:
        axes: of matplotlib.
        lines: the finite values that are drawn as lines and bands.
        dots: those drawn as dots, which alone make no axis logarithmic.
        scale: of the :class:`~geodiag.records.Panel`.
        edge: a height that must be seen well, or None.
    """
    known = np.concatenate([lines, dots, [] if edge is None else [edge]])
    usual = lines if lines.size else dots
    if not known.size or scale == "linear":
        return
    low, high = float(known.min()), float(known.max())
    if scale == "log":
        if low > 0:
            logarithmic(axes, low, high)
        return
    if not usual.size:
        usual = known
    least, most = (float(q) for q in np.quantile(usual, USUAL))
    if scale == "wide" and least > 0 and most > WIDE * least:
        least = min(least, float(usual[usual > 0].min()))
        if low >= least:
            logarithmic(axes, low, high)
        else:
            _symmetric(axes, _below(least), low, high, share=1.0)
        return
    reach = max(abs(least), abs(most))
    linear = STRETCH * reach if edge is None else 2 * edge
    fits = FITS * reach if edge is None else 3 * edge
    if reach == 0.0 or (high <= fits and low >= -fits):
        pad = 0.06 * (max(high, 0.0) - min(low, 0.0)) or 1.0
        bottom = min(low, 0.0) - (pad if low < 0 else pad / 3 if low < pad / 3 else 0.0)
        axes.set_ylim(bottom, max(high, 0.0) + pad)
        if edge is not None and high + pad < 1.25 * edge:
            axes.set_ylim(top=1.25 * edge)
        return
    _symmetric(axes, _above(linear), low, high, share=None)


def logarithmic(axes: Any, low: float, high: float) -> None:
    """A logarithmic axis from ``low`` to ``high``, with plain numbers where it spans little."""
    axes.set_yscale("log")
    room = max((high / low) ** 0.06, (LEAST * low / high) ** 0.5)
    axes.set_ylim(low / room, high * room)
    decades = math.log10(high / low) if high > low else 0.0
    if decades < 2:
        found = _rounds(low / room, high * room, TICKS)
        _ticks(axes, found if len(found) > 2 else _rounds(low / room, high * room, TICKS, ROUND))
    else:
        axes.yaxis.set_minor_formatter("")


def _symmetric(axes: Any, turn: float, low: float, high: float, share: float | None) -> None:
    """Linear up to ``±turn``, logarithmic beyond.

    ``share`` is the height of the linear part from 0 to ``turn``, in decades; None: half more than
    the logarithmic parts take together, and one at least.
    """
    above = math.log10(high / turn) if high > turn else 0.0
    under = math.log10(-low / turn) if low < -turn else 0.0
    height = max(1.0, 1.5 * (above + under)) if share is None else share
    axes.set_yscale("symlog", linthresh=turn, linscale=0.9 * height)  # 1 − 1/base, as it is used
    top = high * 10 ** (0.05 * (above + height)) if high > turn else turn
    if low < -turn:
        bottom = low * 10 ** (0.05 * (under + height))
    else:
        bottom = min(low, 0.0) - (0.08 * turn if low < 0.08 * turn else 0.0)
    axes.set_ylim(bottom, top)
    if share is None:
        for start, end in ((turn, top), (bottom, -turn)):
            if start < end:
                axes.axhspan(start, end, color="0.5", alpha=0.1, linewidth=0, zorder=0)
    step = (_rounds(turn / 2.9, turn, 1) or [turn])[-1] if share is None else turn
    most = turn * (1 + 1e-9)
    inner = [x for x in step * np.arange(-3, 4) if bottom <= x <= top and abs(x) <= most]
    outer = [sign * x for sign, end in ((1, top), (-1, -bottom)) for x in _rounds_beyond(turn, end)]
    outer.sort(key=lambda x: (share is not None and not _is_power(x), -abs(x)))
    _ticks(axes, _apart(axes, [*inner, *outer]))


def _is_power(x: float) -> bool:
    """Whether it is a power of ten."""
    return abs(math.log10(abs(x)) - round(math.log10(abs(x)))) < 1e-9


def _rounds_beyond(turn: float, end: float) -> list[float]:
    return [x for x in _rounds(turn, end, 99) if x > turn] if end > turn else []


def _apart(axes: Any, ticks: list[float]) -> list[float]:
    """Those of the ticks that leave room for each other's numbers, the first ones first."""
    transform = axes.yaxis.get_transform()
    bottom, top = (float(transform.transform(x)) for x in axes.get_ylim())
    kept: dict[float, float] = {}
    for x in ticks:
        at = (float(transform.transform(float(x))) - bottom) / (top - bottom)
        if all(abs(at - other) >= GAP for other in kept):
            kept[at] = float(x)
    return sorted(kept.values())


def _rounds(
    low: float, high: float, most: int, finest: tuple[float, ...] = (1, 2, 5)
) -> list[float]:
    """``finest`` times a power of ten in [low, high]; fewer, or powers alone, if these are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in (finest, (1, 2, 5), (1, 5), (1,)):
        found = sorted({d * 10.0**n for n in range(first, last + 1) for d in digits})
        found = [x for x in found if low <= x <= high]
        if len(found) <= most:
            return found
    return found[:: -(-len(found) // most)]


def _above(x: float) -> float:
    """The least round number that is at least ``x``."""
    power = 10.0 ** math.floor(math.log10(x))
    return min(y for y in (d * power for d in ROUND) if y >= x * (1 - 1e-9))


def _below(x: float) -> float:
    return max(y for y in _rounds(x / 11, 1.01 * x, 99) if y <= x * (1 + 1e-9))


def _ticks(axes: Any, at: list[float]) -> None:
    axes.set_yticks(at, [_number(x) for x in at])
    axes.set_yticks([], minor=True)


def _number(x: float) -> str:
    if x == 0 or 1e-4 < abs(x) < 1e5:
        return f"{x:g}".replace("-", "\N{MINUS SIGN}")
    sign, power = ("-" if x < 0 else ""), math.floor(math.log10(abs(x)) + 1e-9)
    factor = abs(x) / 10.0**power
    digits = "" if abs(factor - 1) < 1e-6 else rf"{factor:g}\times"
    return rf"${sign}{digits}10^{{{power}}}$"
