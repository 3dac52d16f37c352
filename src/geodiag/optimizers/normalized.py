"""Families whose step has a length that does not depend on the gradient's: sign, orthogonalised."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from geodiag.blocks import Array, Blocks, array_namespace, epsilon, norm2, subtract
from geodiag.core.slices import Slices
from geodiag.core.spaces import Space
from geodiag.errors import ArgumentError
from geodiag.norms import L2, Linf, Muon, Norm, Spectral, Stacked
from geodiag.norms.muon import muon_radius
from geodiag.optimizers.comparison import ROUNDING
from geodiag.optimizers.families import IMMATERIAL, at_least_float32, averaged
from geodiag.optimizers.newton_schulz import newton_schulz, singular_values
from geodiag.optimizers.rates import RadiiByName, with_rates
from geodiag.optimizers.slots import Family, Slot, relative_rates, shared
from geodiag.optimizers.thresholds import Update


class _Normalized(Family):
    """w⁺ = w − η lmo(m): its length does not depend on the gradient's."""

    scale_free = True
    joins = "max"

    def update(self, slots: Sequence[Slot]) -> Update:
        decay = max(s.weight_decay for s in slots)
        beta = shared(slots, "momentum")
        return Update(slots[0].lr, normalized=True, momentum=beta, weight_decay=decay)


class SignDescent(_Normalized):
    """w⁺ = w − η sign(m): SignSGD, Signum."""

    label = "sign"
    entrywise = True

    def norm(self, slots: Sequence[Slot], space: Space) -> Norm:
        return with_rates(Linf(), relative_rates(slots), space)

    def direction(self, slot: Slot, gradient: Array | None) -> Array | None:
        m = slot.first_moment if slot.momentum else gradient
        return None if m is None else array_namespace(m).sign(m)

    def needs_gradient(self, slot: Slot) -> bool:
        return not slot.momentum or slot.first_moment is None


class LionDescent(SignDescent):
    """w⁺ = w − η sign(β₁m + (1 − β₁)g), then m ← β₂m + (1 − β₂)g (arXiv 2302.06675)."""

    def received(self, slot: Slot) -> Array | None:
        m, beta, earlier = slot.first_moment, slot.more["beta2"], slot.earlier_moment
        if slot.gradient is not None or m is None or earlier is None:
            return slot.gradient
        return (at_least_float32(m) - beta * at_least_float32(earlier)) / (1 - beta)

    def direction(self, slot: Slot, gradient: Array | None) -> Array | None:
        found = self._averaged(slot, gradient)
        return None if found is None else array_namespace(found[0]).sign(found[0])

    def needs_gradient(self, slot: Slot) -> bool:
        return slot.first_moment is None or slot.earlier_moment is None

    def rounding(self, slots: Sequence[Slot], gradients: Blocks | None, space: Space) -> float:
        """That of signs which rounding may turn: 2√(their share)."""
        unsure, entries = 0, 0
        for s in slots:
            found = self._averaged(s, None if gradients is None else gradients[s.name])
            if found is not None:
                xp, (along, error) = array_namespace(found[0]), found
                unsure += int(xp.sum(xp.astype((abs(along) <= error) & (error > 0), xp.int32)))
                entries += math.prod(along.shape)
        return 2.0 * math.sqrt(unsure / entries) if entries else 0.0

    def _averaged(self, slot: Slot, gradient: Array | None) -> tuple[Array, Array] | None:
        """β₁m + (1 − β₁)g with the m before the step, and its rounding error."""
        beta, decay = slot.momentum, slot.more["beta2"]
        m, after = slot.earlier_moment, slot.first_moment
        if gradient is None or (after is None and beta):
            return None
        after = gradient if after is None else after
        unit = ROUNDING * max(epsilon({slot.name: x}) for x in (gradient, after))
        after, g = at_least_float32(after), at_least_float32(gradient)
        m = (after - (1 - decay) * g) / decay if m is None else at_least_float32(m)
        size = abs(after) + (1 - decay) * abs(g)
        return beta * m + (1 - beta) * g, unit * (beta * size / decay + (1 - beta) * abs(g))


class MuonDescent(_Normalized):
    """w⁺ = w − η r UVᵀ, with r of :func:`geodiag.norms.muon.muon_radius`."""

    label = "muon"

    def check(self, slots: Sequence[Slot], space: Space) -> None:
        for s in slots:
            if s.matrix is None:
                got = f"shape {space.shapes[s.name]}"
                raise ArgumentError(f"Muon's update of {s.name!r} is not known", got=got)

    def norm(self, slots: Sequence[Slot], space: Space) -> Norm:
        rates = relative_rates(slots)
        radii = {s.name: muon_radius(*s.matrix, s.rms) * rates[s.name] for s in slots if s.matrix}
        axes = {f"^{re.escape(s.name)}$": s.view for s in slots if s.view is not None}
        if axes:  # the slices of a stack have the radius of the stack
            slices = Stacked(L2(), axes).slices(space)
            radii = {each: r for name, r in radii.items() for each in slices.names_of(name)}
            return Stacked(Spectral(RadiiByName(tuple(radii.items()))), axes)
        matrices = {n: v.shape(space.shapes[n]) for n, v in space.matrix_view.items()}
        for adjust, rule in Muon.rules.items():  # a norm with a name, where it is one
            if radii == {name: rule(name, shape) for name, shape in matrices.items()}:
                return Muon(adjust)
        return Spectral(RadiiByName(tuple(radii.items())))

    def directions(
        self, slots: Sequence[Slot], gradients: Blocks | None, space: Space
    ) -> list[Blocks]:
        m = _moments(slots, gradients)
        if not m:
            return []
        norm = self.norm([replace(s, lr=1.0) for s in slots], space)
        return [self._orthogonalised(slots, m, space), norm.bind(space).lmo(m)]

    def rounding(self, slots: Sequence[Slot], gradients: Blocks | None, space: Space) -> float:
        """Twice what the precision of the iteration makes of its result.

        The iteration magnifies what rounding adds to small singular values.
        """
        m = _moments(slots, gradients)
        if not m or not any("precision" in s.more for s in slots):
            return 0.0
        exact = self._orthogonalised(slots, m, space)
        rounded = self._orthogonalised(slots, m, space, rounded=True)
        return 2.0 * float(norm2(subtract(rounded, exact))) / float(norm2(exact))

    def _orthogonalised(
        self, slots: Sequence[Slot], m: Blocks, space: Space, rounded: bool = False
    ) -> Blocks:
        norm = self.norm([replace(s, lr=1.0) for s in slots], space)
        slices = norm.slices(space) if isinstance(norm, Stacked) else Slices.of(space, {})
        views, parts = slices.slices_of(space).matrix_view, slices.split(m)
        for s in slots:
            radius = muon_radius(*s.matrix, s.rms) if s.matrix else 1.0
            for each in slices.names_of(s.name):
                x = views[each].to_matrix(parts[each])
                xp, precision = array_namespace(x), s.more.get("precision")
                own = xp.astype(x, precision) if rounded and precision is not None else x
                polar = xp.astype(newton_schulz(own, s.polynomials), x.dtype) * radius
                parts[each] = views[each].from_matrix(polar, tuple(parts[each].shape))
        return slices.join(parts)

    def needs_gradient(self, slot: Slot) -> bool:
        return not slot.momentum or slot.nesterov or slot.first_moment is None

    def received(self, slot: Slot) -> Array | None:
        return averaged(slot) if slot.gradient is None else slot.gradient

    def update(self, slots: Sequence[Slot]) -> Update:
        low, high = singular_values(slots[0].polynomials)
        if max(1 - low, high - 1) < IMMATERIAL:
            return super().update(slots)
        caveat = (
            f"Newton–Schulz leaves singular values of {low:.2f} to {high:.2f} in the step, so that "
            "the edge of stability is at a ratio of about 1.15, not 1"
        )
        return replace(super().update(slots), caveat=caveat)


def _moments(slots: Sequence[Slot], gradients: Blocks | None) -> Blocks:
    """What is orthogonalised; empty where it is not known of all."""
    found = {s.name: _moment(s, None if gradients is None else gradients[s.name]) for s in slots}
    known = {name: x for name, x in found.items() if x is not None}
    return known if len(known) == len(slots) else {}


def _moment(slot: Slot, gradient: Array | None) -> Array | None:
    """What is orthogonalised; None where it is not known."""
    if not slot.momentum:
        return gradient
    m = slot.first_moment
    if m is None or (slot.nesterov and gradient is None):
        return None
    m = at_least_float32(m)
    if gradient is None or not slot.nesterov:
        return m
    return (1 - slot.dampening) * at_least_float32(gradient) + slot.momentum * m
