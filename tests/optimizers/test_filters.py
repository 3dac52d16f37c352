"""Thresholds of linear filters, against closed forms, the roots of the whole update, and runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import signal

from geodiag.errors import ArgumentError
from geodiag.optimizers import filters
from geodiag.optimizers.filters import check_filter, crossing

CLOSED = {
    "gradient descent": (filters.identity(), 2.0),
    "heavy ball": (filters.heavy_ball(0.9), 3.8),
    "dampened": (filters.heavy_ball(0.9, 0.5), 7.6),
    "Nesterov": (filters.nesterov(0.9), 3.8 / 2.8),
    "EMA": (filters.ema(0.9), 38.0),
    "NAdam": (filters.nadam(0.9), 3.8 / 0.28),
    "QHM": (filters.qhm(0.9, 0.7), 5.9375),
    "EMA cascade 0.4, 0.7": (filters.cascade(0.4, 0.7), 2.5714),
    "EMA cascade 0.7, 0.85": (filters.cascade(0.7, 0.85), 0.68067),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    given, expected = CLOSED[name]
    assert crossing(check_filter(given)) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize(("betas", "expected"), [((0.4, 0.7), 26.44), ((0.7, 0.85), 139.8)])
def test_the_limit_of_a_cascade_is_not_at_the_highest_frequency(betas, expected):
    given = filters.cascade(*betas)
    b, a = map(np.asarray, given)
    alternating = (-1.0) ** np.arange(3)
    at_the_highest = 2 * (a @ alternating) / (b @ alternating[: len(b)])
    assert at_the_highest == pytest.approx(expected, rel=1e-3)
    assert crossing(given) < 0.1 * expected


def largest_mode(given, k, decay=0.0):
    """The modulus of the slowest mode of w⁺ = (1 − decay)w − kQ(z)w, by its polynomial."""
    b, a = map(np.asarray, given)
    size = max(len(b), len(a))
    b, a = (np.pad(x, (0, size - len(x))) for x in (b, a))
    whole = np.convolve((1.0, decay - 1.0), a) + np.concatenate([[0.0], k * b])
    return np.abs(np.roots(whole)).max()


def drawn(seed):
    rng = np.random.default_rng(seed)
    beta = rng.random(3) * rng.choice([0.5, 0.99, 0.9999])
    some = (
        filters.heavy_ball(beta[0], 0.5 * rng.random()),
        filters.nesterov(beta[0]),
        filters.qhm(beta[0], rng.random()),
        filters.cascade(*beta[:2]),
        filters.cascade(*beta),
        filters.ademamix(beta[0], beta[1], 5 * rng.random()),
    )
    return some[seed % len(some)], float(rng.choice([0.0, 0.5 * rng.random()]))


@pytest.mark.parametrize("seed", range(120))
def test_below_the_limit_every_mode_decays_and_above_one_grows(seed):
    given, decay = drawn(seed)
    k = crossing(check_filter(given), decay)
    # At β = 0.9999 a root of the polynomial itself is known to about 1e-12.
    assert largest_mode(given, 0.999 * k, decay) < 1 + 1e-11
    assert largest_mode(given, 1.001 * k, decay) > 1


@pytest.mark.parametrize("name", CLOSED)
def test_a_run_on_a_quadratic(name):
    """w⁺ = w − kQ(z)w itself, step by step through SciPy's filter."""
    given, _ = CLOSED[name]
    k, ends = crossing(given), []
    for factor in (0.9, 1.1):
        w, state, sizes = 1.0, np.zeros(max(map(len, given)) - 1), []
        for _ in range(4000):
            (u,), state = signal.lfilter(*given, [w], zi=state) if len(state) else ([w], state)
            w -= factor * k * u
            sizes.append(abs(w))
            if abs(w) > 1e3:
                break
        ends.append(max(sizes[-50:]))
    assert ends[0] < 0.1
    assert ends[1] > 1e3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (((1.0,), (1.0, -1.0)), "unstable"),
        (((1.0,), (1.0, 0.5, -2.0)), "unstable"),
        (((1.0, -1.0), (1.0,)), "does not descend"),
        (((-1.0,), (1.0, -0.5)), "does not descend"),
        (((1.0,), (0.0, 1.0)), "a\\[0\\] not zero"),
        (((math.nan,), (1.0,)), "finite"),
        (((math.inf,), (1.0,)), "finite"),
        (((), (1.0,)), "finite"),
        (((1.0,), ()), "finite"),
        ((1.0, 2.0), "pair of coefficients"),
        ("ab", "pair of coefficients"),
        (None, "pair of coefficients"),
        (((1.0,),), "pair of coefficients"),
        ((("x",), (1.0,)), "pair of coefficients"),
    ],
)
def test_coefficients_that_are_no_filter(given, said):
    with pytest.raises(ArgumentError, match=said):
        check_filter(given)


@pytest.mark.parametrize("make", [filters.ema, filters.heavy_ball, filters.nesterov, filters.nadam])
@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan, "x", None])
def test_a_beta_out_of_range(make, beta):
    with pytest.raises(ArgumentError, match="must lie in"):
        make(beta)


def test_scaling_and_common_factors_do_not_matter():
    given = filters.nesterov(0.9)
    scaled = tuple(tuple(3.0 * x for x in part) for part in given)
    assert crossing(check_filter(scaled)) == pytest.approx(crossing(given), rel=1e-12)
    twice = tuple(tuple(np.convolve(part, (1.0, -0.3))) for part in given)
    assert crossing(check_filter(twice)) == pytest.approx(crossing(given), rel=1e-9)
