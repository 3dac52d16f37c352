"""Families of optax transformations: from their states to a norm and an update rule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from geodiag.blocks import Array
from geodiag.errors import ArgumentError, NormError
from geodiag.norms import Linf, MaxOver, Norm, Preconditioned, Spectral
from geodiag.optimizers.geometry import Radii, UnknownRule
from geodiag.optimizers.thresholds import Update

# By the names of optax; what a state does not hold, with optax's own defaults.
DEFAULTS: Mapping[str, float | None] = {
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "eps_root": 0.0,
    "eps_in_sqrt": True,
    "nesterov": False,
    "momentum": None,
    "beta": 0.95,
    "consistent_rms": None,
    "weight_decay": 0.0,
}


@dataclass(frozen=True)
class Slot:
    """One measured parameter, and what the state holds for it."""

    name: str
    state: Any  # of the transformation
    own: Mapping[str, Array]  # the parameter's entries of the state's trees
    options: Mapping[str, Any]  # hyperparameters that are known

    def option(self, name: str) -> Any:
        """A hyperparameter; in Muon's partition Adam has its own."""
        muon = isinstance(self.state, optax.contrib.MuonState)
        for key in (name,) if muon else (f"adam_{name}", name):
            if key in self.options:
                value = self.options[key]
                return None if value is None else float(np.asarray(value))
        return DEFAULTS.get(name)

    @property
    def lr(self) -> float:
        """The learning rate; :class:`UnknownRule` where nothing says it."""
        lr = self.option("learning_rate")
        if lr is None:
            raise UnknownRule("the learning rate is not in the optimizer's state: pass lr=")
        if not 0 < lr < math.inf:
            raise UnknownRule("the learning rate is not positive")
        return float(lr)


class Family(ABC):
    """Transformations with one kind of geometry. ``slots``: what is measured, at least one."""

    def check(self, slots: list[Slot]) -> None:
        """Raise a GeodiagError where the geometry can be seen not to be known."""
        return None

    @abstractmethod
    def norm(self, slots: list[Slot]) -> Norm:
        """The norm in which the optimizer descends."""

    @abstractmethod
    def rule(self, slots: list[Slot]) -> Update:
        """The update rule in that norm, with the first learning rate, or :class:`UnknownRule`."""

    def direction(self, slot: Slot) -> Array | None:
        """−(w⁺ − w)/lr without weight decay, where the state after a step tells it."""
        return None


class Quadratic(Family):
    """w⁺ = w − η P⁻¹m with a diagonal P; a parameter's own η divides its part of P."""

    @abstractmethod
    def diagonal(self, slot: Slot) -> Array:
        """P of one parameter, without its learning rate."""

    def norm(self, slots: list[Slot]) -> Norm:
        rates = relative_rates(slots)
        p = {s.name: self.diagonal(s) / rates[s.name] for s in slots}
        sound = [jnp.all((x > 0) & jnp.isfinite(x)) for x in p.values()]
        if not bool(jnp.all(jnp.stack(sound))):
            bad = next(name for name, each in zip(p, sound, strict=True) if not bool(each))
            raise NormError(f"the preconditioner is not positive and finite at {bad!r}")
        return Preconditioned(
            (
                lambda d: {k: x * p[k] for k, x in d.items()},
                lambda g: {k: x / p[k] for k, x in g.items()},
            )
        )


class Adaptive(Quadratic):
    """Adam and AMSGrad.

    P = (1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + ε): then w⁺ = w − η P⁻¹m holds with the uncorrected average m
    (arXiv 2207.14484).
    """

    def diagonal(self, slot: Slot) -> Array:
        if "nu_max" in slot.own:  # of corrected averages
            v = at_least_float32(slot.own["nu_max"])
        else:
            v = at_least_float32(slot.own["nu"]) / (1 - slot.option("b2") ** steps_of(slot))
        p = jnp.sqrt(v + slot.option("eps_root")) + slot.option("eps")
        return p * (1 - slot.option("b1") ** steps_of(slot))

    def rule(self, slots: list[Slot]) -> Update:
        b1 = float(one(slots, "b1"))
        nesterov = bool(b1 and one(slots, "nesterov"))
        update = Update(slots[0].lr, momentum=b1, ema=b1 > 0, nesterov=nesterov)
        rates = relative_rates(slots)
        decays = {float(s.option("weight_decay")) * rates[s.name] for s in slots}
        if len(decays) > 1:
            raise UnknownRule("the groups differ in weight decay")
        (decay,) = decays
        return replace(update, weight_decay=decay, decoupled=decay > 0)

    def direction(self, slot: Slot) -> Array | None:
        if slot.option("nesterov"):
            return None
        return at_least_float32(slot.own["mu"]) / self.diagonal(slot)


class RootMeanSquare(Quadratic):
    """RMSprop: P = √(v + ε), or √v + ε."""

    def diagonal(self, slot: Slot) -> Array:
        v, eps = at_least_float32(slot.own["nu"]), slot.option("eps")
        if "mu" in slot.own:  # centered
            v = v - jnp.square(at_least_float32(slot.own["mu"]))
        return jnp.sqrt(v + eps) if slot.option("eps_in_sqrt") else jnp.sqrt(v) + eps

    def rule(self, slots: list[Slot]) -> Update:
        momentum = one(slots, "momentum")
        if momentum is None and any("trace" in s.own for s in slots):
            raise UnknownRule("momentum is not in the optimizer's state: pass it in hyperparams=")
        nesterov = bool(momentum and one(slots, "nesterov"))
        return Update(slots[0].lr, momentum=float(momentum or 0.0), nesterov=nesterov)


class SignDescent(Family):
    """Lion: w⁺ = w − η sign(m)."""

    def norm(self, slots: list[Slot]) -> Norm:
        rates = relative_rates(slots)
        if set(rates.values()) == {1.0}:
            return Linf()
        return MaxOver(Linf(), Radii(tuple(rates.items())))

    def rule(self, slots: list[Slot]) -> Update:
        return normalized_rule(slots, "b1")


class MuonDescent(Family):
    """w⁺ = w − η r UVᵀ of (in, out) matrices, with r = √max(1, out/in), or c·√max(in, out) for
    ``consistent_rms=c``."""

    def check(self, slots: list[Slot]) -> None:
        for s in slots:
            if s.own["mu"].ndim != 2:
                raise ArgumentError(
                    f"Muon's update of {s.name!r} is not known", got=f"shape {s.own['mu'].shape}"
                )

    def norm(self, slots: list[Slot]) -> Norm:
        rates = relative_rates(slots)
        return Spectral(Radii(tuple((s.name, self._radius(s) * rates[s.name]) for s in slots)))

    def rule(self, slots: list[Slot]) -> Update:
        return normalized_rule(slots, "beta")

    def _radius(self, slot: Slot) -> float:
        fan_in, fan_out = slot.own["mu"].shape
        rms = slot.option("consistent_rms")
        if rms is not None:
            return float(rms) * math.sqrt(max(fan_in, fan_out))
        return math.sqrt(max(1.0, fan_out / fan_in))


FAMILIES: Mapping[type, Family] = {
    optax.ScaleByAdamState: Adaptive(),
    optax.ScaleByAmsgradState: Adaptive(),
    optax.ScaleByRmsState: RootMeanSquare(),
    optax.ScaleByRStdDevState: RootMeanSquare(),
    optax.ScaleByLionState: SignDescent(),
    optax.contrib.MuonState: MuonDescent(),
}


def normalized_rule(slots: list[Slot], momentum: str) -> Update:
    """The rule of an update of fixed length, whatever momentum and decay are called."""
    decay = max(float(s.option("weight_decay")) for s in slots)
    beta = float(one(slots, momentum))
    return Update(slots[0].lr, normalized=True, momentum=beta, weight_decay=decay)


def relative_rates(slots: list[Slot]) -> dict[str, float]:
    """Each parameter's learning rate, relative to the first; 1 where one is not known."""
    try:
        rates = {s.name: s.lr for s in slots}
    except UnknownRule:
        return dict.fromkeys((s.name for s in slots), 1.0)
    return {name: rate / slots[0].lr for name, rate in rates.items()}


def one(slots: list[Slot], option: str) -> Any:
    """The value of an option, which all parts must share."""
    values = {s.option(option) for s in slots}
    if len(values) > 1:
        raise UnknownRule(f"the groups differ in {option}")
    return next(iter(values))


def at_least_float32(x: Array) -> Array:
    """``x``, in float32 where it has fewer bits."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def steps_of(slot: Slot) -> int:
    """How many steps the state has seen.

    Raises:
        NormError: it has seen none.
    """
    count = int(slot.state.count)
    if not count:
        raise NormError(
            f"the preconditioner is not known yet at {slot.name!r}",
            got="the state before the first step",
            do="pass the state after the step, or wait for the first one",
        )
    return count
