"""Engines and compilation: how often the loss is traced, what falls back, what is noticed.

The truth is the closed form of logistic regression; tolerances as in test_jax_problem.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from geodiag import errors
from geodiag_jax import derivatives
from tests.geodiag_jax.models import (
    Counted,
    W,
    X,
    Y,
    dense,
    flat,
    guarded_logistic,
    logistic,
    logistic_params,
    logistic_truth,
)

TWO = [(X[:12], Y[:12]), (X[12:], Y[12:])]


def close(got, want, rtol=1e-12):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol)


def test_one_trace_for_a_hundred_points():
    loss = Counted(logistic)
    problem = geodiag.problem(loss, params=logistic_params(), data=(X, Y))
    for k in range(100):
        point = {"w": jnp.asarray(W) * k / 100, "b": jnp.asarray(0.1)}
        geodiag.sharpness(problem, params=point, max_hvps=3)
    assert loss.calls == 2  # the measurement's own, and one that looks at the dtypes


@pytest.mark.parametrize(
    "data", [(X, Y), pytest.param(TWO, marks=pytest.mark.slow)], ids=["one batch", "two"]
)
@pytest.mark.parametrize(
    ("inner", "engine"),
    [
        *[(logistic, e) for e in ("auto", "recompute", "reverse", "finite-difference")],
        *[(guarded_logistic, e) for e in ("auto", "reverse", "finite-difference")],
    ],
)
def test_a_second_measurement_traces_nothing(inner, engine, data):
    loss = Counted(inner)
    for memory in (None, 10):
        ask = {"params": logistic_params(), "data": data, "engine": engine, "memory": memory}
        geodiag.sharpness(loss, **ask)
        before = loss.calls
        geodiag.sharpness(loss, **ask)
        assert loss.calls == before > 0


def test_static_leaves_compile_apart():
    """1, 1.0 and True are equal in Python; each must be seen as what it is."""

    def loss(p):
        return jnp.sum(p["w"] ** 2) * {int: 1, float: 2, bool: 3}[type(p["k"])]

    for k, factor in ((1, 2.0), (1.0, 4.0), (True, 6.0)):
        oracle = geodiag.problem(loss, params={"w": jnp.ones(2), "k": k}, where="w").at()
        close(dense(oracle), factor * np.eye(2))


def test_rebinding_a_captured_array_is_seen():
    scale = jnp.asarray(1.0)

    def loss(p):
        return scale * jnp.sum(p["w"] ** 2)

    params = {"w": jnp.ones(2)}
    close(float(geodiag.sharpness(loss, params=params)), 2.0)
    scale = jnp.asarray(3.0)
    close(float(geodiag.sharpness(loss, params=params)), 6.0)


def test_rebinding_an_attribute_of_a_method_is_seen():
    class Task:
        scale = None

        def loss(self, p):
            return self.scale * jnp.sum(p["w"] ** 2)

    task = Task()
    for factor in (1.0, 3.0):
        task.scale = np.asarray(factor)
        result = geodiag.sharpness(task.loss, params={"w": jnp.ones(2)})
        close(float(result), 2.0 * factor)


def test_finite_differences():
    """Documented relative error of the central difference: ε^{2/3} ≈ 4e-11, times (1 + ‖w‖)²
    and third derivatives of order one."""
    problem = geodiag.problem(
        logistic, params=logistic_params(), data=(X, Y), engine="finite-difference"
    )
    oracle = problem.at()
    close(dense(oracle), logistic_truth().hessian, rtol=1e-9)
    stacked = {"b": jnp.ones(2), "w": jnp.zeros((2, 4))}
    close(np.asarray(oracle.hvps(stacked)["b"]), logistic_truth().hessian[0, 0], rtol=1e-9)
    assert "central differences" in oracle.notes[0]


@pytest.mark.parametrize("data", [(X, Y), TWO], ids=["one batch", "two"])
def test_custom_vjp_falls_back_to_reverse(data):
    """log(p) and log(1 − p) instead of softplus: rounding grows with 1/min(p, 1 − p), here < 1e3,
    hence 1e-10."""
    oracle = geodiag.problem(guarded_logistic, params=logistic_params(), data=data).at()
    truth = logistic_truth()
    close(flat(oracle.gradient()), truth.gradient, rtol=1e-10)
    close(dense(oracle), truth.hessian, rtol=1e-10)
    stacked = {"b": jnp.ones(2), "w": jnp.zeros((2, 4))}
    close(np.asarray(oracle.hvps(stacked)["b"]), truth.hessian[0, 0], rtol=1e-10)
    assert len(oracle.notes) == 1
    assert "custom_vjp" in oracle.notes[0]
    result = geodiag.sharpness(guarded_logistic, params=logistic_params(), data=data)
    assert result.notes == oracle.notes


@pytest.mark.parametrize("engine", ["linearize", "recompute"])
def test_a_blocked_engine_says_so(engine):
    with pytest.raises(errors.EngineError, match=r'blocked.*engine="reverse"'):
        geodiag.sharpness(guarded_logistic, params=logistic_params(), data=(X, Y), engine=engine)


def test_a_loss_without_second_derivative_says_so():
    """A gradient rule that leaves JAX: neither mode can go through it, differences can."""

    @jax.custom_vjp
    def square(x):
        return jnp.sum(x**2)

    def backward(x, ct):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (ct * jax.pure_callback(lambda v: 2 * np.asarray(v), shape, x),)

    square.defvjp(lambda x: (square(x), x), backward)

    def loss(p):
        return square(p["w"])

    params = {"w": jnp.ones(2)}
    with pytest.raises(errors.EngineError, match="finite-difference"):
        geodiag.sharpness(loss, params=params, engine="reverse")
    for engine in ("auto", "finite-difference"):
        result = geodiag.sharpness(loss, params=params, engine=engine)
        assert float(result) == pytest.approx(2.0, rel=1e-9)
        assert "differences" in result.notes[-1]


def test_memory_limits_what_is_kept():
    oracle = geodiag.problem(logistic, params=logistic_params(), data=(X, Y), memory=8).at()
    close(dense(oracle), logistic_truth().hessian)
    assert "memory=8" in oracle.notes[0]
    roomy = geodiag.problem(logistic, params=logistic_params(), data=(X, Y), memory=10**6).at()
    close(dense(roomy), logistic_truth().hessian)
    assert roomy.notes == ()


def test_one_batch_keeps_its_linearization(monkeypatch):
    """Products at a kept linearization must not recompute: the recomputing functions are gone."""
    monkeypatch.setattr(derivatives, "PRODUCTS", {})
    oracle = geodiag.problem(logistic, params=logistic_params(), data=(X, Y)).at()
    close(dense(oracle), logistic_truth().hessian)


class Shuffled:
    """A loader of another half of the data at each pass."""

    def __init__(self, keep):
        self.keep, self.passes = keep, 0

    def __iter__(self):
        self.passes += 1
        order = np.roll(np.arange(20), -self.passes)[: self.keep]
        for part in np.array_split(order, 2):
            yield X[part], Y[part]


@pytest.mark.parametrize("engine", ["auto", "reverse"])
def test_data_that_change_between_passes_are_noticed(engine):
    with pytest.raises(errors.DataError, match="changed between passes"):
        geodiag.sharpness(logistic, params=logistic_params(), data=Shuffled(10), engine=engine)


def test_another_order_of_the_same_data_is_fine():
    result = geodiag.sharpness(logistic, params=logistic_params(), data=Shuffled(20), rtol=1e-8)
    top = np.linalg.eigvalsh(logistic_truth().hessian)[-1]
    assert float(result) == pytest.approx(top, rel=1e-12)


class Resplit:
    """The same examples in the same order, in other batches at each pass."""

    def __init__(self, *arrays):
        self.arrays, self.passes = arrays, 0

    def __iter__(self):
        self.passes += 1
        for part in np.array_split(np.arange(20), 1 + 3 * (self.passes % 2)):
            yield tuple(x[part] for x in self.arrays)


@pytest.mark.parametrize("passes", [0, 1])
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_a_perfect_fit_is_not_taken_for_changed_data(slope, passes):
    """Residuals r of pure rounding: mean(r² + slope·r) may differ between passes by its own size.

    The first draw is taken for which it does on this machine. The Hessian is 2·mean xxᵀ.
    """

    def loss(p, x, y):
        r = x @ p["w"] - y
        return jnp.mean(r**2 + slope * r)

    for seed in range(8, 40):
        x = np.random.default_rng(seed).standard_normal((20, 200))
        w = np.random.default_rng(seed + 1).standard_normal(200)
        data = Resplit(x, x @ w)
        problem = geodiag.problem(loss, params={"w": jnp.asarray(w)}, data=data)
        if float(problem.at().loss()) != float(problem.at().loss()):
            break
    data.passes = passes
    # Lanczos' default residual 1e-4 bounds the eigenvalue's relative error.
    top = 2 * np.linalg.eigvalsh(x.T @ x / 20)[-1]
    assert float(geodiag.sharpness(problem)) == pytest.approx(top, rel=1e-4)


def test_an_indefinite_quadratic():
    """½⟨w, Hw⟩ with H = diag(1, −5): ℓ∞ sharpness 1 at (±1, 0), inside a face."""
    h = np.array([1.0, -5.0])
    result = geodiag.sharpness(
        lambda p: jnp.sum(h * p["w"] ** 2) / 2, "linf", params={"w": jnp.ones(2)}
    )
    close(float(result), 1.0)
    close(np.abs(np.asarray(result.direction["w"])), [1.0, 0.0])
