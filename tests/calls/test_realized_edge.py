"""The realized edge of steps with a closed form, in NumPy, torch and JAX."""

from __future__ import annotations

import math
import pickle
import re
from contextlib import nullcontext
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import geodiag
from geodiag.errors import ArgumentError, NonFiniteError, ShapeError
from geodiag_torch.derivatives.frozen import FrozenOracle
from tests.geodiag_torch import test_rounding as of_torch
from tests.rounding import CASES

H = np.diag([4.0, 1.0])


class Quadratic(torch.nn.Module):
    def __init__(self, at, dtype):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(at, dtype=dtype))

    def forward(self):
        return 0.5 * (self.x @ torch.as_tensor(H, dtype=self.x.dtype) @ self.x)


def edge(framework, dtype, at, step, *args, **options):
    """Of ½⟨w, Hw⟩ at a point."""
    if framework == "torch":
        kind = getattr(torch, dtype)
        model, given = Quadratic(at, kind), {"loss_fn": lambda m, batch: m(), "data": [0]}
        step = torch.tensor(step, dtype=kind)
    elif framework == "jax":
        matrix = jnp.asarray(H, dtype=dtype)
        model = lambda w: 0.5 * (w["x"] @ matrix @ w["x"])  # noqa: E731
        given, step = {"params": {"x": jnp.asarray(at, dtype=dtype)}}, jnp.asarray(step, dtype)
    else:
        model = (lambda w: 0.5 * w["x"] @ H @ w["x"], lambda w: {"x": H.astype(dtype) @ w["x"]})
        given, step = {"params": {"x": np.asarray(at, dtype=dtype)}}, np.asarray(step, dtype)
    return geodiag.realized_edge(model, {"x": step}, *args, **options, **given)


# H = diag(4, 1), an average of gradients with β = ½ from an empty buffer, η = 0.1: at the second
# step from e₁ and from e₂, the occupation, the timing and ζ.
SECOND = {
    0: (Fraction(1), Fraction(16, 39), Fraction(13, 80)),
    1: (Fraction(1, 4), Fraction(38, 87), Fraction(29, 760)),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_second_step_of_an_average(framework, dtype, axis):
    w, m, limit = np.eye(2)[axis], np.zeros(2), geodiag.threshold(0.1, momentum=0.5, ema=True)
    for _ in range(2):
        at, m = w, 0.5 * m + 0.5 * H @ w
        w = at - 0.1 * m
    found = edge(framework, dtype, at, w - at, "l2", threshold=limit)
    close = 1e-9 if dtype == "float64" else 1e-4
    parts = (found.occupation, found.timing, float(found))
    assert parts == pytest.approx([float(x) for x in SECOND[axis]], rel=close)
    assert 4 / float(limit) * found.occupation / found.timing == pytest.approx(found, rel=close)
    assert float(limit) == pytest.approx(60.0)


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
@pytest.mark.parametrize(("lr", "falls"), [(0.1, True), (0.49, True), (0.51, False), (2.0, False)])
def test_below_one_the_loss_falls_and_above_it_rises(framework, lr, falls):
    found = edge(framework, "float64", [1.0, 0.0], [-lr * 4.0, 0.0], "l2", lr=lr)
    assert float(found) == pytest.approx(lr * 4 / 2)
    assert (found.new_loss < found.loss) == falls == (found < 1)
    assert found.loss == pytest.approx(2.0)
    assert found.timing == pytest.approx(1.0)


def test_of_descent_in_another_norm_it_is_half_lr_times_smoothness():
    """ζ = ηD/2 for w⁺ = w − η‖g‖*·lmo(g); here in ℓ∞."""
    w = np.array([1.0, -2.0])
    g = H @ w
    step = {"x": -0.05 * np.abs(g).sum() * np.sign(g)}
    pair = (lambda p: 0.5 * p["x"] @ H @ p["x"], lambda p: {"x": H @ p["x"]})
    found = geodiag.realized_edge(pair, step, params={"x": w})
    D = geodiag.directional_smoothness(pair, step, "linf", params={"x": w})
    assert float(found) == pytest.approx(0.05 * float(D) / 2)
    assert math.isnan(found.occupation)
    assert math.isnan(found.timing)


def test_a_threshold_of_a_normalized_update_is_on_the_quotient():
    w = np.array([1.0, -2.0])
    g = H @ w
    pair = (lambda p: 0.5 * p["x"] @ H @ p["x"], lambda p: {"x": H @ p["x"]})
    for limit in (
        geodiag.threshold(0.1, normalized=True),
        geodiag.threshold(0.1, normalized=True, dual_norm=np.abs(g).sum()),
    ):
        step = {"x": -0.1 * np.sign(g)}
        found = geodiag.realized_edge(pair, step, "linf", threshold=limit, params={"x": w})
        assert found.timing == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_error_is_within_the_stated_rounding(framework, dtype):
    """On a loss of 1 with steps down to where differences of it drown."""
    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-3, 1e-5):
        at = rng.standard_normal(2).astype(dtype).astype(float)
        g = H @ at
        step = (-size * g).astype(dtype).astype(float)
        taken = ((at + step).astype(dtype) - at.astype(dtype)).astype(float)
        true = (taken @ H @ taken) / (-2 * g @ taken)
        found = edge(framework, dtype, at, step)
        assert abs(float(found) - true) <= found.rounding + 1e-12


def test_a_step_that_does_not_descend_has_none():
    found = edge("numpy", "float64", [1.0, 0.0], [0.1, 0.0], "l2", lr=0.1)
    assert math.isnan(found)
    assert math.isnan(found.rounding)
    assert "does not descend" in found.note
    assert "does not descend" in repr(found)
    assert found.occupation == pytest.approx(1.0)
    sideways = edge("numpy", "float64", [1.0, 0.0], [0.0, 0.1])
    assert "does not descend" in sideways.note


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"step": [0.0, 0.0]}, ArgumentError),
        ({"step": [math.nan, 0.0]}, ArgumentError),
        ({"step": [1.0, 0.0, 0.0]}, ShapeError),
        ({"lr": 0.1}, ArgumentError),
        ({"threshold": 1.0}, ArgumentError),
        ({"norm": "l2", "lr": 0.1, "threshold": 1.0}, ArgumentError),
        ({"norm": "l2", "threshold": -1.0}, ArgumentError),
        ({"norm": "l2", "threshold": math.nan}, ArgumentError),
        ({"norm": "l2", "threshold": "x"}, ArgumentError),
        ({"norm": "l2", "lr": 0.0}, ArgumentError),
    ],
)
def test_what_has_no_edge(given, error):
    given = {"step": [-0.1, 0.0]} | given
    with pytest.raises(error):
        edge("numpy", "float64", [1.0, 0.0], given.pop("step"), **given)


@pytest.mark.parametrize("size", [1e-18, 1e-170])
def test_a_step_that_is_lost_to_rounding(size):
    with pytest.raises(ArgumentError, match="lost to rounding"):
        edge("numpy", "float64", [1.0, 1.0], [-size, 0.0])


def test_a_loss_that_is_not_finite():
    pair = (lambda w: math.inf if w["x"][0] > 1 else 1.0, lambda w: {"x": -np.ones(1)})
    with pytest.raises(NonFiniteError):
        geodiag.realized_edge(pair, {"x": np.ones(1)}, params={"x": np.ones(1)})


def test_it_is_kept_by_pickle():
    found = edge("numpy", "float64", [1.0, 0.0], [-0.1, 0.0], "l2", lr=0.1)
    again = pickle.loads(pickle.dumps(found))
    assert vars(again) == vars(found)
    assert float(again) == float(found)


def test_records_carry_it():
    """SGD with a step of its own, and with one that is half along each axis."""
    pair = (lambda p: 0.5 * p["x"] @ H @ p["x"], lambda p: {"x": H @ p["x"]})
    at = {"x": np.ones(2)}
    monitor = geodiag.Monitor(pair, "l2", params=at, lr=0.1)
    record = monitor.observe(0, at, {"x": np.ones(2) - 0.1 * H @ np.ones(2)})
    g = H @ np.ones(2)
    assert record.realized_edge == pytest.approx(0.05 * (g @ H @ g) / (g @ g))
    assert record.realized_edge == pytest.approx(record.ratio * record.occupation / record.timing)
    record = monitor.observe(10, at, {"x": np.array([1.1, 1.0])})
    assert math.isnan(record.realized_edge)
    assert "no ζ: the step does not descend" in record.note


@pytest.mark.parametrize(
    ("precision", "seed"),
    [
        ("bfloat16", 101784),  # one entry moved, which no loss and no gradient shows
        ("bfloat16", 101960),  # samples at w that are small by chance
        ("bfloat16", 102116),  # a loss of half its value, and a slope of eight times its own
        ("autocast bfloat16", 101156),  # a loss that grows tenfold, and its error with it
    ],
)
@pytest.mark.parametrize("options", [{"max_hvps": 12}, {"sharpness": False}], ids=["S", "no S"])
def test_draws_whose_error_the_samples_at_w_do_not_show(monkeypatch, precision, seed, options):
    """Where nothing can be computed in float32; see tests/rounding.py for the truth."""
    monkeypatch.setattr(FrozenOracle, "in_float32", lambda oracle: None)
    found = {each.name: each for each in CASES[f"torch {precision}"](seed)}
    drawn = of_torch.draw(seed, precision)
    monitor = geodiag.Monitor(
        drawn.model, "l2", loss_fn=drawn.loss_fn, data=drawn.data, lr=0.1, every=1, **options
    )
    here = {name: p.detach().clone() for name, p in drawn.model.named_parameters()}
    there = {name: w + drawn.step[name].to(w.dtype) for name, w in here.items()}
    record = monitor.observe(0, here, there)
    assert all(each.error <= 1 for each in found.values())
    stated = float(re.search(r"D ± ([^,;]+)", record.note)[1])
    assert abs(record.directional_smoothness - found["D"].truth) <= stated
    assert ("ζ: its error has no bound" in record.note) == ("ζ ± inf" in record.note)


@pytest.mark.parametrize("framework", ["torch", "JAX"])
def test_below_32_bits_zeta_is_from_the_same_loss_in_float32(framework):
    """It has a bound in each of these draws, where bfloat16 loses ζ in a third of them."""
    found = [each for seed in range(4) for each in CASES[f"{framework} bfloat16"](seed)]
    assert {each.name for each in found} >= {"ζ", "ζ of a record", "ζ of a record without S"}
    assert all(each.error <= 1 and math.isfinite(each.rounding) for each in found)


def torch_noise(model, batch):
    return model(nn.functional.dropout(batch, 0.5)).square().mean()


def torch_cast(model, batch):
    return nn.functional.linear(batch, model.weight.bfloat16()).square().mean()


def torch_own_noise(model, batch):
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(batch.shape, generator=generator, dtype=batch.dtype)
    return model(batch + 0.01 * noise).square().mean()


def torch_dtype(model, batch):
    return model(batch).square().mean() - math.log(torch.finfo(batch.dtype).eps)


def torch_counter(model, batch):
    model.count = getattr(model, "count", 0) + 1
    return model(batch).square().mean() * (1 + 0.01 * model.count)


def torch_counted(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return torch_counter(model, batch)


def jax_noise(params, x):
    return ((x * jax.random.normal(jax.random.key(0), x.shape, x.dtype)) @ params["w"]).sum()


def jax_cast(params, x):
    return (x @ params["w"].astype("bfloat16")).sum()


TORCH = [torch_noise, torch_own_noise, torch_cast, torch_dtype, torch_counter]


@pytest.mark.parametrize("loss", [*TORCH, jax_noise, jax_cast])
def test_a_loss_that_cannot_be_computed_in_float32(loss):
    """It draws numbers, which would be others, casts to fewer bits itself, asks for the dtype, or
    moves on what it keeps in a model of which float32 takes a copy."""
    if loss in TORCH:
        x = torch.ones(4, 3, dtype=torch.bfloat16)
        model = nn.Linear(3, 2, bias=False).bfloat16()
        before = torch.random.get_rng_state()
        assert geodiag.problem(model, loss_fn=loss, data=x).at().in_float32() is None
        assert torch.equal(torch.random.get_rng_state(), before)
    else:
        x = jax.numpy.ones((4, 3), "bfloat16")
        params = {"w": jax.numpy.ones((3, 2), "bfloat16")}
        assert geodiag.problem(loss, params=params, data=(x,)).at().in_float32() is None


def test_in_float32_a_loss_is_what_it_was_at_w():
    """What a model keeps may move on before it is asked for: between w and the end of a step."""
    model = nn.Linear(3, 2)
    oracle = geodiag.problem(model, loss_fn=torch_counted, data=torch.ones(4, 3)).at()
    loss = float(oracle.loss())
    model.count = 50
    assert float(oracle.in_float32().loss()) == pytest.approx(loss, rel=0.02)


@pytest.mark.parametrize("around", [True, False], ids=["around", "inside"])
def test_autocast_is_turned_off_for_zeta_alone(around):
    model, x = nn.Linear(3, 2), torch.randn(4, 3)

    def loss_fn(model, batch):
        with nullcontext() if around else torch.autocast("cpu", torch.bfloat16):
            return model(batch).square().mean()

    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        oracle = geodiag.problem(model, loss_fn=loss_fn, data=x).at()
        exact = oracle.in_float32()
        assert torch.is_autocast_enabled("cpu") is around
    assert float(exact.loss()) == pytest.approx(float(model(x).detach().square().mean()), rel=1e-6)
    assert float(oracle.loss()) != float(exact.loss())
