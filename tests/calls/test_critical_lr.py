"""The critical step along closed forms, in NumPy, torch and JAX, and where there is none."""

from __future__ import annotations

import math
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import geodiag
from geodiag.core.root_bracketing import Crossing, Earlier, by_values, search
from geodiag.errors import ArgumentError, NonFiniteError, ShapeError

H = np.diag([18.0, 4.0, 1.0])
# ⟨g, Hg⟩/⟨g, g⟩ of g = H(1, 1, 1): the curvature along the gradient step.
CURVATURE = 5897 / 341


def half_square(w):
    return 0.5 * (w @ H @ w)


class Quadratic(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.x = torch.nn.Parameter(torch.ones(3, dtype=dtype))

    def forward(self):
        return 0.5 * (self.x @ torch.as_tensor(H, dtype=self.x.dtype) @ self.x)


def arguments(framework, dtype):
    """Model, asarray, and further arguments, at w = (1, 1, 1)."""
    if framework == "torch":
        model = Quadratic(getattr(torch, dtype))
        return model, torch.tensor, {"loss_fn": lambda m, batch: m(), "data": [0]}
    if framework == "jax":
        matrix = jnp.asarray(H, dtype=dtype)
        loss = lambda w: 0.5 * (w["x"] @ matrix @ w["x"])  # noqa: E731
        return loss, jnp.asarray, {"params": {"x": jnp.ones(3, dtype=dtype)}}
    pair = (lambda w: half_square(w["x"]), lambda w: {"x": H.astype(dtype) @ w["x"]})
    return pair, np.asarray, {"params": {"x": np.ones(3, dtype=dtype)}}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 7.0])
def test_along_the_gradient_of_a_quadratic(framework, dtype, scale):
    model, asarray, given = arguments(framework, dtype)
    step = {"x": asarray(np.asarray(-scale * H @ np.ones(3), dtype=dtype))}
    found = geodiag.critical_lr(model, step, scale, **given)
    lo, hi = found.bracket
    assert lo <= 2 / CURVATURE <= hi
    assert 1 - lo / hi <= 1 / 16
    assert lo < float(found) < hi
    assert found.sharpness == pytest.approx(CURVATURE, rel=1 / 16)
    assert found.factor == pytest.approx(float(found) / scale)
    assert found.num_losses == 3
    alone = geodiag.critical_lr(model, step, **given)
    assert float(alone) == pytest.approx(found.factor)
    assert math.isnan(alone.sharpness)


def test_the_published_search_from_the_learning_rate():
    g = H @ np.ones(3)
    rises = lambda a: half_square(1 - 0.1 * a * g) > half_square(np.ones(3))  # noqa: E731
    found = search(rises, 1.0, 1 / 16, 20)
    assert (found.lo, found.hi) == pytest.approx((1.125, 1.1875))
    assert found.num_losses == 6


@pytest.mark.parametrize("rtol", [0.5, 1 / 16, 1e-3])
@pytest.mark.parametrize("true", [1e-4, 0.3, 0.999, 1.0, 1.7, 40.0])
@pytest.mark.parametrize("guess", [0.1, 0.97, 1.0, 1.05, 10.0])
@pytest.mark.parametrize("close", [False, True])
def test_a_search_brackets(rtol, true, guess, close):
    asked = []

    def rises(alpha):
        asked.append(alpha)
        return alpha > true

    found = search(rises, guess * true, rtol, 60, close=close)
    assert found.lo <= true < found.hi
    assert 1 - found.lo / found.hi <= rtol
    assert found.num_losses == len(asked)
    if close and guess == 1.0:
        assert len(asked) == 2


def test_a_quartic_takes_few_losses_from_its_step():
    """L = w⁴ from w = 1 along −1: back at the other side, α = 2, and 1/ζ is 4/3."""
    pair = (lambda w: float(w["x"][0] ** 4), lambda w: {"x": 4 * w["x"] ** 3})
    found = geodiag.critical_lr(pair, {"x": -np.ones(1)}, params={"x": np.ones(1)})
    assert found.bracket[0] <= 2.0 <= found.bracket[1]
    assert found.num_losses <= 8


# Losses by how far along the step, which is 1/N of it, so that the first crossing is at 2N steps.
FAR = {
    "quadratic": (lambda x: (1 - x) ** 2, 3),
    "with a fourth power": (lambda x: (1 - x) ** 2 + 0.3 * (1 - x) ** 4, 4),
    "third power": (lambda x: abs(1 - x) ** 3, 5),
    "eighth power": (lambda x: (1 - x) ** 8, 9),
    "cosh": (lambda x: math.cosh(1 - x), 3),
    "wall": (lambda x: -x if x <= 2 else math.nan, 13),
}


@pytest.mark.parametrize("steps", [1e2, 1e3, 1e5])
@pytest.mark.parametrize("name", FAR)
def test_far_from_the_edge(name, steps):
    """By default ln α is known to a 16th, in fewer losses; a width that is asked for holds there.

    Before, these took 3, 5, 7, 10 to 12, 4 and 12 to 23 losses.
    """
    loss, most = FAR[name]
    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    pair = (lambda w: loss(float(w["x"][0])), lambda w: {"x": np.full(1, slope)})
    given = {"params": {"x": np.zeros(1)}}
    step = {"x": np.full(1, 1 / steps)}
    found = geodiag.critical_lr(pair, step, **given)
    lo, hi = found.bracket
    assert lo <= 2 * steps * (1 + 1e-9)
    assert 2 * steps * (1 - 1e-9) <= hi
    assert lo < float(found) == found.factor < hi
    assert hi <= lo ** (17 / 16) * (1 + 1e-9)
    assert found.num_losses <= most
    close = geodiag.critical_lr(pair, step, rtol=1 / 16, **given)
    assert close.bracket[0] <= 2 * steps * (1 + 1e-9)
    assert 2 * steps * (1 - 1e-9) <= close.bracket[1]
    assert 1 - close.bracket[0] / close.bracket[1] <= 1 / 16


@pytest.mark.parametrize("steps", [0.15, 0.3, 0.45, 0.5, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("name", FAR)
def test_near_the_edge_the_width_is_a_16th(name, steps):
    loss, _ = FAR[name]
    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    taken = loss(1 / steps) - loss(0)
    rise = lambda alpha: loss(alpha / steps) - loss(0)  # noqa: E731
    known = (rise, slope / steps, taken - slope / steps, not taken <= 0)
    found = by_values(*known, None, 20)
    assert found == by_values(*known, 1 / 16, 20)
    assert found.lo <= 2 * steps * (1 + 1e-9)
    assert 2 * steps * (1 - 1e-9) <= found.hi
    assert 1 - found.lo / found.hi <= 1 / 16


@pytest.mark.parametrize("steps", [2e3, 2e4])
@pytest.mark.parametrize("sharp", [3, 6])
@pytest.mark.parametrize("missed", [0.7, 0.9, 1.0, 1.1, 1.4, 2.0])
def test_a_search_that_begins_beside_the_crossing_of_a_loss_next_to_0(steps, sharp, missed):
    """From 1 to 0 in a 50th of the way, and back to 1 where it ends: up to 6 losses before."""

    def rise(alpha):
        x, k = alpha / steps, 8 * sharp
        return math.exp(-50 * x) + math.log1p(math.exp(k * (x - 1) + 8)) / 8 - 1

    slope, taken, near = -50 / steps, rise(1.0), 1e-4
    there = (math.log(1 + rise(steps * a) / (50 * a)) for a in (1 - near, 1 + near))
    below, above = there
    earlier = Earlier(missed * steps, (above - below) / (2 * near))
    found = by_values(rise, slope, taken - slope, False, None, 12, earlier)
    assert rise(found.lo) <= 0 < rise(found.hi)
    assert found.hi <= found.lo ** (17 / 16) * (1 + 1e-9)
    assert found.num_losses <= 4


def test_a_step_that_does_not_descend():
    pair, _, given = arguments("numpy", "float64")
    found = geodiag.critical_lr(pair, {"x": 0.1 * H @ np.ones(3)}, 0.1, **given)
    assert math.isnan(found)
    assert not found.bracketed
    assert found.num_losses == 0
    assert "does not descend" in found.note


def test_a_loss_that_never_rises_has_no_number():
    pair = (lambda w: -float(w["x"] @ w["x"]), lambda w: {"x": -2 * w["x"]})
    found = geodiag.critical_lr(
        pair, {"x": np.ones(2)}, 0.1, max_losses=9, params={"x": np.ones(2)}
    )
    assert math.isnan(found)
    assert math.isnan(found.sharpness)
    assert found.num_losses == 9
    assert found.bracket[1] == math.inf
    assert "no bracket in 9 losses" in found.note
    assert "no bracket" in repr(found)


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_risen(beyond):
    """Finite up to w = 3, so that the crossing is at 2 steps of 1."""
    pair = (
        lambda w: -float(w["x"][0]) if w["x"][0] <= 3 else beyond,
        lambda w: {"x": -np.ones(1)},
    )
    found = geodiag.critical_lr(pair, {"x": np.ones(1)}, params={"x": np.ones(1)})
    assert found.bracket[0] <= 2.0 <= found.bracket[1]
    assert found.bracketed


def test_a_step_whose_square_underflows_has_no_bracket():
    pair, _, given = arguments("numpy", "float64")
    found = geodiag.critical_lr(pair, {"x": np.array([-1e-170, 0.0, 0.0])}, **given)
    assert math.isnan(found)
    assert "no bracket" in found.note


def test_losses_that_differ_by_rounding():
    """1e9 + w² in float32: the loss is one number along the whole step."""
    pair = (
        lambda w: np.float32(1e9) + np.float32(w["x"] @ w["x"]),
        lambda w: {"x": 2 * w["x"]},
    )
    at = {"x": np.ones(2, dtype=np.float32)}
    found = geodiag.critical_lr(pair, {"x": -np.ones(2, dtype=np.float32)}, params=at)
    assert math.isnan(found)
    assert found.note


def test_a_model_without_a_gradient():
    """The search then starts at the step itself."""

    class Rounded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self):
            return NoGradient.apply(self.x)

    model = Rounded()
    given = {"loss_fn": lambda m, batch: m(), "data": [0]}
    found = geodiag.critical_lr(model, {"x": -torch.ones(1, dtype=torch.float64)}, 0.1, **given)
    assert found.bracket[0] <= 0.2 <= found.bracket[1]
    assert model.x.grad is None


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x**2).sum()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("no gradient of this")


@pytest.mark.parametrize(("rise", "why"), [(1.0, "all rise"), (-1.0, "none rises")])
def test_a_search_ends_where_no_number_is_left(rise, why):
    asked = []

    def rises(alpha):
        asked.append(alpha)
        return rise * alpha

    one = by_values(rises, -2.0, 1.0, rise > 0, None, 3000)
    other = search(lambda alpha: rises(alpha) > 0, 1.0, 0.1, 3000)
    assert all(0.0 < alpha < math.inf for alpha in asked)
    for found in (one, other):
        assert why in found.note
        assert not found.bracketed
        assert found.num_losses <= 1100
    signs = (lambda w: rise * float(np.sign(np.abs(w["x"]).sum())), lambda w: {"x": np.ones(1)})
    step = {"x": -np.ones(1)}
    found = geodiag.critical_lr(signs, step, params={"x": np.zeros(1)}, max_losses=1200)
    assert math.isnan(float(found))
    assert why in found.note


def test_what_is_not_a_search():
    pair, _, given = arguments("numpy", "float64")
    step = {"x": -np.ones(3)}
    for wrong, error in (
        ({"lr": 0.0}, ArgumentError),
        ({"lr": math.nan}, ArgumentError),
        ({"rtol": 0.0}, ArgumentError),
        ({"rtol": 1.0}, ArgumentError),
        ({"max_losses": 0}, ArgumentError),
        ({"max_losses": 2.5}, ArgumentError),
        ({"max_losses": math.nan}, ArgumentError),
        ({"step": {"x": np.zeros(3)}}, ArgumentError),
        ({"step": {"x": np.full(3, math.nan)}}, ArgumentError),
        ({"step": {"y": np.ones(3)}}, ShapeError),
    ):
        with pytest.raises(error):
            geodiag.critical_lr(pair, **({"step": step} | wrong), **given)
    nowhere = (lambda w: math.nan, lambda w: {"x": w["x"]})
    with pytest.raises(NonFiniteError):
        geodiag.critical_lr(nowhere, step, params={"x": np.ones(3)})


def test_it_is_kept_by_pickle():
    pair, _, given = arguments("numpy", "float64")
    for lr in (0.1, None):
        found = geodiag.critical_lr(pair, {"x": -0.1 * H @ np.ones(3)}, lr, **given)
        again = pickle.loads(pickle.dumps(found))
        assert float(again) == float(found)
        assert again.bracket == pytest.approx(found.bracket)
        assert (again.lr, again.num_losses, again.bracketed) == (lr, 3, True)
    assert not Crossing(0.0, 1.0, 3).bracketed
