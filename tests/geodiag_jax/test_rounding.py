"""The stated rounding errors bound the true ones, in at least 95 % of random draws.

The truth is the same network in float64, with the very step that was taken.
"""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import geodiag
import geodiag_jax
from geodiag.blocks import dot
from tests.geodiag_jax.half import needs_float16

KINDS = ("remainder", "optimal", "pointwise", "path", "curvature")
SHAPES = {"a": (6, 10), "b": (10, 3)}


def loss(params, x, y):
    logits = jnp.tanh(x @ params["a"]) @ params["b"]
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(logits), axis=1))


def cast(params, x, y):
    half = {name: w.astype(jnp.bfloat16) for name, w in params.items()}
    return loss(half, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))


CASES = {
    "float32": (loss, jnp.float32),
    "bfloat16": (loss, jnp.bfloat16),
    "float16": (loss, jnp.float16),
    "cast": (cast, jnp.float32),
}


def draw(seed, dtype):
    """(here, there, data), and the same in float64."""
    rng = np.random.default_rng(seed)
    size = 10 ** rng.uniform(-0.5, 0.5)
    x = jnp.asarray(rng.standard_normal((40, 6)), dtype)
    y = jnp.asarray(np.eye(3)[rng.integers(3, size=40)], dtype)
    here = {n: jnp.asarray(size * rng.standard_normal(s) / 3, dtype) for n, s in SHAPES.items()}
    c = size * 10 ** rng.uniform(-4, -0.5)
    there = {
        n: (w.astype(jnp.float64) + c * rng.standard_normal(w.shape)).astype(dtype)
        for n, w in here.items()
    }
    narrow = here, there, (x, y)
    return narrow, jax.tree_util.tree_map(lambda a: a.astype(jnp.float64), narrow)


def covered(found):
    return np.mean([abs(value - truth) <= error for value, truth, error in found])


@pytest.mark.parametrize("case", ["float32", "bfloat16", "cast"])
def test_the_rounding_of_directional_smoothness(case):
    function, dtype = CASES[case]
    found = {kind: [] for kind in KINDS}
    for seed in range(30):
        (here, _, data), (here64, there64, data64) = draw(seed, dtype)
        step = {n: there64[n] - here64[n] for n in here}
        oracle = geodiag.problem(function, params=here, data=data).at()
        exact = geodiag.problem(loss, params=here64, data=data64).at()
        for kind in KINDS:
            got = geodiag.directional_smoothness(oracle, step, kind=kind)
            truth = geodiag.directional_smoothness(exact, step, kind=kind)
            found[kind].append((float(got), float(truth), got.rounding))
    for kind in KINDS:
        # What holds in 95 % holds in 0.8 of 30 draws but once in 1,500 times.
        assert covered(found[kind]) >= (1.0 if kind == "remainder" else 0.8), kind


@pytest.mark.parametrize("case", ["bfloat16", "cast"])
def test_every_record_below_32_bits_carries_the_error_of_each_number(case):
    function, dtype = CASES[case]
    found = {name: [] for name in ("loss", "dual norm", "sharpness", "D", "curvature")}
    for seed in range(100, 120):
        (here, there, data), (here64, there64, data64) = draw(seed, dtype)
        exact = geodiag.problem(loss, params=here64, data=data64).at()
        step = {n: there64[n] - here64[n] for n in here}
        with geodiag_jax.Monitor(function, "l2", data=data, lr=0.1, every=1, max_hvps=8) as monitor:
            record = monitor.observe(0, here, there)
            lists = monitor.state_dict()["tracker"]["last"]["witness"]
        pattern = r"(loss|dual norm|sharpness|D|curvature) ± ([^,;]+)"
        stated = {name: float(error) for name, error in re.findall(pattern, record.note)}
        assert set(stated) | ({"D"} if case == "bfloat16" else set()) == set(found), record
        stated.setdefault("D", 0.5 * abs(record.directional_smoothness))  # in float32
        d = {name: jnp.asarray(x, jnp.float64) for name, x in lists.items()}
        along = [
            float(geodiag.directional_smoothness(exact, step, kind=kind))
            for kind in ("remainder", "curvature")
        ]
        gradient = exact.gradient()
        truths = {
            "loss": (record.loss, float(exact.loss())),
            "dual norm": (record.dual_norm, math.sqrt(float(dot(gradient, gradient)))),
            "sharpness": (record.sharpness, float(dot(d, exact.hvp(d)))),
            "D": (record.directional_smoothness, along[0]),
            "curvature": (record.curvature, along[1]),
        }
        for name, pair in truths.items():
            found[name].append((*pair, stated[name]))
    for name, each in found.items():
        assert covered(each) >= 0.8, name  # as above


def gamma(params, x):
    drawn = jax.random.gamma(jax.random.key(0), jnp.asarray(2.0, x.dtype), (4,), x.dtype)
    return (1 + jnp.sum(drawn) / 1000) * jnp.sum(params["w"] * x)


def uniform(params, x):
    bounds = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
    drawn = jax.lax.rng_uniform(*bounds, (4,))
    return (1 + jnp.sum(drawn) / 1000) * jnp.sum(params["w"] * x)


def signs(params, x):
    return jnp.sum(jax.random.rademacher(jax.random.key(0), (3,), x.dtype) * params["w"] * x)


def spaced(params, x):
    return jnp.log(jnp.finfo(x.dtype).eps) + jnp.sum(params["w"] * x)


def infinite(params, x):
    return jnp.sum(params["w"] * x) + (jnp.inf if x.dtype == jnp.bfloat16 else 0.0)


def one_batch_casts(params, x):
    narrow = jnp.bfloat16 if len(x) == 1 else x.dtype
    return jnp.sum((params["w"].astype(narrow) * x.astype(narrow)).astype(x.dtype))


def eighths_alone(params, x):
    if x.dtype != jnp.float8_e4m3fn:
        raise TypeError(f"eight bits, not {x.dtype}")
    return jnp.sum(jnp.square(params["w"]) * x.astype(params["w"].dtype))


def eighths(params, x):
    w = params["w"]
    return jnp.sum(w**2 * x.astype(w.dtype) * params["fixed"].astype(w.dtype))


THREE = [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("function", "lengths", "same"),
    [
        (gamma, [3], False),
        (uniform, [3], False),
        (signs, [3], True),
        (spaced, [3], False),
        (infinite, [3], False),
        (one_batch_casts, [3, 1], False),
        (one_batch_casts, [3, 3], True),
    ],
)
def test_only_the_same_loss_is_computed_in_float32(function, lengths, same):
    """Not one of other draws, of other constants, or that casts one of its batches."""
    params = {"w": jnp.asarray(THREE, jnp.bfloat16)}
    batches = [(jnp.ones(n, jnp.bfloat16),) for n in lengths]
    data = batches if len(batches) > 1 else batches[0]
    oracle = geodiag.problem(function, params=params, data=data).at()
    exact = oracle.in_float32()
    assert (exact is not None) is same
    if exact is not None:
        assert float(exact.loss()) == pytest.approx(float(oracle.loss()), rel=2**-7)
        np.testing.assert_allclose(exact.gradient()["w"], oracle.gradient()["w"], rtol=2**-7)


@needs_float16
@pytest.mark.parametrize("function", [eighths, eighths_alone])
def test_arrays_of_eight_bits_beside_the_parameters(function):
    """L = c ∑ wᵢ²: along s, L(w + s) − L(w) − ⟨∇L(w), s⟩ = c‖s‖², so that ζ = c‖s‖²/−⟨∇L, s⟩."""
    half, eight = jnp.asarray(THREE, jnp.bfloat16), jnp.ones(3, jnp.float8_e4m3fn)
    step = {"w": -np.asarray(THREE, np.float32) / 4}
    found = geodiag.realized_edge(
        function,
        step,
        params={"w": half, "fixed": eight},
        data=(eight,),
        where=lambda name, x: name == "w",
    )
    assert found == pytest.approx(0.125, rel=1e-5 if function is eighths else 0.1)
    assert found.loss == 14.0
