"""Whether the step that was taken is the one whose threshold would be reported.

A threshold follows from an update rule and from the Hessian of the measured loss. The step and the
gradient that the optimizer received show whether it follows that rule, for that loss:

    step       against what the slots predict: another rate, rule, decay, or a change after it
    gradient   against that of the measured loss: clipping, scaling or decay before the optimizer

Mini-batches make the second one differ without being a fault. So only a difference that has an
explanation contradicts (a factor, decay, a bound on the entries); any other is a caveat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    array_namespace,
    epsilon_of,
    largest,
    namespace,
    to_numpy,
)
from geodiag.core.spaces import Space
from geodiag.optimizers.merged import Merged, merged
from geodiag.optimizers.slots import Family, Slot
from geodiag.optimizers.thresholds import Update

TOLERANCE = 0.05  # relative error allowed between a step and what the update rule predicts
EXACT = 0.01  # relative error that is left where an explanation holds
ROUNDING = 4.0  # machine epsilons of the parameters allowed besides
OBSERVED_PER_FITTED = 4  # entries that an explanation must account for, per number fitted to them

MEASURED = "the measured loss's gradient"
OTHER_GRADIENT = (
    "the optimizer's gradient is not that of the measured loss, as on other data: clipping or "
    "scaling before the optimizer would not be seen"
)
UNKNOWN_GRADIENT = (
    "the gradient that the optimizer received is not known, so that clipping or scaling before "
    "the optimizer would not be seen"
)


class Comparison(NamedTuple):
    """What a step says of the threshold; both texts empty: it is as predicted."""

    unknown: str = ""  # why the threshold does not apply
    caveat: str = ""  # what could not be compared
    rate: bool = True  # whether the learning rate may be as stated
    scale: float = 1.0  # of the gradient, where it was scaled or clipped as a whole
    seen: bool = True  # whether what the optimizer received follows from the measured loss


def follow(rule: Update, said: Comparison) -> Update:
    """The rule, as far as the step does not contradict it."""
    lr = rule.lr if said.rate else math.nan
    caveat = "; ".join(filter(None, (rule.caveat, said.caveat)))
    unknown = rule.unknown or said.unknown
    return replace(rule, lr=lr, unknown=unknown, caveat=caveat, scale=said.scale)


def compare(
    family: Family,
    slots: Sequence[Slot],
    space: Space,
    here: Blocks,
    there: Blocks,
    gradient: Blocks | None = None,
    unit: float = 0.0,
) -> Comparison:
    """Compare the step from ``here`` to ``there`` with the slots, as they are after it.

    Args:
        family: of all slots.
        slots: their ``gradient`` is what the optimizer received, where that is known.
        space: of the measured parameters.
        here: w.
        there: w⁺.
        gradient: of the measured loss at w; None: it is not compared.
        unit: machine epsilon of the parameters as the optimizer keeps them, if above that of
            ``here``.

    Returns:
        Comparison: ``unknown`` and ``caveat`` are for the :class:`Update` of that name. Without a
        learning rate nothing is compared.

    Examples:
        >>> from geodiag.optimizers.families import GradientDescent
        >>> w, g, sgd = {"w": np.arange(4.0)}, {"w": np.ones(4)}, GradientDescent()
        >>> slots = [Slot("w", sgd, lr=0.1, gradient=g["w"])]
        >>> there = {"w": w["w"] - 0.1 * g["w"]}
        >>> compare(sgd, slots, Space.of(w), w, there, g)
        Comparison(unknown='', caveat='', rate=True, scale=1.0, seen=True)
        >>> compare(sgd, slots, Space.of(w), w, there, {"w": 4 * g["w"]}).scale
        0.25
    """
    if not all(0.0 < s.lr < math.inf for s in slots):
        return Comparison()
    given = Merged(slots, space, here, there, gradient)
    whole = merged(family, *given)
    received = _received(family, given if whole is None else whole)
    said = _compare_step(family, *(whole or given), received, unit, explains=whole is None)
    if whole is not None and said != Comparison():  # which the tensors may explain
        said = _compare_step(family, *given, _received(family, given), unit)
    if said != Comparison() or gradient is None or family.scale_free:
        return said
    if len(received) < len(whole.slots if whole else slots):
        # The step has shown it, where it depends on it alone.
        seen = all(family.needs_gradient(s) for s in slots)
        return Comparison("" if seen else UNKNOWN_GRADIENT, seen=seen)
    rounding = ROUNDING * math.sqrt(sum(_rounding_of_average(s) ** 2 for s in slots))
    if _agree(received, whole or given, rounding):
        return said
    received = _received(family, given)
    found = _explanation(received, gradient, here, rounding, space)
    if found is None:
        return Comparison("", OTHER_GRADIENT, seen=False)
    if found.factor > 0.0:
        caveat = f"the threshold is of {found.of(MEASURED)}, which the optimizer received"
        lasting = any(s.momentum or s.second_moment is not None for s in slots)
        caveat += ", as if that factor lasted" if lasting else ""
        return Comparison("", caveat, scale=found.factor)
    return Comparison(found.text and f"the optimizer received {found.of(MEASURED)}")


def _received(family: Family, of: Merged) -> Blocks:
    """The gradients that the optimizer received, as far as they are known."""
    found = {s.name: family.received(s) for s in of.slots}
    return {name: g for name, g in found.items() if g is not None}


def _agree(received: Blocks, of: Merged, rounding: float) -> bool:
    """Whether the gradients are the same, but for rounding."""
    if of.gradient is None:
        return False
    inner, squares = of.space.joints.inner, []
    for name, a in received.items():
        g = of.gradient[name]
        x = a - g
        squares.append((inner(x, x), inner(g, g)))
    other, size = (sum(map(float, each)) for each in zip(*squares, strict=True))
    return other <= TOLERANCE**2 * size + rounding**2


def _compare_step(
    family: Family,
    slots: Sequence[Slot],
    space: Space,
    here: Blocks,
    there: Blocks,
    gradient: Blocks | None,
    received: Blocks,
    unit: float,
    explains: bool = True,
) -> Comparison:
    """What the step says; where it does not ``explain``, it may say only that they differ."""
    known = len(received) == len(slots)
    g = received if known else gradient
    if g is not None:
        g = {s.name: _with_decay(s, g[s.name], here[s.name]) for s in slots}
    predicted = family.directions(slots, g, space)
    if not predicted:
        return Comparison("" if family.scale_free else UNKNOWN_GRADIENT)
    step = _Step(slots, here, there, unit, space)
    error = min(map(step.error, predicted))
    if not error:
        return Comparison()
    if not step.moved:
        return Comparison("the optimizer did not move the parameters")
    if error > TOLERANCE * EXACT:
        for name, direction in family.other_rules(slots, g):
            if step.error(direction) < error / 10:
                return Comparison(f"the step is that of {name}")
    if error <= max(TOLERANCE, family.rounding(slots, g, space)):
        return Comparison()
    if known or not any(family.needs_gradient(s) for s in slots):
        return Comparison(
            f"the step differs from what state, lr and hyperparameters predict, by {error:.0%}"
        )
    found = (
        _explanation(step.direction, predicted[0], here, step.rounding, space) if explains else None
    )
    if found is None:
        return Comparison("", OTHER_GRADIENT, seen=False)
    said = found.of("what lr and the gradient predict")
    return Comparison(found.text and f"the step is {said}", rate=not found.text)


class _Step:
    """A step, as the direction (w − w⁺)/η without decoupled decay."""

    def __init__(
        self, slots: Sequence[Slot], here: Blocks, there: Blocks, unit: float, space: Space
    ) -> None:
        self._slots, self._inner = slots, space.joints.inner
        self.direction: Blocks = {}
        squares: list[tuple[Array, Array]] = []
        self.moved = self._rounding = rounding = 0.0  # moved: ‖w⁺ − w‖²
        for s in slots:
            w = here[s.name]
            step = there[s.name] - w
            along = step / -s.lr
            decay = s.weight_decay if s.decoupled else 0.0
            self.direction[s.name] = along - decay * w if decay else along
            squares.append((self._inner(step, step), self._inner(w, w)))
        for s, (moved, size) in zip(slots, squares, strict=True):
            # The state has the parameter's own precision; that of the measurement may exceed it.
            error = (ROUNDING * max(unit, _unit(s, here[s.name]))) ** 2 * float(size)
            self.moved += float(moved)
            self._rounding += error
            rounding += error / s.lr / s.lr
        self.rounding = math.sqrt(rounding)

    def error(self, predicted: Blocks) -> float:
        """‖step − predicted‖/‖step‖ above rounding; infinite if there was no step."""
        wrong = 0.0
        for s in self._slots:
            x = self.direction[s.name] - predicted[s.name]
            wrong += s.lr**2 * float(self._inner(x, x))
        wrong = max(0.0, wrong - self._rounding) if wrong == wrong else math.inf
        if not wrong:
            return 0.0
        return math.sqrt(wrong / self.moved) if self.moved else math.inf


class _Explanation(NamedTuple):
    """How one set of blocks follows from another."""

    text: str = ""  # with {} for what the other is; "": they agree
    factor: float = 0.0  # where one is this times the other

    def of(self, what: str) -> str:
        return self.text.format(what)


def _explanation(
    a: Blocks, g: Blocks, w: Blocks, rounding: float, space: Space
) -> _Explanation | None:
    """How ``a`` follows from ``g``; None where it is not known."""
    xp, inner, names = namespace(g), space.joints.inner, list(g)

    def sums(*pairs: tuple[Blocks, Blocks]) -> np.ndarray[Any, Any]:
        """Σxy of each pair, tensor by tensor."""
        found = xp.stack([inner(x[n], y[n]) for x, y in pairs for n in names])
        return np.asarray(to_numpy(found), np.float64).reshape(len(pairs), -1)

    each = sums((a, a), (a, g), (g, g))
    aa, ag, gg = each.sum(axis=1)
    tensors, entries = len(names), sum(math.prod(x.shape) for x in g.values())
    if not math.isfinite(aa) or aa - 2 * ag + gg <= TOLERANCE**2 * gg + rounding**2:
        return _Explanation()
    left = EXACT**2 * aa + rounding**2
    if not gg > 0 or rounding**2 > TOLERANCE**2 * aa:
        return None
    if entries >= OBSERVED_PER_FITTED and aa - ag * ag / gg <= left:
        return _Explanation(f"{ag / gg:.4g} times {{}}", float(ag / gg))
    if entries >= 2 * OBSERVED_PER_FITTED:
        aw, gw, ww = sums((a, w), (g, w), (w, w)).sum(axis=1)
        if gg * ww - gw * gw > EXACT**2 * gg * ww:
            factor, decay = np.linalg.solve([[gg, gw], [gw, ww]], [ag, aw])
            if aa - factor * ag - decay * aw <= left:
                times = "" if abs(factor - 1) <= TOLERANCE else f"{factor:.3g} times "
                return _Explanation(f"{times}{{}} plus {decay:.3g} times the weights")
    if 1 < tensors <= entries / OBSERVED_PER_FITTED:
        factors = [y / z for y, z in zip(each[1], each[2], strict=True) if z > 0]
        rest = sum(x - (y * y / z if z > 0 else 0.0) for x, y, z in each.T)
        if rest <= left:
            text = f"{{}} times {min(factors):.3g} to {max(factors):.3g}, by tensor"
            return _Explanation(text)
    bound, wrong = largest(a), 0.0
    for n in sorted(names, key=lambda n: math.prod(g[n].shape)):  # most fail at the first
        x = a[n] - xp.minimum(xp.maximum(g[n], -bound), bound)
        wrong += float(inner(x, x))
        if not wrong <= left:
            return None
    return _Explanation(f"{{}} with entries clipped at {float(bound):.3g}")


def _with_decay(slot: Slot, g: Array, w: Array) -> Array:
    """The gradient with coupled decay, and with the sign of a descent."""
    g = -g if slot.maximize else g
    return g if slot.decoupled or not slot.weight_decay else g + slot.weight_decay * w


def _unit(slot: Slot, w: Array) -> float:
    """The largest machine epsilon among a parameter's arrays."""
    arrays = (w, slot.gradient, slot.first_moment, slot.second_moment)
    return max(epsilon_of(x) for x in arrays if x is not None)


def _rounding_of_average(slot: Slot) -> float:
    """What rounding makes of a gradient that is found as (m⁺ − βm)/(1 − β)."""
    m = slot.first_moment
    if m is None:
        return 0.0
    length = math.sqrt(float(array_namespace(m).sum(m * m)))
    return epsilon_of(m) * length / (1 - slot.momentum)
