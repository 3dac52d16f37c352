"""Enumerate: the exact maximum in a polyhedral norm, face by face, for small n.

On each face of the unit ball the quadratic form has one stationary point, unless it is singular
there. The maximum over the sphere is the largest value among the points that lie in the ball.
Vertices alone are not enough: for H = diag(1, −5) in ℓ∞ the maximum, 1, is at (±1, 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from geodiag.blocks import Blocks, stack, to_numpy, unflatten
from geodiag.core.spaces import Space
from geodiag.errors import NormError
from geodiag.estimators.ascent import Ascent
from geodiag.estimators.base import Measurement, Options, SharpnessEstimator
from geodiag.norms.base import Face, Norm
from geodiag.oracles.base import Oracle
from geodiag.results import Bound, SharpnessResult, Status

Vector: TypeAlias = np.ndarray[Any, Any]  # float64, on the host

LIMIT = 10
INSIDE = 1e-9  # how far outside of the ball rounding may put a stationary point


class Enumerate(SharpnessEstimator):
    """Exact for norms that list their ``faces``, up to ``LIMIT`` parameters; n + 1 products.

    If ``max_hvps`` allows fewer, Ascent is used instead, and a note says so.

    Examples:
        >>> result = geodiag.sharpness(np.eye(3), "linf", estimator=geodiag.estimators.Enumerate())
        >>> result.value, result.bound.name, result.status.name
        (3.0, 'EXACT', 'ENUMERATED')
    """

    @staticmethod
    def takes(norm: Norm, space: Space) -> bool:
        """Whether the norm lists its faces, and there are few enough parameters."""
        return _faces(norm, space) is not None

    def estimate(
        self,
        oracle: Oracle,
        norm: Norm,
        start: Blocks | None = None,
        options: Options = Options(),
    ) -> SharpnessResult:
        n = oracle.space.size
        faces = _faces(norm, oracle.space)
        if faces is None:
            raise NormError(
                f"Enumerate takes polyhedral norms of at most {LIMIT} parameters",
                got=f"{norm!r} over {n} parameters",
                do='use estimator="auto", or Ascent()',
            )
        if options.max_hvps is not None and options.max_hvps < n + 1:
            result = Ascent().estimate(oracle, norm, start, options)
            note = f"Enumerate takes {n + 1} products and max_hvps allows fewer: Ascent instead"
            return replace(result, notes=(*result.notes, note))
        m = Measurement(oracle, norm, self, options)
        H = _dense(m)
        best, where = -np.inf, np.zeros(n)
        for point, basis in faces:
            candidate = _stationary(H, point, basis)
            if candidate is None:
                continue
            value = float(candidate @ H @ candidate)
            if value > best:
                length = float(norm.value(unflatten(candidate, oracle.shapes)))
                if length <= 1.0 + INSIDE:
                    best, where = value, candidate
        result = m.finish(_placed(where, oracle.space), Status.ENUMERATED)
        return replace(result, bound=Bound.EXACT)


def _faces(norm: Norm, space: Space) -> Iterator[Face] | None:
    return norm.faces(space) if space.size <= LIMIT else None


def _dense(m: Measurement) -> Vector:
    """The Hessian, in float64 on the host."""
    space = m.oracle.space
    columns = m.hvps(stack([_placed(row, space) for row in np.eye(space.size)]))
    rows = [to_numpy(x).reshape(space.size, -1) for x in columns.values()]
    H = np.concatenate(rows, axis=1).astype(np.float64)
    return (H + H.T) / 2


def _placed(vector: Vector, space: Space) -> Blocks:
    """A host vector as blocks where the parameters are."""
    return {name: space.place(name, x) for name, x in unflatten(vector, space.shapes).items()}


def _stationary(H: Vector, point: Vector, basis: Vector) -> Vector | None:
    """The stationary point of ⟨d, Hd⟩ on point + span(basis); None if the face is degenerate.

    There the form is constant or linear along some direction, so its maximum is on a smaller face
    too.
    """
    if basis.shape[1] == 0:
        return point
    curvature = basis.T @ H @ basis
    try:
        y = np.linalg.solve(curvature, -basis.T @ H @ point)
    except np.linalg.LinAlgError:
        return None
    candidate = point + basis @ y
    return candidate if np.all(np.isfinite(candidate)) else None
