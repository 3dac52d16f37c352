"""A norm from plain functions, without a subclass."""

from __future__ import annotations

from collections.abc import Callable

from geodiag.blocks import Array, Blocks
from geodiag.errors import ArgumentError
from geodiag.norms.base import Norm


class FromFunctions(Norm):
    """The norm with these functions of blocks: ``value(d)``, ``lmo(g)``, optionally ``dual(g)``.

    Examples:
        >>> norm = geodiag.norms.FromFunctions(
        ...     value=lambda d: abs(d["x"]).max(), lmo=lambda g: {"x": np.sign(g["x"])}
        ... )
        >>> float(geodiag.sharpness(np.diag([1.0, 2.0]), norm))
        3.0
    """

    def __init__(
        self,
        value: Callable[[Blocks], Array],
        lmo: Callable[[Blocks], Blocks],
        dual: Callable[[Blocks], Array] | None = None,
        name: str = "FromFunctions",
    ) -> None:
        for what, f in (("value", value), ("lmo", lmo), ("dual", dual)):
            if not callable(f) and not (what == "dual" and f is None):
                raise ArgumentError(f"{what}= must be a function of blocks", got=type(f).__name__)
        self._value, self._lmo, self._dual, self._name = value, lmo, dual, name

    def value(self, d: Blocks) -> Array:
        return self._value(d)

    def lmo(self, g: Blocks) -> Blocks:
        return self._lmo(g)

    def dual(self, g: Blocks) -> Array:
        return super().dual(g) if self._dual is None else self._dual(g)

    def __repr__(self) -> str:
        return self._name
