"""Learning rates of their own for some parameters, as radii of a norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from geodiag.core.spaces import Space
from geodiag.norms import MaxOver, Norm, Stacked


@dataclass(frozen=True)
class RadiiByName:
    """Radii by exact names, as a function that a norm takes."""

    radii: tuple[tuple[str, float], ...]

    def __call__(self, name: str, shape: tuple[int, int] | None) -> float:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, float]:
        return dict(self.radii)

    @property
    def __name__(self) -> str:
        return "those of the optimizer"


def with_rates(norm: Norm, rates: Mapping[str, float], space: Space) -> Norm:
    """``norm``, a maximum over tensors, with each learning rate as a factor of the radius."""
    if set(rates.values()) == {1.0}:
        return norm
    if isinstance(norm, Stacked):
        slices = norm.slices(space)
        rates = {each: r for name, r in rates.items() for each in slices.names_of(name)}
        return Stacked(with_rates(norm.norm, rates, slices.slices_of(space)), dict(norm.axes))
    if not isinstance(norm, MaxOver):
        return MaxOver(norm, RadiiByName(tuple(rates.items())))
    radii = {names[0]: radius for names, _, radius in norm.groups(space)}
    return MaxOver(norm.norm, RadiiByName(tuple((n, radii[n] * r) for n, r in rates.items())))
