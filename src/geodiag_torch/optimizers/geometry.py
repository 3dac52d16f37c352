"""What an optimizer says of itself: the norm in which it descends, and its update rule.

optimizer                          norm                          threshold on S
SGD                                ℓ2                            momentum, Nesterov, decay
Adam, AdamW                        √⟨d, Pd⟩, P from its state    EMA momentum, decoupled decay
RMSprop                            the same                      momentum
NonEuclideanGD                     its own                       the plain or the normalized one
Muon (torch's; the original; Moonlight's)  spectral, its radii   normalized, without momentum
SignSGD, Signum, Lion              ℓ∞                            normalized, without momentum

A group's own learning rate belongs to the geometry: relative to the first group's it divides P, or
is a radius. All is read anew at every measurement, so schedules need no care. What no formula
covers has no threshold, and says why.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Mapping

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from geodiag.core.spaces import Space
from geodiag.errors import ArgumentError
from geodiag.norms import Norm
from geodiag.optimizers.geometry import UnknownRule, equal
from geodiag.optimizers.thresholds import Update
from geodiag.problems import as_norm
from geodiag_torch.optimizers.non_euclidean import NonEuclideanGD
from geodiag_torch.optimizers.rules import (
    Adaptive,
    Descent,
    Family,
    MuonDescent,
    RootMeanSquare,
    SignDescent,
    Slot,
    Steepest,
)

SIGN = {"SignSGD", "Signum", "Lion"}
ORIGINAL = {"Muon", "MuonWithAuxAdam", "SingleDeviceMuon", "SingleDeviceMuonWithAuxAdam"}
CHOICES = (
    'say in which norm to measure: norm="l2" (gradient descent), "linf" (sign descent), '
    '"spectral" or "muon" (orthogonalised updates), "block", or a Norm such as '
    "geodiag.norms.Preconditioned(P); update=geodiag.Update(lr=…) then gives the threshold"
)


class Geometry:
    """The live geometry of an optimizer on the parameters that are measured.

    Args:
        optimizer: held weakly.
        parameters: name → parameter, of those measured, all of them in the optimizer.
        space: theirs.
        asked: a norm to measure in, instead of the optimizer's.
        live: the same, as a function that is called at each measurement.

    Raises:
        ArgumentError: neither is given, and the optimizer's norm is not known.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, torch.Tensor],
        space: Space,
        asked: Norm | None = None,
        live: Callable[[], Norm] | None = None,
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._names = {id(p): name for name, p in parameters.items()}
        self._space, self._asked, self._live = space, asked, live
        self._kind = type(optimizer).__name__
        self._now: Norm | None = None  # what ``live`` returned last
        self._same: dict[Hashable, bool] = {}
        self.family = family(optimizer, self._slots())
        if asked is None and live is None:
            if self.family is None:
                raise ArgumentError(
                    f"the geometry of {self._kind} is not known", got=self._kind, do=CHOICES
                )
            self.family.check(self._slots())

    @property
    def changes(self) -> bool:
        """Whether the norm must be asked for at each measurement."""
        if self._asked is not None:
            return False
        several = len({id(slot.group) for slot in self._slots()}) > 1
        return self._live is not None or several or (self.family or Descent()).stateful

    def norm(self) -> Norm:
        """The norm in force now: the one asked for, or the optimizer's.

        Raises:
            NormError: the optimizer's state does not say it yet.
        """
        if self._live is not None:
            self._now = as_norm(self._live())
            return self._now
        if self._asked is not None:
            return self._asked
        assert self.family is not None
        return self.family.norm(self._slots())

    def update(self, step: int) -> Update:
        """The update rule in force now, as it is for the norm that is measured."""
        slots = self._slots()
        lr = slots[0].lr
        if self.family is None:
            return Update(lr, unknown=f"the update rule of {self._kind} is not known")
        try:
            if lr <= 0.0:
                raise UnknownRule("the learning rate is not positive")
            asked = self._now if self._live is not None else self._asked
            if asked is not None and not self._is_own(asked, slots):
                raise UnknownRule(f"{asked!r} is not the geometry of {self._kind}")
            return self.family.rule(slots)
        except UnknownRule as e:
            return Update(lr, unknown=str(e))

    def _slots(self) -> list[Slot]:
        optimizer = self._optimizer()
        if optimizer is None:
            raise ArgumentError("the optimizer is gone", do="attach to the new one")
        moving = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        whole = all(id(p) in self._names for p in moving)
        return [
            Slot(self._names[id(p)], p, group, optimizer.state.get(p, {}), whole)
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in self._names
        ]

    def _is_own(self, asked: Norm, slots: list[Slot]) -> bool:
        """Whether ``asked`` is the optimizer's norm; where its keys tell, it is computed once."""
        assert self.family is not None
        own = self.family.norm(slots)
        key = (asked.key, own.key)
        known = None not in key
        if known and key in self._same:
            return self._same[key]
        same = (known and asked.key == own.key) or equal(asked, own, self._space)
        if known:
            self._same[key] = same
        return same


def family(optimizer: Optimizer, slots: list[Slot]) -> Family | None:
    """What is known of the optimizer, by its class; None where nothing is."""
    if isinstance(optimizer, NonEuclideanGD):
        return Steepest(optimizer.norm, optimizer.normalized)
    for known, rules in _torch_families().items():
        if isinstance(optimizer, known) and _steps_like(optimizer, known):
            return rules()
    name = type(optimizer).__name__
    if name in SIGN:
        return SignDescent()
    if name in ORIGINAL and not isinstance(optimizer, getattr(torch.optim, "Muon", ())):
        return _muon(slots)
    return None


def _torch_families() -> dict[type[Optimizer], Callable[[], Family]]:
    found: dict[type[Optimizer], Callable[[], Family]] = {
        SGD: Descent,
        AdamW: lambda: Adaptive(decoupled=True),
        Adam: lambda: Adaptive(decoupled=False),
        RMSprop: RootMeanSquare,
    }
    if hasattr(torch.optim, "Muon"):  # from torch 2.9 on
        found[torch.optim.Muon] = lambda: MuonDescent("torch")
    return found


def _steps_like(optimizer: Optimizer, known: type[Optimizer]) -> bool:
    """Whether a subclass has left the step alone; torch wraps it in the class that is built."""
    return inspect.unwrap(type(optimizer).step) is inspect.unwrap(known.step)


def _muon(slots: list[Slot]) -> Family | None:
    """The two implementations that are copied around, told apart by the options of a group."""
    options = set(slots[0].group)
    if {"wd", "adamw_betas"} <= options:
        return MuonDescent("moonlight")
    if options - {"use_muon", "initial_lr", "param_names"} == {
        "params",
        "lr",
        "weight_decay",
        "momentum",
    }:
        return MuonDescent("original")
    if slots[0].group.get("use_muon") is False:
        return MuonDescent("original")  # its check says which parameters are Muon's
    return None
