"""Pytrees of every library: names, what is measured, and which axis of a tensor is its rows."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import geodiag
from geodiag import errors
from geodiag.core.spaces import MatrixView
from geodiag_jax import JaxProblem

FIRST, LAST = MatrixView.first_axis_rows, MatrixView.last_axis_rows
X = np.random.default_rng(3).standard_normal((6, 2))
Y = np.random.default_rng(4).standard_normal((6, 3))


def mse(out, y):
    return jnp.mean(jnp.sum((out - y) ** 2, axis=1))


def top_of_linear_regression():
    """mean‖Wx + b − y‖²: H = 2·I₃ ⊗ A with A = mean (x, 1)(x, 1)ᵀ; independent of the point."""
    A = np.column_stack([X, np.ones(6)])
    return 2 * np.linalg.eigvalsh(A.T @ A / 6)[-1]


def linen():
    model = nn.Dense(3)
    variables = model.init(jax.random.key(0), jnp.asarray(X))
    return lambda v, x, y: mse(model.apply(v, x), y), variables, ("params.bias", "params.kernel")


def nnx_state():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)

    def loss(s, x, y):
        return mse(nnx.merge(graph, s)(x), y)

    return loss, state, ("bias.value", "kernel.value")


def equinox():
    model = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    return lambda m, x, y: mse(jax.vmap(m)(x), y), model, ("weight", "bias")


def nested():
    params = {"net": [{"w": jnp.ones((2, 3))}, (jnp.ones(3), None, "relu", 4, jnp.tanh)]}
    names = ("net.0.w", "net.1.0")
    return lambda p, x, y: mse(x @ p["net"][0]["w"] + p["net"][1][0], y), params, names


def plain():
    params = {"w": jnp.zeros((2, 3)), "b.dotted": np.zeros(3)}
    return lambda p, x, y: mse(x @ p["w"] + p["b.dotted"], y), params, ("b.dotted", "w")


MODELS = {f.__name__: f for f in (linen, nnx_state, equinox, nested, plain)}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_names_and_sharpness(make):
    """Relative residual r = 1e-6 in float32 arithmetic (parameters of flax and Equinox may be
    float32): eigenvalues to 64·ε₃₂ ≈ 1e-5 over sums of 6 terms."""
    loss, params, names = make()
    problem = geodiag.problem(loss, params=params, data=(X, Y))
    assert problem.at().names == names
    result = geodiag.sharpness(problem, rtol=1e-6)
    assert float(result) == pytest.approx(top_of_linear_regression(), rel=1e-5)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_shapes_as_matrices_are_outputs_by_inputs(make):
    """Every layer maps 2 inputs to 3 outputs, whatever its layout."""
    _, params, _ = make()
    space = JaxProblem(lambda p: 0.0, params=params).space
    ((name, view),) = space.matrix_view.items()
    assert view.shape(space.shapes[name]) == (3, 2)


@pytest.mark.parametrize("make", [linen, equinox], ids=["flax", "equinox"])
def test_muon_radii_the_right_way_round(make):
    """Weights alone: ⟨D, DA⟩-type Hessian 2·I₃ ⊗ A, A (2 × 2): spectral sharpness is twice the
    sum of the top min(3, 2) = 2 eigenvalues of A, i.e. 2·tr A; the radius √(out/in) = √(3/2)
    multiplies it by 3/2. Read the wrong way round the radius would be 1.
    float32: 64·ε₃₂ ≈ 1e-5; the maximiser is any isometry, which Ascent reaches to its rtol."""
    loss, params, _ = make()
    A = X.T @ X / 6
    value = geodiag.sharpness(
        loss, "muon", params=params, data=(X, Y), where="kernel|weight", rtol=1e-6
    )
    assert float(value) == pytest.approx(1.5 * 2 * np.trace(A), rel=2e-5)


def test_views_of_kernels_and_embeddings():
    params = {
        "conv": {"kernel": jnp.zeros((3, 3, 4, 8))},
        "embedding": jnp.zeros((10, 4)),
        "weight": jnp.zeros((5, 2)),
        "scale": jnp.zeros(4),
        "gain": jnp.zeros(()),
    }
    space = JaxProblem(lambda p: 0.0, params=params).space
    assert dict(space.matrix_view) == {
        "conv.kernel": LAST(4),
        "embedding": LAST(2),
        "weight": LAST(2),  # a dict key, not Equinox's attribute
    }
    conv = eqx.nn.Conv2d(4, 8, 3, key=jax.random.key(0))
    space = JaxProblem(lambda p: 0.0, params=conv, where="weight").space
    assert dict(space.matrix_view) == {"weight": FIRST(4)}


def test_order_of_blocks_is_that_of_the_leaves():
    """Ten and more layers: JAX would sort names as strings, 'layers.10' before 'layers.2'."""
    params = {"layers": [jnp.full((1,), float(k)) for k in range(12)]}
    coefficients = np.arange(1.0, 13.0)

    def loss(p):
        return sum(c * jnp.sum(w**2) for c, w in zip(coefficients, p["layers"], strict=True)) / 2

    oracle = geodiag.problem(loss, params=params).at()
    names = tuple(f"layers.{k}" for k in range(12))
    ones = {n: jnp.ones(1) for n in names}
    for blocks in (oracle.point(), oracle.gradient(), oracle.hvp(ones)):
        assert tuple(blocks) == names
    assert [float(x[0]) for x in oracle.hvp(ones).values()] == coefficients.tolist()


def test_a_bare_array():
    result = geodiag.sharpness(lambda w: 1.5 * jnp.sum(w**2), params=jnp.ones(3))
    assert set(result.direction) == {"x"}
    assert float(result) == pytest.approx(3.0, rel=1e-12)


def test_random_keys_are_held_fixed():
    params = {"w": jnp.ones(2), "key": jax.random.key(1)}

    def loss(p):
        return jax.random.uniform(p["key"]) * jnp.sum(p["w"] ** 2)

    oracle = geodiag.problem(loss, params=params).at()
    assert oracle.names == ("w",)
    want = 2 * float(jax.random.uniform(jax.random.key(1)))
    product = oracle.hvp({"w": jnp.ones(2)})["w"]
    np.testing.assert_allclose(product, [want, want], rtol=1e-12)


def test_nnx_shared_weights_are_one_parameter():
    """Tied: f(w) = mean (w·x·w)² = mean x² w⁴ at w = 1: f'' = 12·mean x²."""

    class Tied(nnx.Module):
        def __init__(self):
            self.a = self.b = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            return self.a[...] * x * self.b[...]

    graph, state = nnx.split(Tied())
    x = X[:, 0]
    result = geodiag.sharpness(
        lambda s, x: jnp.mean(nnx.merge(graph, s)(x) ** 2), params=state, data=x
    )
    assert set(result.direction) == {"a.value"}
    assert float(result) == pytest.approx(12 * np.mean(x**2), rel=1e-12)


def test_names_that_clash():
    params = {"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(errors.ParameterError, match=r"same name.*'a\.b'"):
        geodiag.problem(lambda p: jnp.sum(p["a.b"]), params=params)


def test_unhashable_leaf():
    class Odd:
        __hash__ = None

    params = {"w": jnp.ones(2), "odd": Odd()}
    with pytest.raises(errors.ParameterError, match=r"neither an array nor hashable.*Odd"):
        geodiag.problem(lambda p: jnp.sum(p["w"]), params=params)
