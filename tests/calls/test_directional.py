"""The five kinds of directional smoothness against closed forms.

On a quadratic all but "pointwise" are ⟨s, Hs⟩/‖s‖². On Σ w⁴ and Σ cosh(w), given as a pair of
callables, the derivatives are known by hand.
"""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from geodiag import norms
from geodiag.errors import ArgumentError, NonFiniteError
from geodiag.oracles import MatrixProblem
from tests import truth

KINDS = ("remainder", "optimal", "pointwise", "path", "curvature")
SHAPES = truth.SHAPES
NAMES = sorted(truth.NORMS)
H = truth.symmetric(20, 0)
W, STEP = truth.blocks(1), truth.blocks(2)


def measure(model, step, norm="l2", kind="remainder", **keywords):
    return geodiag.directional_smoothness(model, step, norm, kind=kind, **keywords)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_quadratic(name, kind):
    value, dual = truth.NORMS[name]
    oracle = MatrixProblem(H, SHAPES).at(W)
    s = truth.flat(STEP)
    parts = zip(SHAPES.items(), np.split(H @ s, [12, 13, 16]), strict=True)
    image = {n: part.reshape(shape) for (n, shape), part in parts}
    bend = s @ H @ s / value(STEP) ** 2
    expected = {
        "remainder": bend,
        "optimal": abs(bend),
        "pointwise": 2 * dual(image) / value(STEP),
        "path": bend,
        "curvature": bend,
    }[kind]
    got = measure(oracle, STEP, name, kind)
    # L ≈ 30 here, differences of it carry 30·20·ε ≈ 1e-13; path divides by t ≥ 1/16.
    assert float(got) == pytest.approx(expected, rel=1e-10)
    assert got.kind == kind


@pytest.mark.parametrize("kind", ["remainder", "optimal", "pointwise", "path", "curvature"])
def test_all_frameworks(kind, xp):
    oracle = MatrixProblem(xp.asarray(H, dtype=xp.float64), SHAPES).at(truth.to(xp, W))
    got = measure(oracle, truth.to(xp, STEP), "linf", kind)
    host = measure(MatrixProblem(H, SHAPES).at(W), STEP, "linf", kind)
    s = truth.flat(STEP)
    if kind != "pointwise":
        bend = s @ H @ s / np.abs(s).max() ** 2
        assert float(got) == pytest.approx(abs(bend) if kind == "optimal" else bend, rel=1e-10)
    else:
        assert float(got) == pytest.approx(2 * np.abs(H @ s).sum() / np.abs(s).max(), rel=1e-10)
    assert float(host) == pytest.approx(float(got), rel=1e-12)


QUARTIC = (lambda w: np.sum(w["x"] ** 4), lambda w: {"x": 4 * w["x"] ** 3})
COSH = (lambda w: np.sum(np.cosh(w["x"])), lambda w: {"x": np.sinh(w["x"])})
X, S = np.array([0.5, -1.0, 2.0]), np.array([0.25, 0.5, -0.125])


@pytest.mark.parametrize(
    ("pair", "f", "df", "ddf"),
    [
        (QUARTIC, lambda x: x**4, lambda x: 4 * x**3, lambda x: 12 * x**2),
        (COSH, np.cosh, np.sinh, np.cosh),
    ],
    ids=["quartic", "cosh"],
)
@pytest.mark.parametrize(
    ("name", "size", "dual"),
    [
        ("l2", np.linalg.norm, np.linalg.norm),
        ("linf", lambda s: np.abs(s).max(), lambda g: np.abs(g).sum()),
        ("l1", lambda s: np.abs(s).sum(), lambda g: np.abs(g).max()),
    ],
)
def test_by_hand(pair, f, df, ddf, name, size, dual):
    square = size(S) ** 2
    taylor = 2 * (f(X + S) - f(X) - df(X) * S).sum() / square
    t = np.arange(1, 17)[:, None] / 16
    path = np.max(((df(X + t * S) - df(X)) * S).sum(axis=1) / (t[:, 0] * square))
    expected = {
        "remainder": taylor,
        "optimal": abs(taylor),
        "pointwise": 2 * dual(df(X + S) - df(X)) / size(S),
        "path": path,
        "curvature": (S * ddf(X) * S).sum() / square,
    }
    for kind in KINDS:
        got = measure(pair, {"x": S}, name, kind, params={"x": X})
        # Curvature goes through a difference of gradients: ε^{2/3} ≈ 4e-11 times f''''/f'' ≈ 10.
        tol = 1e-8 if kind == "curvature" else 1e-12
        assert float(got) == pytest.approx(expected[kind], rel=tol), kind


def test_path_is_the_largest_over_the_segment():
    """Σ w⁴ from −1 to 1: ⟨g(w + ts) − g(w), s⟩/(t s²) = 4(3 − 6t + 4t²), largest as t → 0."""
    got = measure(QUARTIC, {"x": np.array([2.0])}, kind="path", params={"x": np.array([-1.0])})
    ends = 4 * (3 - 6 * (1 / 16) + 4 / 256)
    assert float(got) == pytest.approx(ends, rel=1e-12)
    assert measure(
        QUARTIC, {"x": np.array([2.0])}, kind="remainder", params={"x": np.array([-1.0])}
    ) == pytest.approx(4.0, rel=1e-12)  # 2·(1 − 1 + 8)/4: smaller, and of another t


@pytest.mark.parametrize("name", NAMES)
def test_the_descent_identity(name):
    """ΔL = −η(1 − ηD/2)‖g‖*² along an unnormalized step −η‖g‖*·lmo(g)."""
    oracle = MatrixProblem(truth.symmetric(20, 3, np.linspace(0.1, 2.0, 20)), SHAPES).at(W)
    norm = geodiag.plugins.registry.norm(name).bind(oracle.space)
    g = oracle.gradient()
    size = truth.NORMS[name][1](g)
    lmo = norm.lmo(g)
    for eta in (1e-2, 0.3):
        step = {n: -eta * size * x for n, x in lmo.items()}
        D = float(measure(oracle, step, name))
        after = oracle.loss_at({n: W[n] + step[n] for n in W})
        expected = -eta * (1 - eta * D / 2) * size**2
        assert float(after - oracle.loss()) == pytest.approx(expected, rel=1e-9)


def test_scaling_the_norm_divides_by_its_square():
    oracle = MatrixProblem(H, SHAPES).at(W)
    s = truth.flat(STEP)
    got = measure(oracle, STEP, norms.Scaled(norms.L2(), 3.0), "curvature")
    assert float(got) == pytest.approx(s @ H @ s / (s @ s) / 9, rel=1e-12)


def test_rounding_is_reported_and_true():
    """In float32 a tiny step's remainder is noise; its error bar says so."""
    narrow = H.astype(np.float32)
    oracle = MatrixProblem(narrow, SHAPES).at(truth.to(np, W, "float32"))
    step = {n: (1e-3 * x).astype(np.float32) for n, x in STEP.items()}
    got = measure(oracle, step)
    s = truth.flat(truth.back(step))
    expected = s @ narrow.astype(np.float64) @ s / (s @ s)
    # From the losses alone 3e-2: they are lost to rounding, and the gradients are not.
    assert abs(float(got) - expected) <= got.rounding < 1e-2
    assert "rounding=±" in repr(got)
    along = measure(oracle, step, kind="curvature")
    assert abs(float(along) - expected) <= along.rounding < 1e-5


@pytest.mark.parametrize("kind", ["remainder", "optimal", "pointwise", "path"])
def test_a_step_below_rounding(kind):
    """Lost as a whole it is refused; in part, the value is that of the step that is left."""
    oracle = MatrixProblem(H.astype(np.float32), SHAPES).at(truth.to(np, W, "float32"))
    here = oracle.point()
    with pytest.raises(ArgumentError, match="lost to rounding"):
        measure(oracle, {n: (1e-12 * x).astype(np.float32) for n, x in STEP.items()}, kind=kind)
    step = {n: (1e-7 * x).astype(np.float32) for n, x in STEP.items()}
    left = {n: (here[n] + step[n] - here[n]).astype(np.float64) for n in step}
    got = measure(oracle, step, kind=kind)
    exact = measure(MatrixProblem(H.astype(np.float32).astype(float), SHAPES).at(), left, kind=kind)
    assert abs(float(got) - float(exact)) <= got.rounding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["l2", "linf", "spectral"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [-320, -170, -30, -25, 25, 30, 160, 300])
def test_steps_of_extreme_length(kind, name, dtype, power):
    """Right, or an error of the library's own: never a number of overflow or underflow."""
    with np.errstate(over="ignore"):
        size = np.asarray(10.0**power).astype(dtype)
    matrix, w = np.diag([2.0, 1.0, 1.0, 0.5]), np.zeros((2, 2))
    given = MatrixProblem(matrix.astype(dtype), {"x": (2, 2)}).at({"x": w.astype(dtype)})
    pair = geodiag.problem(
        (lambda v: 0.5 * np.sum(v["x"] ** 2), lambda v: {"x": v["x"]}),
        params={"x": w.astype(dtype)},
    ).at()
    step = {"x": np.zeros((2, 2), dtype)}
    step["x"][0, 0] = size
    for oracle, curvature in ((given, 2.0), (pair, 1.0)):
        expected = 2 * curvature if kind == "pointwise" else curvature
        try:
            got = measure(oracle, step, name, kind)
        except (ArgumentError, NonFiniteError):
            continue
        assert float(got) == pytest.approx(expected, rel=1e-3)
        assert got.rounding >= 0


def test_problem_keywords_reach_the_problem():
    got = measure(H, STEP, "l2", "curvature", shapes=SHAPES)
    s = truth.flat(STEP)
    assert float(got) == pytest.approx(s @ H @ s / (s @ s), rel=1e-12)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_unusable_steps(bad):
    oracle = MatrixProblem(np.eye(2)).at()
    with pytest.raises(ArgumentError, match="step= must be finite and not zero: nothing moved"):
        measure(oracle, {"x": np.full(2, bad)})


def test_unknown_kind():
    with pytest.raises(ArgumentError, match=r"Got: 'sideways'. Do: use \['curvature', 'optimal'"):
        measure(np.eye(2), {"x": np.ones(2)}, kind="sideways")


@pytest.mark.parametrize("kind", ["remainder", "pointwise", "path"])
@pytest.mark.parametrize("name", ["l2", "linf", "spectral"])
def test_an_end_that_is_not_finite(kind, name):
    cliff = (
        lambda w: np.where(w["x"] > 1, np.nan, w["x"] ** 2).sum(),
        lambda w: {"x": np.where(w["x"] > 1, np.nan, 2 * w["x"])},
    )
    with pytest.raises(NonFiniteError, match="one end of the step is not finite"):
        measure(cliff, {"x": np.full((2, 2), 2.0)}, name, kind, params={"x": np.full((2, 2), 0.5)})
