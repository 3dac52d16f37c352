"""Preconditioned norms against the dense matrix P that they stand for, by SciPy.

The truth is always the (n, n) matrix over the row-major vector, built here: a diagonal, a Kronecker
product by ``np.kron``, or the dense matrix itself.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

import geodiag
from geodiag.core.spaces import MatrixView, Space
from geodiag.errors import ArgumentError, NormError
from geodiag.norms import FromFunctions, Linf, Preconditioned, QuadraticNorm
from tests import truth

SHAPES = {"W": (2, 3), "b": (2,)}


def definite(n: int, seed: int) -> np.ndarray:
    M = np.random.default_rng(seed).standard_normal((n, n))
    return M @ M.T / n + np.eye(n)


DIAGONAL = {"W": np.arange(1.0, 7.0).reshape(2, 3), "b": np.array([0.5, 8.0])}
LEFT, RIGHT, DENSE = definite(2, 0), definite(3, 1), definite(8, 2)

# label: (P as the user gives it, the same P as a dense row-major matrix).
FORMS = {
    "diagonal": (DIAGONAL, np.diag(np.r_[np.arange(1.0, 7.0), 0.5, 8.0])),
    "dense": (DENSE, DENSE),
    # Row-major: vec(L D R) = (L ⊗ Rᵀ) vec(D), and R is symmetric.
    "kronecker and diagonal": (
        {"W": (LEFT, RIGHT), "b": DIAGONAL["b"]},
        scipy.linalg.block_diag(np.kron(LEFT, RIGHT), np.diag([0.5, 8.0])),
    ),
    "callables": (
        (
            lambda d: {n: x * DIAGONAL_OF[n] for n, x in d.items()},
            lambda g: {n: x / DIAGONAL_OF[n] for n, x in g.items()},
        ),
        np.diag(np.r_[np.full(6, 2.0), np.full(2, 5.0)]),
    ),
}
DIAGONAL_OF = {"W": 2.0, "b": 5.0}


def given(P, xp, dtype):
    """The user's P with its arrays in the namespace."""

    def cast(x):
        return xp.asarray(x, dtype=getattr(xp, dtype))

    if isinstance(P, np.ndarray):
        return cast(P)
    if isinstance(P, dict):
        return {n: tuple(map(cast, e)) if isinstance(e, tuple) else cast(e) for n, e in P.items()}
    return P


@pytest.mark.parametrize("form", FORMS)
def test_value_dual_lmo_and_metric(form, xp, dtype):
    P, full = FORMS[form]
    # The condition number of P multiplies rounding in P⁻¹; here it is at most 16.
    tol = 16 * truth.tolerance(dtype, 8)
    host = truth.back(truth.to(np, truth.blocks(0, SHAPES), dtype))
    g = truth.to(xp, host, dtype)
    norm = Preconditioned(given(P, xp, dtype))
    x = truth.flat(host)
    solved = scipy.linalg.solve(full, x, assume_a="pos")
    dual = np.sqrt(x @ solved)
    for bound in (norm, norm.bind(Space.of(g))):
        assert float(bound.value(g)) == pytest.approx(np.sqrt(x @ full @ x), rel=tol)
        assert float(bound.dual(g)) == pytest.approx(dual, rel=tol)
        got = truth.flat(truth.back(bound.lmo(g)))
        np.testing.assert_allclose(got, solved / dual, rtol=0, atol=tol)
    assert isinstance(bound, QuadraticNorm)
    scale = np.abs(full @ x).max()
    np.testing.assert_allclose(truth.flat(truth.back(bound.metric(g))), full @ x, atol=tol * scale)
    np.testing.assert_allclose(
        truth.flat(truth.back(bound.inverse_metric(g))), solved, atol=tol * np.abs(solved).max()
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_the_dict_does_not_matter(form):
    """A framework may hand blocks back with their keys sorted."""
    P, full = FORMS[form]
    shapes = {"b": (2,), "W": (2, 3)} if form == "dense" else SHAPES
    host = truth.blocks(1, shapes)
    bound = Preconditioned(P).bind(Space.of(host))
    turned = {n: host[n] for n in reversed(list(host))}
    x = truth.flat(host)
    assert float(bound.value(turned)) == pytest.approx(np.sqrt(x @ full @ x), rel=1e-13)


def test_sharpness_is_a_generalised_eigenvalue():
    H = truth.symmetric(8, 5)
    for form in ("diagonal", "dense", "kronecker and diagonal", "callables"):
        P, full = FORMS[form]
        S = geodiag.sharpness(H, Preconditioned(P), shapes=SHAPES)
        expected = scipy.linalg.eigh(H, full, eigvals_only=True)[-1]
        # Lanczos over all 8 dimensions is exact; κ(P) ≤ 16 multiplies rounding of size n·ε.
        assert S.value == pytest.approx(expected, rel=1e-12), form
        assert S.bound is geodiag.Bound.EXACT


def test_kronecker_reads_kernels_through_their_matrix_view():
    """A (kh, kw, in, out) kernel with outputs last: L acts on outputs, R on kh·kw·in."""
    shape = (2, 1, 3, 2)
    L, R = definite(2, 3), definite(6, 4)
    space = Space({"k": shape}, {"k": MatrixView.last_axis_rows(4)})
    x = np.random.default_rng(6).standard_normal(shape)
    m = np.moveaxis(x, -1, 0).reshape(2, 6)
    bound = Preconditioned({"k": (L, R)}).bind(space)
    expected = np.trace(m.T @ L @ m @ R)
    assert float(bound.value({"k": x})) ** 2 == pytest.approx(expected, rel=1e-13)
    back = np.moveaxis((L @ m @ R).reshape(2, 2, 1, 3), 0, -1)
    np.testing.assert_allclose(bound.metric({"k": x})["k"], back, rtol=1e-13)


def test_scaling_the_preconditioner_scales_the_sharpness():
    H = truth.symmetric(8, 7)
    P, _ = FORMS["dense"]
    one = geodiag.sharpness(H, Preconditioned(P)).value
    assert geodiag.sharpness(H, Preconditioned(4.0 * P)).value == pytest.approx(one / 4, rel=1e-12)


@pytest.mark.parametrize(
    ("P", "said"),
    [
        (None, "needs its preconditioner P"),
        (3.0, "P has an unknown form. Got: float"),
        ((np.eye(2), np.eye(2)), "P has an unknown form. Got: tuple"),
    ],
    ids=["nothing", "a number", "a pair of arrays"],
)
def test_construction_errors(P, said):
    with pytest.raises(NormError, match=said):
        Preconditioned(P)


@pytest.mark.parametrize(
    ("P", "said"),
    [
        (np.eye(7), r"P must have shape \(8, 8\). Got: shape \(7, 7\)"),
        (np.eye(8) + np.eye(8, k=1), "P must be finite and symmetric"),
        (np.diag([np.nan] + [1.0] * 7), "P must be finite and symmetric"),
        (1e308 * (np.eye(8, k=1) - np.eye(8, k=-1)), "P must be finite and symmetric"),
        (np.diag([-1.0] + [1.0] * 7), "positive definite. Got: smallest eigenvalue -1"),
        ({"W": DIAGONAL["W"]}, "not name every measured tensor. Got: no entry for 'b'"),
        (DIAGONAL | {"b": np.ones(3)}, r"diagonal of P at 'b'.*\(2,\). Got: shape \(3,\)"),
        (DIAGONAL | {"b": np.array([1.0, 0.0])}, "'b' must be positive.*smallest entry 0"),
        (DIAGONAL | {"b": np.array([1.0, np.inf])}, "diagonal of P at 'b' must be positive"),
        (DIAGONAL | {"b": (LEFT, RIGHT)}, "pair at 'b' needs a matrix-shaped tensor"),
        (DIAGONAL | {"W": (RIGHT, RIGHT)}, r"L of 'W' must have shape \(2, 2\)"),
        (DIAGONAL | {"W": (LEFT, -RIGHT)}, "R of 'W' must be positive definite"),
    ],
)
def test_binding_errors(P, said):
    with pytest.raises(NormError, match=said):
        Preconditioned(P).bind(Space.of(truth.blocks(0, SHAPES)))


def test_by_name_alone_it_says_what_to_build():
    with pytest.raises(NormError, match=r"build it: geodiag.norms.Preconditioned\(P\)"):
        geodiag.sharpness(np.eye(2), "preconditioned")


def test_from_functions():
    """A hexagonal norm that the library does not have: max(|x|, |y|, |x + y|)."""
    corners = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])

    def value(d):
        x, y = d["p"]
        return np.max(np.abs(np.stack([x, y, x + y])))

    def lmo(g):
        scores = corners @ g["p"]
        best = int(np.argmax(np.abs(scores)))
        return {"p": np.sign(scores[best]) * corners[best]}

    norm = FromFunctions(value, lmo, name="hexagon")
    g = {"p": np.array([2.0, -3.0])}
    assert repr(norm) == "hexagon"
    assert float(norm.value(g)) == 3.0
    assert float(norm.dual(g)) == 5.0  # attained at the corner (1, −1)
    assert float(FromFunctions(value, lmo, lambda g: np.float64(7.0)).dual(g)) == 7.0
    H = np.diag([1.0, 2.0])
    # On the hexagon a convex form is largest at a corner: (1, −1) gives 3.
    assert geodiag.sharpness(H, norm, shapes={"p": (2,)}).value == pytest.approx(3.0, rel=1e-14)


@pytest.mark.parametrize("which", ["value", "lmo", "dual"])
def test_from_functions_takes_functions(which):
    parts = {"value": Linf().value, "lmo": Linf().lmo, "dual": None} | {which: 3}
    with pytest.raises(ArgumentError, match=f"{which}= must be a function of blocks. Got: int"):
        FromFunctions(**parts)
