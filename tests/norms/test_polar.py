"""Polar factors and operator norms by every method, against singular values in float64.

A polar factor is judged by what it is for: it lies in the unit ball, and ⟨G, X⟩ is the nuclear norm
of G, which no feasible X exceeds. The truth comes from SciPy's QR iteration or from how G was made.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from geodiag import norms
from geodiag.blocks import stack
from geodiag.core.spaces import Space
from geodiag.norms import polar as methods
from tests import truth

EPS32 = float(np.finfo("float32").eps)


def made(shape, singular_values, seed=0):
    """A matrix of these singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    k = len(singular_values)
    left, right = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in shape)
    return (left * singular_values) @ right.T


def judged(G, X):
    """(‖X‖ − 1, the share of the nuclear norm that ⟨G, X⟩ lacks)."""
    G, X = np.asarray(G, dtype="float64"), np.asarray(X, dtype="float64")
    assert X.shape == G.shape
    return truth.operator(X) - 1, 1 - np.vdot(G, X) / truth.nuclear(G)


def spectra(k):
    i = np.arange(k) / (k - 1)
    return {
        "flat": np.ones(k),
        "two orders": 10 ** (-2 * i),
        "four orders": 10 ** (-4 * i),
        "eight orders": 10 ** (-8 * i),
        "one leads": np.where(i == 0, 1, 1e-4),
        "twenty lead": np.where(np.arange(k) < 20, 1, 1e-3),
        "half are zero": np.where(i < 0.5, 1.0, 0.0),
        "rank one": np.where(i == 0, 1.0, 0.0),
    }


@pytest.fixture
def accelerator(monkeypatch):
    """Methods as on an accelerator, on arrays that are not."""
    monkeypatch.setattr(methods, "on_cpu", lambda x: False)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (2, 40, 7), (90, 70), (2, 70, 90)], ids=str)
def test_nuclear_norms_of_small_and_large_matrices(shape, xp):
    G = np.random.default_rng(0).standard_normal(shape).astype("float32")
    found = np.atleast_1d(np.asarray(methods.nuclear_norm(xp.asarray(G))))
    expected = [truth.nuclear(g) for g in G.reshape(-1, *shape[-2:]).astype("float64")]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 5), "float32"), ((5, 3), "float64"), ((2, 40, 7), "float32"), ((90, 100), "float64")],
    ids=str,
)
def test_svd_where_small_or_float64(shape, dtype, xp):
    G = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    X = np.asarray(methods.polar(xp.asarray(G)))
    assert X.dtype == dtype
    tol = truth.tolerance(dtype, max(shape))
    for g, x in zip(G.reshape(-1, *shape[-2:]), X.reshape(-1, *shape[-2:]), strict=True):
        excess, loss = judged(g, x)
        assert excess < tol
        assert abs(loss) < tol


@pytest.mark.parametrize("shape", [(96, 96), (200, 300)], ids=str)
@pytest.mark.parametrize("spectrum", spectra(2))
def test_gram_is_as_accurate_as_stated(shape, spectrum, xp):
    G = made(shape, spectra(min(shape))[spectrum]).astype("float32")
    excess, loss = judged(G, methods.polar(xp.asarray(G)))
    assert excess < 3e-3
    assert loss < 1e-2


@pytest.mark.parametrize("spectrum", ["one leads", "twenty lead"])
def test_gram_needs_the_leading_values_pressed_down(spectrum):
    """What a plain Gram matrix in float32 cannot resolve: values 1e-4 of the largest."""
    G = made((96, 96), spectra(96)[spectrum]).astype("float32")
    gram = np.linalg.eigvalsh(G @ G.T)
    noise = gram[-1] * methods.FLOOR * EPS32
    assert np.sqrt(noise) > 10 * spectra(96)[spectrum][-1]
    assert judged(G, methods.polar(G))[1] < 1e-4


@pytest.mark.parametrize("shape", [(96, 96), (3, 96, 96), (300, 200)], ids=str)
@pytest.mark.parametrize("spectrum", spectra(2))
def test_products_alone_are_accurate_to_rounding(shape, spectrum, xp, accelerator):
    values = spectra(min(shape[-2:]))[spectrum]
    stack = shape[0] if len(shape) == 3 else 1
    G = np.stack([made(shape[-2:], values, seed) for seed in range(stack)]).astype("float32")
    X = np.asarray(methods.polar(xp.asarray(G.reshape(shape)))).reshape(G.shape)
    for g, x in zip(G, X, strict=True):
        excess, loss = judged(g, x)
        assert excess < 16 * EPS32  # of the order of one per product; they do not add up
        assert loss < 1e-5  # eight orders: a sixth of the values is below 1e-6 of ‖G‖_F


def test_quintics_take_all_singular_values_to_one_and_none_above():
    x = np.geomspace(1e-12, 1.01, 400_001)
    y = x
    for a, b, c in methods.QUINTICS:
        y = a * y + b * y**3 + c * y**5
        assert y.max() <= 1 + 1e-7
        assert y.min() > 0
    assert y[x >= 1e-6].min() > 1 - 1e-7


def test_quintics_are_the_best_of_their_degree():
    """Each against a linear programme for min max |1 − p| on a grid of its interval."""
    low = 0.02
    for row in methods.QUINTICS[7:-1]:
        x = np.linspace(low, 1.01, 2001)
        powers = np.stack([x, x**3, x**5], axis=1)
        one = np.ones((x.size, 1))
        limits = np.concatenate([one, -one])[:, 0]
        found = optimize.linprog(
            [0, 0, 0, 1],
            np.block([[powers, -one], [-powers, -one]]),
            limits,
            bounds=[(None, None)] * 3 + [(0, None)],
        )
        best = found.x[:3] / (1 + found.fun)  # scaled to a maximum of 1
        np.testing.assert_allclose(row, best, rtol=1e-4)
        low = float(np.array([low, low**3, low**5]) @ row)


@pytest.mark.parametrize("rank", [1, 30, 50])
@pytest.mark.parametrize("shape", [(200, 300), (300, 200)], ids=str)
def test_low_rank_takes_the_short_cut_and_is_exact(rank, shape, xp, dtype, monkeypatch):
    def refused(*args):
        raise AssertionError("the general method ran")

    monkeypatch.setattr(methods, "_by_gram", refused)
    G = made(shape, np.geomspace(1, 1e-3, rank)).astype(dtype)
    g = xp.asarray(G)
    excess, loss = judged(G, methods.polar(g))
    tol = truth.tolerance(dtype, 300)
    assert excess < tol
    assert abs(loss) < tol
    assert float(methods.operator_norm(g)) == pytest.approx(truth.operator(G), rel=16 * tol / 300)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shape", [(192, 192), (200, 300)], ids=str)
def test_a_low_rank_is_recognised_by_a_wide_margin(shape, seed):
    """The residual of rank k/4 is far below the threshold of 64 ε, whatever the columns: as many
    columns as the rank, with none more, gave up to 410 ε. Rank k/4 + 9 is above it by far."""
    rank = shape[0] // 4
    low = made(shape, np.geomspace(1, 1e-3, rank), seed).astype("float32")
    found = methods._low_rank(low)
    assert found is not None
    assert float(found[2]) < 8 * EPS32 * truth.l2(low)
    above = made(shape, np.geomspace(1, 1e-3, rank + 9), seed).astype("float32")
    assert methods._low_rank(above) is None
    assert judged(above, methods.polar(above))[1] < 1e-2


@pytest.mark.parametrize("columns", [[2], [5], [2, 5, 7, 8]], ids=str)
def test_what_the_chosen_columns_miss_is_not_lost(columns):
    """Low rank, but for columns that neither the span nor the first check looks at."""
    step = 200 // (200 // 4 + methods.OVERSAMPLED)
    assert not {*range(0, 200, step), *range(step // 2, 200, 4 * step)} & {*columns}
    G = made((200, 200), np.ones(10)).astype("float32")
    G[:, columns] += 2 * np.random.default_rng(1).standard_normal((200, len(columns)))
    assert methods._low_rank(G) is None
    assert judged(G, methods.polar(G))[1] < 1e-2
    assert methods.operator_norm(G) == pytest.approx(truth.operator(G), rel=16 * EPS32)


@pytest.mark.parametrize("scale", [1e-33, 1e30], ids=str)
@pytest.mark.parametrize("shape", [(8, 9), (96, 96), (200, 300)], ids=str)
@pytest.mark.parametrize("rank", [3, None])
def test_scales_whose_squares_leave_float32(scale, shape, rank, xp):
    k = min(shape)
    G = (scale * made(shape, np.linspace(1, 0.1, rank or k))).astype("float32")
    _, loss = judged(G.astype("float64") / scale, methods.polar(xp.asarray(G)))
    assert loss < 1e-2
    value = float(methods.operator_norm(xp.asarray(G)))
    assert value == pytest.approx(truth.operator(G.astype("float64")), rel=16 * EPS32)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (96, 96), (200, 300)], ids=str)
def test_zero(on_cpu, shape, xp, dtype, monkeypatch):
    monkeypatch.setattr(methods, "on_cpu", lambda x: on_cpu)
    zero = xp.zeros(shape, dtype=getattr(xp, dtype))
    assert float(methods.operator_norm(zero)) == 0.0
    X = np.asarray(methods.polar(zero))
    assert np.isfinite(X).all()
    assert truth.operator(X) <= 1 + 16 * np.finfo(dtype).eps


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(96, 96), (200, 300)], ids=str)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_is_reported_or_stays(bad, shape, xp):
    G = np.ones(shape, dtype="float32")
    G[3, 4] = bad
    for f in (methods.polar, methods.operator_norm):
        try:
            found = np.isfinite(np.asarray(f(xp.asarray(G)))).all()
        except Exception as e:
            found = type(e).__name__
        assert str(found) in ("False", "LinAlgError", "_LinAlgError")


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (96, 96), (300, 200)], ids=str)
@pytest.mark.parametrize("spectrum", ["two orders", "one leads", "rank one"])
def test_the_norm_is_accurate_to_rounding(on_cpu, shape, spectrum, xp, dtype, monkeypatch):
    monkeypatch.setattr(methods, "on_cpu", lambda x: on_cpu)
    G = made(shape, spectra(min(shape))[spectrum]).astype(dtype)
    value = float(methods.operator_norm(xp.asarray(G)))
    # Products of length 300, summed in blocks, and their root; k^(2^-23) − 1 = 6e-7 above.
    above = 0.0 if on_cpu else 7e-7
    eps = float(np.finfo(dtype).eps)
    assert -16 * eps < value / truth.operator(G) - 1 < 16 * eps + above


@pytest.mark.parametrize("shape", [(3, 5), (96, 96), (200, 300)], ids=str)
def test_traced_is_as_good_as_eager(shape):
    jax = pytest.importorskip("jax")
    G = made(shape, np.geomspace(1, 1e-2, min(20, *shape))).astype("float32")
    excess, loss = judged(G, jax.jit(methods.polar)(G))
    assert excess < 3e-3
    assert loss < 1e-4
    value = float(jax.jit(methods.operator_norm)(G))
    assert value == pytest.approx(truth.operator(G), rel=16 * EPS32)


def test_equal_shapes_are_answered_in_one_call_on_an_accelerator(xp, accelerator, monkeypatch):
    rng = np.random.default_rng(0)
    shapes = [(96, 96), (96, 70), (96, 96), (96, 96)]
    Gs = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    # A stack of at most two: three of one shape are two calls.
    monkeypatch.setattr(methods, "STACK_BYTES", 2 * 96 * 96 * 4)
    calls = []

    def f(m):
        calls.append(tuple(m.shape))
        return methods.polar(m)

    together = methods.each(f, [xp.asarray(G) for G in Gs])
    assert calls == [(2, 96, 96), (1, 96, 96), (1, 96, 70)]
    for G, X in zip(Gs, together, strict=True):
        alone = np.asarray(methods.polar(xp.asarray(G)))
        np.testing.assert_allclose(np.asarray(X), alone, rtol=0, atol=1e-4)
        assert judged(G, X)[1] < 1e-5


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("norm", [norms.Spectral, norms.Muon])
def test_many_matrices_together(norm, on_cpu, xp, monkeypatch):
    monkeypatch.setattr(methods, "on_cpu", lambda x: on_cpu)
    shapes = {"a": (96, 96), "bias": (5,), "b": (96, 70), "c": (96, 96), "d": (3, 2)}
    host = truth.back(truth.to(np, truth.blocks(0, shapes), "float32"))
    g = truth.to(xp, host, "float32")
    bound = norm().bind(Space.of(g))
    name = "spectral" if norm is norms.Spectral else "muon"
    value, dual = truth.NORMS[name]
    assert float(bound.value(g)) == pytest.approx(value(host), rel=1e-6)
    answer = truth.back(bound.lmo(g))
    assert list(answer) == list(shapes)
    assert value(answer) < 1 + 3e-3
    assert truth.inner(host, answer) == pytest.approx(dual(host), rel=1e-3)
    assert float(bound.dual(g)) == pytest.approx(dual(host), rel=1e-3)
    opposite = truth.to(xp, {n: -x for n, x in host.items()}, "float32")
    stacked = bound.lmos(stack([g, opposite]))
    for n, x in answer.items():
        np.testing.assert_allclose(np.asarray(stacked[n]), [x, -x], rtol=0, atol=1e-4)


def test_large_arrays_stay_on_their_device():
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    g = strict.asarray(made((80, 90), np.ones(80)), dtype=strict.float32, device=device)
    assert methods.polar(g).device == methods.operator_norm(g).device == device


def test_where_an_array_is_computed_with(xp):
    assert methods.on_cpu(xp.ones((2, 2)))


def test_a_traced_array_is_where_all_devices_are():
    jax = pytest.importorskip("jax")
    seen = []
    jax.jit(lambda x: seen.append(methods.on_cpu(x)) or x)(jax.numpy.ones(2))
    assert seen == [all(d.platform == "cpu" for d in jax.devices())]
