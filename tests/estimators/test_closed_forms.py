"""Sharpness against the closed forms, in every norm and by every estimator they apply to.

All matrices are dense float64 with entries of order 1 and n ≤ 21: rounding of ⟨d, Hd⟩ is below
n²·ε ≈ 1e-13 relative to ‖H‖·‖d‖₂²; where an iteration ends by rtol = 1e-8, so does the truth.
"""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from geodiag import estimators, norms
from tests import truth
from tests.conftest import EAGER

SHAPES = truth.SHAPES
N = 20
NAMES = sorted(truth.NORMS)


def sharpness(H, norm, shapes=None, estimator="auto", **keywords):
    return geodiag.sharpness(H, norm, shapes=shapes, estimator=estimator, **keywords)


@pytest.mark.parametrize("estimator", ["auto", "ascent", "frank_wolfe"])
@pytest.mark.parametrize("name", NAMES)
def test_rank_one(name, estimator):
    """H = v vᵀ: S = ‖v‖*², attained at lmo(v), in every norm."""
    v = truth.blocks(0)
    x = truth.flat(v)
    expected = truth.NORMS[name][1](v) ** 2
    result = sharpness(np.outer(x, x), name, SHAPES, estimator)
    # The first step of each ends at ±lmo(v): no iteration is left to converge.
    assert result.value == pytest.approx(expected, rel=1e-12)
    assert truth.NORMS[name][0](result.direction) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_rank_one_over_frameworks(name, xp, dtype):
    v = truth.back(truth.to(np, truth.blocks(0), dtype))
    x = truth.flat(v)
    H = xp.asarray(np.outer(x, x), dtype=getattr(xp, dtype))
    expected = truth.NORMS[name][1](v) ** 2
    result = sharpness(H, name, SHAPES, estimators.FrankWolfe(iterations=2, restarts=1))
    # Squaring doubles the dual's relative error; the products with H add one more.
    assert result.value == pytest.approx(expected, rel=3 * truth.tolerance(dtype, N))


@pytest.mark.parametrize("estimator", ["auto", "ascent"])
def test_rank_one_plus_identity_over_the_cube(estimator):
    """Every vertex of the cube has ‖d‖₂² = n, so cI adds c·n for c ≥ 0."""
    x = truth.flat(truth.blocks(1))
    H = np.outer(x, x) + 0.7 * np.eye(N)
    expected = np.abs(x).sum() ** 2 + 0.7 * N
    assert sharpness(H, "linf", SHAPES, estimator).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", ["auto", "ascent"])
def test_rank_one_plus_identity_over_orthogonal_matrices(estimator):
    """A partial isometry of a 3 × 4 matrix has ‖D‖_F² = 3."""
    V = np.random.default_rng(2).standard_normal((3, 4))
    H = np.outer(V.ravel(), V.ravel()) + 0.7 * np.eye(12)
    expected = truth.nuclear(V) ** 2 + 0.7 * 3
    result = sharpness(H, "spectral", {"W": (3, 4)}, estimator)
    assert result.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", ["auto", "ascent"])
def test_rank_one_plus_identity_in_l2(estimator):
    x = truth.flat(truth.blocks(3))
    H = np.outer(x, x) + 0.7 * np.eye(N)
    result = sharpness(H, "l2", SHAPES, estimator)
    # Value errors of an eigenvalue are of second order in the direction's: below rtol = 1e-8.
    assert result.value == pytest.approx(x @ x + 0.7, rel=1e-8)


@pytest.mark.parametrize(
    ("name", "closed", "xp"),
    [
        *((n, f, b) for n, f in (("linf", np.sum), ("l1", np.max), ("l2", np.max)) for b in EAGER),
        pytest.param("l1", np.max, "jax", marks=pytest.mark.slow),  # compiled for seconds
    ],
    indirect=["xp"],
)
def test_diagonal_positive(name, closed, xp):
    """tr H, max H_ii, max H_ii."""
    h = np.random.default_rng(4).uniform(0.1, 3.0, N)
    result = sharpness(xp.asarray(np.diag(h), dtype=xp.float64), name, SHAPES)
    assert result.value == pytest.approx(closed(h), rel=1e-8)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (2, 5), (1, 6), (6, 1)], ids=str)
def test_one_matrix_parameter(shape):
    """⟨D, D A⟩ with A ⪰ 0, D of shape m × n: the sum of the top min(m, n) eigenvalues of A."""
    m, n = shape
    A = truth.symmetric(n, 5, np.random.default_rng(5).uniform(0.1, 2.0, n))
    expected = np.sort(np.linalg.eigvalsh(A))[::-1][: min(m, n)].sum()
    result = sharpness(np.kron(np.eye(m), A), "spectral", {"D": shape})
    # Stops when two steps gain less than 1e-8 of the value; the linear rate leaves a few of these.
    assert result.value == pytest.approx(expected, rel=1e-7)


def test_one_matrix_parameter_from_the_left():
    """⟨D, B D⟩: rows and columns are not confused."""
    B = truth.symmetric(4, 6, [0.1, 0.5, 1.0, 4.0])
    result = sharpness(np.kron(B, np.eye(2)), "spectral", {"D": (4, 2)})
    assert result.value == pytest.approx(5.0, rel=1e-7)


@pytest.mark.parametrize("estimator", ["auto", "ascent", "enumerate"])
def test_between_vertices(estimator):
    """diag(1, −5) in ℓ∞: 1 at (±1, 0); the vertices give −4."""
    result = sharpness(np.diag([1.0, -5.0]), "linf", estimator=estimator)
    # The line search reaches 1 to rounding; its second coordinate to the root of it.
    assert result.value == pytest.approx(1.0, rel=1e-8)
    np.testing.assert_allclose(np.abs(result.direction["x"]), [1.0, 0.0], atol=1e-4)


def test_the_sphere_and_not_the_ball():
    """−I has ℓ2 maximum −1 on the sphere, and 0 in the ball."""
    assert sharpness(-np.eye(4), "l2").value == pytest.approx(-1.0, rel=1e-14)
    # ℓ∞: −min ‖d‖₂² over max|d_i| = 1, at a coordinate vector. ℓ1: at the centre of a facet.
    assert sharpness(-np.eye(4), "linf").value == pytest.approx(-1.0, rel=1e-14)
    assert sharpness(-np.eye(4), "l1").value == pytest.approx(-0.25, rel=1e-14)


@pytest.mark.parametrize("n", [2, 5])
def test_negative_definite_in_linf(n):
    """−1/max_i((−H)⁻¹)_ii."""
    H = truth.symmetric(n, 8, -np.linspace(0.3, 2.0, n))
    expected = -1.0 / np.diag(np.linalg.inv(-H)).max()
    assert sharpness(H, "linf").value == pytest.approx(expected, rel=1e-12)
    # Ascent has no curvature to follow here; it stops where steps gain less than 1e-8.
    found = sharpness(H, "linf", estimator="ascent").value
    assert expected * (1 + 1e-5) <= found <= expected * (1 - 1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_the_zero_matrix(name):
    result = sharpness(np.zeros((N, N)), name, SHAPES)
    assert result.value == 0.0
    assert truth.NORMS[name][0](result.direction) == pytest.approx(1.0, rel=1e-13)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("c", [3.0, 0.01])
def test_scaling_the_loss_scales_the_sharpness(name, c):
    H = truth.symmetric(6, 9, np.linspace(0.0, 2.0, 6))
    shapes = {"W": (2, 2), "b": (2,)}
    one, scaled = sharpness(H, name, shapes), sharpness(c * H, name, shapes)
    # The same starts and the same decisions: only rounding differs, by convergence to 1e-8.
    assert scaled.value == pytest.approx(c * one.value, rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_scaling_the_norm_divides_by_its_square(name):
    """S under c‖·‖ is S/c², and a radius r divides the norm: S·r²."""
    v = truth.flat(truth.blocks(10))
    H = np.outer(v, v)
    base = geodiag.plugins.registry.norm(name)
    expected = truth.NORMS[name][1](truth.blocks(10)) ** 2
    got = sharpness(H, norms.Scaled(base, 2.5), SHAPES).value
    assert got == pytest.approx(expected / 6.25, rel=1e-12)


def test_a_radius_multiplies_by_its_square():
    v = truth.flat(truth.blocks(10))
    H = np.outer(v, v)
    got = sharpness(H, norms.Spectral(radii=3.0), SHAPES).value
    expected = 9.0 * truth.NORMS["spectral"][1](truth.blocks(10)) ** 2
    assert got == pytest.approx(expected, rel=1e-12)


def test_the_ratio_to_the_gradient_does_not_see_the_scale_of_the_loss():
    """S/‖g‖*, what normalized updates compare with 2/lr."""
    H = truth.symmetric(6, 11, np.linspace(0.5, 2.0, 6))
    w = np.random.default_rng(12).standard_normal(6)
    ratios = []
    for c in (1.0, 40.0):
        S = sharpness(c * H, "linf").value
        ratios.append(S / np.abs(c * H @ w).sum())
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-12)
