"""The contract of a norm: ``value`` and ``lmo``; everything else follows or is optional.

    class GroupLinf(geodiag.Norm):
        def value(self, d): ...      # ‖d‖, a 0-d array
        def lmo(self, g): ...        # argmax over ‖d‖ ≤ 1 of ⟨g, d⟩, blocks like g

That is the whole contract. Write both with the array API (``xp = geodiag.blocks.namespace(d)``) and
the norm works in every framework.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np

from geodiag.blocks import Array, Blocks, array_namespace, dot, positive, scale, stack, unstack
from geodiag.core.spaces import Space
from geodiag.envelopes import Envelope, Metric
from geodiag.errors import ArgumentError, shown

# One face of a polyhedral unit ball: a point of it (n,) and a basis of its directions (n, k).
Face = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class Norm(ABC):
    """A norm on blocks. Subclass it, or use :class:`geodiag.norms.FromFunctions`.

    Examples:
        >>> class Halved(geodiag.Norm):
        ...     def value(self, d):  # max |d_i| / 2
        ...         return max(abs(x).max() for x in d.values()) / 2
        ...     def lmo(self, g):
        ...         return {name: 2 * np.sign(x) for name, x in g.items()}
        >>> float(geodiag.sharpness(np.diag([1.0, 2.0]), Halved()))  # at (2, 2)
        12.0
    """

    # Whether ``lmo`` factorises matrices, and so costs more than one pass over the entries.
    decomposes: bool = False
    # Whether tensors do not matter, only entries (as in ℓ1, ℓ2, ℓ∞): joined to one vector, blocks
    # have the same norm. Then ``value`` is not finite if an entry is not, and ``lmo`` accepts such.
    entrywise: bool = False

    def bind(self, space: Space) -> Norm:
        """The norm for parameters of this ``space``; override if it depends on names or shapes.

        Called once per measurement. The default is the norm itself.
        """
        return self

    @abstractmethod
    def value(self, d: Blocks) -> Array:
        """‖d‖ as a 0-d array."""

    @abstractmethod
    def lmo(self, g: Blocks) -> Blocks:
        """A maximiser of ⟨g, d⟩ over ‖d‖ ≤ 1; any feasible finite point where g = 0."""

    def dual(self, g: Blocks) -> Array:
        """The dual norm ‖g‖* = ⟨g, lmo(g)⟩ as a 0-d array."""
        return dot(g, self.lmo(g))

    def lmos(self, gs: Blocks) -> Blocks:
        """``lmo`` of K directions stacked on a leading axis; override where batching pays."""
        return stack([self.lmo(g) for g in unstack(gs)])

    def faces(self, space: Space) -> Iterator[Face] | None:
        """Optional, for polyhedral norms: every proper face of the unit ball, up to sign.

        Each face is (point, basis) of its affine hull, in the flattened coordinates of ``space``
        (row-major, in name order of the space). ``None`` means: not polyhedral.
        """
        return None

    def envelope(self, space: Space) -> Envelope | None:
        """Optional: quadratic forms that stay below ‖·‖², for upper bounds on the sharpness.

        Asked of the bound norm. Where ‖d‖₂² ≤ t·‖d‖² for every d, one line will do:
        ``return geodiag.envelopes.euclidean(space, t)``. ``None`` means: no certificate.
        """
        return None

    @property
    def key(self) -> Hashable | None:
        """What the answers depend on: norms of equal keys are compiled once, by JAX.

        The default is the type and its attributes, where these are numbers, texts, functions,
        norms or tuples of them. Others, arrays above all, could change under a compiled function:
        then it is None, and the norm is never compiled.
        """
        values = tuple((name, _key(x)) for name, x in sorted(vars(self).items()))
        return None if any(x is None for _, x in values) else (type(self), values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class QuadraticNorm(Norm):
    """‖d‖² = ⟨d, P d⟩ with P ≻ 0: sharpness is the top eigenvalue of P^{-1/2} H P^{-1/2}.

    Examples:
        >>> class Doubled(geodiag.QuadraticNorm):  # ‖d‖ = 2‖d‖₂
        ...     def metric(self, d):
        ...         return {name: 4 * x for name, x in d.items()}
        ...     def inverse_metric(self, g):
        ...         return {name: x / 4 for name, x in g.items()}
        >>> round(float(geodiag.sharpness(np.diag([8.0, 1.0]), Doubled())), 6)
        2.0
    """

    @abstractmethod
    def metric(self, d: Blocks) -> Blocks:
        """P d."""

    @abstractmethod
    def inverse_metric(self, g: Blocks) -> Blocks:
        """P⁻¹ g."""

    def envelope(self, space: Space) -> Envelope:
        return Metric(space, self.metric, self.inverse_metric)

    def value(self, d: Blocks) -> Array:
        return _root(dot(d, self.metric(d)))

    def dual(self, g: Blocks) -> Array:
        return _root(dot(g, self.inverse_metric(g)))

    def lmo(self, g: Blocks) -> Blocks:
        step = self.inverse_metric(g)
        length = _root(dot(g, step))
        return scale(step, 1 / positive(length))


class UnboundNorm(Norm):
    """A norm whose answers depend on names or shapes: it binds to a space, then answers."""

    @abstractmethod
    def bind(self, space: Space) -> Norm:
        """The norm for parameters of this ``space``."""

    def value(self, d: Blocks) -> Array:
        return self.bind(Space.of(d)).value(d)

    def lmo(self, g: Blocks) -> Blocks:
        return self.bind(Space.of(g)).lmo(g)

    def dual(self, g: Blocks) -> Array:
        return self.bind(Space.of(g)).dual(g)


def _key(x: Any) -> Hashable | None:
    """``x`` as a value that tells it from others; None where it could change."""
    if isinstance(x, Norm):
        return x.key
    if isinstance(x, tuple):
        inner = tuple(_key(each) for each in x)
        return None if any(each is None for each in inner) else (type(x), inner)
    if x is None:
        return "none"
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return _key((type(x), *(getattr(x, f.name) for f in dataclasses.fields(x))))
    if isinstance(x, FunctionType) and x.__closure__:
        cells = _key(tuple(cell.cell_contents for cell in x.__closure__))
        return None if cells is None else (x.__code__, cells)
    plain = isinstance(x, (bool, int, float, str, type, FunctionType, BuiltinFunctionType))
    return (type(x), x) if plain else None


def _root(x: Array) -> Array:
    """√x, with rounding below zero taken as zero; NaN stays NaN."""
    xp = array_namespace(x)
    return xp.sqrt(xp.where(x < 0, xp.zeros_like(x), x))


def require_norm(norm: Any, where: str) -> Norm:
    """``norm`` itself, or a clear error for a class, a name, or anything else."""
    if isinstance(norm, Norm):
        return norm
    is_class = isinstance(norm, type) and issubclass(norm, Norm)
    raise ArgumentError(
        f"{where} takes a Norm object",
        got=f"the class {norm.__name__}" if is_class else shown(norm),
        do=f"pass an instance: {norm.__name__}()"
        if is_class
        else "pass a registered name or e.g. geodiag.norms.L2(); a loss goes to criterion="
        if where == "norm="
        else "pass an object, such as geodiag.norms.L2()",
    )
