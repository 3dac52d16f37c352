"""A whole Lanczos measurement compiled: its value, its count, what it raises, where it goes on.

The loss is a quadratic ½⟨w, Hw⟩ + ⟨g, w⟩ of a given spectrum, so the truth is NumPy's. Products are
counted by a callback at each that XLA really computes.
"""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
from geodiag import Bound, Status, errors, norms
from geodiag.solvers.rayleigh import safe_value
from geodiag_jax import derivatives, programs
from tests import truth
from tests.geodiag_jax.models import Counted, guarded

N, ROWS = 160, 8
SPECTRA = {
    "spread": np.linspace(-3.0, 5.0, N),
    "clustered at the top": np.r_[np.linspace(0.0, 1.0, N - 10), 5.0 - 1e-3 * np.arange(10)],
    "degenerate top": np.r_[np.linspace(-1.0, 1.0, N - 10), np.full(10, 2.0)],
    "two values": np.r_[np.full(N - 1, 1.0), 4.0],
    "negative definite": -np.linspace(0.5, 4.0, N),
    "a negative outlier": np.r_[-1000.0, np.linspace(-1.0, 1.0, N - 1)],
    "identity": np.ones(N),
    "zero": np.zeros(N),
    "rank one": np.r_[np.zeros(N - 1), 3.0],
    "geometric": 2.0 ** -np.arange(float(N)),
    "outliers": np.r_[np.linspace(-0.5, 0.5, N - 4), 3.0, 4.0, 5.0, 9.0],
}
SINGLE = ("clustered at the top", "negative definite", "a negative outlier", "zero")


def quadratic(params, H, g):
    w = jnp.concatenate([params["b"], params["W"].ravel()])
    return 0.5 * w @ H @ w + g @ w


def point(dtype="float64", at=0.0):
    w = np.full(N, at)
    return {"W": jnp.asarray(w[ROWS:].reshape(ROWS, -1), dtype), "b": jnp.asarray(w[:ROWS], dtype)}


def matrix(label, dtype="float64"):
    return truth.symmetric(N, 3, SPECTRA[label]).astype(dtype)


def problem(H, g=None, loss=quadratic, **options):
    g = np.random.default_rng(1).standard_normal(N) if g is None else g
    dtype = H.dtype.name
    data = (jnp.asarray(H), jnp.asarray(g, dtype))
    return geodiag.problem(loss, params=point(dtype), data=data, **options)


def host(blocks):
    return np.r_[np.asarray(blocks["b"], float), np.asarray(blocks["W"], float).ravel()]


@pytest.fixture(scope="module", autouse=True)
def spied():
    """What is compiled for this module's losses counts its products."""
    counted, plain = [0], programs.TracedOracle.hvp

    def hvp(self, d):
        jax.debug.callback(lambda: counted.__setitem__(0, counted[0] + 1))
        return plain(self, d)

    programs.TracedOracle.hvp = hvp
    yield counted
    programs.TracedOracle.hvp = plain


@pytest.fixture
def products(spied):
    """How many products XLA computed, as a list of one number."""
    jax.effects_barrier()
    spied[0] = 0
    return spied


# In float32 four of them, and with the slow tests all; each takes a second to compile.
@pytest.mark.parametrize(
    ("label", "dtype"),
    [
        *((label, "float64") for label in SPECTRA),
        *(
            pytest.param(label, "float32", marks=() if label in SINGLE else pytest.mark.slow)
            for label in SPECTRA
        ),
    ],
)
def test_against_dense(label, dtype):
    """As in test_tracking: within the residual, and PRECISION says that rounding is all."""
    H = matrix(label, dtype)
    wide = np.linalg.eigvalsh(H.astype(float))
    result = geodiag.sharpness(problem(H))
    rounding = truth.tolerance(dtype, N) * np.abs(wide).max()
    assert result.value == pytest.approx(wide[-1], abs=1.5e-4 * abs(wide[-1]) + rounding)
    assert result.status is Status.CONVERGED or (dtype, result.status) == (
        "float32",
        Status.PRECISION,
    )
    d = host(result.direction)
    assert np.linalg.norm(d) == pytest.approx(1.0, rel=truth.tolerance(dtype, N))
    assert result.value == pytest.approx(d @ H.astype(float) @ d, abs=rounding)
    off = np.linalg.norm(H.astype(float) @ d - result.value * d)
    assert result.residual * abs(result.value) == pytest.approx(off, rel=1e-2, abs=rounding)
    g = np.random.default_rng(1).standard_normal(N)
    assert result.dual_norm == pytest.approx(np.linalg.norm(g), rel=truth.tolerance(dtype, N))


@pytest.mark.parametrize("label", ["spread", "outliers", "rank one", "identity"])
@pytest.mark.parametrize("budget", [2, 3, 8, 9, 10, 12, 33, None])
def test_every_product_is_counted(label, budget, products):
    H = matrix(label)
    result = geodiag.sharpness(problem(H), rtol=0.05, max_hvps=budget)
    jax.effects_barrier()
    assert products[0] == result.num_hvps <= (budget or 300)
    if result.bound is Bound.EXACT and label in ("spread", "outliers"):
        assert result.num_hvps > 8
    if budget in (3, 8) and label in ("spread", "outliers"):
        assert (result.status, result.num_hvps) == (Status.BUDGET, budget)


def test_it_goes_on_where_the_program_ends():
    """64 directions are not enough for a relative gap of 2e-4, 32 even less."""
    spectrum = np.r_[np.linspace(-1.0, 1.0, N - 1), 1.01]
    H = truth.symmetric(N, 5, spectrum)
    result = geodiag.sharpness(problem(H), rtol=1e-6)
    assert result.status is Status.CONVERGED
    assert result.bound is Bound.EXACT
    assert result.num_hvps > 33
    assert result.value == pytest.approx(1.01, rel=1e-9)
    assert np.diff(result.history).min() >= -1e-12  # Cauchy interlacing


def test_one_call_of_xla(monkeypatch):
    calls = []
    for module, name in ((programs, "_run"), (derivatives, "linearized")):
        plain = getattr(module, name)

        def spy(*arguments, plain=plain, name=name):
            if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments[1:])):
                calls.append(name)
            return plain(*arguments)

        monkeypatch.setattr(module, name, spy)
    ready = problem(matrix("outliers"))
    result = geodiag.sharpness(ready)
    assert calls == ["_run"]
    geodiag.sharpness(ready, start=result, rtol=1e-2)
    assert calls == ["_run", "_run"]


def test_no_step_copies_the_basis(monkeypatch):
    """XLA copies what a loop writes before it has read all of it."""
    texts, plain = [], programs.run

    def spy(job, operands, arguments):
        texts.append(programs._run.lower(job, operands, arguments).compile().as_text())
        return plain(job, operands, arguments)

    monkeypatch.setattr(programs, "run", spy)
    geodiag.sharpness(problem(matrix("outliers")))
    (text,) = texts
    assert f"f64[32,{N}]" in text  # the basis
    assert not re.findall(rf"= f64\[32,{N}\]\S* copy\(", text)


def test_a_hundred_measurements_compile_once():
    """Cold and warm: one program each, whatever the point, the tolerance and the budget."""
    loss = Counted(quadratic)
    ready = problem(matrix("outliers"), loss=loss)
    counts, result = set(), geodiag.sharpness(ready)
    geodiag.sharpness(ready, start=result, rtol=0.3)
    for k in range(100):
        at = point(at=k / 100)
        cold = geodiag.sharpness(ready, params=at, seed=k, rtol=0.1 / (k + 1), max_hvps=20 + k)
        geodiag.sharpness(ready, params=at, start=cold, rtol=0.3 / (k + 1))
        counts.add((loss.calls, programs._run._cache_size()))
    assert len(counts) == 1


def test_tracking_takes_one_product(products):
    H = matrix("outliers")
    result = geodiag.sharpness(problem(H), rtol=1e-6)
    for age in range(1, 20):
        products[0] = 0
        result = geodiag.sharpness(problem(H), rtol=1e-4, start=result)
        jax.effects_barrier()
        assert products[0] == result.num_hvps == 1
        assert (result.bound, result.state["age"]) == (Bound.LOWER, age)
        assert result.value == pytest.approx(9.0, rel=1e-8)
    result = geodiag.sharpness(problem(H), rtol=1e-4, start=result)
    assert (result.bound, result.state["age"]) == (Bound.EXACT, 0)
    assert result.num_hvps >= 9


def test_a_tracked_direction_that_is_off_is_improved(products):
    """Further than the program's eight steps go: the host continues."""
    H = truth.symmetric(N, 11, SPECTRA["spread"])
    start = geodiag.sharpness(problem(matrix("outliers")), rtol=1e-6)
    for rtol in (0.2, 1e-3):
        products[0] = 0
        result = geodiag.sharpness(problem(H), rtol=rtol, start=start)
        assert result.status is Status.CONVERGED
        assert result.residual <= 1.5 * rtol
        if rtol == 1e-3:
            assert result.num_hvps > 9
            assert result.value == pytest.approx(5.0, rel=1e-3)


@pytest.mark.parametrize("where", ["H", "g"])
def test_what_is_not_finite_is_raised(where):
    H, g = matrix("outliers"), np.ones(N)
    (H if where == "H" else g)[3] = np.nan
    with pytest.raises(errors.NonFiniteError):
        geodiag.sharpness(problem(H, g))
    assert geodiag.sharpness(problem(H, g), throw=False).status is Status.NON_FINITE


def test_a_product_that_is_not_finite_is_raised():
    """The loss and the gradient of x^1.5 are finite at 0, and its curvature is not."""

    def curved(params):
        return sum(jnp.sum(x**1.5) for x in params.values())

    with pytest.raises(errors.NonFiniteError, match="product"):
        geodiag.sharpness(curved, params=point())


def test_near_overflow_a_residual_is_no_zero():
    """λ_max = 6e38 is beyond float32, and 1/3e38 below what compiled code tells from zero."""

    def huge(params):
        x, y = params["x"]
        return 3e38 * (0.5 * x * x + x * y + 0.5 * y * y)

    start = {"x": jnp.asarray([0.0, 1.0], jnp.float32)}
    result = geodiag.sharpness(
        huge, params={"x": jnp.zeros(2, jnp.float32)}, start=start, rtol=0.3, max_hvps=2
    )
    assert result.bound is Bound.LOWER
    assert result.residual > 0.9


@pytest.mark.parametrize("peak", [1e-37, 1.0, 9e37, 3e38])
def test_a_length_near_the_ends_of_the_floats(peak):
    d = {"x": jnp.asarray([peak, 0.5 * peak], jnp.float32)}
    found = float(jax.jit(lambda d: safe_value(norms.L2(), d))(d))
    assert found == pytest.approx(math.sqrt(1.25) * peak, rel=1e-5)


@pytest.mark.slow
def test_lost_orthogonality_is_noticed():
    """Products rounded to 16 bits: the value is still that of a product at the direction."""

    def rounded(params, H, g):
        w = jnp.concatenate([params["b"], params["W"].ravel()])
        return 0.5 * (w @ (H.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(w.dtype)) + g @ w

    H = matrix("outliers", "float32")
    result = geodiag.sharpness(problem(H, loss=rounded), max_hvps=60)
    assert result.num_hvps <= 60
    # Rounding to 8 bits, entry by entry: ‖H‖·2⁻⁸·√N at most.
    assert result.value <= 9.0 + 9.0 * 2**-8 * np.sqrt(N)
    assert result.value == pytest.approx(9.0, rel=2e-2)


def test_where_forward_mode_is_blocked():
    def loss(params, H, g):
        return quadratic(jax.tree.map(guarded, params), H, g)

    before = geodiag.sharpness(problem(matrix("outliers"), loss=loss))
    again = geodiag.sharpness(problem(matrix("outliers"), loss=loss))
    for result in (before, again):
        assert result.bound is Bound.EXACT


@pytest.mark.slow
def test_other_quadratic_norms():
    H = matrix("outliers")
    scaled = geodiag.sharpness(problem(H), norms.Scaled(norms.L2(), 2.0))
    assert scaled.value == pytest.approx(9.0 / 4, rel=1e-6)
    p = np.linspace(0.5, 2.0, N)
    P = {"b": p[:ROWS], "W": p[ROWS:].reshape(ROWS, -1)}
    held = geodiag.sharpness(problem(H), norms.Preconditioned(P))
    top = np.linalg.eigvalsh(H / np.sqrt(np.outer(p, p)))[-1]
    assert held.value == pytest.approx(top, rel=1e-6)
    assert held.bound is Bound.EXACT


@pytest.mark.slow
def test_options_leave_the_answer_the_same():
    plain = geodiag.sharpness(problem(matrix("outliers")))
    seen = []
    for options in ({"memory": 2**30}, {"engine": "reverse"}):
        other = geodiag.sharpness(problem(matrix("outliers"), **options))
        assert other.value == pytest.approx(plain.value, rel=1e-9)
        assert other.num_hvps == plain.num_hvps
    watched = geodiag.sharpness(problem(matrix("outliers")), progress=seen.append)
    assert watched.value == pytest.approx(plain.value, rel=1e-8)
    assert len(seen) == len(watched.history)


def test_the_state_is_writable_and_its_own():
    result = geodiag.sharpness(problem(matrix("outliers")))
    for name, x in result.state["witness"].items():
        np.testing.assert_array_equal(x, result.direction[name])
        x[...] = 0.0
        assert np.any(np.asarray(result.direction[name]))


@pytest.mark.parametrize("rank", [3, 4, 5, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_space_that_is_exhausted_keeps_what_it_found(rank, seed):
    """Behind the last of a few eigenvalues the recurrence runs on in rounding, and loses its
    orthogonality; the host then begins anew."""
    spectrum = np.r_[np.zeros(N - rank), np.linspace(1.0, 3.0, rank)]
    H = truth.symmetric(N, seed, spectrum).astype("float32")
    with problem(H) as low:
        values = [geodiag.sharpness(low, max_hvps=k).value for k in range(rank + 4, 16)]
    assert min(values) > 2.99
    assert max(values) < 3.0 * (1 + 1e-5)
