"""Quadratic norms ‖d‖² = ⟨d, P d⟩: ℓ2 and preconditioned gradient descent.

Sharpness in these is an eigenvalue, so Lanczos finds it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    check_like,
    is_array,
    norm2,
    positive,
    scale,
)
from geodiag.core.spaces import Space
from geodiag.core.stacks import lengths, rescale
from geodiag.core.validation import on_host
from geodiag.envelopes import Envelope, euclidean
from geodiag.errors import NormError
from geodiag.norms.base import QuadraticNorm, UnboundNorm

BlockMap = Callable[[Blocks], Blocks]


class L2(QuadraticNorm):
    """The Euclidean norm of every parameter together (gradient descent): S = λ_max(H).

    Examples:
        >>> shapes = {"a": (2,), "b": (2,)}
        >>> round(float(geodiag.sharpness(np.eye(4), L2(), shapes=shapes)), 6)
        1.0
    """

    entrywise = True

    def metric(self, d: Blocks) -> Blocks:
        return d

    def inverse_metric(self, g: Blocks) -> Blocks:
        return g

    def value(self, d: Blocks) -> Array:
        return norm2(d)

    def dual(self, g: Blocks) -> Array:
        return norm2(g)

    def lmos(self, gs: Blocks) -> Blocks:
        return rescale(gs, 1 / positive(lengths(gs)))

    def envelope(self, space: Space) -> Envelope:
        return euclidean(space)


class FromMaps(QuadraticNorm):
    """A quadratic norm from the two maps P· and P⁻¹·; what the others bind to."""

    def __init__(self, metric: BlockMap, inverse_metric: BlockMap, name: str) -> None:
        self._metric, self._inverse, self._name = metric, inverse_metric, name

    def metric(self, d: Blocks) -> Blocks:
        return self._metric(d)

    def inverse_metric(self, g: Blocks) -> Blocks:
        return self._inverse(g)

    def __repr__(self) -> str:
        return self._name


class Preconditioned(UnboundNorm):
    """√⟨d, P d⟩ for a positive definite P (preconditioned gradient descent).

    ``P`` is one of

    - a mapping name → array of the tensor's own shape: diagonal (Adam's √v̂ + ε);
    - a mapping name → ``(L, R)``: Kronecker, P: D ↦ L D R on the tensor seen as a (rows, cols)
      matrix (K-FAC, Shampoo); both symmetric positive definite;
    - one symmetric positive definite (n, n) matrix over all n parameters, row-major, in the order
      of the parameters;
    - a pair of callables ``(metric, inverse_metric)`` from blocks to blocks.

    A mapping may mix the first two, and must name every measured tensor.
    Scaling P by c scales the sharpness by 1/c: use the P by which the optimizer really divides.

    Examples:
        >>> from geodiag.norms import Preconditioned
        >>> float(Preconditioned({"x": np.array([4.0, 1.0])}).value({"x": np.array([1.0, 0.0])}))
        2.0
    """

    def __init__(self, P: Any = None) -> None:
        if P is None:
            raise NormError(
                "the preconditioned norm needs its preconditioner P",
                got="no P",
                do="build it: geodiag.norms.Preconditioned(P), with P a dict name → array "
                "(diagonal) or (L, R), an (n, n) matrix, or (metric, inverse_metric) callables",
            )
        callables = isinstance(P, tuple) and len(P) == 2 and all(map(callable, P))
        if not (callables or isinstance(P, Mapping) or is_array(P)):
            raise NormError(
                "P has an unknown form",
                got=type(P).__name__,
                do="pass a dict name → array or (L, R), an (n, n) matrix, or two callables",
            )
        self.P = P

    def bind(self, space: Space) -> QuadraticNorm:
        if isinstance(self.P, Mapping):
            return self._bind_mapping(space)
        if isinstance(self.P, tuple):
            metric, inverse_metric = (_checked(f, space, repr(self)) for f in self.P)
            return FromMaps(metric, inverse_metric, repr(self))
        return self._bind_dense(space)

    def _bind_dense(self, space: Space) -> QuadraticNorm:
        inverse, matrix = _definite(self.P, space.size, "P")
        p, p_inverse = space.asarray(matrix), space.asarray(inverse)

        def through(m: Any) -> BlockMap:
            return lambda d: space.unravel(m @ space.ravel(d))

        return FromMaps(through(p), through(p_inverse), name=repr(self))

    def _bind_mapping(self, space: Space) -> QuadraticNorm:
        missing = [n for n in space.names if n not in self.P]
        if missing:
            raise NormError(
                "P does not name every measured tensor",
                got=f"no entry for {', '.join(map(repr, missing[:4]))}",
                do="add the entries, or leave these tensors out of the measurement with where=",
            )
        maps = {name: self._tensor_maps(name, space) for name in space.names}
        return FromMaps(
            lambda d: {name: maps[name][0](x) for name, x in d.items()},
            lambda g: {name: maps[name][1](x) for name, x in g.items()},
            name=repr(self),
        )

    def _tensor_maps(self, name: str, space: Space) -> tuple[Callable[[Any], Any], ...]:
        entry, shape = self.P[name], space.shapes[name]
        if isinstance(entry, tuple):
            if len(entry) != 2:
                raise NormError(f"P at {name!r} must be a pair (L, R)", got=f"{len(entry)} parts")
            if name not in space.matrix_view:
                raise NormError(
                    f"the Kronecker pair at {name!r} needs a matrix-shaped tensor",
                    got=f"shape {shape}",
                    do="give this tensor a diagonal array of its own shape",
                )
            view = space.matrix_view[name]
            rows, cols = view.shape(shape)
            left_inverse, left = map(space.asarray, _definite(entry[0], rows, f"L of {name!r}"))
            right_inverse, right = map(space.asarray, _definite(entry[1], cols, f"R of {name!r}"))
            return (
                lambda x: view.from_matrix(left @ view.to_matrix(x) @ right, shape),
                lambda x: view.from_matrix(left_inverse @ view.to_matrix(x) @ right_inverse, shape),
            )
        diagonal = on_host(entry, f"the diagonal of P at {name!r}", NormError)
        if diagonal.shape != tuple(shape) or not np.all(np.isfinite(diagonal) & (diagonal > 0)):
            raise NormError(
                f"the diagonal of P at {name!r} must be positive and of shape {tuple(shape)}",
                got=f"shape {diagonal.shape}"
                + (f", smallest entry {diagonal.min():g}" if diagonal.size else ""),
                do="add a damping term (Adam: √v̂ + ε), and use the tensor's own shape",
            )
        weights = space.place(name, diagonal)
        return lambda x: x * weights, lambda x: x / weights

    def __repr__(self) -> str:
        return "Preconditioned(P)"


def _checked(f: BlockMap, space: Space, name: str) -> BlockMap:
    """A user's map, with its answers checked."""

    def checked(d: Blocks) -> Blocks:
        answer = f(d)
        check_like(answer, space.shapes, f"a map of {name}", NormError)
        return {n: answer[n] for n in space.names}

    return checked


def scaled_quadratic(norm: QuadraticNorm, c: float, name: str) -> QuadraticNorm:
    """c·‖·‖ of a quadratic norm, which is quadratic again: P becomes c²P."""
    square = c * c
    if not 0 < square < math.inf or math.isinf(1.0 / square):
        raise NormError("a factor or radius of the norm is too small or too large", got=f"{c:g}")
    return FromMaps(
        lambda d: scale(norm.metric(d), square),
        lambda g: scale(norm.inverse_metric(g), 1.0 / square),
        name,
    )


def _definite(m: Any, n: int, what: str) -> tuple[Any, Any]:
    """(inverse, matrix) of a symmetric positive definite n × n matrix, in float64 on the host."""
    matrix = on_host(m, what, NormError)
    if matrix.shape != (n, n):
        raise NormError(f"{what} must have shape ({n}, {n})", got=f"shape {matrix.shape}")
    tolerance = 1e-6 * np.abs(matrix).max(initial=0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite difference is one too
        skew = np.abs(matrix - matrix.T).max(initial=0.0)
    if not np.all(np.isfinite(matrix)) or skew > tolerance:
        raise NormError(f"{what} must be finite and symmetric", do="pass (P + Pᵀ)/2")
    try:
        factor = np.linalg.inv(np.linalg.cholesky(matrix))
    except np.linalg.LinAlgError as e:
        smallest = float(np.linalg.eigvalsh(matrix)[0])
        raise NormError(
            f"{what} must be positive definite",
            got=f"smallest eigenvalue {smallest:.3g}",
            do="add a damping term: P + εI",
        ) from e
    return factor.T @ factor, matrix
