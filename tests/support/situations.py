"""Situations around a model in docs/support.md: each measured in both frameworks.

The networks and their truth are those of :mod:`tests.networks`; a run is four steps with an event
before the third.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import geodiag
from tests.networks import jax_networks, runs, torch_networks
from tests.networks.lengths import Length
from tests.networks.network import JAX_PARTS, TORCH_PARTS, Network, Truth
from tests.support.cells import BY_DIFFERENCES, ERROR, WORKS, Outcome, lasting, sentence

# A part of tests.networks, and what it stands for.
SITUATIONS = {
    "detached": "a detached target (SimSiam, DQN)",
    "no_grad": "a target under `no_grad` (an EMA teacher)",
    "straight-through": "straight-through rounding (VQ-VAE, hard Gumbel)",
    "kept in a list": "a parameter reached through a plain list of the module",
    "closed over": "a parameter reached by closure (JAX: an array outside of `params`)",
    "unused": "a parameter that the loss does not use",
    "linear": "a parameter in which the loss is linear",
    "scale": "a parameter of one entry",
    "tied": "tied parameters",
    "frozen": "a frozen parameter",
    "decay": "weight decay in the loss",
    "sparse": "`nn.Embedding(sparse=True)`",
    "custom function": "a custom function with a right second derivative",
    "wrong second derivative": "a custom function with a wrong second derivative",
    "float": "a Python float among `params`",
    "integer": "an integer among `params`",
}
# What is put around the module, or added to the loss.
AROUND = {
    "checkpoint": "activation checkpointing around the model (`checkpoint_wrapper`)",
    "data parallel": "`nn.DataParallel`",
    "at zero": "a norm or a power of something that is zero",
    "kink": "a norm of a parameter that is zero, where the loss has no second derivative",
    "redefined": "a loss that is redefined for each measurement",
}
AROUND_IN = {"torch": set(AROUND) - {"redefined"}, "jax": {"at zero", "kink", "redefined"}}
# Before the third step of a run under SGD.
EVENTS = {
    "none": "no event",
    "freeze": "a parameter is frozen",
    "unfreeze": "a parameter is unfrozen",
    "add": "a parameter group is added",
    "split": "a parameter group is split, one part with ten times the learning rate",
    "load": "`optimizer.load_state_dict`",
    "replace": "a parameter is replaced, the optimizer is not told",
    "rate": "the learning rate is tripled",
    "clip": "gradients are clipped",
    "own weight": "the optimizer also holds a weight of the loss",
    "scale": "updates are scaled after the optimizer",
    "mask": "a part of `params` is masked",
    "every second": "`MultiSteps`: two gradients a step",
}
FOLLOWS, SAYS = "right", "said"
Key = tuple[str, str, str]  # framework, kind, situation


def every() -> list[Key]:
    """Every cell."""
    parts = {"torch": TORCH_PARTS, "jax": JAX_PARTS}
    events = {"torch": (*runs.TORCH_EVENTS, "own weight"), "jax": runs.JAX_EVENTS}
    found = [(f, "model", name) for f in parts for name in SITUATIONS if name in parts[f]]
    found += [(f, "around", name) for f in parts for name in AROUND if name in AROUND_IN[f]]
    return found + [(f, "run", name) for f in events for name in EVENTS if name in events[f]]


def cell(key: Key) -> Outcome:
    """Measure one; ``top`` is the relative error of S in ℓ2."""
    framework, kind, name = key
    part = frozenset({name} if kind == "model" or name == "own weight" else ())
    network = Network((3, 3, 2), "tanh", part, "float64", 5)
    try:
        return (_run if kind == "run" else _model)(framework, network, name)
    except geodiag.GeodiagError as e:
        return Outcome(ERROR, said=sentence(e))


def _model(framework: str, network: Network, name: str) -> Outcome:
    if framework == "torch":
        module = torch_networks.Module(network)
        arguments: dict[str, Any] = {"loss_fn": torch_networks.loss}
        arguments |= {"model": module, "data": torch_networks.batch(network)}
    else:
        arguments = {"model": jax_networks.loss(network), "data": jax_networks.batch(network)}
        arguments["params"] = jax_networks.params(network)
    if name in AROUND:
        arguments |= (_torch_around if framework == "torch" else _jax_around)(name, arguments)
    result = geodiag.sharpness(**arguments, max_hvps=100)
    names = [k for k in network.parameters() if k not in _constant(framework, network)]
    top = float(np.linalg.eigvalsh(Truth(network).at(network.parameters(), names).H)[-1])
    different = any("are finite differences" in note for note in result.notes)
    kind = BY_DIFFERENCES if different else WORKS
    said = lasting("; ".join(result.notes))
    return Outcome(kind, abs(result.value - top) / abs(top), 0.0, said=said)


def _torch_around(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if name == "checkpoint":
        return {"model": checkpoint_wrapper(given["model"])}
    if name == "data parallel":
        return {"model": torch.nn.DataParallel(given["model"])}
    plain, start = given["loss_fn"], next(given["model"].parameters()).detach().clone()

    def loss(model: Any, batch: Any) -> Any:
        p = next(model.parameters())
        return plain(model, batch) + (p - (start if name == "kink" else p)).norm()

    return {"loss_fn": loss}


def _jax_around(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    plain = given["model"]

    def redefined() -> Any:
        def loss(p: Any, *batch: Any) -> Any:
            first = jax.tree_util.tree_leaves(p)[0]
            if name == "redefined":
                return plain(p, *batch)
            moved = first - jax.lax.stop_gradient(first) if name == "kink" else 0 * first
            return plain(p, *batch) + (abs(moved) ** 1.5).sum()

        return loss

    if name == "redefined":
        geodiag.sharpness(**{**given, "model": redefined()}, max_hvps=100)
    return {"model": redefined()}


def _constant(framework: str, network: Network) -> set[str]:
    """Parameters of the network that are none of the loss."""
    if framework == "jax":
        return {"outside"}
    return {"layers.0.bias"} if "frozen" in network.parts else set()


def _run(framework: str, network: Network, name: str) -> Outcome:
    """The last step's S; what its record says, where S or D is not that of the whole step."""
    event = "none" if name == "own weight" else name
    run = runs.torch_run if framework == "torch" else runs.jax_run
    steps, norm = run(network, event, "sgd", "l2"), Length("l2", framework == "jax")
    for step in steps:
        if fault := step.fault(network, norm):
            return Outcome(WORKS, top=float("inf"), said=fault)
    last = steps[-1]
    top = float(np.linalg.eigvalsh(Truth(network).at(last.before, last.held).H)[-1])
    error = abs(last.record.sharpness - top) / abs(top)
    whole = (
        error < 1e-2 and last.record.directional_smoothness == last.record.directional_smoothness
    )
    return Outcome(FOLLOWS if whole else SAYS, error, 0.0, said=lasting(last.record.note))


def section(known: Mapping[Key, Outcome]) -> str:
    """Three tables, and the footnotes."""
    notes: list[str] = []
    text = "\n## Situations\n" + HEAD
    tables = ("model", SITUATIONS, "in the model"), ("around", AROUND, "around it, in the loss")
    for kind, names, what in (*tables, ("run", EVENTS, "in a run")):
        text += f"\n| {what} | PyTorch | JAX |\n|---|---|---|\n"
        for name, title in names.items():
            row = [known.get((framework, kind, name)) for framework in ("torch", "jax")]
            if any(row):
                text += f"| {title} | {' | '.join(_shown(c, notes) for c in row)} |\n"
    return text + "\n" + "\n".join(f"- ({i}) {note}" for i, note in enumerate(notes, 1)) + "\n"


HEAD = """
Each is a network of two small layers in float64, measured in ℓ2, against the dense Hessian of the
same network written as a plain function; what is detached is constant in it. **works**: the value
is right to its tolerance; **≈**: it is, by finite differences of gradients; **error**: a clear
`GeodiagError`. Of a run of SGD with an event in its middle: **right**: S and D of all records are
those of all parameters that the optimizer holds; **said**: a number is missing or of fewer
parameters, and the record's note says why. The numbers in parentheses: what the notes and errors
say.
"""
SHOWN = {WORKS: "works", BY_DIFFERENCES: "≈", ERROR: "error", FOLLOWS: "right", SAYS: "said"}


def _shown(outcome: Outcome | None, notes: list[str]) -> str:
    if outcome is None:
        return "–"
    if outcome.said and outcome.said not in notes:
        notes.append(outcome.said)
    mark = f" ({notes.index(outcome.said) + 1})" if outcome.said else ""
    return SHOWN[outcome.kind] + mark
