"""The same network in torch, JAX and NumPy: the same numbers.

NumPy's forward and backward passes are written out by hand, so that one of the three shares no
autograd with the others; its products are central differences.
"""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import geodiag
from geodiag.blocks import flatten, to_numpy
from tests import truth

# Without muon, whose radii depend on which axis is the output: see the last test.
NORMS = ["l2", "l1", "linf", "block", "spectral", "nuclear", "frobenius", "rms"]
WIDTHS = (6, 5, 4, 3)


@pytest.fixture(autouse=True)
def _float64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def weights():
    rng = np.random.default_rng(0)
    found = {}
    for i, (m, n) in enumerate(pairwise(WIDTHS)):
        found[f"{2 * i}.weight"] = rng.standard_normal((n, m)) / np.sqrt(m)
        found[f"{2 * i}.bias"] = rng.standard_normal(n) / 10
    return found, rng.standard_normal((30, WIDTHS[0])), rng.standard_normal((30, WIDTHS[-1]))


def numpy_problem():
    found, x, y = weights()

    def forward(p):
        hidden = [x]
        for i in (0, 2):
            hidden.append(np.tanh(hidden[-1] @ p[f"{i}.weight"].T + p[f"{i}.bias"]))
        return hidden, hidden[-1] @ p["4.weight"].T + p["4.bias"]

    def loss(p):
        return np.mean((forward(p)[1] - y) ** 2)

    def gradient(p):
        hidden, out = forward(p)
        delta, g = 2 * (out - y) / y.size, {}
        for i in (4, 2, 0):
            g[f"{i}.weight"], g[f"{i}.bias"] = delta.T @ hidden[i // 2], delta.sum(0)
            delta = delta @ p[f"{i}.weight"] * (1 - hidden[i // 2] ** 2)
        return g

    return geodiag.problem((loss, gradient), params=found)


def torch_problem():
    found, x, y = weights()
    layers = []
    for m, n in pairwise(WIDTHS):
        layers += [nn.Linear(m, n).double(), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for p, w in zip(model.parameters(), found.values(), strict=True):
            p.copy_(torch.from_numpy(w))
    return geodiag.problem(
        model, criterion=nn.MSELoss(), data=(torch.from_numpy(x), torch.from_numpy(y))
    )


def jax_loss(p, x, y):
    for i in (0, 2):
        x = jnp.tanh(x @ p[f"{i}.weight"].T + p[f"{i}.bias"])
    return jnp.mean((x @ p["4.weight"].T + p["4.bias"] - y) ** 2)


def jax_problem():
    found, x, y = weights()
    params = {name: jnp.asarray(w) for name, w in found.items()}
    return geodiag.problem(jax_loss, params=params, data=(jnp.asarray(x), jnp.asarray(y)))


PROBLEMS = {"numpy": numpy_problem, "torch": torch_problem, "jax": jax_problem}
# Autograd in float64: some hundred roundings. NumPy's products: ε^{2/3} = 4e-11 of the gradient's
# and third derivative's size, which is of the order of the product's here.
RTOL = 1e-8


def vector(blocks):
    names = [f"{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    return flatten({name: to_numpy(blocks[name]) for name in names})


def close(a, b):
    assert np.linalg.norm(a - b) <= RTOL * np.linalg.norm(b)


@pytest.mark.parametrize("other", ["numpy", "jax"])
def test_loss_gradient_and_products_agree(other):
    one, two = torch_problem().at(), PROBLEMS[other]().at()
    assert float(one.loss()) == pytest.approx(float(two.loss()), rel=RTOL)
    close(vector(one.gradient()), vector(two.gradient()))
    for seed in range(3):
        d, e = (o.space.random(np.random.default_rng(seed)) for o in (one, two))
        assert np.array_equal(vector(d), vector(e))  # random starts are the same everywhere
        close(vector(one.hvp(d)), vector(two.hvp(e)))


@pytest.mark.parametrize("other", ["numpy", "jax"])
def test_top_eigenvalue_agrees(other):
    # A residual of 1e-6 leaves an eigenvalue error of its square over the gap: below 1e-10.
    one, two = (geodiag.sharpness(p(), rtol=1e-6) for p in (torch_problem, PROBLEMS[other]))
    assert one.value == pytest.approx(two.value, rel=RTOL)


@pytest.mark.parametrize("other", ["numpy", "jax"])
@pytest.mark.parametrize("norm", [n for n in NORMS if n != "l2"])
def test_sharpness_from_an_equal_start_agrees(norm, other):
    start = {name: w * 0 + 1 for name, w in weights()[0].items()}
    start["0.weight"] = start["0.weight"] * 2 - np.eye(5, 6)
    values = []
    for problem in (torch_problem(), PROBLEMS[other]()):
        # The one start, so that the same local maximum is climbed; to the end.
        result = geodiag.sharpness(
            problem, norm, estimator=geodiag.estimators.Ascent(starts=1), start=start,
            rtol=1e-12, max_hvps=3000,
        )  # fmt: skip
        values.append(result.value)
    assert values[0] == pytest.approx(values[1], rel=RTOL)


# Part by part in JAX, which "block" shows too: these take the longest to compile.
LONG = {(norm, "jax"): pytest.mark.slow for norm in ("nuclear", "l1")}


@pytest.mark.parametrize(
    ("norm", "other"),
    [
        pytest.param(norm, other, marks=LONG.get((norm, other), ()))
        for norm in NORMS
        for other in ("numpy", "jax")
    ],
)
def test_cold_sharpness_agrees(norm, other):
    # Rounding may lead the ascents to different local maxima of a non-convex problem. Each value is
    # attained by its witness, on the other framework's product, and none is far from the other.
    one, two = problems = [torch_problem(), PROBLEMS[other]()]
    value, _ = truth.NORMS[norm]
    found = [geodiag.sharpness(p, norm) for p in problems]
    for result, there in zip(found, (two, one), strict=True):
        d = {name: to_numpy(x) for name, x in result.direction.items()}
        oracle = there.at()
        image = oracle.hvp({name: oracle.space.asarray(x) for name, x in d.items()})
        form = truth.inner(d, {name: to_numpy(x) for name, x in image.items()})
        assert form / value(d) ** 2 == pytest.approx(result.value, rel=1e-7)
    assert found[0].value == pytest.approx(found[1].value, rel=0.2)


@pytest.mark.parametrize("kind", ["remainder", "pointwise", "path", "optimal", "curvature"])
def test_directional_smoothness_agrees(kind):
    step = {
        name: 0.1 * np.cos(np.arange(w.size)).reshape(w.shape) for name, w in weights()[0].items()
    }
    values = [
        geodiag.directional_smoothness(p(), step, "spectral", kind=kind) for p in PROBLEMS.values()
    ]
    assert values[0] == pytest.approx(values[1], rel=RTOL)
    assert values[2] == pytest.approx(values[1], rel=RTOL)


def test_muon_agrees_where_each_framework_has_its_own_layout():
    # JAX's weights are inputs × outputs (x @ W), torch's are outputs × inputs.
    found, x, y = weights()
    start = {name: np.ones_like(w) for name, w in found.items()}

    def loss(p, x, y):
        return jax_loss({n: w.T if w.ndim == 2 else w for n, w in p.items()}, x, y)

    params = {n: jnp.asarray(w.T) for n, w in found.items()}
    there = geodiag.problem(loss, params=params, data=(jnp.asarray(x), jnp.asarray(y)))
    one, two = (
        geodiag.sharpness(
            problem, "muon", estimator=geodiag.estimators.Ascent(starts=1), rtol=1e-12,
            start={n: w.T if turned else w for n, w in start.items()}, max_hvps=3000,
        )
        for problem, turned in ((torch_problem(), False), (there, True))
    )  # fmt: skip
    assert one.value == pytest.approx(two.value, rel=RTOL)
