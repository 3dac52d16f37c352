"""Families of optimizers: the norm and the update rule that follow from their slots.

family            step                       norm                    threshold on S
GradientDescent   w − η m                    ℓ2                      momentum, Nesterov, decay
Adam              w − η P⁻¹ m                √⟨d, Pd⟩                EMA momentum, decoupled decay
RMSprop           w − η P⁻¹ m                √⟨d, Pd⟩                momentum
MuonDescent       w − η r UVᵀ of m           spectral, radii r       normalized, without momentum
SignDescent       w − η sign(m)              ℓ∞                      normalized, without momentum
SteepestDescent   w − η ‖g‖* lmo(g)          its own                 plain, or normalized

A parameter's own learning rate belongs to the norm: relative to the first one it divides P, or is a
radius. To add a family: a class here, and a reader that fills its slots in each adapter.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from geodiag.blocks import Array, Blocks, array_namespace, namespace
from geodiag.core.slices import Slices
from geodiag.core.spaces import Space
from geodiag.errors import ArgumentError, NormError
from geodiag.norms import L2, Linf, MaxOver, Muon, Norm, Preconditioned, Spectral, Stacked
from geodiag.norms.muon import muon_radius
from geodiag.optimizers.filters import heavy_ball
from geodiag.optimizers.newton_schulz import newton_schulz, singular_values
from geodiag.optimizers.non_euclidean import steepest_step
from geodiag.optimizers.rates import RadiiByName, with_rates
from geodiag.optimizers.slots import Family, NoThreshold, Slot, relative_rates, shared
from geodiag.optimizers.thresholds import Update

# Parameters may differ in weight decay where that moves the threshold by no more than this.
IMMATERIAL = 0.01


class Quadratic(Family):
    """w⁺ = w − η P⁻¹m with a diagonal P. A parameter's own η divides its part of P."""

    ema = False  # whether m is an average, βm + (1 − β)g

    def diagonal(self, slot: Slot) -> Array | float:
        """P of one parameter, without its learning rate."""
        return 1.0

    def norm(self, slots: Sequence[Slot], space: Space) -> Norm:
        rates = relative_rates(slots)
        p = {s.name: self.diagonal(s) / rates[s.name] for s in slots}
        if self.stateful:
            _require_positive(p)
        elif set(p.values()) == {1.0}:
            return L2()

        def metric(d: Blocks) -> Blocks:
            return {name: x * p[name] for name, x in d.items()}

        def inverse_metric(g: Blocks) -> Blocks:
            return {name: x / p[name] for name, x in g.items()}

        return Preconditioned((metric, inverse_metric))

    def update(self, slots: Sequence[Slot]) -> Update:
        momentum = shared(slots, "momentum")
        dampening = shared(slots, "dampening") if momentum else 0.0
        if self.stateful and any(s.weight_decay and not s.decoupled for s in slots):
            # P divides the decay's part of the gradient too, so it shifts no eigenvalue.
            raise NoThreshold("none is established for coupled weight decay with a preconditioner")
        nesterov = bool(momentum and shared(slots, "nesterov"))
        ema = self.ema and momentum > 0
        update = Update(slots[0].lr, momentum=momentum, ema=ema, nesterov=nesterov)
        if dampening:  # from the second step on; optimizers refuse it with Nesterov's momentum
            update = Update(slots[0].lr, filter=heavy_ball(momentum, dampening))
        return _with_decay(update, slots)

    def received(self, slot: Slot) -> Array | None:
        if slot.gradient is not None:
            return slot.gradient
        if self.ema:
            return _averaged(slot)
        if not slot.momentum or slot.first_moment is None or slot.earlier_moment is None:
            return None
        added = slot.first_moment - slot.momentum * slot.earlier_moment
        return added * self.diagonal(slot) / (1.0 - slot.dampening)

    def direction(self, slot: Slot, gradient: Array | None) -> Array | None:
        p = self.diagonal(slot)
        if not slot.momentum:
            return None if gradient is None else _at_least_float32(gradient) / p
        if slot.first_moment is None:
            return None
        m = _at_least_float32(slot.first_moment)
        if slot.nesterov:
            return None if gradient is None else gradient / p + slot.momentum * m
        return m

    def needs_gradient(self, slot: Slot) -> bool:
        return not slot.momentum or slot.nesterov or slot.first_moment is None


class GradientDescent(Quadratic):
    """P = 1. The buffer m is the sum of βm + g."""


class _Preconditioned(Quadratic):
    """P = √v + ε from the second moment v of the gradient, with the corrections of the slot."""

    stateful = True

    def diagonal(self, slot: Slot) -> Array:
        if slot.second_moment is None:
            raise NormError(
                f"the preconditioner is not known yet at {slot.name!r}",
                got="an optimizer state from before its first step",
                do="measure after that step; leave parameters without gradients out with where=",
            )
        v = _at_least_float32(slot.second_moment)
        if slot.mean_gradient is not None:
            v = v - _at_least_float32(slot.mean_gradient) ** 2
        if slot.second_decay is not None:
            v = v / (1 - slot.second_decay**slot.steps)
        if slot.eps_in_root:
            v = v + slot.eps_in_root
        return array_namespace(v).sqrt(v) + slot.eps


class Adam(_Preconditioned):
    """P = (1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + ε), with the largest v so far in AMSGrad.

    Then w⁺ = w − η P⁻¹m holds with the average m without bias correction (arXiv 2207.14484).
    """

    ema = True

    def diagonal(self, slot: Slot) -> Array:
        return super().diagonal(slot) * (1 - slot.momentum**slot.steps)

    def direction(self, slot: Slot, gradient: Array | None) -> Array | None:
        if slot.first_moment is None:
            return None
        p, beta, t = self.diagonal(slot), slot.momentum, slot.steps
        m = _at_least_float32(slot.first_moment)
        if slot.nesterov:
            if gradient is None:
                return None
            m = beta * m * ((1 - beta**t) / (1 - beta ** (t + 1))) + (1 - beta) * gradient
        return m / p

    def needs_gradient(self, slot: Slot) -> bool:
        return slot.nesterov or slot.first_moment is None

    def other_rules(
        self, slots: Sequence[Slot], gradients: Blocks | None
    ) -> list[tuple[str, Blocks]]:
        if gradients is None:
            return []
        others = [replace(s, nesterov=not s.nesterov) for s in slots]
        found = {s.name: self.direction(s, gradients[s.name]) for s in others}
        return [(f"nesterov={others[0].nesterov}", found)]


class RMSprop(_Preconditioned):
    """P = √v + ε or √(v + ε); v − ḡ² in place of v where it is centered. m is of P⁻¹g."""


class _Normalized(Family):
    """w⁺ = w − η lmo(m): its length does not depend on the gradient's."""

    scale_free = True

    def update(self, slots: Sequence[Slot]) -> Update:
        decay = max(s.weight_decay for s in slots)
        beta = shared(slots, "momentum")
        return Update(slots[0].lr, normalized=True, momentum=beta, weight_decay=decay)


class SignDescent(_Normalized):
    """w⁺ = w − η sign(m): SignSGD, Signum, Lion."""

    def norm(self, slots: Sequence[Slot], space: Space) -> Norm:
        return with_rates(Linf(), relative_rates(slots), space)

    def direction(self, slot: Slot, gradient: Array | None) -> Array | None:
        m = slot.first_moment if slot.momentum else gradient
        return None if m is None else array_namespace(m).sign(m)

    def needs_gradient(self, slot: Slot) -> bool:
        return not slot.momentum or slot.first_moment is None


class MuonDescent(_Normalized):
    """w⁺ = w − η r UVᵀ, with r of :func:`geodiag.norms.muon.muon_radius`."""

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
        if gradients is None or any(s.momentum for s in slots):
            return []
        norm = self.norm([replace(s, lr=1.0) for s in slots], space)
        slices = norm.slices(space) if isinstance(norm, Stacked) else Slices.of(space, {})
        views, parts = slices.slices_of(space).matrix_view, slices.split(gradients)
        for s in slots:
            radius = muon_radius(*s.matrix, s.rms) if s.matrix else 1.0
            for each in slices.names_of(s.name):
                m = newton_schulz(views[each].to_matrix(parts[each]), s.polynomials) * radius
                parts[each] = views[each].from_matrix(m, tuple(parts[each].shape))
        return [slices.join(parts), norm.bind(space).lmo(gradients)]

    def received(self, slot: Slot) -> Array | None:
        return _averaged(slot) if slot.gradient is None else slot.gradient

    def update(self, slots: Sequence[Slot]) -> Update:
        low, high = singular_values(slots[0].polynomials)
        if max(1 - low, high - 1) < IMMATERIAL:
            return super().update(slots)
        caveat = (
            f"Newton–Schulz leaves singular values of {low:.2f} to {high:.2f} in the step, so that "
            "the edge of stability is at a ratio of about 1.15, not 1"
        )
        return replace(super().update(slots), caveat=caveat)


@dataclass(frozen=True)
class SteepestDescent(Family):
    """w⁺ = w − η‖g‖*·lmo(g), or w − η·lmo(g) if ``normalized``, in a norm that it was given."""

    own: Norm
    normalized: bool
    whole: bool  # all parameters of the optimizer are measured

    @property
    def scale_free(self) -> bool:  # type: ignore[override]
        return self.normalized

    def directions(
        self, slots: Sequence[Slot], gradients: Blocks | None, space: Space
    ) -> list[Blocks]:
        if gradients is None or not (self.whole or self._is_separable or self._is_gradient_descent):
            return []
        bound, rates = self.own.bind(space), dict.fromkeys(gradients, 1.0)
        return [steepest_step(bound, gradients, rates, self.normalized)]

    def norm(self, slots: Sequence[Slot], space: Space) -> Norm:
        rates = relative_rates(slots)
        if self._is_gradient_descent:
            return GradientDescent().norm(slots, space)
        return with_rates(self.own, rates, space) if self._is_separable else self.own

    def update(self, slots: Sequence[Slot]) -> Update:
        if not (self._is_gradient_descent or self._is_separable):
            if set(relative_rates(slots).values()) != {1.0}:
                raise NoThreshold("the groups' learning rates differ, and no norm expresses that")
            if not self.whole:
                raise NoThreshold("where= leaves out parameters that the step depends on")
        return Update(slots[0].lr, normalized=self.normalized)

    @property
    def _is_gradient_descent(self) -> bool:
        return isinstance(self.own, L2) and not self.normalized

    @property
    def _is_separable(self) -> bool:
        """Whether each parameter's step depends on its own gradient alone."""
        own = self.own.norm if isinstance(self.own, Stacked) else self.own
        return self.normalized and isinstance(own, (Linf, MaxOver))


def plain_descent(norm: Norm, lr: float, space: Space) -> list[Slot]:
    """The slots of w⁺ = w − η‖g‖*·lmo(g) in a given norm, on all parameters of a space."""
    family = SteepestDescent(norm, normalized=False, whole=True)
    return [Slot(name, family, lr) for name in space.names]


def _averaged(slot: Slot) -> Array | None:
    """g from m ← βm + (1 − β)g, where m is known before and after it."""
    m, beta, earlier = slot.first_moment, slot.momentum, slot.earlier_moment
    if m is None or (earlier is None and beta and slot.steps != 1):
        return None
    m = _at_least_float32(m)
    return (m if earlier is None else m - beta * earlier) / (1 - beta)


def _require_positive(p: Blocks) -> None:
    xp = namespace(p)
    positive = {name: xp.all((x > 0) & xp.isfinite(x)) for name, x in p.items()}
    if not bool(reduce(operator.and_, positive.values())):  # the host waits once
        bad = next(name for name, each in positive.items() if not bool(each))
        raise NormError(f"the preconditioner is not positive and finite at {bad!r}")


def _with_decay(update: Update, slots: Sequence[Slot]) -> Update:
    """``update`` with the weight decay of the slots, in units of the first learning rate."""
    rates = relative_rates(slots)
    decays = [s.weight_decay * rates[s.name] for s in slots]
    decoupled = any(s.decoupled and s.weight_decay for s in slots)
    low, high = (replace(update, weight_decay=d) for d in (min(decays), max(decays)))
    low, high = (replace(u, decoupled=decoupled and u.weight_decay > 0) for u in (low, high))
    edge, highest = float(high.threshold(None)), float(low.threshold(None))
    if highest - edge > IMMATERIAL * abs(edge):
        raise NoThreshold("the groups differ in weight decay")
    return high


def _at_least_float32(x: Array) -> Array:
    """``x``, in float32 where it has fewer bits."""
    xp = array_namespace(x)
    return xp.astype(x, xp.result_type(x.dtype, xp.float32), copy=False)
