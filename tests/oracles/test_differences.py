"""Steps of finite differences: that of the parameters' own size, and finer ones where they pay.

cosh(c·x)/c² has the curvature cosh(c·x), which varies over 1/c.
"""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from geodiag.oracles import Differences

D = {"x": np.asarray([1.0, -1.0, 0.5])}


def of(dtype, c=100.0, shift=1.0, noise=0.0):
    """(gradient, point, H d) of Σ cosh(c(x − shift))/c² at the ones, in a dtype."""
    rng = np.random.default_rng(0)

    def gradient(blocks):
        x = blocks["x"].astype(np.float64)
        g = np.sinh(c * (x - shift)) / c
        return {"x": (g * (1 + noise * rng.standard_normal(3))).astype(dtype)}

    point = {"x": np.ones(3, dtype=dtype)}
    exact = np.cosh(c * (point["x"].astype(np.float64) - shift)) * D["x"]
    return gradient, point, exact


@pytest.mark.parametrize("c", [1.0, 30.0, 300.0])
def test_in_single_precision_the_step_suits_the_curvature(c):
    gradient, point, exact = of("float32", c)
    d = {"x": D["x"].astype(np.float32)}
    differences = Differences(point)
    # ε^{2/3} = 2.4e-5 for the best step, about ε^{1/3}/c; a factor of 4 from it costs 16 in the
    # truncation, or 4 in what rounding the points, by 2⁻²⁴, changes of the step.
    close = 16 * 2.4e-5 + 4 * 2.0**-24 * c / 4.9e-3
    np.testing.assert_allclose(differences.hvp(gradient, d)["x"], exact, rtol=close)
    np.testing.assert_allclose(differences.independent_hvp(gradient, d)["x"], exact, rtol=2 * close)


def test_in_double_precision_nothing_is_searched():
    calls = []
    gradient, point, exact = of("float64", 1.0)

    def counted(blocks):
        calls.append(1)
        return gradient(blocks)

    differences = Differences(point)
    np.testing.assert_allclose(differences.hvp(counted, D)["x"], exact, rtol=1e-9)
    assert len(calls) == 2
    other = differences.independent_hvp(counted, D)
    np.testing.assert_allclose(other["x"], exact, rtol=1e-9)
    assert len(calls) == 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("power", "change"), [(0, 1.0), (0.5, 0.41)])
def test_half_a_step_shows_where_the_gradient_jumps_or_has_an_infinite_slope(dtype, power, change):
    """A slope of sign(w)|w|^p at zero: its difference grows as h^(p−1)."""

    def gradient(w):
        return {"x": np.sign(w["x"]) * np.abs(w["x"]) ** power}

    differences, d = Differences({"x": np.zeros(1, dtype)}), {"x": np.ones(1, dtype)}
    first, half = differences.hvp(gradient, d), differences.independent_hvp(gradient, d)
    assert half["x"] / first["x"] - 1 == pytest.approx(change, abs=0.01)


def test_coarser_gradients_than_the_points_take_larger_steps():
    """Gradients in double precision that are off by single precision's ε of their size."""
    eps = float(np.finfo(np.float32).eps)
    gradient, point, exact = of("float64", 1.0, shift=0.0, noise=eps / 4)
    product = Differences(point, eps).hvp(gradient, D)["x"]
    np.testing.assert_allclose(product, exact, rtol=20 * eps ** (2 / 3))
    blind = Differences(point).hvp(gradient, D)["x"]
    assert np.abs(blind / exact - 1).max() > 20 * eps ** (2 / 3)


def test_the_step_once_found_stays():
    """The same question twice gives the same answer."""
    gradient, point, _ = of("float32")
    differences, d = Differences(point), {"x": D["x"].astype(np.float32)}
    first = differences.hvp(gradient, d)["x"]
    np.testing.assert_array_equal(differences.hvp(gradient, d)["x"], first)


def test_a_zero_direction_and_gradients_that_are_not_finite():
    gradient, point, _ = of("float32")
    differences = Differences(point)
    assert not differences.hvp(gradient, {"x": np.zeros(3, dtype=np.float32)})["x"].any()
    bad = Differences(point).hvp(lambda b: {"x": b["x"] * np.float32(np.nan)}, D)["x"]
    assert np.isnan(bad).all()


def test_a_pair_of_callables_in_single_precision_says_what_it_is_worth():
    rng = np.random.default_rng(0)

    def gradient(w):  # noisy in the fourth digit
        return {"x": (w["x"] * (1 + 1e-4 * rng.standard_normal(3))).astype(np.float32)}

    result = geodiag.sharpness(
        (lambda w: 0.5 * (w["x"] ** 2).sum(), gradient),
        params={"x": np.ones(3, dtype=np.float32)},
        max_hvps=6,
    )
    assert any("another step moves the value" in note for note in result.notes)
