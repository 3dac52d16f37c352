"""Architectures in JAX: products against differences of gradients, sharpness across engines.

The gradients are jax.grad's, with none of geodiag between. Fourth-order central differences along a
unit direction with h = 1e-4: truncation h⁴ = 1e-16 and rounding ε/h = 2e-12 of gradients of order
one; a Hessian's product with a unit direction is of order 0.01 to 1 here, hence 1e-8 relative.
Where a softmax inside is float32, h = 1e-2 and 1e-7/h = 1e-5, hence 1e-3.
"""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from tests.support.jax_cases import BLOCKED, CASES, SINGLE_INSIDE, flat_gradient

# Measured by make test too: one of each kind that has something of its own.
FAST = {
    "flax nnx: BatchNorm, dropout (train)",
    "custom_vjp (forward mode blocked)",
    "jax.checkpoint",
    "jax.nn.dot_product_attention",
}
marked = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES]
assert set(CASES) >= FAST


def product_by_differences(gradient, point, d, h):
    step = d * (h / np.linalg.norm(d))
    a, b, c, e = (gradient(point + k * step) for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - e) * (np.linalg.norm(d) / (12 * h))


def as_blocks(oracle, vector):
    ends = np.cumsum([oracle.space.size_of(name) for name in oracle.names])[:-1]
    pieces = zip(oracle.names, np.split(vector, ends), strict=True)
    return {name: oracle.space.asarray(x.reshape(oracle.shapes[name])) for name, x in pieces}


def as_vector(oracle, blocks):
    return np.concatenate([np.ravel(np.asarray(blocks[name])) for name in oracle.names])


@pytest.mark.parametrize("name", marked)
def test_products_against_differences_of_gradients(name):
    arguments = CASES[name]("float64")
    gradient, point, sizes = flat_gradient(arguments)
    oracle = geodiag.problem(**arguments).at()
    assert {n: oracle.space.size_of(n) for n in oracle.names} == sizes
    d = np.random.default_rng(1).choice([-1.0, 1.0], point.size)
    h, rtol = (1e-2, 1e-3) if name in SINGLE_INSIDE else (1e-4, 1e-8)
    want = product_by_differences(gradient, point, d, h)
    got = as_vector(oracle, oracle.hvp(as_blocks(oracle, d)))
    assert np.linalg.norm(got - want) <= rtol * np.linalg.norm(want)
    np.testing.assert_allclose(as_vector(oracle, oracle.gradient()), gradient(point), atol=1e-6)
    assert any("custom_vjp" in note for note in oracle.notes) is (name in BLOCKED)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_sharpness_across_engines(name):
    """λ_max by the engine of "auto" and by reverse over reverse: at a residual of 1e-5 each is off
    by 1e-10 over the relative gap. Where a softmax inside is float32, by some of its roundings."""
    values = []
    for engine in ("auto", "reverse"):
        result = geodiag.sharpness(**CASES[name]("float64"), engine=engine, rtol=1e-5)
        assert result.status in (geodiag.Status.CONVERGED, geodiag.Status.PRECISION)
        values.append(result.value)
    rtol = 1e-4 if name in SINGLE_INSIDE else 1e-7
    assert values[0] == pytest.approx(values[1], rel=rtol)
