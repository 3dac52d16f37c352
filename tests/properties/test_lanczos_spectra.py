"""Hessians with one to five distinct eigenvalues, of which the truth is known in closed form.

The loss is ½ Σ h·(Mw)², and the metric P = MᵀM: the eigenvalues of P⁻¹H are the entries of h,
whatever M is. With y = Md the residual ‖P⁻¹Hd − Sd‖_P is ‖(h − S)·y‖₂.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
import torch

import geodiag
from geodiag import Bound, norms

KINDS = ("mixed", "close", "closer", "negative", "with zeros", "one on top")
# Rounding of sums and products, relative to the largest |h|; a dense M of condition 4 adds to it.
ROUNDING = 300.0


def spectrum(kind, count, n, seed):
    """n entries with (at most) ``count`` distinct values, in a random order."""
    rng = np.random.default_rng([seed, count, n, KINDS.index(kind)])
    values = {
        "mixed": rng.uniform(0.5, 3.0, count) * rng.choice([-1, 1], count),
        "close": rng.choice([-2.0, 2.0]) * (1 + 1e-3 * np.arange(count)),
        "closer": rng.choice([-2.0, 2.0]) * (1 + 3e-5 * np.arange(count)),
        "negative": -rng.uniform(0.5, 3.0, count),
        "with zeros": np.r_[rng.uniform(0.5, 3.0), np.zeros(1), rng.uniform(-1, 1, 3)][:count],
        "one on top": np.sort(rng.uniform(0.5, 0.999, count)),
    }[kind]
    if kind == "one on top":  # of multiplicity one, by so much that float32 can tell
        values[-1] = values[max(0, count - 2)] * (1 + rng.choice([2e-4, 1e-3, 1e-1]))
        h = np.r_[values[-1], rng.choice(values[: max(1, count - 1)], n - 1)]
    else:
        h = np.r_[values, rng.choice(values, n)][:n]
    return rng.permutation(h)


def spectra(n, seeds=1):
    for kind in KINDS:
        for count in range(1, 6):
            for seed in range(seeds):
                yield f"{kind}, {count} values, seed {seed}", spectrum(kind, count, n, seed)


def check(result, h, y, dtype, label, rtol=1e-4):
    """``y`` = M d, in float64."""
    eps, size, top = float(np.finfo(dtype).eps), np.abs(h).max(), h.max()
    slack = ROUNDING * eps * size
    what = f"{label}: {result.value} for {top}, {result.bound.name} {result.status.name}"
    assert np.linalg.norm(y) == pytest.approx(1, abs=ROUNDING * eps), what
    assert result.value == pytest.approx(h @ y**2, abs=slack), what
    assert result.value <= top + slack, what
    assert result.value == pytest.approx(top, rel=1e-3, abs=slack), what
    off = np.linalg.norm((h - result.value) * y)
    if result.value:
        assert result.residual * abs(result.value) == pytest.approx(off, rel=1e-2, abs=slack), what
    if result.bound is Bound.EXACT:
        allowed = 1.5 * max(result.residual if result.value else 0.0, rtol) * abs(top)
        assert abs(result.value - top) <= allowed + slack, what
        assert off <= allowed + slack, what


class Quadratic(torch.nn.Module):
    """½ Σ h·(Mw)² at w = 1, of several tensors."""

    def __init__(self, shapes, dtype):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, torch.nn.Parameter(torch.ones(shape, dtype=dtype)))


def host(direction):
    return np.concatenate([np.asarray(x, dtype=float).ravel() for x in direction.values()])


def shapes_of(n):
    """A one-entry tensor, a matrix, and the rest, as far as there are entries."""
    if n < 8:
        return {"a": (n,)}
    rows = math.isqrt(n - 2) // 2 * 2
    rest = n - 1 - rows * (n // (2 * rows))
    return {"a": (1,), "b": (rows, n // (2 * rows)), "c": (rest,)}


def torch_loss(h, dtype, transform=lambda w: w):
    held = torch.as_tensor(h, dtype=getattr(torch, dtype))

    def loss(module, batch):
        w = torch.cat([p.reshape(-1) for p in module.parameters()])
        return 0.5 * (held * transform(w) ** 2).sum()

    return loss


@pytest.mark.parametrize("n", [1, 2, 17, 128, 129, 1000, 100_000])
def test_l2_in_torch(n, dtype):
    model = Quadratic(shapes_of(n), getattr(torch, dtype))
    for label, h in spectra(n, seeds=1 if n > 1000 else 2):
        result = geodiag.sharpness(model, "l2", loss_fn=torch_loss(h, dtype))
        check(result, h, host(result.direction), dtype, label)


@pytest.mark.parametrize("n", [5, 129, 1000])
def test_warm_in_torch(n, dtype):
    """From the witness of another Hessian, which may be an eigenvector of this one."""
    model = Quadratic(shapes_of(n), getattr(torch, dtype))
    slack = ROUNDING * float(np.finfo(dtype).eps)
    for label, h in spectra(n):
        before = geodiag.sharpness(model, "l2", loss_fn=torch_loss(h, dtype))
        other = np.where(h == h.max(), h.min() - 1, h)
        other[int(np.argmin(h))] = h.max() + 1
        loss = torch_loss(other, dtype)
        warm = geodiag.sharpness(model, "l2", loss_fn=loss, start=before)
        check(warm, other, host(warm.direction), dtype, label)
        tracked = geodiag.sharpness(model, "l2", loss_fn=loss, start=before, rtol=1e-2)
        assert tracked.value <= other.max() + slack * np.abs(other).max(), label
        if tracked.bound is Bound.EXACT:
            assert tracked.value == pytest.approx(other.max(), rel=1.5e-2), label


@pytest.mark.parametrize("how", ["diagonal", "dense", "Kronecker"])
def test_preconditioned_in_torch(how, dtype):
    n, rng = 144, np.random.default_rng(3)
    kind = getattr(torch, dtype)
    a, b = (np.eye(12) + 0.1 * rng.standard_normal((12, 12)) for _ in range(2))
    M = np.diag(rng.uniform(0.5, 2.0, n)) if how == "diagonal" else np.kron(a, b)
    if how == "dense":
        M = np.eye(n) + 0.04 * rng.standard_normal((n, n))
    P = {
        "diagonal": {"a": (np.diag(M) ** 2).reshape(12, 12)},
        "dense": M.T @ M,
        "Kronecker": {"a": (a.T @ a, b.T @ b)},
    }[how]
    model = Quadratic({"a": (12, 12)}, kind)
    held = torch.as_tensor(M, dtype=kind)
    for label, h in spectra(n):
        loss = torch_loss(h, dtype, lambda w: held @ w)
        result = geodiag.sharpness(model, norms.Preconditioned(P), loss_fn=loss)
        check(result, h, M @ host(result.direction), dtype, label)


def by_parts(h, shapes, radii):
    """S of a sum of ℓ2 norms: the best part alone, or all of them where H is negative."""
    tops, at = [], 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        tops.append(radii.get(name, 1.0) ** 2 * h[at : at + size].max())
        at += size
    return max(tops) if max(tops) >= 0 else -1 / sum(-1 / top for top in tops)


@pytest.mark.parametrize(
    ("n", "dtype"),
    [
        (9, "float64"),
        (150, "float32"),
        pytest.param(9, "float32", marks=pytest.mark.slow),
        pytest.param(150, "float64", marks=pytest.mark.slow),
    ],
)
def test_sums_of_norms_in_torch(n, dtype):
    shapes = shapes_of(n)
    model = Quadratic(shapes, getattr(torch, dtype))
    slack = ROUNDING * float(np.finfo(dtype).eps)
    for radii in ({}, {"c": 2.0, "b": 0.5}):
        for label, h in spectra(n):
            result = geodiag.sharpness(
                model, norms.SumOver(norms.L2(), radii=radii), loss_fn=torch_loss(h, dtype)
            )
            top = by_parts(h, shapes, radii)
            assert result.value <= top + 4 * slack * np.abs(h).max(), label
            if top >= 0:  # else the maximum is a mixture of all parts, and ascents are local
                assert result.value == pytest.approx(top, rel=1e-3, abs=slack), label


def jax_bowl(params):
    return sum(jnp.sum((x - 1) ** 2) for x in params.values())


@pytest.mark.parametrize("at", [0.0, 2.0])
@pytest.mark.parametrize("case", ["block, torch", "nuclear, torch", "block, jax"])
def test_one_entry_tensors(case, at):
    """The gradient of a tensor of one entry has the sign of the random draw, or the opposite."""
    name, framework = case.split(", ")
    shapes = {"a": (1,), "b": (2, 3), "c": ()}
    model = Quadratic(shapes, torch.float64)  # at 1
    loss = lambda m, _: sum(((p - at) ** 2).sum() for p in m.parameters())  # noqa: E731
    for seed in range(2):
        if framework == "torch":
            result = geodiag.sharpness(model, name, loss_fn=loss, seed=seed)
        else:
            params = {tensor: jnp.full(shape, at) for tensor, shape in shapes.items()}
            result = geodiag.sharpness(jax_bowl, name, params=params, seed=seed)
        assert result.value == pytest.approx(2.0, rel=1e-6)


def jax_loss(params, h):
    return 0.5 * jnp.sum(h * params["a"] ** 2)


@pytest.mark.parametrize("n", [1, pytest.param(5, marks=pytest.mark.slow), 200, 100_000])
def test_l2_in_jax(n, dtype):
    params = {"a": jnp.ones(n, dtype)}
    for label, h in spectra(n):
        result = geodiag.sharpness(jax_loss, "l2", params=params, data=(jnp.asarray(h, dtype),))
        check(result, h, host(result.direction), dtype, label)


def test_diagonal_metric_in_jax(dtype):
    n = 200
    p = np.random.default_rng(0).uniform(0.5, 2.0, n)
    params, norm = {"a": jnp.ones(n, dtype)}, norms.Preconditioned({"a": p})
    for label, h in spectra(n):
        data = (jnp.asarray(p * h, dtype),)
        result = geodiag.sharpness(jax_loss, norm, params=params, data=data)
        check(result, h, np.sqrt(p) * host(result.direction), dtype, label)


@pytest.mark.parametrize("n", [1, 2, 40, 200])
def test_given_matrices(n, dtype):
    rng = np.random.default_rng(n)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    for label, h in spectra(n):
        H = (Q * h) @ Q.T
        result = geodiag.sharpness(((H + H.T) / 2).astype(dtype), "l2")
        check(result, h, Q.T @ host(result.direction), dtype, label)


@pytest.mark.parametrize("n", [3, 200, 100_000])
def test_given_operators(n):
    for label, h in spectra(n):
        operator = scipy.sparse.linalg.LinearOperator(
            (n, n), matvec=lambda x, h=h: h * x.ravel(), dtype=np.float64
        )
        result = geodiag.sharpness(operator, "l2")
        check(result, h, host(result.direction), "float64", label)
