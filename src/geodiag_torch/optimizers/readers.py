"""Readers: from the groups and the state of a torch optimizer to slots, one reader each.

What follows from the slots is in :mod:`geodiag.optimizers.families`. Everything is read at each
measurement, so schedules need no care.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from geodiag.errors import NormError
from geodiag.norms.muon import MUON_RMS
from geodiag.optimizers.families import (
    QHM,
    Adam,
    AdEMAMix,
    GradientDescent,
    NAdam,
    RMSprop,
    SteepestDescent,
)
from geodiag.optimizers.geometry import two_geometries, unknown_geometry
from geodiag.optimizers.normalized import LionDescent, MuonDescent, SignDescent
from geodiag.optimizers.slots import Family, Slot
from geodiag_torch.optimizers.non_euclidean import NonEuclideanGD
from geodiag_torch.sharding.detection import as_sharded


@dataclass
class Entry:
    """One measured parameter, and where its optimizer keeps what belongs to it."""

    name: str
    param: Tensor
    optimizer: Optimizer
    group: Mapping[str, Any]
    options: dict[str, Any]  # see options_of
    state: Mapping[str, Any]
    whole: bool  # whether every parameter of the optimizer is measured
    reader: Reader | None = None
    known: Slot | None = None

    def read(self) -> Slot:
        """Its slot, read once.

        Raises:
            GeodiagError: the optimizer's update rule is not known, or cannot be read.
        """
        if self.known is None:
            if self.reader is None:
                raise unknown_geometry(type(self.optimizer).__name__)
            self.known = self.reader(self)
        return self.known

    def slot(self, family: Family, **fields: Any) -> Slot:
        """A slot with the options that torch's optimizers share."""
        return Slot(self.name, family, **self.options, gradient=self.gradient(), **fields)

    def gradient(self) -> Tensor | None:
        """What the optimizer received, after its step; None where it received nothing."""
        g = self.param.grad
        return None if g is None or g.layout != torch.strided else as_sharded(g)

    def matrix(self, axis: int) -> tuple[int, int] | None:
        """The sizes of this axis and of the next; None where Muon is not known to take it."""
        shape = self.param.shape
        return (shape[axis], shape[axis + 1]) if len(shape) in (2, 4) else None

    def array(self, key: str) -> Tensor | None:
        """An entry of the state, if there is one."""
        found = self.state.get(key)
        return None if found is None else as_sharded(found)


Reader = Callable[[Entry], Slot]


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options that torch's optimizers share, as fields of a slot."""
    betas = group.get("betas")
    return {
        "lr": float(group["lr"]),
        "momentum": float(betas[0] if betas else group.get("momentum", 0.0)),
        "weight_decay": float(group.get("weight_decay", group.get("wd", 0.0))),
        "maximize": bool(group.get("maximize", False)),
    }


def read_sgd(e: Entry) -> Slot:
    """torch.optim.SGD."""
    dampening, nesterov = float(e.group["dampening"]), bool(e.group["nesterov"])
    m = e.array("momentum_buffer")
    return e.slot(GradientDescent(), dampening=dampening, nesterov=nesterov, first_moment=m)


def read_adam(e: Entry) -> Slot:
    """torch.optim.Adam and AdamW, with AMSGrad."""
    # AdamW is Adam with this option from torch 2.7 on, and a class of its own before.
    decoupled = e.group.get("decoupled_weight_decay", isinstance(e.optimizer, torch.optim.AdamW))
    return e.slot(
        Adam(),
        decoupled=bool(decoupled),
        steps=int(e.state.get("step", 0)),
        first_moment=e.array("exp_avg"),
        second_moment=e.array("max_exp_avg_sq" if e.group["amsgrad"] else "exp_avg_sq"),
        second_decay=float(e.group["betas"][1]),
        eps=float(e.group["eps"]),
    )


def read_nadam(e: Entry) -> Slot:
    """torch.optim.NAdam."""
    return e.slot(
        NAdam(),
        decoupled=bool(e.group["decoupled_weight_decay"]),
        steps=int(e.state.get("step", 0)),
        first_moment=e.array("exp_avg"),
        second_moment=e.array("exp_avg_sq"),
        second_decay=float(e.group["betas"][1]),
        eps=float(e.group["eps"]),
        more={
            "momentum_decay": float(e.group["momentum_decay"]),
            "mu_product": float(e.state.get("mu_product", 0.0)),
        },
    )


def read_ademamix(e: Entry) -> Slot:
    """AdEMAMix in user code, recognised by the authors' names; without their warmups."""
    names = ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq")
    if (e.state and not {*names} <= {*e.state}) or len(e.group["betas"]) != 3:
        raise unknown_geometry("AdEMAMix")
    _, second, slow = e.group["betas"]
    warm = any(e.group.get(name) for name in ("alpha_warmup", "beta3_warmup"))
    return e.slot(
        AdEMAMix(),
        decoupled=True,
        steps=int(e.state.get("step", e.group.get("step", 0))),
        first_moment=e.array(names[0]),
        second_moment=e.array(names[2]),
        second_decay=float(second),
        eps=float(e.group["eps"]),
        more={
            "slow_moment": e.array(names[1]),
            "beta3": float(slow),
            "alpha": float(e.group["alpha"]),
        },
        unknown="its warmups of α and β₃ are not read" if warm else "",
    )


def read_qhm(e: Entry) -> Slot:
    """QHM in user code, recognised by the authors' names."""
    if "nu" not in e.group:
        raise unknown_geometry("QHM")
    decoupled = e.group.get("weight_decay_type", "grad") == "direct"
    nu, m = float(e.group["nu"]), e.array("momentum_buffer")
    return e.slot(QHM(), decoupled=decoupled, first_moment=m, more={"nu": nu})


def read_rmsprop(e: Entry) -> Slot:
    """torch.optim.RMSprop."""
    return e.slot(
        RMSprop(),
        first_moment=e.array("momentum_buffer"),
        second_moment=e.array("square_avg"),
        mean_gradient=e.array("grad_avg") if e.group["centered"] else None,
        eps=float(e.group["eps"]),
    )


def read_non_euclidean(e: Entry) -> Slot:
    """geodiag_torch.NonEuclideanGD."""
    assert isinstance(e.optimizer, NonEuclideanGD)
    return e.slot(SteepestDescent(e.optimizer.norm, e.optimizer.normalized, e.whole))


def read_sign(e: Entry) -> Slot:
    """SignSGD and Signum in user code."""
    return e.slot(SignDescent())


def read_lion(e: Entry) -> Slot:
    """Lion in user code, with the authors' names."""
    if len(e.group.get("betas", ())) != 2:
        return read_sign(e)
    beta2, m = float(e.group["betas"][1]), e.array("exp_avg")
    return e.slot(LionDescent(), decoupled=True, first_moment=m, more={"beta2": beta2})


def read_torch_muon(e: Entry) -> Slot:
    """torch.optim.Muon."""
    adjust = e.group["adjust_lr_fn"] or "original"
    if adjust not in MUON_RMS:
        raise NormError(f"Muon's adjust_lr_fn {adjust!r} is not known")
    polynomials = [e.group["ns_coefficients"]] * int(e.group["ns_steps"])
    beta = float(e.group["momentum"])
    return e.slot(
        MuonDescent(),
        nesterov=bool(e.group["nesterov"]),
        dampening=beta,  # m is an average
        first_moment=e.array("momentum_buffer"),
        matrix=e.matrix(0),
        rms=MUON_RMS[adjust],
        decoupled=True,
        polynomials=polynomials,
        more={"precision": torch.bfloat16},
    )


def read_copied_muon(e: Entry) -> Slot:
    """Muon in user code: Moonlight's or the original, recognised by their options."""
    options = set(e.group) - {"use_muon", "initial_lr", "param_names"}
    moonlight = {"wd", "adamw_betas"} <= options
    if not (e.state if moonlight else e.group).get("use_muon", True):
        raise two_geometries(f"{e.name!r} by Adam, others by Muon")
    if moonlight:
        return e.slot(MuonDescent(), matrix=e.matrix(0), rms=MUON_RMS["match_rms_adamw"])
    if options != {"params", "lr", "weight_decay", "momentum"}:
        raise unknown_geometry("Muon")
    return e.slot(MuonDescent(), matrix=e.matrix(-2))  # a kernel counts by its last two axes


# By class, where a subclass has not changed the step; a subclass stands before its parent.
READERS: dict[type[Optimizer], Reader] = {
    NonEuclideanGD: read_non_euclidean,
    torch.optim.SGD: read_sgd,
    torch.optim.AdamW: read_adam,
    torch.optim.Adam: read_adam,
    torch.optim.NAdam: read_nadam,
    torch.optim.RMSprop: read_rmsprop,
}
if hasattr(torch.optim, "Muon"):  # from torch 2.9 on
    READERS[torch.optim.Muon] = read_torch_muon

# By class name, for implementations in user code.
NAMED_READERS: dict[str, Reader] = {
    **dict.fromkeys(("SignSGD", "Signum"), read_sign),
    "Lion": read_lion,
    "AdEMAMix": read_ademamix,
    "QHM": read_qhm,
    **dict.fromkeys(("Muon", "MuonWithAuxAdam"), read_copied_muon),
    **dict.fromkeys(("SingleDeviceMuon", "SingleDeviceMuonWithAuxAdam"), read_copied_muon),
}


def reader_of(optimizer: Optimizer) -> Reader | None:
    """The reader of an optimizer; None where its update rule is not known."""
    for known, reader in READERS.items():
        # torch wraps ``step`` in the class that is built
        if isinstance(optimizer, known) and (
            inspect.unwrap(type(optimizer).step) is inspect.unwrap(known.step)
        ):
            return reader
    return NAMED_READERS.get(type(optimizer).__name__)
