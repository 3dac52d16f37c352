"""Losses that JAX cannot differentiate twice, at a point or at all.

Σ k w_k²/2 has the Hessian diag(1, …, 6). Each loss adds a term that vanishes around the point, so
that this stays its Hessian, or one that has no second derivative there. An error of differences is
of the order of ε^{2/3}: 4e-11 in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from geodiag import errors

SCALE = np.arange(1.0, 7.0)
PARAMS = {"w": jnp.linspace(0.3, 1.2, 6), "v": jnp.zeros(3)}


def plain(p):
    return jnp.sum(SCALE * p["w"] ** 2) / 2 + 2 * jnp.sum(p["v"] ** 2)


def vanishing(p):
    return plain(p) + jnp.sum(jnp.where(p["w"] > 9, (0 * p["w"]) ** 1.5, 0.0))


def singular(p):
    return plain(p) + jnp.sum(jnp.abs(p["v"]) ** 1.5)


@pytest.mark.parametrize(("norm", "want"), [("l2", 6.0), ("linf", 33.0)])
def test_a_vanishing_term_without_second_derivative_is_measured_by_differences(norm, want):
    result = geodiag.sharpness(vanishing, norm, params=PARAMS)
    assert result.value == pytest.approx(want, rel=1e-7)
    (note,) = result.notes
    assert "finite differences: other ones are not finite" in note


def test_an_engine_that_was_named_names_the_one_that_works():
    with pytest.raises(errors.NonFiniteError, match='engine="finite-difference"') as raised:
        geodiag.sharpness(vanishing, params=PARAMS, engine="reverse")
    assert "diverged" not in str(raised.value)


def test_nothing_is_claimed_where_there_is_no_second_derivative():
    with pytest.raises(errors.NonFiniteError, match="no second derivative at this point"):
        geodiag.sharpness(singular, params=PARAMS)


def solver(traced, error):
    """Sum of squares with a rule that cannot be differentiated again, as solvers have."""

    @jax.custom_jvp
    def guarded(x):
        return 2 * x

    @guarded.defjvp
    def _(primals, tangents):
        traced.append(1)
        raise error

    f = jax.custom_vjp(lambda x: jnp.sum(x**2))
    f.defvjp(lambda x: (jnp.sum(x**2), x), lambda x, g: (g * guarded(x),))
    return lambda p: plain(p) + f(p["w"])


@pytest.mark.parametrize(
    "error", [RuntimeError("Unexpected tangent"), ValueError("reverse-mode does not work here")]
)
def test_that_a_gradient_cannot_be_differentiated_is_found_once_per_loss(error):
    traced = []
    loss = solver(traced, error)
    first = geodiag.sharpness(loss, params=PARAMS)
    found = len(traced)
    again = geodiag.sharpness(loss, params=PARAMS)
    assert len(traced) == found > 0
    assert [first.value, again.value] == pytest.approx([8.0, 8.0], rel=1e-7)
    assert first.notes == again.notes
    assert "finite differences" in first.notes[-1]
    with pytest.raises(errors.EngineError, match="cannot differentiate the gradient") as raised:
        geodiag.sharpness(loss, params=PARAMS, engine="reverse")
    assert type(error).__name__ in str(raised.value)
