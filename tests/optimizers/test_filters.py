"""Thresholds of linear filters, against closed forms, the roots of the whole update, and runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import signal

import geodiag
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


SETTINGS = {
    "plain": ({}, filters.identity()),
    "heavy ball": ({"momentum": 0.7}, filters.heavy_ball(0.7)),
    "Nesterov": ({"momentum": 0.7, "nesterov": True}, filters.nesterov(0.7)),
    "EMA": ({"momentum": 0.7, "ema": True}, filters.ema(0.7)),
    "NAdam": ({"momentum": 0.7, "ema": True, "nesterov": True}, filters.nadam(0.7)),
}


@pytest.mark.parametrize("decay", [{}, {"weight_decay": 3.0}])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_filter_has_the_threshold_of_its_closed_form(name, decoupled, decay):
    settings, given = SETTINGS[name]
    decay = decay | {"decoupled": decoupled}
    closed = geodiag.threshold(0.1, **settings, **decay)
    found = geodiag.threshold(0.1, filter=given, **decay)
    assert float(found) == pytest.approx(float(closed), rel=1e-9)
    assert geodiag.Update(0.1, filter=given, **decay).threshold(None) == found


def test_decoupled_decay_with_an_average():
    """285 at η = 0.1, β = 0.9, γ = 5, as simulated."""
    found = geodiag.threshold(0.1, filter=filters.ema(0.9), weight_decay=5.0, decoupled=True)
    assert float(found) == pytest.approx(285.0)
    assert geodiag.threshold(1.0, filter=filters.ema(0.9), weight_decay=3.0, decoupled=True) == 0


def test_a_filter_of_a_normalized_update_has_no_threshold():
    assert math.isnan(geodiag.threshold(0.1, normalized=True, filter=filters.ema(0.9)))
    assert geodiag.threshold(0.1, normalized=True, filter=filters.identity()) == 20.0


def test_momentum_is_stated_once():
    with pytest.raises(ArgumentError, match="both state the momentum"):
        geodiag.threshold(0.1, momentum=0.9, filter=filters.ema(0.9))


def test_a_record_of_a_filtered_run():
    """λ = 4 under QHM with lr 0.5, whose threshold is 5.9375/0.5."""
    update = geodiag.Update(0.5, filter=filters.qhm(0.9, 0.7))
    pair = (lambda w: 2 * float(w["x"] @ w["x"]), lambda w: {"x": 4 * w["x"]})
    point = {"x": np.ones(2)}
    for norm, expected in (("l2", 4 * 0.5 / 5.9375), ("linf", math.nan)):
        monitor = geodiag.Monitor(pair, norm, params=point, update=update)
        record = monitor.observe(0, point, {"x": 0.5 * np.ones(2)})
        assert record.ratio == pytest.approx(expected, rel=1e-6, nan_ok=True)
        assert ("quadratic norms only" in record.note) == (norm == "linf")


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
