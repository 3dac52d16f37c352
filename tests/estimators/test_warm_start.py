"""Warm measurements: their cost, their age, the cold check; Lanczos in leaps; both bounds at once.

The truth is closed: trace norms of diagonal matrices in ℓ∞, block norms of rank one, SciPy's eigsh.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse.linalg

import geodiag
from geodiag import Bound, Status, errors, norms
from geodiag.estimators import Ascent
from tests import truth
from tests.quadratic import Quadratic

N = 24


def through_json(result):
    witness = {n: x.tolist() for n, x in result.state["witness"].items()}
    return json.loads(json.dumps(result.state | {"witness": witness}))


def drifting_matrix(step):
    """A positive matrix that moves by a percent a step."""
    A = np.random.default_rng(0).standard_normal((N, 6))
    B = np.random.default_rng(1).standard_normal((N, 6))
    M = A + 0.01 * step * B
    return M @ M.T


def drifting(step, shapes=None):
    return Quadratic(drifting_matrix(step), shapes)


AS = {"result": lambda r: r, "state": lambda r: r.state, "json": through_json}


@pytest.mark.parametrize("how", AS)
@pytest.mark.parametrize("norm", ["linf", "spectral"])
def test_a_warm_measurement_takes_two_or_three_products(how, norm):
    shapes = {"W": (4, 5), "b": (4,)}
    result = geodiag.sharpness(drifting(0, shapes), norm)
    assert result.state["age"] == 0
    counts = []
    for step in range(1, 20):
        oracle = drifting(step, shapes)
        result = geodiag.sharpness(oracle, norm, start=AS[how](result))
        counts.append(oracle.asked)
        assert result.num_hvps == oracle.asked
        assert result.state["age"] == step
        attained = sum(
            float(np.sum(x * oracle.hvp(result.direction)[n])) for n, x in result.direction.items()
        )
        assert result.value == pytest.approx(attained, rel=1e-12)
        assert result.bound is Bound.LOWER
    # Every fifth tries another start too; one more where the witness lies inside a segment.
    assert max(counts) <= 9
    assert max(c for i, c in enumerate(counts, 1) if i % 5) <= 4
    assert all(c > 4 for i, c in enumerate(counts, 1) if i % 5 == 0)
    assert sorted(counts)[len(counts) // 2] in (2, 3)
    assert sum(counts) <= 4 * len(counts)
    check = geodiag.sharpness(oracle := drifting(20, shapes), norm, start=AS[how](result))
    assert check.state["age"] == 0
    assert 4 < oracle.asked <= 20


@pytest.mark.parametrize("how", AS)
def test_an_overtaken_maximum_is_found_at_the_next_glance(how):
    """Two blocks of rank one, uncoupled, in the sum of their ℓ∞ norms: S is the larger block's."""
    u, v = np.random.default_rng(2).uniform(0.5, 1.5, (2, 12))
    norm = norms.SumOver(norms.Linf())

    def blocks(t):
        H = np.zeros((N, N))
        H[:12, :12], H[12:, 12:] = np.outer(u, u), t * np.outer(v, v)
        tops = np.sum(u) ** 2, t * np.sum(v) ** 2
        return Quadratic(H, {"a": (12,), "b": (12,)}), tops

    oracle, (first, second) = blocks(0.5)
    assert second < first
    result = geodiag.sharpness(oracle, norm, estimator="ascent")
    assert result.value == pytest.approx(first, rel=1e-9)
    for _ in range(4):
        oracle, (first, second) = blocks(2.0)
        result = geodiag.sharpness(oracle, norm, start=AS[how](result), estimator="ascent")
        # A local maximum stays one: a few products do not see the other block.
        assert result.value == pytest.approx(first, rel=1e-9)
    oracle, (first, second) = blocks(2.0)
    result = geodiag.sharpness(oracle, norm, start=AS[how](result), estimator="ascent")
    assert result.value == pytest.approx(second, rel=1e-9)
    assert second > 1.3 * first


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("norm", ["linf", "spectral"])
def test_warm_witnesses_stay_on_the_sphere(norm, seed):
    """Of indefinite matrices that change at once, where a step may end inside the ball."""
    shapes = {"W": (3, 4), "b": (4,)}
    spectrum = np.random.default_rng(seed).uniform(-2.0, 1.5, 16)
    result = geodiag.sharpness(Quadratic(truth.symmetric(16, seed, spectrum), shapes), norm)
    for step in range(1, 5):
        H = truth.symmetric(16, 100 * seed + step, spectrum)
        before = result.direction
        oracle = Quadratic(H, shapes)
        result = geodiag.sharpness(oracle, norm, start=result)
        d = np.concatenate([x.ravel() for x in result.direction.values()])
        sizes = {
            "linf": np.abs(d).max(),
            "spectral": max(np.linalg.norm(result.direction["W"], 2), np.linalg.norm(d[12:])),
        }
        assert sizes[norm] == pytest.approx(1.0, abs=1e-12)
        assert result.value == pytest.approx(d @ H @ d, rel=1e-9, abs=1e-12)
        old = np.concatenate([x.ravel() for x in before.values()])
        assert result.value >= old @ H @ old - 1e-12


def test_a_budget_of_ones_own_replaces_the_three():
    before = geodiag.sharpness(drifting(0), "linf")
    for budget in (2, 5, 11):
        oracle = Quadratic(-drifting_matrix(30))  # where it cannot stop early
        result = geodiag.sharpness(oracle, "linf", start=before, max_hvps=budget)
        assert budget - 3 < oracle.asked <= budget
        assert result.state["age"] == 1


def test_blocks_are_a_start_and_no_witness():
    before = geodiag.sharpness(drifting(0), "linf")
    for start in (before.direction, before.state["witness"]):
        oracle = drifting(0)
        result = geodiag.sharpness(oracle, "linf", start=start)
        assert oracle.asked > 20
        assert result.state["age"] == 0
        assert result.value >= before.value * (1 - 1e-12)


def test_the_witness_of_another_norm_is_a_start_alone():
    before = geodiag.sharpness(drifting(0), "linf")
    for start in (before, before.state):
        oracle = drifting(0)
        result = geodiag.sharpness(oracle, norms.Scaled(norms.Linf(), 2.0), start=start)
        assert oracle.asked > 20
        assert result.state["age"] == 0
        assert result.value >= before.value / 4 * (1 - 1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_after_a_failure_the_search_is_cold(norm):
    class Broken(Quadratic):
        def hvp(self, d):
            return {n: x * np.nan for n, x in super().hvp(d).items()}

    failed = geodiag.sharpness(Broken(np.eye(N)), norm, throw=False)
    assert failed.status is Status.NON_FINITE
    cold = geodiag.sharpness(drifting(0), norm)
    for start in (failed, failed.state):
        again = geodiag.sharpness(drifting(0), norm, start=start)
        assert (again.value, again.num_hvps) == (cold.value, cold.num_hvps)


def test_parameters_named_as_the_state_is():
    """Blocks of parameters that happen to be called "witness" and "age" are blocks."""
    shapes = {"witness": (2,), "age": (1,)}
    H = np.diag([1.0, 2.0, 30.0])
    start = {"witness": np.ones(2), "age": np.ones(1)}
    result = geodiag.sharpness(H, "l2", shapes=shapes, start=start)
    assert result.value == pytest.approx(30.0)
    again = geodiag.sharpness(H, "l2", shapes=shapes, start=result)
    assert again.value == pytest.approx(30.0)


# Lanczos.

WIDE = 150  # small problems are orthogonalised in full, step by step
SPECTRA = {
    "ill-conditioned": np.geomspace(1e-7, 1.0, WIDE),
    "cluster at the top": np.r_[np.linspace(-1.0, 0.9, WIDE - 6), 1.0 - 1e-3 * np.arange(6)],
    "negative outlier": np.r_[-50.0, np.linspace(-1.0, 0.7, WIDE - 2), 1.0],
    "negative": -np.geomspace(1e-1, 1.0, WIDE),
    "rank three": np.r_[np.zeros(WIDE - 3), 0.5, 0.9, 1.0],
}


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("label", SPECTRA)
def test_leaps_against_eigsh(label, size, dtype):
    H = (truth.symmetric(WIDE, 3, SPECTRA[label]) * size).astype(dtype)
    wide = H.astype(float)
    top = scipy.sparse.linalg.eigsh(wide, k=1, which="LA", tol=1e-12, v0=np.ones(WIDE))[0][0]
    oracle = Quadratic(H)
    result = geodiag.sharpness(oracle, "l2", rtol=1e-4)
    assert result.num_hvps == oracle.asked
    rounding = truth.tolerance(dtype, WIDE) * np.abs(np.linalg.eigvalsh(wide)).max()
    # An eigenvalue is as near as the residual says, and PRECISION says that rounding is all.
    assert result.value == pytest.approx(top, abs=1.5e-4 * abs(top) + rounding)
    assert result.status is Status.CONVERGED or (dtype, result.status) == (
        "float32",
        Status.PRECISION,
    )


@pytest.mark.parametrize("label", SPECTRA)
def test_leaps_end_where_full_orthogonalisation_does(label):
    """``free_hvps`` turns leaps off: the same Krylov space, orthogonalised in full."""
    H = truth.symmetric(WIDE, 3, SPECTRA[label])
    leaping = geodiag.sharpness(Quadratic(H), "l2", max_hvps=28)
    full = geodiag.sharpness(H, "l2", rtol=1e-4, max_hvps=28)
    slack = 1e-8 * np.abs(SPECTRA[label]).max()
    if leaping.num_hvps >= full.num_hvps:  # looks at the residual at every second step
        assert leaping.value >= full.value - slack
    assert leaping.num_hvps <= full.num_hvps + 8  # a leap that lost its orthogonality is repeated


@pytest.mark.parametrize("budget", range(2, 16))
@pytest.mark.parametrize("n", [40, WIDE])
def test_never_exact_before_eight_steps(n, budget):
    H = np.diag(np.r_[np.linspace(0.0, 1e-3, n - 2), 1.0, 2.0])
    result = geodiag.sharpness(Quadratic(H), "l2", max_hvps=budget)
    assert result.num_hvps <= budget
    if result.bound is Bound.EXACT:
        assert result.num_hvps > 8
        assert result.value == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("how", AS)
def test_lanczos_tracks_with_one_product(how):
    H = truth.symmetric(WIDE, 5, np.r_[np.linspace(-1.0, 1.0, WIDE - 1), 2.0])
    result = geodiag.sharpness(Quadratic(H), "l2", rtol=1e-5)
    for age in range(1, 20):
        oracle = Quadratic(H)
        result = geodiag.sharpness(oracle, "l2", rtol=1e-4, start=AS[how](result))
        assert oracle.asked == result.num_hvps == 1
        assert result.bound is Bound.LOWER
        assert result.state["age"] == age
        assert result.value == pytest.approx(2.0, rel=1e-8)
    result = geodiag.sharpness(Quadratic(H), "l2", rtol=1e-4, start=AS[how](result))
    assert result.bound is Bound.EXACT
    assert result.num_hvps >= 9
    assert result.state["age"] == 0
    unasked = geodiag.sharpness(Quadratic(H), "l2", start=result)  # no rtol: as exact as ever
    assert unasked.bound is Bound.EXACT


def test_an_overtaken_eigenvalue_is_found_at_the_check():
    before = np.diag(np.r_[np.linspace(-1.0, 1.0, WIDE - 2), 3.0, 2.0])
    after = np.diag(np.r_[np.linspace(-1.0, 1.0, WIDE - 2), 3.0, 4.0])
    result = geodiag.sharpness(Quadratic(before), "l2", rtol=1e-6)
    values = []
    for _ in range(20):
        result = geodiag.sharpness(Quadratic(after), "l2", rtol=1e-3, start=result)
        assert result.value <= 4.0 * (1 + 1e-12)
        assert result.bound is (Bound.EXACT if result.num_hvps >= 9 else Bound.LOWER)
        values.append(result.value)
    assert values[0] == pytest.approx(3.0, rel=1e-3)
    assert values[-1] == pytest.approx(4.0, rel=1e-3)


# Both bounds at once.


@pytest.mark.parametrize("budget", [12, 13, 20, 60, 250])
@pytest.mark.parametrize("norm", ["linf", "spectral", "l2", "l1", "block"])
def test_both_bounds_within_one_budget(norm, budget):
    H = truth.symmetric(20, 6, np.linspace(-1.0, 3.0, 20))
    oracle = Quadratic(H, {"W": (4, 3), "b": (8,)}, np.ones(20))
    result = geodiag.sharpness(oracle, norm, certificate=True, max_hvps=budget)
    assert oracle.asked == result.num_hvps <= budget
    assert result.upper >= result.value
    assert any("1 − 1e-06" in note for note in result.notes)
    if norm == "l2":
        assert result.upper >= np.linalg.eigvalsh(H)[-1] * (1 - 1e-12)
    if norm == "linf":  # local maxima do not exceed an upper bound either
        corners = np.sign(np.random.default_rng(0).standard_normal((500, 20)))
        assert result.upper >= np.einsum("ki,ij,kj->k", corners, H, corners).max()


def test_enumerated_the_bounds_are_one():
    result = geodiag.sharpness(truth.symmetric(5, 7), "linf", certificate=True)
    assert result.status is Status.ENUMERATED
    assert result.upper == result.value == pytest.approx(truth.cube_faces(truth.symmetric(5, 7)))
    assert result.gap == 0.0


def test_no_bound_without_an_envelope_or_products():
    norm = norms.FromFunctions(lambda d: np.abs(d["x"]).max(), lambda g: {"x": np.sign(g["x"])})
    with pytest.raises(errors.NormError, match=r"no quadratic envelope[\s\S]*Norm\.envelope"):
        geodiag.sharpness(Quadratic(np.eye(N)), norm, certificate=True)
    for budget in (2, 11):
        with pytest.raises(errors.ArgumentError, match=rf"at least 12 [\s\S]*max_hvps={budget}"):
            geodiag.sharpness(Quadratic(np.eye(N)), "linf", certificate=True, max_hvps=budget)
    assert geodiag.sharpness(Quadratic(np.eye(N)), norm).upper is None


@pytest.mark.parametrize("estimator", [Ascent(2), "frank_wolfe"])
def test_a_named_estimator_within_the_budget(estimator):
    oracle = Quadratic(truth.symmetric(20, 8))
    result = geodiag.sharpness(oracle, "linf", certificate=True, max_hvps=40, estimator=estimator)
    assert oracle.asked <= 40
    assert result.upper >= result.value
