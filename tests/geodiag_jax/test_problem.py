"""JAX problems against the formulas of logistic regression and of quadratics.

Rounding: losses, gradients and products are sums of at most 20 terms of order one, so float64 gives
them to 20·ε·(a few) ≈ 1e-14; RTOL = 1e-12 leaves room for exp and log. An eigenvalue reached by
Lanczos with relative residual r is off by at most r² over the relative gap; at rtol = 1e-8 that is
below rounding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from geodiag.errors import ParameterError
from geodiag.norms import Muon
from tests.geodiag_jax.half import needs_float16
from tests.geodiag_jax.models import (
    X,
    Y,
    dense,
    directions,
    flat,
    logistic,
    logistic_params,
    logistic_truth,
)

RTOL = 1e-12


def sizes(batch):
    return float(len(batch[1]))


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=RTOL)


def check(oracle, truth):
    close(float(oracle.loss()), truth.loss)
    close(flat(oracle.gradient()), truth.gradient)
    close(dense(oracle), truth.hessian)


def test_closed_form():
    problem = geodiag.problem(logistic, params=logistic_params(), data=(X, Y))
    check(problem.at(), logistic_truth())


def test_gradient_against_finite_differences_of_the_formula():
    """Central differences of the NumPy loss, h = 1e-5: truncation h² ≈ 1e-10, rounding ε/h."""
    oracle = geodiag.problem(logistic, params=logistic_params(), data=(X, Y)).at()
    d = directions(oracle)
    h = 1e-5
    w, b = np.asarray(logistic_params()["w"]), float(logistic_params()["b"])

    def loss_along(t):
        z = X @ (w + t * np.asarray(d["w"])) + b + t * float(d["b"])
        return np.mean(np.logaddexp(0, z) - Y * z)

    slope = (loss_along(h) - loss_along(-h)) / (2 * h)
    gradient = oracle.gradient()
    assert sum(float(jnp.sum(gradient[n] * d[n])) for n in d) == pytest.approx(slope, abs=1e-9)


def test_other_points():
    oracle = geodiag.problem(logistic, params=logistic_params(), data=(X, Y)).at()
    zero = {"b": jnp.zeros(()), "w": jnp.zeros(4)}
    close(float(oracle.loss_at(zero)), np.log(2))
    A = np.column_stack([np.ones(20), X])
    close(flat(oracle.gradient_at(zero)), A.T @ (0.5 - Y) / 20)


def test_stacked_products():
    problem = geodiag.problem(logistic, params=logistic_params(), data=(X, Y))
    H = logistic_truth().hessian
    D = np.random.default_rng(1).standard_normal((3, 5))
    stacked = {"b": jnp.asarray(D[:, 0]), "w": jnp.asarray(D[:, 1:])}
    got = problem.at().hvps(stacked)
    close(np.column_stack([got["b"], got["w"]]), D @ H)


@pytest.mark.parametrize("form", ["tuple", "dict", "array", "none", "list of one"])
def test_call_forms(form):
    want = logistic_truth()
    p = logistic_params()
    both = np.column_stack([X, Y])
    cases = {
        "tuple": (logistic, (X, Y)),
        "dict": (lambda q, batch: logistic(q, batch["x"], batch["y"]), {"x": X, "y": Y}),
        "array": (lambda q, xy: logistic(q, xy[:, :4], xy[:, 4]), both),
        "none": (lambda q: logistic(q, jnp.asarray(X), jnp.asarray(Y)), None),
        "list of one": (logistic, [(X, Y)]),
    }
    loss, data = cases[form]
    check(geodiag.problem(loss, params=p, data=data).at(), want)


def test_options_in_a_batch_stay_python_values():
    def loss(q, batch):
        assert batch["train"] is False
        assert batch["name"] == "digits"
        return logistic(q, batch["x"], batch["y"])

    data = {"x": X, "y": Y, "train": False, "name": "digits"}
    check(geodiag.problem(loss, params=logistic_params(), data=data).at(), logistic_truth())


@pytest.mark.parametrize("engine", ["auto", "linearize", "recompute", "reverse"])
def test_ragged_batches_are_one_full_batch(engine):
    data = [(X[:9], Y[:9]), (X[9:18], Y[9:18]), [X[18:], Y[18:]]]
    problem = geodiag.problem(logistic, params=logistic_params(), data=data, engine=engine)
    oracle = problem.at()
    check(oracle, logistic_truth())
    d = {"b": jnp.ones(3), "w": jnp.ones((3, 4))}
    close(np.asarray(oracle.hvps(d)["b"]), logistic_truth().hessian[0].sum())


def test_sum_reduction():
    def total(p, x, y):
        return logistic(p, x, y) * x.shape[0]

    data = [(X[:15], Y[:15]), (X[15:], Y[15:])]
    problem = geodiag.problem(total, params=logistic_params(), data=data, reduction="sum")
    check(problem.at(), logistic_truth(weights=np.ones(20)))


def test_custom_weights():
    """Weights 1 and 3 of batches of 15 and 5: each example counts (1/4)/15 or (3/4)/5."""
    data = [(X[:15], Y[:15]), (X[15:], Y[15:])]
    weights = np.repeat([1 / 4 / 15, 3 / 4 / 5], [15, 5])
    problem = geodiag.problem(
        logistic,
        params=logistic_params(),
        data=data,
        weight=lambda batch: 1.0 if len(batch[1]) == 15 else 3.0,
    )
    check(problem.at(), logistic_truth(weights=weights))


def test_where_holds_the_rest_fixed():
    problem = geodiag.problem(logistic, params=logistic_params(), data=(X, Y), where="w")
    oracle = problem.at()
    assert oracle.names == ("w",)
    close(dense(oracle), logistic_truth().hessian[1:, 1:])
    close(flat(oracle.gradient()), logistic_truth().gradient[1:])


@pytest.mark.parametrize("engine", ["auto", "recompute", "reverse"])
def test_sharpness_l2_is_the_top_eigenvalue(engine):
    result = geodiag.sharpness(
        logistic, params=logistic_params(), data=(X, Y), engine=engine, rtol=1e-8
    )
    top = np.linalg.eigvalsh(logistic_truth().hessian)[-1]
    assert result.value == pytest.approx(top, rel=1e-12)
    assert result.bound is geodiag.Bound.EXACT


def test_sharpness_of_a_diagonal_quadratic():
    """H = diag(h) ⪰ 0: S_ℓ∞ = tr H, S_ℓ1 = S_ℓ2 = max h. Faces or eigenvalues, so exact."""
    h = np.array([3.0, 0.5, 1.0, 2.0])

    def loss(p):
        return jnp.sum(h[:3] * p["a"] ** 2) / 2 + h[3] * p["c"] ** 2 / 2

    params = {"a": jnp.ones(3), "c": jnp.ones(())}
    for norm, value in (("linf", 6.5), ("l1", 3.0), ("l2", 3.0)):
        got = geodiag.sharpness(loss, norm, params=params, rtol=1e-8)
        assert got.value == pytest.approx(value, rel=1e-12), norm


def test_tied_parameters_count_once():
    """L = Σ(w₁ + 2w₁²)… with one leaf used twice: f(w) = (w·u)² + (w·v)², H = 2(uuᵀ + vvᵀ)."""
    u, v = np.array([1.0, 2.0, 0.0]), np.array([0.0, 1.0, -1.0])

    def loss(p):
        encoder = decoder = p["tied"]
        return jnp.dot(encoder, u) ** 2 + jnp.dot(decoder, v) ** 2

    oracle = geodiag.problem(loss, params={"tied": jnp.ones(3)}).at()
    close(dense(oracle), 2 * (np.outer(u, u) + np.outer(v, v)))


def test_a_point_given_as_blocks_or_as_a_pytree():
    params = {"net": {"w": jnp.zeros(4)}, "b": jnp.zeros(()), "steps": 3}

    def loss(p, x, y):
        assert p["steps"] == 3
        return logistic({"w": p["net"]["w"], "b": p["b"]}, x, y)

    problem = geodiag.problem(loss, params=params, data=(X, Y))
    blocks = {"net.w": logistic_params()["w"], "b": logistic_params()["b"]}
    tree = {"net": {"w": blocks["net.w"]}, "b": blocks["b"], "steps": 3}
    for point in (blocks, tree, {k: np.asarray(v) for k, v in blocks.items()}):
        oracle = problem.at(point)
        close(float(oracle.loss()), logistic_truth().loss)
        assert float(oracle.point()["b"]) == 0.3
    close(float(problem.at().loss()), np.log(2))


def test_fixed_arrays_move_with_a_pytree_point():
    def loss(p):
        return jnp.sum(p["w"] ** 2) * p["scale"]

    problem = geodiag.problem(loss, params={"w": jnp.ones(2), "scale": jnp.ones(())}, where="w")
    moved = problem.at({"w": jnp.ones(2), "scale": jnp.asarray(5.0)})
    close(dense(moved), 10 * np.eye(2))
    close(dense(problem.at({"w": jnp.zeros(2)})), 2 * np.eye(2))


def test_a_diverged_point_of_its_own_is_no_other_point():
    w = jnp.asarray([np.nan, 1.0])
    problem = geodiag.problem(lambda p: p["w"] @ p["b"], params={"w": w, "b": w}, where="w")
    problem.require_whole({"w": jnp.array(w)})
    with pytest.raises(ParameterError, match="of another point"):
        problem.require_whole({"w": 2 * w})


def aligned(values):
    """A NumPy array on a 64-byte boundary, which JAX would share instead of copying."""
    raw = np.zeros(64 + 8 * len(values), np.uint8)
    at = -raw.ctypes.data % 64
    out = raw[at : at + 8 * len(values)].view(np.float64)
    out[:] = values
    return out


def test_numpy_memory_is_copied():
    w = aligned([1.0, 2.0])
    x = aligned([3.0, 4.0])
    problem = geodiag.problem(lambda p, x: jnp.sum(p["w"] ** 2 * x), params={"w": w}, data=x)
    oracle = problem.at()
    w[:], x[:] = 100.0, 100.0
    close(float(oracle.loss()), 1 * 3 + 4 * 4)
    assert isinstance(oracle.gradient()["w"], jax.Array)


def test_parameters_are_unchanged_bit_for_bit():
    params = {"w": np.float32([0.1, -0.0, 3e-39, 7.0]), "b": np.float64(0.3)}
    before = {name: np.asarray(x).tobytes() for name, x in params.items()}
    geodiag.sharpness(logistic, "linf", params=params, data=(X, Y))
    with pytest.raises(geodiag.GeodiagError):
        geodiag.sharpness(logistic, Muon(), params=params, data=(X, Y))
    assert {name: np.asarray(x).tobytes() for name, x in params.items()} == before
    assert params["w"].dtype == np.float32


def test_half_precision_is_measured_in_float32():
    """½Σ h·w²: small integers are exact in bfloat16, so the Hessian is exact too."""
    h = jnp.asarray([1.0, 2.0, 4.0], jnp.bfloat16)
    seen = []

    def loss(p):
        seen.append(p["w"].dtype)
        return jnp.sum(h * p["w"] ** 2) / 2

    oracle = geodiag.problem(loss, params={"w": jnp.ones(3, jnp.bfloat16)}).at()
    assert oracle.loss().dtype == oracle.gradient()["w"].dtype == jnp.float32
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(dense(oracle), np.diag([1.0, 2.0, 4.0]))


@needs_float16
def test_the_widest_dtype_wins():
    params = {"a": jnp.ones(2, jnp.float16), "b": jnp.ones(2, jnp.float32)}

    def loss(p):
        return jnp.sum(p["a"].astype(jnp.float32) ** 2) + jnp.sum(p["b"] ** 2)

    assert geodiag.problem(loss, params=params).at().point()["a"].dtype == jnp.float32
    wide = {**params, "b": jnp.ones(2, jnp.float64)}
    assert geodiag.problem(loss, params=wide).at().point()["a"].dtype == jnp.float64
    # What is not measured has no say.
    only = geodiag.problem(loss, params=wide, where="a").at()
    assert only.point()["a"].dtype == jnp.float32


def test_works_under_an_outer_jit():
    @jax.jit
    def top_left(w):
        problem = geodiag.problem(logistic, params={"w": w, "b": jnp.asarray(0.3)}, data=(X, Y))
        return problem.at().hvp({"b": jnp.ones(()), "w": jnp.zeros(4)})["b"]

    close(float(top_left(logistic_params()["w"])), logistic_truth().hessian[0, 0])


class Plain(geodiag.norms.L2):
    """ℓ2 that is never compiled: every product is asked of the oracle one by one."""

    key = None


def test_products_are_counted():
    """Lanczos on five parameters: at most five products of the basis, and one to certify."""
    calls = []
    problem = geodiag.problem(logistic, params=logistic_params(), data=(X, Y))
    oracle = problem.at()
    inner = oracle.hvp
    oracle.hvp = lambda d: calls.append(1) or inner(d)
    asked = geodiag.sharpness(oracle, Plain())
    assert asked.num_hvps == len(calls) <= 6
    assert geodiag.sharpness(problem).num_hvps == asked.num_hvps  # compiled, they ask unseen


def test_nan_with_throw_false():
    def loss(p):
        return jnp.sum(p["w"]) * jnp.nan

    result = geodiag.sharpness(loss, params={"w": jnp.ones(2)}, throw=False)
    assert result.status is geodiag.Status.NON_FINITE
    assert np.isnan(result.value)


def test_a_certificate_bounds_the_sharpness_of_a_loss():
    """Of a diagonal H ⪰ 0 it is tr H, and the bound is tight but for what 40 products leave."""
    h = np.linspace(0.1, 3.0, 40)

    def loss(params, h):
        return 0.5 * jnp.sum(h * params["w"] ** 2) + jnp.sum(params["w"])

    params, data = {"w": jnp.ones(40)}, (jnp.asarray(h),)
    found = geodiag.sharpness(loss, "linf", params=params, data=data, certificate=True, max_hvps=40)
    assert found.value <= h.sum() * (1 + 1e-9)
    assert h.sum() * (1 - 1e-9) <= found.upper <= 1.3 * h.sum()
