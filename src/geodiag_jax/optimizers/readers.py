"""Readers: from an optax state to slots, one reader for each transformation.

What follows from the slots is in :mod:`geodiag.optimizers.families`. Statistics are found inside
chains, masks, partitions and injected hyperparameters. Only injected hyperparameters are in the
state; others are arguments. Transformations without state (clipping, trust ratios) are invisible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib

from geodiag.blocks import Array
from geodiag.core.spaces import MatrixView, Space
from geodiag.errors import ArgumentError
from geodiag.optimizers.families import Adam, AdEMAMix, GradientDescent, RMSprop
from geodiag.optimizers.normalized import LionDescent, MuonDescent
from geodiag.optimizers.slots import Family, Slot
from geodiag_jax.optimizers.states import (
    DIMENSIONS,
    IDLE,
    SCALE,
    by_name,
    options_of,
    unknown_state,
    walk,
)
from geodiag_jax.pytree import name_of

NO_MOMENTUM = "momentum is not in the optimizer's state: pass it in hyperparams="
# optax's defaults, where they are not those of Adam.
OWN_DEFAULTS: Mapping[type, Mapping[str, float]] = {optax.ScaleByLionState: {"b2": 0.99}}
TREES = ("mu", "nu", "nu_max", "m1", "m2")  # fields of a state with one array per parameter


@dataclass(frozen=True)
class Entry:
    """One parameter in one state: its arrays by the state's fields, and all hyperparameters."""

    name: str
    kind: type  # of the state
    arrays: Mapping[str, Array]
    steps: int
    options: Mapping[str, Any]  # by the names of DEFAULTS, learning_rate, and own_rate: unscaled
    trace: Array | None  # what optax.trace keeps for it
    state: Any  # all of it
    before: Mapping[str, Array] = field(default_factory=dict)  # ``arrays`` one step earlier
    trace_before: Array | None = None

    def slot(self, family: Family, unknown: str = "", **fields: Any) -> Slot:
        """A slot with the fields that all transformations share."""
        if self.trace is not None and not isinstance(family, (RMSprop, GradientDescent)):
            raise unknown_state(f"{self.kind.__name__} with TraceState")
        lr, decay = self.options["learning_rate"], self.options["weight_decay"]
        if lr is None:
            lr, unknown = math.nan, "the learning rate is not in the optimizer's state: pass lr="
        common = {"weight_decay": decay, "decoupled": True, "steps": self.steps, "unknown": unknown}
        return Slot(self.name, family, lr, **(common | fields))


Reader = Callable[[Entry], Slot]


def read_adam(e: Entry) -> Slot:
    """adam, adamw, nadam; amsgrad, whose largest average is already bias-corrected."""
    corrected = "nu_max" in e.arrays
    return e.slot(
        Adam(),
        momentum=e.options["b1"],
        nesterov=bool(e.options["nesterov"]),
        first_moment=e.arrays["mu"],
        earlier_moment=e.before.get("mu"),
        second_moment=e.arrays["nu_max" if corrected else "nu"] if e.steps else None,
        second_decay=None if corrected else e.options["b2"],
        eps=e.options["eps"],
        eps_in_root=e.options["eps_root"],
    )


def read_ademamix(e: Entry) -> Slot:
    """contrib.ademamix, with numbers for b3 and alpha."""
    return e.slot(
        AdEMAMix(),
        momentum=e.options["b1"],
        first_moment=e.arrays["m1"],
        earlier_moment=e.before.get("m1"),
        second_moment=e.arrays["nu"] if e.steps else None,
        second_decay=e.options["b2"],
        eps=e.options["eps"],
        eps_in_root=e.options["eps_root"],
        more={
            "slow_moment": e.arrays["m2"],
            "beta3": e.options["b3"],
            "alpha": e.options["alpha"],
        },
    )


def read_sgd(e: Entry) -> Slot:
    """sgd with momentum, whose state is its trace."""
    momentum = e.options["momentum"]
    return e.slot(
        GradientDescent(),
        NO_MOMENTUM if momentum is None else "",
        momentum=momentum or 0.0,
        first_moment=e.trace,
        earlier_moment=e.trace_before,
        nesterov=bool(e.options["nesterov"]),
    )


def read_rmsprop(e: Entry) -> Slot:
    """rmsprop, also centered."""
    momentum, inside = e.options["momentum"], bool(e.options["eps_in_sqrt"])
    missing, lr = e.trace is not None and momentum is None, e.options["own_rate"]
    return e.slot(
        RMSprop(),
        NO_MOMENTUM if missing else "",
        momentum=momentum or 0.0,
        # The trace is of −η P⁻¹g.
        first_moment=None if e.trace is None or not lr else -e.trace / lr,
        earlier_moment=None if e.trace_before is None or not lr else -e.trace_before / lr,
        nesterov=bool(e.options["nesterov"]),
        second_moment=e.arrays["nu"],
        mean_gradient=e.arrays.get("mu"),
        eps=0.0 if inside else e.options["eps"],
        eps_in_root=e.options["eps"] if inside else 0.0,
    )


def read_lion(e: Entry) -> Slot:
    """lion."""
    return e.slot(
        LionDescent(),
        momentum=e.options["b1"],
        first_moment=e.arrays["mu"] if e.steps else None,
        earlier_moment=e.before.get("mu"),
        more={"beta2": e.options["b2"]},
    )


def read_muon(e: Entry) -> Slot:
    """contrib.muon: matrices (in, out), or stacks of such as its dimension numbers say."""
    shape, told = e.arrays["mu"].shape, e.options[DIMENSIONS]
    view = None if told is None else _view(told, len(shape))
    if view is not None:
        matrix: tuple[int, int] | None = view.shape(shape)
    else:
        matrix = (shape[1], shape[0]) if len(shape) == 2 else None
    polynomials = np.asarray(e.state.ns_coeffs, dtype=float).reshape(-1, 3).tolist()
    return e.slot(
        MuonDescent(),
        momentum=e.options["beta"],
        nesterov=bool(e.options["nesterov"]),
        dampening=e.options["beta"],  # mu is an average
        first_moment=e.arrays["mu"],
        earlier_moment=e.before.get("mu"),
        matrix=matrix,
        view=view,
        rms=e.options["consistent_rms"],
        polynomials=[(a, b, c) for a, b, c in polynomials] * (5 if len(polynomials) == 1 else 1),
    )


def _view(told: Any, ndim: int) -> MatrixView:
    """optax's MuonDimensionNumbers: outputs are rows here."""
    rows, cols = (
        tuple(i % ndim for i in ((axes,) if isinstance(axes, int) else axes))
        for axes in (told.output_axis, told.reduction_axis)
    )
    return MatrixView(rows, cols)


def _dimensions(told: Any, mu: Any) -> dict[str, Any]:
    """The dimension numbers of each parameter, from what optax takes: one, a tree or a function."""

    def is_one(x: Any) -> bool:
        return x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)

    tree = told(mu) if callable(told) else told
    full = jax.tree_util.tree_map(
        lambda one, under: jax.tree_util.tree_map(lambda _: one, under), tree, mu, is_leaf=is_one
    )
    paths, _ = jax.tree_util.tree_flatten_with_path(full, is_leaf=is_one)
    return {name_of(path): one for path, one in paths if one is not None}


READERS: dict[type, Reader] = {
    optax.ScaleByAdamState: read_adam,
    optax.ScaleByAmsgradState: read_adam,
    optax.ScaleByRmsState: read_rmsprop,
    optax.ScaleByRStdDevState: read_rmsprop,
    optax.ScaleByLionState: read_lion,
    optax.contrib.MuonState: read_muon,
    optax.TraceState: read_sgd,
}
if hasattr(optax.contrib, "ScaleByAdemamixState"):
    READERS[optax.contrib.ScaleByAdemamixState] = read_ademamix


def slots_of(
    opt_state: Any, space: Space, given: Mapping[str, Any], before: Any = None
) -> list[Slot]:
    """The slots of the parameters of a space; ``given`` overrides the state's hyperparameters.

    ``before``: the state before the step, if known.
    """
    found = _entries(opt_state, given)
    earlier = {} if before is None else _entries(before, given)
    for name, shape in space.shapes.items():
        held = None if name not in found else next(iter(found[name].arrays.values())).shape
        if held != shape:
            raise ArgumentError(
                f"the optimizer's state is not that of {name!r}, of shape {shape}",
                got="nothing of this name" if held is None else f"shape {held}",
                do="pass the state of these parameters; leave out by where= what it does not move",
            )
    slots = []
    for name in space.names:
        entry, old = found[name], earlier.get(name)
        if old is not None and old.kind is entry.kind and old.steps == max(0, entry.steps - 1):
            entry = replace(entry, before=old.arrays, trace_before=old.trace)
        slots.append(READERS[entry.kind](entry))
    return slots


def plain_rate(opt_state: Any, given: Mapping[str, Any]) -> float | None:
    """The learning rate of a state that holds no statistics, so that its rule cannot be read.

    NaN where it is not known, or the parameters have several; None for other states.
    """
    nodes = list(walk(opt_state, tuple(READERS), {}))
    if not nodes or not all(isinstance(node, IDLE) for node, _ in nodes):
        return None
    found = [options_of(injected, given, muon=False)["own_rate"] for _, injected in nodes]
    rates = {rate for rate in found if rate is not None}
    return rates.pop() * nodes[0][1].get(SCALE, 1.0) if len(rates) == 1 else math.nan


def _entries(opt_state: Any, given: Mapping[str, Any]) -> dict[str, Entry]:
    """The entries of all parameters in a state, by name."""
    nodes = list(walk(opt_state, tuple(READERS), {}))
    traces: dict[str, Array] = {}
    alone: dict[str, Entry] = {}  # the parameters with a trace and nothing else
    for node, injected in nodes:
        if isinstance(node, optax.TraceState):
            own, options = by_name(node.trace), options_of(injected, given, muon=False)
            traces |= own
            for name, x in own.items():
                alone[name] = Entry(name, type(node), {"trace": x}, 0, options, x, node)
    found: dict[str, Entry] = {}
    for node, injected in nodes:
        kind = type(node)
        if kind not in READERS or kind is optax.TraceState:
            continue
        trees = {t: by_name(getattr(node, t)) for t in TREES if t in node._fields}
        muon, told = kind is optax.contrib.MuonState, given.get(DIMENSIONS)
        options = options_of({**OWN_DEFAULTS.get(kind, {}), **injected}, given, muon)
        dimensions = _dimensions(told, node.mu) if muon and told is not None else {}
        steps = int(node.count) if "count" in node._fields else 0
        for name in next(iter(trees.values())):
            if name in found:
                raise unknown_state(f"two states for {name!r}")
            arrays = {t: leaves[name] for t, leaves in trees.items()}
            own = options | {DIMENSIONS: dimensions.get(name)}
            found[name] = Entry(name, kind, arrays, steps, own, traces.get(name), node)
    found = alone | found
    if not found:
        raise unknown_state("a state without statistics")
    return found
