"""What an optax state says of its optimizer: the norm in which it descends, and its update rule.

state of                          norm                          threshold on S
adam, adamw, nadam, amsgrad       √⟨d, Pd⟩, P from nu           EMA momentum, decoupled decay
rmsprop, also centered            the same                      momentum
contrib.muon, on its matrices     spectral, its radii           normalized, without momentum
lion                              ℓ∞                            normalized, without momentum

It is found inside chains, masks, partitions and injected hyperparameters. These last are the only
hyperparameters in a state; the others are arguments. Transformations that keep no state (clipping,
trust ratios) cannot be seen; :meth:`Geometry.mismatch` asks the step itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from geodiag.blocks import Array, Blocks, epsilon
from geodiag.core.batches import DEEPEST
from geodiag.core.selection import Where
from geodiag.core.spaces import Space
from geodiag.core.validation import as_number, is_number
from geodiag.errors import ArgumentError, NormError, shown
from geodiag.norms import Norm
from geodiag.optimizers.geometry import UnknownRule, equal
from geodiag.optimizers.thresholds import Update
from geodiag_jax.optimizers.rules import DEFAULTS, FAMILIES, Family, RootMeanSquare, Slot
from geodiag_jax.pytree import is_array, name_of, read

CHOICES = (
    'say in which norm to measure: norm="l2" (gradient descent), "linf" (sign descent), '
    '"spectral" or "muon" (orthogonalised updates), "block", or a Norm such as '
    "geodiag.norms.Preconditioned(P); lr= or update=geodiag.Update(lr=…) then gives the threshold"
)
TOLERANCE = 0.05  # of a step that a rule is to explain
ROUNDING = 4.0  # epsilons of the parameters


def _known(*names: str) -> tuple[type, ...]:
    """Those of optax's classes that its version has."""
    return tuple(getattr(optax, name) for name in names if hasattr(optax, name))


# What is looked through, what changes no direction, and what is looked for.
WRAPPERS = _known(
    "MaskedState",
    "PartitionState",
    "MultiTransformState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "ApplyIfFiniteState",
    "MultiStepsState",
)
TREES = ("mu", "nu", "nu_max")  # of statistics, in a state
INNER = ("inner_state", "inner_states", "inner_opt_state")
IDLE = _known(
    "EmptyState", "ScaleByScheduleState", "MonitorState", "SnapshotState", "ZeroNansState"
)


def geometry(
    opt_state: Any,
    params: Any,
    *,
    lr: float | None = None,
    where: Where = None,
    hyperparams: Mapping[str, Any] | None = None,
) -> tuple[Norm, Update]:
    """The norm in which an optax optimizer descends, and its update rule, as its state tells them.

        norm, update = geodiag_jax.geometry(opt_state, params, lr=1e-3)
        result = geodiag.sharpness(loss, norm, params=params, data=batch)
        result.value / update.threshold(result.dual_norm)  # the edge is at 1

    Args:
        opt_state: the state after at least one step of adam, adamw, nadam, amsgrad, rmsprop, lion
            or contrib.muon, also inside chain, masked, partition and inject_hyperparams.
        params: the parameters that it belongs to.
        lr: the learning rate in force; default: that of inject_hyperparams.
        where: only these parameters; see :func:`geodiag.core.selection.select`.
        hyperparams: what the state does not hold, by optax's names: b1, b2, eps, eps_root,
            eps_in_sqrt, nesterov, momentum, beta, consistent_rms, weight_decay. Default: those of
            inject_hyperparams, else optax's own, without weight decay.

    Returns:
        The norm, and an :class:`geodiag.Update`; its ``unknown`` says why no threshold applies.

    Raises:
        ArgumentError: the geometry is not known, or a hyperparameter cannot be used.
        ParameterError: the parameters cannot be measured.
        NormError: the preconditioner is not known yet, or not positive.
    """
    check_hyperparams(hyperparams)
    if lr is not None and as_number(lr) is None:
        raise ArgumentError("lr= must be a number", got=shown(lr))
    found = Geometry(opt_state, read(params, where).space, lr, hyperparams)
    return found.norm(), found.update()


class Geometry:
    """What a state says of the parameters of a space.

    Raises:
        ArgumentError: it says nothing that is known.
    """

    def __init__(
        self,
        opt_state: Any,
        space: Space,
        lr: float | None = None,
        hyperparams: Mapping[str, Any] | None = None,
    ) -> None:
        given = dict(hyperparams or {}) | ({} if lr is None else {"learning_rate": lr})
        self._space = space
        self._slots = _slots(opt_state, space, given)
        self._family = _family(self._slots)
        self._family.check(self._slots)

    def norm(self) -> Norm:
        """The norm in which the optimizer descends.

        Raises:
            NormError: the preconditioner is not known yet, or not positive.
        """
        return self._family.norm(self._slots)

    def update(self, asked: Norm | None = None) -> Update:
        """The update rule, as it is for the norm that is measured (default: the optimizer's)."""
        lr = math.nan
        try:
            lr = self._slots[0].lr
            if asked is not None and not self._is_own(asked):
                raise UnknownRule(f"{asked!r} is not the optimizer's geometry")
            return self._family.rule(self._slots)
        except UnknownRule as e:
            return Update(lr, unknown=str(e))

    def mismatch(self, here: Blocks, there: Blocks) -> str:
        """Why the step from ``here`` to ``there`` was not by this rule; "" where it may have been.

        Only Adam's state tells its steps. One that was zero says nothing.
        """
        wrong = moved = rounding = 0.0
        for s in self._slots:
            direction, w = self._family.direction(s), here[s.name]
            if direction is None:
                return ""
            step = there[s.name] - w
            expected = -s.lr * (direction + s.option("weight_decay") * w)
            wrong += float(jnp.sum((step - expected) ** 2))
            moved += float(jnp.sum(step**2))
            # In the parameter's own precision, which that of the measurement may exceed.
            eps = epsilon({s.name: s.own["nu"]})
            rounding += eps**2 * float(jnp.sum(w**2))
        if not moved or not wrong > (TOLERANCE**2) * moved + ROUNDING**2 * rounding:
            return ""
        return (
            f"the step is another one than the state, lr and hyperparameters tell, by "
            f"{math.sqrt(wrong / moved):.0%}; pass the state after the step, all that "
            "hyperparams= should hold, or norm= and update= for another rule"
        )

    def _is_own(self, asked: Norm) -> bool:
        try:
            return equal(asked, self.norm(), self._space)
        except NormError as e:
            raise UnknownRule(e.what) from e


def check_hyperparams(hyperparams: Any) -> None:
    """Raise where the argument cannot be used.

    Raises:
        ArgumentError: it is no mapping from known names to numbers.
    """
    if hyperparams is None:
        return
    if not isinstance(hyperparams, Mapping):
        raise ArgumentError("hyperparams= must be a dict", got=type(hyperparams).__name__)
    unknown = [str(name) for name in hyperparams if name not in DEFAULTS]
    if unknown:
        raise ArgumentError(
            "hyperparams= holds names that mean nothing here",
            got=", ".join(unknown),
            do=f"use those of {', '.join(DEFAULTS)}; the learning rate is lr=",
        )
    for name, value in hyperparams.items():
        switch = isinstance(DEFAULTS[name], bool) and isinstance(value, bool)
        if not (switch or is_number(value) or (value is None and DEFAULTS[name] is None)):
            raise ArgumentError(f"hyperparams[{name!r}] must be a number", got=shown(value))


def _slots(opt_state: Any, space: Space, given: Mapping[str, Any]) -> list[Slot]:
    found: dict[str, Slot] = {}
    traces: dict[str, Array] = {}
    for node, injected in _walk(opt_state, {}):
        if isinstance(node, optax.TraceState):
            traces |= _named(node.trace)
            continue
        trees: dict[str, dict[str, Array]] = {
            tree: _named(getattr(node, tree)) for tree in TREES if tree in _fields(node)
        }
        options = {k: x for k, x in injected.items() if k.removeprefix("adam_") not in given}
        for name in next(iter(trees.values())):
            if name in found:
                raise _unknown(f"two states for {name!r}")
            own = {tree: leaves[name] for tree, leaves in trees.items()}
            found[name] = Slot(name, node, own, options | dict(given))
    if not found:
        raise _unknown("TraceState" if traces else "a state without statistics")
    _check_covers(found, space)
    return [
        replace(s, own={**s.own, "trace": traces[s.name]}) if s.name in traces else s
        for s in (found[name] for name in space.names)
    ]


def _check_covers(found: Mapping[str, Slot], space: Space) -> None:
    for name, shape in space.shapes.items():
        held = None if name not in found else tuple(next(iter(found[name].own.values())).shape)
        if held != shape:
            raise ArgumentError(
                f"the optimizer's state is not that of {name!r}, of shape {shape}",
                got="nothing of this name" if held is None else f"shape {held}",
                do="pass the state of these parameters; leave out by where= what it does not move",
            )


def _family(slots: list[Slot]) -> Family:
    kinds = {FAMILIES[type(s.state)] for s in slots}
    if len(kinds) > 1:
        first = FAMILIES[type(slots[0].state)]
        others = [s for s in slots if FAMILIES[type(s.state)] is not first]
        raise ArgumentError(
            "this optimizer treats its parameters in two ways: two geometries",
            got=f"{slots[0].name!r} by {type(slots[0].state).__name__}, "
            f"{others[0].name!r} by {type(others[0].state).__name__}",
            do="choose those of one kind with where=, or say norm=",
        )
    (family,) = kinds
    if not isinstance(family, RootMeanSquare) and any("trace" in s.own for s in slots):
        raise _unknown(f"{type(slots[0].state).__name__} with TraceState")
    return family


def _walk(
    node: Any, injected: Mapping[str, Any], depth: int = 0
) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The states that matter, each with the injected hyperparameters that hold there."""
    if depth > DEEPEST:
        raise _unknown("states in states without an end")
    if isinstance(node, (*FAMILIES, optax.TraceState)):
        yield node, injected
    elif isinstance(node, WRAPPERS):
        # Muon's own Adam is nesterov where Muon is, which is the default.
        muons = {"nesterov": True} if "muon" in getattr(node, "inner_states", ()) else {}
        injected = {**muons, **injected, **getattr(node, "hyperparams", {})}
        for inner in INNER:
            if inner in _fields(node):
                yield from _walk(getattr(node, inner), injected, depth + 1)
    elif type(node) in (tuple, list) or isinstance(node, Mapping):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from _walk(child, injected, depth + 1)
    elif not isinstance(node, IDLE):
        raise _unknown(type(node).__name__)


def _fields(node: Any) -> tuple[str, ...]:
    return tuple(node._fields)


def _named(tree: Any) -> dict[str, Array]:
    """The arrays of a tree like the parameters, by their names; what is masked has none."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {name_of(path): leaf for path, leaf in paths if is_array(leaf)}


def _unknown(got: str) -> ArgumentError:
    return ArgumentError("the geometry of this optimizer state is not known", got=got, do=CHOICES)
