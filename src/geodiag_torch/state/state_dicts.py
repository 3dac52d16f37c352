"""A state_dict as the point of a measurement: what it says of each tensor of a module.

All of it is used. The measured parameters are the point; the buffers and the other parameters take
the place of the module's own while a loss is computed. Nothing is loaded into the module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geodiag.blocks import to_numpy
from geodiag.errors import ParameterError, ShapeError
from geodiag_torch.state.module_tensors import ModuleTensors
from geodiag_torch.state.names import WRAPPED

DO = "pass a whole state_dict of this model, or the measured parameters alone"


def of_state_dict(
    given: Mapping[str, Any], model: nn.Module, tensors: ModuleTensors, measured: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The measured parameters of a state_dict, and its other tensors.

    Args:
        given: the state_dict; its names may have the prefixes of wrappers of the whole module.
        model: the module.
        tensors: those of ``model`` and of whatever else the loss consists of.
        measured: the public name of each measured parameter, and its name in ``tensors``.

    Returns:
        The measured parameters by their public names, and copies of the others by their names in
        ``tensors``.

    Raises:
        ParameterError: a name is missing, unknown, or stands for no tensor; or tied tensors differ.
        ShapeError: a tensor has another shape.
    """
    own = {k: x for k, x in model.state_dict(keep_vars=True).items() if isinstance(x, Tensor)}
    expected, found = plain_names(own), plain_names(given)
    unknown = [name for name in found if name not in expected]
    values: dict[int, tuple[str, Any]] = {}
    for name, x in found.items():
        if name not in expected:
            continue
        live = expected[name]
        if tuple(getattr(x, "shape", (None,))) != tuple(live.shape):
            raise ShapeError(
                f"the state_dict has a wrong shape at {name!r}: expected {tuple(live.shape)}",
                got=tuple(x.shape) if hasattr(x, "shape") else type(x).__name__,
                do=DO,
            )
        before, value = values.setdefault(id(live), (name, x))
        if value is not x and not torch.equal(_tensor(value), _tensor(x)):
            raise ParameterError(
                f"{before!r} and {name!r} are one tensor of the model, but two in the state_dict",
                do=DO,
            )
    missing = [name for name, live in expected.items() if id(live) not in values]
    if missing or unknown:
        raise ParameterError(
            "params= is neither the measured parameters nor a state_dict of the model",
            got=f"missing {_few(missing)}; unexpected {_few(unknown)}",
            do=DO,
        )
    slots = tensors.parameters | tensors.buffers
    names = {id(owner[key]): name for name, (owner, key) in slots.items()}
    point = {name: values.pop(id(_at(slots[raw])))[1] for name, raw in measured.items()}
    others: dict[str, Tensor] = {}
    for live, (name, x) in values.items():
        if live not in names:
            raise ParameterError(
                f"the model's own state_dict has {name!r}, which is not one of its tensors",
                do="load the state_dict into the model, and leave params= out",
            )
        others[names[live]] = _tensor(x).detach().clone()
    return point, others


def plain_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """The entries under their names without the parts that wrappers put in.

    Raises:
        ParameterError: a name is no text, or two are the same then.
    """
    whole = all(isinstance(name, str) and name.startswith("module.") for name in given)
    found: dict[str, Any] = {}
    for name, x in given.items():
        if not isinstance(name, str):
            raise ParameterError("a name in params= is not a text", got=type(name).__name__, do=DO)
        plain = name.removeprefix("module.") if whole else name
        for part in WRAPPED:
            plain = plain.replace(f"{part}.", "")
        if plain in found:
            raise ParameterError(
                "two tensors have the same name without the wrappers' parts of it", got=repr(name)
            )
        found[plain] = x
    return found


def rest_of(state: Mapping[str, Any], measured: Mapping[str, Tensor]) -> int:
    """How many tensors of a model's own state_dict are numbers, and not measured."""
    tensors = (x for x in state.values() if isinstance(x, Tensor))
    return len({id(x) for x in tensors if x.is_floating_point()} - set(map(id, measured.values())))


def refuse_alone(rest: int, sharded: bool = False) -> None:
    """Raise a ParameterError: the measured parameters alone are another point than the model's."""
    load = "load the whole state_dict of that point into the module, and leave params= out"
    whole = (
        "pass the whole state_dict of that point; or, if the others are to be as the model has "
        "them now, params={**model.state_dict(), **params}"
    )
    raise ParameterError(
        "params= holds the measured parameters alone, of another point than the model is at",
        got=f"nothing of {rest} other tensors, which the loss depends on too",
        do=load if sharded else whole,
    )


def refuse_sharded(given: Mapping[str, Any], measured: Iterable[str]) -> None:
    """Raise a ParameterError: of a sharded module, only the measured parameters can be given."""
    known = set(measured)
    missing, unknown = _few(known - set(given)), _few(name for name in given if name not in known)
    raise ParameterError(
        "params= of a sharded module must be the measured parameters",
        got=f"missing {missing}; unexpected {unknown}",
        do="load the state_dict into the module, and leave params= out",
    )


def _at(slot: tuple[dict[str, Tensor | None], str]) -> Tensor | None:
    return slot[0][slot[1]]


def _tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.from_numpy(to_numpy(x))


def _few(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(map(repr, known[:4])) + (" …" if len(known) > 4 else "") if known else "none"


def is_equal(a: Tensor, b: Tensor) -> bool:
    """Whether all entries are, NaN among them."""
    return torch.equal(a, b) or torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
