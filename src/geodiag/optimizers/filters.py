"""Linear filters of past gradients, and the curvature at which they lose stability.

An update w⁺ = w − ηu whose u is a linear filter of the gradients so far, u = Q(z)g, is written with
the coefficients of :func:`scipy.signal.lfilter`: Q(z) = Σ bₖz⁻ᵏ / Σ aₖz⁻ᵏ. On a quadratic of
curvature λ its modes are the roots z of 1 − z = ηλQ(z). From λ = 0 on they lie inside of the unit
circle, until one crosses it: at the smallest k = ηλ for which (1 − e^{iω})/Q(e^{iω}) = k at some ω
in (0, π] (arXiv 2608.18415, Proposition 2.1). For one momentum that is at ω = π; for cascades of
averages it is not.

    gradient descent 2          heavy ball 2(1 + β)          EMA 2(1 + β)/(1 − β)
    Nesterov 2(1 + β)/(1 + 2β)                               QHM 2/(1 − ν + ν(1 − β)/(1 + β))
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev, polynomial

from geodiag.core.validation import as_number
from geodiag.errors import ArgumentError, shown

Filter = tuple[tuple[float, ...], tuple[float, ...]]
# A ratio counts as real where its imaginary part is within the rounding of its terms.
REAL = 1e-6


def heavy_ball(beta: float, dampening: float = 0.0) -> Filter:
    """A sum of gradients, m ← βm + (1 − dampening)g, and u = m: torch's SGD.

    >>> geodiag.filters.heavy_ball(0.9)
    ((1.0,), (1.0, -0.9))
    """
    return (1.0 - _fraction(dampening, "dampening"),), (1.0, -_fraction(beta, "beta"))


def nesterov(beta: float) -> Filter:
    """torch's Nesterov momentum: m ← βm + g, and u = g + βm.

    >>> geodiag.filters.nesterov(0.9)
    ((1.9, -0.9), (1.0, -0.9))
    """
    momentum = heavy_ball(beta)
    return parallel((1.0, identity()), (beta, momentum))


def ema(beta: float) -> Filter:
    """An average of gradients, m ← βm + (1 − β)g, and u = m: Adam's.

    >>> geodiag.filters.ema(0.5)
    ((0.5,), (1.0, -0.5))
    """
    return (1.0 - _fraction(beta, "beta"),), (1.0, -_fraction(beta, "beta"))


def nadam(beta: float) -> Filter:
    """Nesterov's form of the average, u = βm + (1 − β)g: NAdam's, late in training.

    >>> b, a = geodiag.filters.nadam(0.9)
    >>> round(float(geodiag.threshold(1.0, filter=(b, a))), 3)
    13.571
    """
    return qhm(beta, beta)


def qhm(beta: float, nu: float) -> Filter:
    """Quasi-hyperbolic momentum, u = (1 − ν)g + νm with m ← βm + (1 − β)g.

    >>> round(float(geodiag.threshold(1.0, filter=geodiag.filters.qhm(0.9, 0.7))), 4)
    5.9375
    """
    average = ema(beta)
    return parallel((1.0 - (nu := _number(nu, "nu")), identity()), (nu, average))


def ademamix(beta1: float, beta3: float, alpha: float) -> Filter:
    """A fast and a slow average, u = m₁ + αm₂: AdEMAMix's, late in training.

    >>> b, a = geodiag.filters.ademamix(0.9, 0.999, 5.0)
    >>> len(b), len(a)
    (2, 3)
    """
    return parallel((1.0, ema(beta1)), (_number(alpha, "alpha"), ema(beta3)))


def cascade(*betas: float) -> Filter:
    """An average of an average: m₁ ← β₁m₁ + (1 − β₁)g, m₂ ← β₂m₂ + (1 − β₂)m₁, …; u = the last.

    >>> round(float(geodiag.threshold(1.0, filter=geodiag.filters.cascade(0.4, 0.7))), 4)
    2.5714
    """
    b: Any = np.ones(1)
    a: Any = np.ones(1)
    for beta in betas:
        of = ema(beta)
        b, a = np.convolve(b, of[0]), np.convolve(a, of[1])
    return _plain(b), _plain(a)


def identity() -> Filter:
    """u = g.

    >>> geodiag.filters.identity()
    ((1.0,), (1.0,))
    """
    return (1.0,), (1.0,)


def parallel(*terms: tuple[float, Filter]) -> Filter:
    """The weighted sum of filters, Σ cᵢQᵢ.

    >>> geodiag.filters.parallel((0.5, geodiag.filters.identity()), (0.5, geodiag.filters.ema(0.5)))
    ((0.75, -0.25), (1.0, -0.5))
    """
    b: Any = np.zeros(1)
    a: Any = np.ones(1)
    for weight, (other_b, other_a) in terms:
        top = weight * np.asarray(other_b)
        b = polynomial.polyadd(np.convolve(b, other_a), np.convolve(a, top))
        a = np.convolve(a, other_a)
    return _plain(b), _plain(a)


def check_filter(given: Any) -> Filter:
    """Coefficients as floats.

    Raises:
        ArgumentError: they are no numbers, or the filter is unstable or does not descend.
    """
    try:
        b, a = (np.asarray([float(x) for x in part], dtype=np.float64) for part in given)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(
            "filter= must be a pair of coefficients (b, a)",
            got=shown(given),
            do="use scipy.signal.lfilter's convention, or geodiag.filters",
        ) from None
    if not (len(b) and len(a) and np.isfinite(b).all() and np.isfinite(a).all() and a[0]):
        raise ArgumentError(
            "the coefficients of filter= must be finite, and a[0] not zero", got=shown(given)
        )
    b, a = b / a[0], a / a[0]
    poles = np.abs(np.roots(a))
    if poles.size and poles.max() >= 1.0:
        raise ArgumentError(
            "filter= is unstable: it sums gradients without forgetting them",
            got=f"a pole of modulus {poles.max():.6g}",
            do="pass coefficients a whose roots lie inside of the unit circle",
        )
    gain = b.sum() / a.sum()
    if not gain > 0.0:
        raise ArgumentError(
            "filter= does not descend: its gain for a constant gradient must be positive",
            got=f"{gain:.6g}",
        )
    return _plain(b), _plain(a)


def crosses_at_end(given: Filter, decay: float = 0.0) -> bool:
    """Whether modes of any k can leave the unit circle at −1 alone, as with one momentum.

    Then several such rules on one quadratic, each on parameters of its own, do so too.

    >>> crosses_at_end(heavy_ball(0.9)), crosses_at_end(cascade(0.4, 0.7))
    (True, False)
    """
    odd, _, _ = _odd_part(given, decay)
    return not _inside(_roots(_from_second_kind(odd)))


def crossing(given: Filter, decay: float = 0.0) -> float:
    """The smallest k = ηλ at which the update is at its limit.

    Args:
        given: of :func:`check_filter`.
        decay: ηγ of a decoupled weight decay, w⁺ = (1 − ηγ)w − ηu.

    Returns:
        k, at least 0; 0 where the decay alone is unstable. Infinite where nothing is.
    """
    if decay >= 2.0:
        return 0.0
    odd, top, below = _odd_part(given, decay)
    cosines = [-1.0, *_inside(_roots(_from_second_kind(odd)))]
    found = [_ratio(top, below, math.acos(c)) for c in cosines]
    return min((k for k in found if k is not None and k >= 0.0), default=math.inf)


def _odd_part(given: Filter, decay: float) -> tuple[list[float], Any, Any]:
    """cₙ of a sum that vanishes where k is real, and what k is a ratio of."""
    b, a = (np.asarray(part) for part in given)
    size = max(len(b), len(a))
    b, a = (np.pad(part, (0, size - len(part))) for part in (b, a))
    # With x = z⁻¹: k = ((1 − decay)x − 1)a(x)/(x b(x)), which is real where the odd part of the
    # numerator times the conjugate of the denominator is zero. As a function of ω that is
    # Σ cₙ sin nω = sin ω Σ cₙ U₍ₙ₋₁₎(cos ω).
    top, below = np.convolve((-1.0, 1.0 - decay), a), np.convolve((0.0, 1.0), b)
    product = np.convolve(top, below[::-1])
    odd = [product[size + n] - product[size - n] for n in range(1, size + 1)]
    return odd, top, below


def _from_second_kind(odd: list[float]) -> Any:
    """Chebyshev coefficients of Σ cₙ U₍ₙ₋₁₎: U is 2(T + T + …), every second order below."""
    total = np.zeros(max(len(odd), 1))
    for order, c in enumerate(odd):
        for k in range(order, -1, -2):
            total[k] += c * (1.0 if k == 0 else 2.0)
    return total


def _roots(coefficients: Any) -> Any:
    return chebyshev.chebroots(chebyshev.chebtrim(coefficients, tol=1e-300))


def _inside(roots: Any) -> list[float]:
    """The real roots in (−1, 1)."""
    return [float(x.real) for x in roots if abs(x.imag) < REAL and -1.0 < x.real < 1.0]


def _ratio(top: Any, below: Any, angle: float) -> float | None:
    """k at an angle; None where it is not real."""
    x = complex(math.cos(angle), -math.sin(angle))
    numerator, denominator = polynomial.polyval(x, top), polynomial.polyval(x, below)
    if denominator == 0.0:
        return None
    k = numerator / denominator
    return float(k.real) if abs(k.imag) <= REAL * abs(k) else None


def _plain(x: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in x)


def _number(x: Any, name: str) -> float:
    value = as_number(x)
    if value is None or not math.isfinite(value):
        raise ArgumentError(f"{name} must be a finite number", got=shown(x))
    return value


def _fraction(x: Any, name: str) -> float:
    value = as_number(x)
    if value is None or not 0.0 <= value < 1.0:
        raise ArgumentError(f"{name} must lie in [0, 1)", got=shown(x))
    return value
