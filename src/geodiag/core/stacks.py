"""Arithmetic on stacks: K directions as blocks with a leading axis of length K.

Solvers that follow several directions at once, or keep a basis, work on these: one operation per
tensor serves all K, and the adapter may batch the Hessian-vector products.

:func:`gram` and :func:`mix` do the same for small matrices kept on the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    array_namespace,
    axpy,
    device,
    map_blocks,
    namespace,
    to_numpy,
)


def dots(a: Blocks, b: Blocks) -> Array:
    """⟨a_k, b_k⟩ for each k, as (K,)."""
    total = None
    for name, x in a.items():
        xp = array_namespace(x)
        part = xp.sum(x * b[name], axis=tuple(range(1, x.ndim)))
        total = part if total is None else total + part
    return total


def cross(a: Blocks, b: Blocks) -> Array:
    """⟨a_j, b_k⟩ for all pairs, as (J, K)."""
    total = None
    for name, x in a.items():
        part = _products(x, b[name])
        total = part if total is None else total + part
    return total


def combine(weights: Array, a: Blocks) -> Blocks:
    """Σ_k weights[j, k]·a_k for each j, as a stack of J."""
    xp = namespace(a)
    return map_blocks(lambda x: weights @ x if x.ndim == 2 else xp.tensordot(weights, x, axes=1), a)


def rescale(a: Blocks, factors: Array) -> Blocks:
    """factors[k]·a_k, for factors of shape (K,)."""
    xp = namespace(a)
    return map_blocks(
        lambda x: x * xp.reshape(factors, (factors.shape[0], *(1 for _ in x.shape[1:]))), a
    )


def blend(a: Blocks, b: Blocks, t: Array, side: Array) -> Blocks:
    """(1 − t[k])·a_k + t[k]·side[k]·b_k: exactly ±b_k at t = 1, for sides of ±1."""
    return axpy(1, rescale(b, t * side), rescale(a, 1 - t))


def join(*stacks: Blocks) -> Blocks:
    """The stacks one after the other."""
    xp = namespace(stacks[0])
    return map_blocks(lambda *xs: xp.concat(list(xs)), *stacks)


def pick(a: Blocks, indices: Array) -> Blocks:
    """The members at ``indices``, a (J,) integer array that may be traced."""
    xp = namespace(a)
    return map_blocks(lambda x: xp.take(x, indices, axis=0), a)


def count_of(a: Blocks) -> int:
    """How many directions are stacked."""
    return int(next(iter(a.values())).shape[0])


def members(a: Blocks, start: int, stop: int) -> Blocks:
    """The members from ``start`` to before ``stop``."""
    return map_blocks(lambda x: x[start:stop, ...], a)


def one(d: Blocks) -> Blocks:
    """d as a stack of one."""
    return map_blocks(lambda x: x[None, ...], d)


def only(a: Blocks) -> Blocks:
    """The first member of a stack."""
    return map_blocks(lambda x: x[0, ...], a)


def lengths(a: Blocks) -> Array:
    """The Euclidean norm of each member, as (K,)."""
    xp = namespace(a)
    return xp.sqrt(dots(a, a))


def _products(x: Array, y: Array) -> Array:
    """Of each row with each. Not by way of a reshape, which would gather what is split."""
    if x.ndim == 2:
        return x @ y.T
    axes = tuple(range(1, x.ndim))
    return array_namespace(x).tensordot(x, y, axes=(axes, axes))


Matrix = np.ndarray[Any, Any]  # small, float64, on the host


def gram(x: Blocks, y: Blocks) -> Matrix:
    """⟨x_i, y_j⟩."""
    return to_numpy(cross(x, y)).astype(np.float64)


def mix(coefficients: Matrix, x: Blocks) -> Blocks:
    """Σ_j c_ij x_j, stacked over i."""
    example = next(iter(x.values()))
    c = np.ascontiguousarray(coefficients)
    c = namespace(x).asarray(c, dtype=example.dtype, device=device(example))
    return combine(c, x)
