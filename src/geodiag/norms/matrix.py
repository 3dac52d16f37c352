"""Norms that see tensors as matrices: spectral, nuclear, Frobenius and RMS.

Tensors of more than two axes are matrices through the space's ``matrix_view``, which the adapter
fills; vectors and scalars are measured by ℓ2.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

from geodiag.blocks import Array, Blocks, array_namespace
from geodiag.core.spaces import MatrixView, Space
from geodiag.envelopes import Envelope, TwoSided, euclidean
from geodiag.errors import NormError
from geodiag.norms.base import Norm
from geodiag.norms.composite import Group, MaxOver, Radii, SumOver
from geodiag.norms.joint import BatchedNorm
from geodiag.norms.polar import each, nuclear_norm, operator_norm, polar
from geodiag.norms.quadratic import L2


class _MatrixNorm(Norm):
    """A norm of one matrix through its singular values; vectors and scalars by ℓ2."""

    decomposes = True
    view = MatrixView((0,), (1,))

    def bind(self, space: Space) -> Norm:
        (name,) = space.names
        shape = space.shapes[name]
        if name in space.matrix_view:
            view = space.matrix_view[name]
            if min(view.shape(shape)) == 1:  # one singular value: ℓ2, which is quadratic
                return L2()
            bound = type(self)()
            bound.view = view
            return bound
        if len(shape) >= 2:
            raise NormError(
                f"{name!r} has {len(shape)} axes, and nothing says which of them are its rows",
                got=f"shape {shape}",
                do="bind the norm to a space with a matrix_view for it (the adapters do)",
            )
        return L2()

    @staticmethod
    @abstractmethod
    def maximiser(m: Array) -> Array:
        """argmax over the unit ball of ⟨m, ·⟩ for a matrix, or for each of a stack."""

    def lmo(self, g: Blocks) -> Blocks:
        ((name, x),) = g.items()
        return {name: self.like(self.maximiser(self.matrix(x)), x)}

    def lmos(self, gs: Blocks) -> Blocks:
        ((name, stacked),) = gs.items()
        if stacked.ndim == 3 and self.view.rows == (0,):
            return {name: self.maximiser(stacked)}  # matrices as they are
        xp = array_namespace(stacked)
        xs = [stacked[i, ...] for i in range(stacked.shape[0])]
        found = self.maximiser(xp.stack([self.matrix(x) for x in xs]))
        return {name: xp.stack([self.like(found[i, ...], x) for i, x in enumerate(xs)])}

    def matrix(self, x: Array) -> Array:
        return self.view.to_matrix(x)

    def like(self, m: Array, x: Array) -> Array:
        return self.view.from_matrix(m, tuple(x.shape))


class Operator(_MatrixNorm, BatchedNorm):
    """The largest singular value of one matrix. LMO: the polar factor U Vᵀ; dual: nuclear.

    How, and how accurately, by size and device: :mod:`geodiag.norms.polar`.
    """

    maximiser = staticmethod(polar)

    def value(self, d: Blocks) -> Array:
        (x,) = d.values()
        return operator_norm(self.matrix(x))

    def dual(self, g: Blocks) -> Array:
        (x,) = g.values()
        return nuclear_norm(self.matrix(x))  # half the time of the LMO

    @staticmethod
    def batched_value(norms: Sequence[Operator], ds: Sequence[Blocks]) -> list[Array]:
        return each(operator_norm, _matrices(norms, ds))

    @staticmethod
    def batched_dual(norms: Sequence[Operator], gs: Sequence[Blocks]) -> list[Array]:
        return each(nuclear_norm, _matrices(norms, gs))

    @staticmethod
    def batched_lmo(norms: Sequence[Operator], gs: Sequence[Blocks]) -> list[Blocks]:
        factors = each(polar, _matrices(norms, gs))
        return [
            {name: norm.like(m, x) for name, x in g.items()}
            for norm, g, m in zip(norms, gs, factors, strict=True)
        ]

    def envelope(self, space: Space) -> Envelope:
        return TwoSided(space, self.view)


def _matrices(norms: Sequence[Operator], tensors: Sequence[Blocks]) -> list[Array]:
    pairs = zip(norms, tensors, strict=True)
    return [norm.matrix(x) for norm, blocks in pairs for x in blocks.values()]


class Trace(_MatrixNorm):
    """The sum of the singular values of one matrix. LMO: u₁ v₁ᵀ; dual: operator norm."""

    @staticmethod
    def maximiser(m: Array) -> Array:
        u, _, vh = array_namespace(m).linalg.svd(m, full_matrices=False)
        return u[..., :1] @ vh[..., :1, :]

    def value(self, d: Blocks) -> Array:
        (x,) = d.values()
        xp = array_namespace(x)
        return xp.sum(xp.linalg.svdvals(self.matrix(x)))

    def dual(self, g: Blocks) -> Array:
        (x,) = g.values()
        xp = array_namespace(x)
        return xp.max(xp.linalg.svdvals(self.matrix(x)))

    def envelope(self, space: Space) -> Envelope:
        return euclidean(space)


class Spectral(MaxOver):
    """max over tensors of the largest singular value (spectral descent, Muon without momentum).

    LMO: U Vᵀ per matrix; dual: the sum of nuclear norms. Vectors and scalars by ℓ2.

    Examples:
        >>> shapes = {"W": (2, 2)}
        >>> round(float(geodiag.sharpness(np.eye(4), Spectral(), shapes=shapes)), 6)
        2.0
    """

    def __init__(self, radii: Radii = None) -> None:
        super().__init__(Operator(), radii)


class Nuclear(SumOver):
    """Sum over tensors of the nuclear norm. LMO: u₁ v₁ᵀ of the best tensor; vectors by ℓ2.

    Examples:
        >>> shapes = {"W": (2, 2)}
        >>> round(float(geodiag.sharpness(np.eye(4), Nuclear(), shapes=shapes)), 6)
        1.0
    """

    def __init__(self, radii: Radii = None) -> None:
        super().__init__(Trace(), radii)


class Frobenius(MaxOver):
    """max over tensors of the Frobenius norm (layerwise normalized descent).

    Examples:
        >>> shapes = {"a": (2,), "b": (2,)}
        >>> round(float(geodiag.sharpness(np.eye(4), Frobenius(), shapes=shapes)), 6)
        2.0
    """

    def __init__(self, radii: Radii = None) -> None:
        super().__init__(L2(), radii)


class RMS(MaxOver):
    """max over tensors of the root mean square, ‖d_i‖₂/√n_i.

    Examples:
        >>> shapes = {"a": (2,), "b": (2,)}
        >>> round(float(geodiag.sharpness(np.eye(4), RMS(), shapes=shapes)), 6)
        4.0
    """

    def __init__(self) -> None:
        super().__init__(L2())

    def groups(self, space: Space) -> list[Group]:
        return [
            (names, norm, math.sqrt(max(1, space.size_of(names[0]))))
            for names, norm, _ in super().groups(space)
        ]

    def __repr__(self) -> str:
        return "RMS()"
