"""The cold search: its budget, its programs in every namespace, its vector view; keys of programs.

The programs are pure functions: what NumPy makes of the same numbers is the truth for the others.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from geodiag import estimators, norms
from geodiag.core.spaces import Space
from geodiag.solvers import ravel
from geodiag.solvers.iterate import Iterates, best
from geodiag.solvers.lanczos.recurrence import Recurrence
from geodiag.solvers.multistart import SPARE, MultiStart, Plan, Round
from tests import truth
from tests.conftest import EAGER
from tests.quadratic import Quadratic

SHAPES = {"W": (3, 4), "b": (5,), "c": ()}
N = 18
SPECTRA = {
    "positive": np.linspace(0.1, 3.0, N),
    "indefinite": np.linspace(-3.0, 2.0, N),
    "negative": -np.linspace(0.1, 3.0, N),
}
# Long enough for every ascent to end at a maximum: which start led there goes by rounding, since
# several lead to the same.
PLAN = Plan(krylov=5, candidates=2, model_steps=100, climb=400, rtol=1e-14, rounds=True)


def oracle_of(spectrum, xp=np, seed=0):
    H = truth.symmetric(N, seed, SPECTRA[spectrum])
    return Quadratic(xp.asarray(H), SHAPES, np.random.default_rng(seed).standard_normal(N))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("norm", ["linf", "spectral", "l1"])
@pytest.mark.parametrize("how", ["cold", "from a direction", "warm", "three starts"])
def test_no_budget_is_exceeded(spectrum, norm, how):
    before = geodiag.sharpness(oracle_of(spectrum), norm, max_hvps=12, estimator="ascent")
    start = {"cold": None, "from a direction": before.direction, "warm": before}.get(how)
    estimator = estimators.Ascent(3 if how == "three starts" else None)
    for budget in [*range(2, 31), *range(33, 71, 6)]:
        oracle = oracle_of(spectrum, seed=1)
        result = geodiag.sharpness(
            oracle, norm, max_hvps=budget, start=start, estimator=estimator, seed=budget
        )
        assert result.num_hvps == oracle.asked <= budget
        attained = sum(
            float(np.sum(x * oracle.hvp(result.direction)[n])) for n, x in result.direction.items()
        )
        assert result.value == pytest.approx(attained, rel=1e-12)


def blocks(oracle, rng, *lead):
    return {
        n: oracle.space.asarray(rng.standard_normal((*lead, *s))) for n, s in oracle.shapes.items()
    }


def programs(oracle, norm, known=None):
    """The outcomes of MultiStart and of a Round after it, with the products they spent."""
    rng = np.random.default_rng(7)
    bound = norm.bind(oracle.space)
    gradient, noise = oracle.gradient(), blocks(oracle, rng)

    def normal(*shape):
        return oracle.space.asarray(rng.standard_normal(shape))

    cold = oracle.run(MultiStart(bound, PLAN), known, gradient, noise, normal(9, 5))
    explore = Round(bound, replace(PLAN, race=3, climb=3))
    rows = 5 + SPARE
    after = oracle.run(
        explore, cold.best, cold.products, gradient, blocks(oracle, rng, 1), normal(9, rows)
    )
    return cold, after


def agree(got, expected):
    for one, other in zip(got, expected, strict=True):
        values = [np.asarray(x.best.value, dtype=float) for x in (one, other)]
        # Maxima: to second order in how near the ascents come to them, a gain of 1e-14 twice. In
        # the ball the maximum of a negative matrix is 0, at the origin, and is but approached.
        np.testing.assert_allclose(*values, rtol=1e-11, atol=1e-6)


NORMS = [norms.Linf(), norms.Spectral(), norms.Frobenius()]


@pytest.mark.parametrize("xp", EAGER, indirect=True)  # JAX compiled, below: seconds, not minutes
@pytest.mark.parametrize("norm", NORMS, ids=repr)
@pytest.mark.parametrize("spectrum", ["positive", "indefinite"])
def test_every_namespace_reaches_the_same(xp, norm, spectrum):
    oracle = oracle_of(spectrum, xp)
    got = programs(oracle, norm)
    assert oracle.asked == sum(int(x.num_hvps) for x in got)
    assert int(got[0].num_hvps) <= PLAN.spent(0)
    agree(got, programs(oracle_of(spectrum), norm))
    assert float(got[1].best.value[0]) >= float(got[0].best.value[0])


@pytest.mark.parametrize("norm", NORMS[:2], ids=repr)
def test_compiled_by_jax(norm):
    H = truth.symmetric(N, 0, SPECTRA["indefinite"])
    g = np.random.default_rng(0).standard_normal(N)

    def loss(params):
        w = jnp.concatenate([jnp.ravel(params[n]) for n in SHAPES])
        return w @ H @ w / 2 + g @ w

    eager = []

    def watched(params):
        eager.append(1)
        return loss(params)

    zeros = {n: jnp.zeros(s) for n, s in SHAPES.items()}
    oracle = geodiag.problem(watched, params=zeros).at()
    programs(oracle, norm)
    eager.clear()
    got = programs(oracle, norm)  # the second time no line of the loss is run
    assert not eager
    agree(got, programs(oracle_of("indefinite"), norm))


@pytest.mark.parametrize("norm", NORMS, ids=repr)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_one_vector_or_tensors(norm, spectrum, monkeypatch):
    oracle = oracle_of(spectrum)
    known = blocks(oracle, np.random.default_rng(3), 2)
    whole = geodiag.sharpness(oracle, norm, seed=3)
    together = programs(oracle_of(spectrum), norm, known)
    monkeypatch.setattr(ravel, "LIMIT", 0)
    agree(together, programs(oracle, norm, known))
    parts = geodiag.sharpness(oracle_of(spectrum), norm, seed=3)
    assert parts.value == pytest.approx(whole.value, rel=1e-10)
    assert parts.num_hvps == whole.num_hvps


@pytest.mark.parametrize("preconditioned", [False, True])
def test_lanczos_on_one_vector_or_tensors(preconditioned, monkeypatch):
    P = {"W": np.full((3, 4), 2.0), "b": np.linspace(1.0, 2.0, 5), "c": np.array(5.0)}
    norm = norms.Preconditioned(P) if preconditioned else norms.L2()
    whole = geodiag.sharpness(oracle_of("indefinite"), norm)
    monkeypatch.setattr(ravel, "LIMIT", 0)
    parts = geodiag.sharpness(oracle_of("indefinite"), norm)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.num_hvps == whole.num_hvps


def test_flat_and_back_is_the_same(xp, dtype):
    view = ravel.Flat(Space(truth.SHAPES))
    one = truth.to(xp, truth.blocks(0), dtype)
    many = {n: xp.stack([x, -x, 2 * x]) for n, x in one.items()}
    for made, there in ((one, view.flat), (many, view.flat_stack)):
        back = view.full(there(made))
        assert list(back) == list(made)
        for name, x in made.items():
            assert back[name].shape == x.shape
            np.testing.assert_array_equal(np.asarray(back[name]), np.asarray(x))
    np.testing.assert_array_equal(
        np.asarray(view.flat(one)["flat"]), truth.flat(truth.back(one)).astype(dtype)
    )


def test_the_best_come_first():
    values = np.array([1.0, 3.0, -2.0, 3.0, 2.0])
    ds = {"x": np.arange(5.0)[:, None]}
    stalled = np.zeros(5, dtype=np.int32)
    p = best(Iterates(ds, ds, values, stalled, stalled == 0), 3)
    np.testing.assert_array_equal(p.direction["x"][:, 0], [1.0, 3.0, 4.0])
    np.testing.assert_array_equal(p.value, [3.0, 3.0, 2.0])


SAME = [
    lambda: norms.Linf(),
    lambda: norms.Spectral(),
    lambda: norms.MaxOver(norms.Spectral(), radii={"W": 2.0}),
    lambda: norms.Scaled(norms.L2(), 3.0),
]
OTHER = [
    norms.Linf(),
    norms.L2(),
    norms.Scaled(norms.Linf(), 2.0),
    norms.Scaled(norms.Linf(), 3.0),
]


@pytest.mark.parametrize("make", SAME)
def test_equal_norms_make_equal_programs(make):
    space = oracle_of("positive").space
    for program in (MultiStart, Round):
        one, two = (program(make().bind(space), PLAN).key for _ in range(2))
        assert one is not None
        assert one == two
        assert hash(one) == hash(two)
        assert one != program(make().bind(space), replace(PLAN, climb=10)).key
    assert MultiStart(make().bind(space), PLAN).key != Round(make().bind(space), PLAN).key


def test_other_norms_make_other_programs():
    keys = {MultiStart(norm, PLAN).key for norm in OTHER}
    assert len(keys) == len(OTHER)
    assert Recurrence(norms.L2(), 8).key != Recurrence(norms.L2(), 2).key
    assert Recurrence(norms.L2(), 8).key == Recurrence(norms.L2(), 8).key


def test_a_norm_that_holds_arrays_has_no_key():
    """They could change under a compiled program."""
    space = oracle_of("positive").space
    held = norms.Preconditioned({n: np.ones(s) for n, s in SHAPES.items()}).bind(space)

    class Weighted(geodiag.Norm):
        def __init__(self):
            self.weights = np.ones(3)

        def value(self, d):
            return np.max(np.abs(d["x"]))

        def lmo(self, g):
            return g

    for norm in (held, norms.Scaled(held, 2.0), Weighted()):
        assert MultiStart(norm, PLAN).key is None
        assert Round(norm, PLAN).key is None
    assert Recurrence(held, 8).key is None
