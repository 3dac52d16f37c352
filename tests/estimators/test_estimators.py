"""Ascent and Blockwise against independent solvers, and what all estimators owe.

Products are counted by an oracle of this file, not by the library's wrapper.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

import geodiag
from geodiag import Bound, Status, estimators, norms
from geodiag.core.spaces import Space
from geodiag.errors import ArgumentError, NonFiniteError, NormError
from geodiag.oracles import MatrixOracle, MatrixProblem
from tests import truth

SHAPES = {"a": (3,), "b": (2,), "c": (2, 2)}


class Counted(MatrixOracle):
    """A quadratic whose products are counted; loss and gradient at 0 cost none."""

    def __init__(self, H, shapes=SHAPES, free=False):
        super().__init__(lambda x: H @ x, MatrixProblem(H, shapes).space, free_hvps=free)
        self.asked = []

    def loss(self):
        return np.float64(0.0)

    def gradient(self):
        return {n: np.zeros(s) for n, s in self.shapes.items()}

    def hvp(self, d):
        self.asked.append(d)
        return super().hvp(d)


ALL = [
    estimators.Ascent(),
    estimators.Ascent(starts=2),
    estimators.FrankWolfe(),
    estimators.FrankWolfe(iterations=3, restarts=2),
    estimators.Blockwise(),
    estimators.Lanczos(),
    estimators.Enumerate(),
]


def fitting(estimator):
    if isinstance(estimator, estimators.Lanczos):
        return norms.L2()
    if isinstance(estimator, estimators.Blockwise):
        return norms.SumOver(norms.L2())
    return norms.Linf()


@pytest.mark.parametrize("estimator", ALL, ids=repr)
@pytest.mark.parametrize("free", [False, True], ids=["costly", "free"])
@pytest.mark.parametrize("max_hvps", [None, 2, 3, 4, 5, 9, 25])
def test_products_are_counted_and_budgeted(estimator, free, max_hvps):
    oracle = Counted(truth.symmetric(9, 0), free=free)
    result = geodiag.sharpness(oracle, fitting(estimator), estimator=estimator, max_hvps=max_hvps)
    assert result.num_hvps == len(oracle.asked)
    if max_hvps is not None:
        assert len(oracle.asked) <= max_hvps
    # The last product certifies the answer, at the answer.
    for name, x in oracle.asked[-1].items():
        np.testing.assert_array_equal(x, result.direction[name])


def test_default_budgets_of_costly_products():
    H = truth.symmetric(60, 1)
    shapes = {"a": (30,), "b": (5, 6)}
    assert geodiag.sharpness(Counted(H, shapes), "linf").num_hvps <= 60
    paper = geodiag.sharpness(Counted(H, shapes), "linf", estimator="frank_wolfe")
    assert paper.num_hvps == 5 * 51 + 1
    assert paper.status is Status.COMPLETED


@pytest.mark.parametrize("name", ["linf", "spectral", "nuclear", "l1", "rms"])
@pytest.mark.parametrize("seed", range(3))
def test_ascent_is_monotone(name, seed):
    H = truth.symmetric(30, seed, np.linspace(-2.0, 3.0, 30))
    shapes = {"W": (4, 5), "b": (10,)}
    result = geodiag.sharpness(Counted(H, shapes), name, estimator=estimators.Ascent(starts=3))
    history = np.array(result.history)
    assert len(history) >= 2
    # Each accepted value is a maximum in floating point; the last is certified afresh, and differs
    # by rounding: n·ε·‖H‖·‖d‖₂², with ‖d‖₂² ≤ 30·‖d‖² for these norms.
    assert np.all(np.diff(history) >= 0)
    assert result.value == pytest.approx(history[-1], rel=1e-11)


@pytest.mark.parametrize("seed", range(5))
def test_the_line_search_is_exact(seed):
    """One step from a given start: the best point of the segment, scaled to the sphere."""
    H = truth.symmetric(9, seed, np.linspace(-4.0, 2.0, 9))
    d = np.linalg.eigh(H)[1][:, -1] + 0.1
    d /= np.abs(d).max()
    target = np.sign(H @ d)

    def point(t):
        return (1 - t) * d + t * target

    found = optimize.minimize_scalar(
        lambda t: -point(t) @ H @ point(t), bounds=(0, 1), method="bounded", options={"xatol": 1e-9}
    )
    best = max(found.x, 0.0, 1.0, key=lambda t: point(t) @ H @ point(t))
    p = point(best)
    expected = max(d @ H @ d, p @ H @ p / np.abs(p).max() ** 2)
    start = dict(zip(SHAPES, np.split(d, [3, 5]), strict=True))
    start["c"] = start["c"].reshape(2, 2)
    # Three products: at the start, at the target, at the answer.
    result = geodiag.sharpness(
        Counted(H), "linf", start=start, max_hvps=3, estimator=estimators.Ascent(starts=1)
    )
    # The optimiser's t is good to 1e-9, and ‖p‖ depends on it to first order.
    assert result.value == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "spectrum", [np.linspace(0.0, 3.0, 9), np.linspace(-2.0, 3.0, 9)], ids=["psd", "indefinite"]
)
def test_spectral_against_a_local_solver(spectrum, seed):
    """Derivative-free restarts on ⟨D, HD⟩/‖D‖²_op over 3 × 3 matrices never win."""
    H = truth.symmetric(9, seed, spectrum)
    result = geodiag.sharpness(H, "spectral", shapes={"D": (3, 3)})
    best = truth.local_maxima(H, lambda d: np.linalg.norm(d.reshape(3, 3), 2), restarts=3)
    # The solver stops within 1e-8 of its own maximum, or earlier at a kink.
    assert best <= result.value * (1 + 1e-7)
    assert result.value <= 3 * np.linalg.eigvalsh(H)[-1] * (1 + 1e-12)  # ‖D‖_F² ≤ 3


@pytest.mark.parametrize("seed", range(3))
def test_block_norm_of_a_positive_matrix(seed):
    """max_b λ_max(H_bb), at a direction that moves one block alone."""
    H = truth.symmetric(9, seed, np.linspace(0.0, 3.0, 9))
    parts = {"a": H[:3, :3], "b": H[3:5, 3:5], "c": H[5:, 5:]}
    tops = {n: np.linalg.eigvalsh(B)[-1] for n, B in parts.items()}
    best = max(tops, key=tops.__getitem__)
    result = geodiag.sharpness(H, "block", shapes=SHAPES)
    assert result.estimator == "Blockwise()"
    assert result.value == pytest.approx(tops[best], rel=1e-8)
    moved = {n for n, x in result.direction.items() if np.abs(x).max() > 1e-6}
    assert moved == {best}


def test_block_norm_with_radii():
    H = np.diag([1.0, 3.0, 2.0])
    shapes = {"a": (1,), "b": (1,), "c": (1,)}
    for radii, best, expected in (  # r²·λ_max(H_bb) of the best part
        ({"a": 2.0}, "a", 4.0),
        ({"a|c": 1.5}, "c", 4.5),
        ({"b": 0.1}, "c", 2.0),
    ):
        norm = norms.SumOver(norms.L2(), radii=radii)
        result = geodiag.sharpness(H, norm, shapes=shapes, estimator="blockwise")
        assert result.value == pytest.approx(expected, rel=1e-12)
        assert {n for n, x in result.direction.items() if abs(x[0]) > 1e-6} == {best}


def test_a_mixed_pair_beats_its_blocks():
    """[[0, 1], [1, 0]] in ℓ1: each block alone gives 0, (½, ½) gives ½."""
    H = np.array([[0.0, 1.0], [1.0, 0.0]])
    for estimator in ("auto", "blockwise", "ascent", "enumerate"):
        norm = norms.SumOver(norms.Linf())  # ℓ1 again, over two scalars
        result = geodiag.sharpness(H, norm, shapes={"a": (1,), "b": (1,)}, estimator=estimator)
        assert result.value == pytest.approx(0.5, rel=1e-8), estimator


def test_blockwise_takes_a_start_of_any_length():
    """A long start is not mistaken for a good one."""
    H = truth.symmetric(9, 7, np.linspace(0.1, 3.0, 9))
    weakest = np.split(1e6 * np.linalg.eigh(H)[1][:, 0], [3, 5])
    start = {n: x.reshape(SHAPES[n]) for n, x in zip(SHAPES, weakest, strict=True)}
    result = geodiag.sharpness(Counted(H), "block", start=start)
    tops = [np.linalg.eigvalsh(B)[-1] for B in (H[:3, :3], H[3:5, 3:5], H[5:, 5:])]
    # Costly products are solved to a residual of 1e-4: values to its square over a gap of 0.1.
    assert result.value == pytest.approx(max(tops), rel=1e-6)
    size = sum(np.linalg.norm(x) for x in result.direction.values())
    assert size == pytest.approx(1.0, rel=1e-13)


@pytest.mark.parametrize("name", ["linf", "spectral", "nuclear"])
def test_a_warm_start_is_kept_or_improved(name):
    H = truth.symmetric(9, 8, np.linspace(0.0, 3.0, 9))
    best = geodiag.sharpness(H, name, shapes=SHAPES)
    for start in (best, best.state, best.direction):
        again = geodiag.sharpness(Counted(H), name, start=start, max_hvps=6)
        assert again.value >= best.value * (1 - 1e-12)


def test_equal_seeds_equal_results_other_seeds_other_starts():
    H = truth.symmetric(40, 9)
    one, two, other = (
        geodiag.sharpness(H, "linf", seed=s, estimator=estimators.FrankWolfe(3, 1))
        for s in (1, 1, 2)
    )
    assert one.value == two.value
    assert np.array_equal(one.direction["x"], two.direction["x"])
    assert other.value != one.value


class Part:
    """Builds the spaces that the choice is made on."""

    small = Space({"x": (4,)})
    large = Space.of({"W": np.ones((5, 4)), "b": np.ones(5)})


@pytest.mark.parametrize(
    ("norm", "space", "expected"),
    [
        (norms.L2(), Part.small, estimators.Lanczos),
        (norms.L2Over(norms.L2()), Part.large, estimators.Lanczos),
        (norms.Frobenius(), Part.small, estimators.Lanczos),
        (norms.Scaled(norms.L2(), 2.0), Part.large, estimators.Lanczos),
        (norms.Linf(), Part.small, estimators.Enumerate),
        (norms.Linf(), Part.large, estimators.Ascent),
        (norms.L1(), Part.small, estimators.Enumerate),
        (norms.SumOver(norms.L2()), Part.large, estimators.Blockwise),
        (norms.Nuclear(), Part.large, estimators.Blockwise),
        (norms.Spectral(), Part.large, estimators.Ascent),
        (norms.Frobenius(), Part.large, estimators.Ascent),
    ],
)
def test_the_choice_goes_by_structure(norm, space, expected):
    assert type(estimators.choose(norm.bind(space), space)) is expected


def test_blockwise_refuses_what_is_no_sum():
    with pytest.raises(NormError, match=r"Blockwise needs a sum of norms, and Linf\(\) is not one"):
        geodiag.sharpness(np.eye(2), "linf", estimator="blockwise")


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_not_a_number(estimator):
    class Broken(Counted):
        def hvp(self, d):
            return {n: x * np.nan for n, x in super().hvp(d).items()}

    for norm in (fitting(estimator), norms.Spectral()):
        oracle = Broken(np.eye(9))
        try:
            with pytest.raises(NonFiniteError, match="product is not finite"):
                geodiag.sharpness(oracle, norm, estimator=estimator)
        except NormError:  # of another structure than the estimator's
            continue
        failed = geodiag.sharpness(oracle, norm, estimator=estimator, throw=False)
        assert failed.status is Status.NON_FINITE
        assert failed.status.failed
        assert np.isnan(failed.value)
        assert failed.bound is Bound.LOWER


def test_an_estimator_of_ones_own_gets_a_certified_answer():
    """Any direction it ends at is scaled to the sphere and valued by a product of its own."""

    class Fixed(geodiag.SharpnessEstimator):
        def estimate(self, oracle, norm, start=None, options=estimators.Options()):
            m = estimators.Measurement(oracle, norm, self, options)
            return m.finish({"x": np.array([0.0, -7.0])}, Status.COMPLETED)

    result = geodiag.sharpness(np.diag([1.0, 3.0]), "linf", estimator=Fixed())
    assert np.array_equal(result.direction["x"], [0.0, -1.0])
    assert (result.value, result.num_hvps, result.estimator) == (3.0, 1, "Fixed()")


@pytest.mark.parametrize("starts", [0, -1])
def test_ascent_needs_a_start(starts):
    with pytest.raises(ArgumentError, match="at least one start"):
        estimators.Ascent(starts=starts)


def test_progress_reports_rising_products(capsys):
    seen = []
    geodiag.sharpness(Counted(np.eye(9)), "linf", progress=seen.append, estimator="ascent")
    counts = [s["num_hvps"] for s in seen]
    assert counts == sorted(counts)
    assert counts[-1] > 1
    assert capsys.readouterr().err == ""
    geodiag.sharpness(Counted(np.eye(9)), "linf", progress=True, estimator="ascent")
    assert "HVP" in capsys.readouterr().err
