"""The critical step along closed forms, in NumPy, torch and JAX, and where there is none."""

from __future__ import annotations

import math
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import geodiag
from geodiag.core.crossing import Crossing, search
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
