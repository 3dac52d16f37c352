"""The states of single transformations inside of an optax state, with their hyperparameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib

from geodiag.blocks import Array
from geodiag.core.batch_forms import DEEPEST
from geodiag.optimizers.geometry import unknown_geometry
from geodiag_jax.pytree import is_array, name_of

# Hyperparameters under optax's names, with optax's defaults (but no weight decay).
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
    "b3": 0.9999,
    "alpha": 5.0,
}


# optax's own argument, with which contrib.muon was built.
DIMENSIONS = "muon_weight_dimension_numbers"

unknown_state = functools.partial(unknown_geometry, "this optimizer state")


def known_in_optax(*names: str) -> tuple[type, ...]:
    """Those of optax's classes that its version has."""
    return tuple(getattr(optax, name) for name in names if hasattr(optax, name))


# States that hold others, where they hold them, and states that change no direction.
WRAPPERS = known_in_optax(
    "MaskedState",
    "PartitionState",
    "MultiTransformState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "ApplyIfFiniteState",
    "MultiStepsState",
    "ConditionallyTransformState",
    "ConditionallyMaskState",
    "LookaheadState",
)
INNER = ("inner_state", "inner_states", "inner_opt_state", "fast_state")
IDLE = (
    *known_in_optax("EmptyState", "ScaleByScheduleState", "MonitorState", "SnapshotState"),
    *known_in_optax("ZeroNansState", "AddNoiseState"),
)
PLATEAU = optax.contrib.ReduceLROnPlateauState
SCALE = "plateau_scale"  # by which it has multiplied the learning rate of what precedes it


def walk(
    node: Any, kinds: tuple[type, ...], injected: Mapping[str, Any], depth: int = 0
) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The states of single transformations, each with the injected hyperparameters there.

    Args:
        node: a state.
        kinds: those with statistics that are known.
        injected: hyperparameters in force.
        depth: of the node.

    Yields:
        A state, and its hyperparameters.

    Raises:
        ArgumentError: a state that is not known.
    """
    if depth > DEEPEST:
        raise unknown_state("states in states without an end")
    if isinstance(node, (*kinds, *IDLE)):
        yield node, injected
    elif isinstance(node, WRAPPERS):
        # Muon's own Adam is nesterov where Muon is, which is the default.
        muons = {"nesterov": True} if "muon" in getattr(node, "inner_states", ()) else {}
        injected = {**muons, **injected, **getattr(node, "hyperparams", {})}
        for inner in INNER:
            if hasattr(node, inner):
                yield from walk(getattr(node, inner), kinds, injected, depth + 1)
    elif type(node) in (tuple, list) or isinstance(node, Mapping):
        children = list(node.values() if isinstance(node, Mapping) else node)
        for i, child in enumerate(children):
            scales = [x.scale for x in children[i + 1 :] if isinstance(x, PLATEAU)]
            scale = math.prod(map(float, scales), start=injected.get(SCALE, 1.0))
            yield from walk(child, kinds, {**injected, SCALE: scale}, depth + 1)
    elif hasattr(node, "opt_state") and not isinstance(node, tuple):
        yield from walk(
            node.opt_state, kinds, injected, depth + 1
        )  # flax's Optimizer and TrainState
    elif not isinstance(node, PLATEAU):
        raise unknown_state(type(node).__name__)


def by_name(tree: Any) -> dict[str, Array]:
    """The arrays of a tree like the parameters, by name; masked leaves are left out."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {name_of(path): leaf for path, leaf in paths if is_array(leaf)}


def options_of(injected: Mapping[str, Any], given: Mapping[str, Any], muon: bool) -> dict[str, Any]:
    """All hyperparameters as floats. In Muon's partition, Adam's have a prefix."""
    known = {k: x for k, x in injected.items() if k.removeprefix("adam_") not in given}
    known.update(given)
    found = {}
    for name, default in {"learning_rate": None, **DEFAULTS}.items():
        value = known.get(name, default)
        value = value if muon else known.get(f"adam_{name}", value)
        found[name] = None if value is None else float(np.asarray(value))
    own = found["own_rate"] = found["learning_rate"]
    found["learning_rate"] = None if own is None else own * injected.get(SCALE, 1.0)
    return found
