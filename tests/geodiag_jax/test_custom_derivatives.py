"""Losses with derivative rules that are not JAX's own, and with parts that are held constant.

The loss is the mean over rows of (f(x·w) − y)² s, so its Hessian has the closed form
2/n Σ (f'² + (f − y) f'') s x xᵀ, with f, f' and f'' by hand and s a constant. The relative error
of finite differences is of the order of ε^{2/3}: 4e-11 in float64, 2e-5 in float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from geodiag import errors

X = np.random.default_rng(0).standard_normal((40, 3))
Y = np.sin(X[:, 0])
W = np.array([1.0, -0.7, 0.5])
STOP = jax.lax.stop_gradient


def truth(value, first, second, weight=1.0):
    """The top eigenvalue for f, f', f'' (functions of x·w), and the constant factor s."""
    b = X @ W
    curved = (first(b) ** 2 + (value(b) - Y) * second(b)) * weight
    return float(np.linalg.eigvalsh(2 / len(X) * (X.T * curved) @ X)[-1])


def loss_of(f, weight=lambda b: 1.0):
    def loss(p, x, y):
        b = x @ p["w"]
        return jnp.mean((f(b) - y) ** 2 * weight(b))

    return loss


def measure(loss, dtype=np.float64, **arguments):
    data, params = (X.astype(dtype), Y.astype(dtype)), {"w": jnp.asarray(W, dtype)}
    return geodiag.sharpness(loss, params=params, data=data, **arguments)


def close(result, want, dtype):
    np.testing.assert_allclose(result.value, want, rtol=1e-8 if dtype is np.float64 else 2e-3)


def vjp(value, forward, backward, **options):
    f = jax.custom_vjp(value, **options)
    f.defvjp(forward, backward)
    return f


def jvp(value, rule):
    f = jax.custom_jvp(value)
    f.defjvp(lambda p, t: (value(*p), rule(*p) * t[0]))
    return f


def bisect(b):
    """The root z of z³ + z = b."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        under = middle**3 + middle < b
        return jnp.where(under, middle, low), jnp.where(under, high, middle)

    return jax.lax.fori_loop(0, 60, halve, (jnp.full_like(b, -5.0), jnp.full_like(b, 5.0)))[0]


def roots(b):
    return np.array([np.real(r[np.argmin(np.abs(r.imag))]) for r in map(np.roots, rows(b))])


def rows(b):
    return [[1.0, 0.0, 1.0, -x] for x in b]


def root_slope(b):
    return 1 / (3 * roots(b) ** 2 + 1)


def root_bend(b):
    return -6 * roots(b) * root_slope(b) ** 3


ROOT = (roots, root_slope, root_bend)
SINE = (np.sin, np.cos, lambda b: -np.sin(b))
IMPLICIT = vjp(bisect, lambda b: (bisect(b),) * 2, lambda z, g: (g / (3 * z**2 + 1),))

WRONG = {
    "implicit": (IMPLICIT, ROOT),
    "implicit forward": (jvp(bisect, lambda b: 1 / (3 * bisect(b) ** 2 + 1)), ROOT),
    "first order": (jvp(jnp.sin, lambda b: STOP(jnp.cos(b))), SINE),
    "argument": (
        functools.partial(
            vjp(
                lambda k, b: jnp.sin(k * b),
                lambda k, b: (jnp.sin(k * b), STOP(jnp.cos(k * b))),
                lambda k, r, g: (g * k * r,),
                nondiff_argnums=(0,),
            ),
            1.0,
        ),
        SINE,
    ),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", WRONG)
def test_a_gradient_whose_derivative_is_wrong_is_differentiated_by_differences(name, dtype):
    f, formula = WRONG[name]
    result = measure(loss_of(f), dtype)
    close(result, truth(*formula), dtype)
    assert any("finite differences: custom derivatives" in note for note in result.notes)


def test_a_named_engine_is_not_replaced():
    for _ in range(2):  # the verdict is kept
        with pytest.raises(errors.EngineError, match="disagree with finite differences"):
            measure(loss_of(IMPLICIT), engine="reverse")


def test_a_monitor_says_it_once():
    monitor = geodiag.Monitor(
        geodiag.problem(loss_of(IMPLICIT), params={"w": jnp.asarray(W)}, data=(X, Y)), every=1
    )
    for step in range(2):
        record = monitor.observe(step, {"w": jnp.asarray(W)}, {"w": jnp.asarray(W) * 0.9})
        assert record.sharpness == pytest.approx(truth(*ROOT), rel=1e-3)  # its rtol
    assert ["custom derivatives" in r.note for r in monitor.records] == [True, False]


def own_sine(b):
    return jnp.sin(b)


RIGHT = {
    "custom_vjp": vjp(own_sine, lambda b: (jnp.sin(b), b), lambda b, g: (g * jnp.cos(b),)),
    "custom_jvp": jvp(own_sine, jnp.cos),
    "checkpoint": jax.checkpoint(jnp.sin),
    "relu": lambda b: jax.nn.relu(jnp.sin(b) + 2.0) - 2.0,
    "logsumexp": lambda b: (
        jax.nn.logsumexp(jnp.stack([jnp.sin(b)] * 2)[:, None], axis=(0, 1)) - np.log(2.0)
    ),
    "softplus": lambda b: jax.nn.softplus(jnp.log(jnp.expm1(jnp.sin(b) + 2.0))) - 2.0,
    "norm": lambda b: (
        jax.vmap(lambda s: jnp.linalg.norm(jnp.stack([s, s])))(jnp.sin(b) + 2) / np.sqrt(2.0) - 2.0
    ),
    "scan": lambda b: jax.lax.scan(lambda c, x: (c, jnp.sin(x)), 0.0, b)[1],
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", RIGHT)
def test_right_derivatives_stay_exact_and_without_a_note(name, dtype):
    result = measure(loss_of(RIGHT[name]), dtype)
    np.testing.assert_allclose(
        result.value, truth(*SINE), rtol=1e-12 if dtype is np.float64 else 1e-4
    )
    assert (result.bound.name, result.notes) == ("EXACT", ())


@pytest.mark.parametrize("name", ["relu", "logsumexp", "softplus", "norm", "scan", "checkpoint"])
def test_what_jax_itself_defines_is_not_checked(name, monkeypatch):
    def unexpected(*_):
        raise AssertionError("a cross-check")

    monkeypatch.setattr("geodiag_jax.verdict.cross_check", unexpected)
    measure(lambda p, x, y: loss_of(RIGHT[name])(p, x, y))


@pytest.mark.parametrize("engine", ["auto", "finite-difference"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("f", ["sin", "implicit"])
def test_what_stop_gradient_stops_is_a_constant(f, dtype, engine):
    """In every engine, and with a wrong derivative beside it."""
    function, formula = (jnp.sin, SINE) if f == "sin" else (IMPLICIT, ROOT)
    result = measure(loss_of(function, lambda b: STOP(1 + jnp.sin(b))), dtype, engine=engine)
    close(result, truth(*formula, weight=1 + np.sin(X @ W)), dtype)
    assert "what stop_gradient stops in the loss is held constant" in result.notes


STOPPED = {
    "scan": lambda b: jax.lax.scan(lambda c, x: (c, STOP(1 + jnp.sin(x)) * c), 1.0, b)[1],
    "cond": lambda b: jax.lax.cond(b[0] > -9.0, lambda c: STOP(1 + jnp.sin(c)), jnp.exp, b),
    "jit": jax.jit(lambda b: STOP(1 + jnp.sin(b))),
    "vmap": jax.vmap(lambda x: STOP(1 + jnp.sin(x))),
    "checkpoint": jax.checkpoint(lambda b: STOP(1 + jnp.sin(b))),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_stop_is_found_within_other_functions(name):
    result = measure(loss_of(jnp.sin, STOPPED[name]), engine="finite-difference")
    close(result, truth(*SINE, weight=1 + np.sin(X @ W)), np.float64)


def test_a_stop_of_the_data_alone_is_not_noted():
    result = measure(lambda p, x, y: loss_of(jnp.sin)(p, STOP(x), y))
    assert result.notes == ()


def test_the_remainder_of_a_step_is_that_of_the_held_loss():
    """2(L(w⁺) − L(w) − ⟨g, s⟩)/‖s‖² with s held is the curvature along s as ‖s‖ → 0."""
    step, weight = 1e-4 * np.array([1.0, 2.0, -1.0]), 1 + np.sin(X @ W)
    b, s = X @ W, X @ step
    curvature = np.mean(2 * (np.cos(b) ** 2 - (np.sin(b) - Y) * np.sin(b)) * weight * s**2)
    found = geodiag.directional_smoothness(
        loss_of(jnp.sin, lambda b: STOP(1 + jnp.sin(b))),
        {"w": jnp.asarray(step)},
        params={"w": jnp.asarray(W)},
        data=(X, Y),
    )
    assert float(found) == pytest.approx(curvature / (step @ step), rel=1e-3)


REVERSED = vjp(lambda b: b, lambda b: (b, None), lambda _, g: (-g,))
CLIPPED = vjp(
    lambda b: b,
    lambda b: (b, None),
    lambda _, g: (g / jnp.maximum(1.0, jnp.linalg.norm(g) / 0.05),),
)
ROUNDED = vjp(
    jnp.sin,
    lambda b: (jnp.sin(b), jnp.round(jnp.cos(b) * 16) / 16),
    lambda r, g: (g * r,),
)
THROUGH = vjp(
    lambda b: jnp.round(b * 4) / 4, lambda b: (jnp.round(b * 4) / 4, None), lambda _, g: (g,)
)


@pytest.mark.parametrize("engine", ["auto", "finite-difference"])
def test_no_sharpness_of_products_that_are_not_symmetric(engine):
    loss = loss_of(lambda b: jnp.sin(CLIPPED(b)))

    def joined(p, x, y):
        return loss(p, x, y) + jnp.mean(jnp.cos(2 * x @ p["w"]))

    for norm in ("l2", "linf"):
        with pytest.raises(errors.EngineError, match="not symmetric"):
            measure(joined, norm=norm, engine=engine)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("f", [ROUNDED, THROUGH], ids=["rounded", "straight-through"])
def test_second_derivatives_that_rounding_loses_are_an_error(f, dtype):
    with pytest.raises(errors.EngineError, match="lost in rules that round"):
        measure(loss_of(f), dtype)


def test_a_replaced_gradient_has_the_hessian_of_its_rules():
    """The gradient is −∇L everywhere, so its Jacobian is −∇²L, which is symmetric."""
    result = measure(loss_of(lambda b: jnp.sin(REVERSED(b))))
    b = X @ W
    curved = np.cos(b) ** 2 - (np.sin(b) - Y) * np.sin(b)
    want = np.linalg.eigvalsh(-2 / len(X) * (X.T * curved) @ X)[-1]
    np.testing.assert_allclose(result.value, want, rtol=1e-12)
    assert any("change the gradient" in note for note in result.notes)


def test_a_straight_through_estimator_by_stop_gradient():
    """round(b) in the value, 1 in the derivative: 2/n Σ x xᵀ."""
    result = measure(loss_of(lambda b: b + STOP(jnp.round(4 * b) / 4 - b)))
    want = np.linalg.eigvalsh(2 / len(X) * X.T @ X)[-1]
    np.testing.assert_allclose(result.value, want, rtol=1e-12)


def outside(b):
    shape = jax.ShapeDtypeStruct(b.shape, b.dtype)
    return jax.pure_callback(np.sin, shape, b, vmap_method="expand_dims")


@pytest.mark.parametrize(
    "f",
    [outside, lambda b: jax.lax.while_loop(lambda c: c[0] < 9.0, lambda c: c + 1.0, b)],
    ids=["callback", "while"],
)
def test_a_part_without_derivative_is_named(f):
    with pytest.raises(errors.LossError, match="cannot differentiate a part of this loss"):
        measure(loss_of(f))


def test_below_32_bits_it_says_that_rules_are_not_checked():
    loss = loss_of(lambda b: IMPLICIT(b.astype(jnp.bfloat16)).astype(jnp.float64))
    assert any("not cross-checked below 32 bits" in note for note in measure(loss).notes)
