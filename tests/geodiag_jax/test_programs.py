"""``Oracle.run`` compiled: once for equal programs, with the answers of Python's own loop.

The truth is the Hessian of logistic regression in closed form, its maximum over the cube counted
out over all 2⁵ corners (a convex form is largest at one), and the same program in NumPy. All in
float64 where not said otherwise: sums of 20 terms of order one.
"""

from __future__ import annotations

import itertools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from geodiag import errors, norms
from geodiag.blocks import flatten, unstack
from geodiag_jax import oracle as oracle_module
from geodiag_jax import programs
from tests.geodiag_jax import programs as jax_programs
from tests.geodiag_jax.models import (
    B,
    Counted,
    X,
    Y,
    flat,
    guarded_logistic,
    logistic,
    logistic_params,
    logistic_truth,
)
from tests.geodiag_jax.programs import Asking, GroupLinf, UnitSteps, flat_product

TWO = [(X[:12], Y[:12]), (X[12:], Y[12:])]
HESSIAN = logistic_truth().hessian
CORNERS = np.array(list(itertools.product([-1.0, 1.0], repeat=5)))
LARGEST = max(corner @ HESSIAN @ corner for corner in CORNERS)


def oracle_of(loss=logistic, params=None, data=(X, Y), **options):
    params = logistic_params() if params is None else params
    return geodiag.problem(loss, params=params, data=data, **options).at()


def starts(oracle):
    rng = np.random.default_rng(2)
    drawn = {"b": rng.standard_normal(()), "w": rng.standard_normal(4)}
    return [
        {name: oracle.space.asarray(np.sign(x)) for name, x in d.items()}
        for d in (drawn, {name: -np.flip(x) for name, x in drawn.items()})
    ]


def compiles(oracle, program, *arguments):
    """The answer, if it came from a new compilation: as it is a program gives the same."""
    before = programs._run._cache_size()
    answer = oracle.run(program, *arguments)
    assert programs._run._cache_size() == before + 1
    return answer


def in_numpy(hessian):
    oracle = geodiag.problem(hessian, shapes={"b": (), "w": (4,)}).at()
    return UnitSteps(GroupLinf())(oracle, *starts(oracle))


def check_maximum(answer, hessian=HESSIAN, rtol=1e-12):
    d = flat(answer.direction)
    np.testing.assert_allclose(answer.value, d @ hessian @ d, rtol=rtol)
    np.testing.assert_allclose(answer.value, LARGEST, rtol=rtol)


ENGINES = {
    "kept": (logistic, (X, Y), "auto"),
    "kept batches": (logistic, TWO, "linearize"),
    "recompute": (logistic, (X, Y), "recompute"),
    "reverse": (logistic, (X, Y), "reverse"),
    "blocked": (guarded_logistic, (X, Y), "auto"),
    "a loader": (logistic, TWO, "auto"),
    "differences": (logistic, (X, Y), "finite-difference"),
}
EAGER = ("a loader", "differences")


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine(name):
    """Central differences: a relative 4e-11; the guarded loss: 1e-10, see test_jax_engines."""
    loss, data, engine = ENGINES[name]
    oracle = oracle_of(loss, data=data, engine=engine)
    run = type(oracle).run if name in EAGER else compiles
    answer = run(oracle, UnitSteps(GroupLinf()), *starts(oracle))
    exact = name not in ("differences", "blocked")
    check_maximum(answer, rtol=1e-12 if exact else 1e-9)
    plain = in_numpy(HESSIAN)
    assert int(answer.num_hvps) == plain.num_hvps > 3
    for got, want in zip(answer.direction.values(), plain.direction.values(), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("engine", ["linearize", "recompute", "reverse"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_run_of_a_hundred_points_compiles_once(engine, dtype):
    """New points, and new problems, programs and norms that are equal to the first."""
    loss, data = Counted(logistic), (jnp.asarray(X, dtype), jnp.asarray(Y, dtype))
    counts = set()
    for k in range(100 if engine == "linearize" else 10):
        params = {name: jnp.asarray(x * k / 100, dtype) for name, x in logistic_params().items()}
        oracle = oracle_of(loss, params, data, engine=engine)
        answer = oracle.run(UnitSteps(GroupLinf()), *starts(oracle))
        assert answer.value.dtype == dtype
        counts.add((loss.calls, GroupLinf.runs, programs._run._cache_size()))
    assert len(counts) == 1


def test_a_norm_is_seen_as_it_is_now():
    """Attributes that are part of the key compile anew, arrays are never compiled in."""
    oracle = oracle_of()
    d = starts(oracle)
    scaled = norms.Scaled(norms.Linf(), 2.0)
    half = oracle.run(UnitSteps(scaled), *d)
    np.testing.assert_allclose(half.value, LARGEST / 4, rtol=1e-12)
    norm = jax_programs.Weighted(1.0)
    check_maximum(oracle.run(UnitSteps(norm), *d))
    norm.c[...] = 3.0
    tripled = oracle.run(UnitSteps(norm), *d)
    np.testing.assert_allclose(tripled.value, 9 * LARGEST, rtol=1e-12)


def test_what_cannot_be_traced_runs_as_it_is():
    loss = Counted(logistic)
    program = UnitSteps(jax_programs.Hosted())
    for attempt in range(3):
        oracle = oracle_of(loss)
        before = loss.calls, GroupLinf.runs
        answer = oracle.run(program, *starts(oracle))
        check_maximum(answer)
        # One call of the LMO for each product of the loop; two attempts to trace add one each.
        assert GroupLinf.runs - before[1] == int(answer.num_hvps) - 2 + (attempt < 2)
        assert attempt == 0 or loss.calls == before[0]


def test_a_mistake_in_a_norm_is_raised_as_it_is():
    oracle = oracle_of()
    program = UnitSteps(jax_programs.Broken())
    for _ in range(2):
        with pytest.raises(ValueError, match="a mistake") as caught:
            oracle.run(program, *starts(oracle))
        assert caught.value.__context__ is None


def test_a_program_that_asks_for_more_than_products():
    def loss_and_slope(oracle, d):
        return oracle.loss() + jnp.vdot(oracle.gradient()["w"], d["w"])

    oracle = oracle_of()
    d = starts(oracle)[0]
    truth = logistic_truth()
    got = oracle.run(Asking(loss_and_slope), d).value
    np.testing.assert_allclose(got, truth.loss + truth.gradient[1:] @ np.asarray(d["w"]))
    traced = programs.TracedOracle(oracle.space, lambda d: d)
    for ask in (traced.loss_at, traced.gradient_at):
        with pytest.raises(errors.EngineError, match=r"gradient alone. Got: \w+_at\(w\)"):
            ask(d)
    with pytest.raises(errors.EngineError, match=r"gradient alone. Got: point\(\)"):
        traced.point()


class Affine(equinox.Module):
    """Names that are not in alphabetical order."""

    weight: jax.Array
    bias: jax.Array


def test_blocks_keep_the_order_of_the_names():
    params = Affine(jnp.asarray([1.0, 2.0]), jnp.asarray(3.0))

    def loss(p):
        return jnp.sum(p.weight**2) + 5 * p.bias**2

    def grown(oracle, d):
        state = oracle.loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, oracle.hvp(s[1])), (0, d))
        _, (row,) = oracle.scan(lambda s: (s, (s,)), d, 2)
        flats = [flatten(x) for x in (d, unstack(row)[1], state[1])]
        return flats, [state[1], row]

    oracle = oracle_of(loss, params, None)
    assert oracle.names == ("weight", "bias")
    d = dict(zip(oracle.names, params.__dict__.values(), strict=True))
    flats, blocks = compiles(oracle, Asking(grown), d).value
    np.testing.assert_array_equal(flats, [[1, 2, 3], [1, 2, 3], [4, 8, 300]])
    for answer in blocks:
        assert tuple(answer) == oracle.names


def countdown(state):
    """An integer that becomes a fraction, one that follows it, Python numbers, a narrower float."""
    n, total, _, _, narrow, wide = state
    half = 0.5 * n
    return n - 1, total + half, total, n > 2, 0.25, wide.astype(narrow.dtype)


@pytest.mark.parametrize("how", ["loop", "scan"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.int32])
def test_a_loop_settles_its_dtypes(how, dtype):
    def ask(oracle, n):
        state = (n, 0, 0, False, jnp.float32(0), jnp.float64(1.5))
        if how == "loop":
            return oracle.loop(lambda s: s[0] > 0, countdown, state)
        return oracle.scan(lambda s: (countdown(s), ()), state, 3)[0]

    answer = compiles(oracle_of(), Asking(ask), jnp.asarray(3, dtype)).value
    assert [float(x) for x in answer] == [0.0, 3.0, 2.5, 0.0, 0.25, 1.5]
    assert answer[4].dtype == jnp.float32


def test_a_scan_stacks_what_it_gives():
    """Powers of the Hessian, and a count that begins as a Python number."""

    def ask(oracle, d):
        def step(s):
            image = oracle.hvp(s[0])
            return (image, s[1] + 0.5), (image, s[0])

        return oracle.scan(step, (d, 0), 3)

    oracle = oracle_of()
    d = starts(oracle)[0]
    (last, count), (images, before) = compiles(oracle, Asking(ask), d).value
    powers = [np.linalg.matrix_power(HESSIAN, k) @ flat(d) for k in range(4)]
    assert float(count) == 1.5
    np.testing.assert_allclose(flat(last), powers[3], rtol=1e-12)
    for k in range(3):
        row = [{name: x[k] for name, x in stacked.items()} for stacked in (before, images)]
        np.testing.assert_allclose(flat(row[0]), powers[k], rtol=1e-12)
        np.testing.assert_allclose(flat(row[1]), powers[k + 1], rtol=1e-12)


def test_inside_the_users_jit_and_vmap():
    @jax.jit
    @jax.vmap
    def largest(w):
        oracle = oracle_of(params={**logistic_params(), "w": w})
        answer = oracle.run(UnitSteps(GroupLinf()), *starts(oracle))
        return answer.value, answer.num_hvps

    points = [logistic_params()["w"], jnp.zeros(4)]
    for w, value, count in zip(points, *largest(jnp.stack(points)), strict=True):
        A = np.column_stack([np.ones(20), X])
        p = 1 / (1 + np.exp(-A @ np.concatenate([[B], w])))
        plain = in_numpy((A.T * (p * (1 - p))) @ A / 20)
        assert float(value) == pytest.approx(float(plain.value), rel=1e-12)
        assert int(count) == plain.num_hvps


def test_many_kept_batches_are_not_unrolled(monkeypatch):
    monkeypatch.setattr(oracle_module, "UNROLLED", 1)
    oracle = oracle_of(data=TWO, engine="linearize")
    before = programs._run._cache_size()
    check_maximum(oracle.run(UnitSteps(GroupLinf()), *starts(oracle)))
    assert programs._run._cache_size() == before


def test_flat_products():
    oracle = oracle_of()
    d = starts(oracle)[0]
    np.testing.assert_allclose(
        oracle.run(Asking(flat_product), d).value, HESSIAN @ flat(d), rtol=1e-12
    )


@pytest.mark.parametrize("norm", ["block", "nuclear"])
def test_the_parts_of_a_sum_of_norms_are_compiled(norm, monkeypatch):
    """At another point JAX compiles nothing, and no product is asked for from Python.

    H ⪰ 0 (a convex function of a linear one): S is that of one tensor alone.
    """
    rng = np.random.default_rng(0)
    A, shapes = rng.standard_normal((300, 300)) / 17, {"W": (10, 15), "v": (150,)}

    def loss(params, x):
        return jnp.sum(jnp.logaddexp(0, x @ jnp.concatenate([params["W"].ravel(), params["v"]])))

    def point():
        return {n: jnp.asarray(rng.standard_normal(s)) for n, s in shapes.items()}

    geodiag.sharpness(loss, norm, params=point(), data=[(jnp.asarray(A),)])
    asked = []
    monkeypatch.setattr(oracle_module.JaxOracle, "hvp", lambda *args: asked.append("hvp"))
    monkeypatch.setattr(oracle_module.JaxOracle, "hvps", lambda *args: asked.append("hvps"))
    before, params = programs._run._cache_size(), point()
    result = geodiag.sharpness(loss, norm, params=params, data=[(jnp.asarray(A),)])
    assert (asked, programs._run._cache_size()) == ([], before)
    p = 1 / (1 + np.exp(-A @ flat(params)))
    H = (A.T * (p * (1 - p))) @ A
    tops = [np.linalg.eigvalsh(H[at, at])[-1] for at in (slice(0, 150), slice(150, 300))]
    if norm == "block":
        assert result.value == pytest.approx(max(tops), rel=1e-6)
    else:  # ‖W‖_F ≤ ‖W‖_nuclear
        assert tops[1] * (1 - 1e-6) <= result.value <= max(tops) * (1 + 1e-6)
