"""Families of optimizers: the norm and the update rule that follow from their slots.

family            step                       norm                    threshold on S
GradientDescent   w − η m                    ℓ2                      momentum, Nesterov, decay
Adam              w − η P⁻¹ m                √⟨d, Pd⟩                EMA momentum, decoupled decay
NAdam, AdEMAMix   w − η P⁻¹ Σ cₖmₖ           √⟨d, Pd⟩                their filter, decoupled decay
QHM               w − η((1 − ν)g + νm)       ℓ2                      its filter, decay
RMSprop           w − η P⁻¹ m                √⟨d, Pd⟩                momentum
MuonDescent       w − η r UVᵀ of m           spectral, radii r       normalized, without momentum
SignDescent       w − η sign(m)              ℓ∞                      normalized, without momentum
LionDescent       w − η sign(β₁m + (1 − β₁)g)  ℓ∞                    normalized, without momentum
SteepestDescent   w − η ‖g‖* lmo(g)          its own                 plain, or normalized

A parameter's own learning rate belongs to the norm: relative to the first one it divides P, or is a
radius. To add a family: a class here, and a reader that fills its slots in each adapter. The
normalized ones are in :mod:`geodiag.optimizers.normalized`; :mod:`geodiag.optimizers.joint` joins
rules that differ from parameter to parameter.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from geodiag.blocks import Array, Blocks, array_namespace, namespace
from geodiag.core.spaces import Space
from geodiag.errors import NormError
from geodiag.norms import L2, Linf, MaxOver, Norm, Preconditioned, Stacked
from geodiag.optimizers.filters import Filter, ema, heavy_ball, identity, parallel
from geodiag.optimizers.non_euclidean import steepest_step
from geodiag.optimizers.rates import with_rates
from geodiag.optimizers.slots import Differ, Family, NoThreshold, Slot, relative_rates, shared
from geodiag.optimizers.thresholds import Update

# Parameters may differ in weight decay where that moves the threshold by no more than this.
IMMATERIAL = 0.01

# A part of a step: its weight, an average of gradients (None: the last one), and that as a filter.
Term = tuple[float, "Array | None", Filter]


class Quadratic(Family):
    """w⁺ = w − η P⁻¹m with a diagonal P. A parameter's own η divides its part of P."""

    entrywise = True
    ema = False  # whether m is an average, βm + (1 − β)g

    def diagonal(self, slot: Slot) -> Array | float:
        """P of one parameter, without its learning rate."""
        return 1.0

    def terms(self, slot: Slot) -> Sequence[Term]:
        """The step times P, where it is a sum of several averages; empty where it is m alone."""
        return ()

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
        if self.stateful and any(s.weight_decay and not s.decoupled for s in slots):
            # P divides the decay's part of the gradient too, so it shifts no eigenvalue.
            raise NoThreshold("none is established for coupled weight decay with a preconditioner")
        if any(terms := [self.terms(s) for s in slots]):
            filters = {parallel(*((c, f) for c, _, f in each)) for each in terms}
            if len(filters) > 1:
                raise Differ("the groups differ in their averages")
            return _with_decay(Update(slots[0].lr, filter=filters.pop()), slots)
        momentum = shared(slots, "momentum")
        dampening = shared(slots, "dampening") if momentum else 0.0
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
            return averaged(slot)
        if not slot.momentum or slot.first_moment is None or slot.earlier_moment is None:
            return None
        added = slot.first_moment - slot.momentum * slot.earlier_moment
        return added * self.diagonal(slot) / (1.0 - slot.dampening)

    def direction(self, slot: Slot, gradient: Array | None) -> Array | None:
        p = self.diagonal(slot)
        if terms := self.terms(slot):
            parts = [(c, gradient if m is None else m) for c, m, _ in terms if c]
            if any(x is None for _, x in parts):
                return None
            return reduce(operator.add, [c * at_least_float32(x) for c, x in parts]) / p
        if not slot.momentum:
            return None if gradient is None else at_least_float32(gradient) / p
        if slot.first_moment is None:
            return None
        m = at_least_float32(slot.first_moment)
        if slot.nesterov:
            return None if gradient is None else gradient / p + slot.momentum * m
        return m

    def needs_gradient(self, slot: Slot) -> bool:
        if terms := self.terms(slot):
            return any(c and m is None for c, m, _ in terms)
        return not slot.momentum or slot.nesterov or slot.first_moment is None


class GradientDescent(Quadratic):
    """P = 1. The buffer m is the sum of βm + g."""

    label = "sgd"


class QHM(GradientDescent):
    """P = 1, along (1 − ν)g + νm with the average m ← βm + (1 − β)g (arXiv 1810.06801)."""

    label = "qhm"

    def terms(self, slot: Slot) -> Sequence[Term]:
        nu = slot.more["nu"]
        return (1 - nu, None, identity()), (nu, slot.first_moment, ema(slot.momentum))

    def received(self, slot: Slot) -> Array | None:
        return averaged(slot) if slot.gradient is None else slot.gradient


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
        v = at_least_float32(slot.second_moment)
        if slot.mean_gradient is not None:
            v = v - at_least_float32(slot.mean_gradient) ** 2
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
    label = "adam"

    def diagonal(self, slot: Slot) -> Array:
        return super().diagonal(slot) * self.correction(slot)

    def correction(self, slot: Slot) -> float:
        """1 − β₁ᵗ, by which a bias correction divides the average m."""
        return float(1 - slot.momentum**slot.steps)

    def direction(self, slot: Slot, gradient: Array | None) -> Array | None:
        if self.terms(slot):
            return super().direction(slot, gradient)
        if slot.first_moment is None:
            return None
        p, beta, t = self.diagonal(slot), slot.momentum, slot.steps
        m = at_least_float32(slot.first_moment)
        if slot.nesterov:
            if gradient is None:
                return None
            m = beta * m * ((1 - beta**t) / (1 - beta ** (t + 1))) + (1 - beta) * gradient
        return m / p

    def needs_gradient(self, slot: Slot) -> bool:
        if self.terms(slot):
            return super().needs_gradient(slot)
        return slot.nesterov or slot.first_moment is None

    def other_rules(
        self, slots: Sequence[Slot], gradients: Blocks | None
    ) -> list[tuple[str, Blocks]]:
        if gradients is None or any(map(self.terms, slots)):
            return []
        others = [replace(s, nesterov=not s.nesterov) for s in slots]
        found = {s.name: self.direction(s, gradients[s.name]) for s in others}
        return [(f"nesterov={others[0].nesterov}", found)]


class NAdam(Adam):
    """torch's: along g and m with the weights of μₜ = β₁(1 − 0.96^{tψ}/2), ψ the momentum decay.

    Late in training μ is β₁, and the filter that of :func:`geodiag.filters.nadam`.
    """

    label = "nadam"

    def terms(self, slot: Slot) -> Sequence[Term]:
        beta, decay, product = slot.momentum, slot.more["momentum_decay"], slot.more["mu_product"]
        now, then = (beta * (1 - 0.96 ** (t * decay) / 2) for t in (slot.steps, slot.steps + 1))
        of_gradient, of_average = (1 - now) / (1 - product), then / (1 - product * then)
        bias = self.correction(slot)
        average = bias * of_average, slot.first_moment, ema(beta)
        return (bias * of_gradient, None, identity()), average


class AdEMAMix(Adam):
    """Along m₁/(1 − β₁ᵗ) + αm₂, with a slow average m₂ of decay β₃ (arXiv 2409.03137)."""

    label = "ademamix"

    def terms(self, slot: Slot) -> Sequence[Term]:
        slow, beta, weight = (slot.more[name] for name in ("slow_moment", "beta3", "alpha"))
        weight = weight * self.correction(slot)
        return (1.0, slot.first_moment, ema(slot.momentum)), (weight, slow, ema(beta))


class RMSprop(_Preconditioned):
    """P = √v + ε or √(v + ε); v − ḡ² in place of v where it is centered. m is of P⁻¹g."""

    label = "rmsprop"


@dataclass(frozen=True)
class SteepestDescent(Family):
    """w⁺ = w − η‖g‖*·lmo(g), or w − η·lmo(g) if ``normalized``, in a norm that it was given."""

    own: Norm
    normalized: bool
    whole: bool  # all parameters of the optimizer are measured

    label = "descent"

    @property
    def kind(self) -> Hashable:
        return self

    @property
    def joins(self) -> str:  # type: ignore[override]
        return "max" if self.normalized else "l2"

    @property
    def scale_free(self) -> bool:  # type: ignore[override]
        return self.normalized

    @property
    def entrywise(self) -> bool:  # type: ignore[override]
        return self.own.entrywise and self.whole

    def directions(
        self, slots: Sequence[Slot], gradients: Blocks | None, space: Space
    ) -> list[Blocks]:
        if gradients is None or not (self.whole or self._is_separable or self._is_gradient_descent):
            return []
        if self._is_gradient_descent:
            return [{name: at_least_float32(g) for name, g in gradients.items()}]
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


def averaged(slot: Slot) -> Array | None:
    """g from m ← βm + (1 − β)g, where m is known before and after it."""
    m, beta, earlier = slot.first_moment, slot.momentum, slot.earlier_moment
    if m is None or (earlier is None and beta and slot.steps != 1):
        return None
    m = at_least_float32(m)
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
        raise Differ("the groups differ in weight decay")
    return high


def at_least_float32(x: Array) -> Array:
    """``x``, in float32 where it has fewer bits."""
    xp = array_namespace(x)
    return xp.astype(x, xp.result_type(x.dtype, xp.float32), copy=False)
