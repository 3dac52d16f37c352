"""A factory ``package.module:function``: it makes the model, the loss and the data."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from geodiag.errors import ArgumentError, UnknownModel, one_line, shown
from geodiag.problems import problem

DO = "return (model, loss, data), or a dict of the arguments of geodiag.problem"


def made_by(factory: str) -> dict[str, Any]:
    """What a factory returns, as arguments of :func:`geodiag.problem`; ``model`` among them.

    A tuple is ``(model, loss, data)``: of torch a module and ``criterion(model(x), y)``; of JAX the
    parameters and ``loss(params, *batch)``. A dict has the names of the arguments.

    Args:
        factory: ``package.module:function``, found as by ``import`` in the current folder.

    Returns:
        dict[str, Any]: arguments by name.

    Raises:
        ArgumentError: it cannot be imported or called, or returns something else.
    """
    made = _called(factory)
    if isinstance(made, Mapping):
        known = {"model", *inspect.signature(problem).parameters}
        if "model" not in made or not all(name in known for name in made):
            raise ArgumentError(
                f"the factory {factory} returns a dict of other names",
                got=", ".join(map(str, made)) or "an empty dict",
                do=f"use model and {', '.join(sorted(known - {'model'}))}",
            )
        return dict(made)
    if not isinstance(made, (tuple, list)) or len(made) != 3:
        what = f"the factory {factory} returns something else"
        raise ArgumentError(what, got=shown(type(made).__name__), do=DO)
    model, loss, data = made
    of_torch = {"model": model, "criterion": loss, "data": data}
    of_jax = {"model": loss, "params": model, "data": data}
    try:
        problem(**of_torch).close()
        return of_torch
    except UnknownModel:
        if not callable(loss):
            raise ArgumentError(
                f"the factory {factory} returns something else", got=type(model).__name__, do=DO
            ) from None
    return of_jax


def _called(factory: str) -> Any:
    module, colon, name = factory.partition(":")
    if not colon or not module or not name:
        raise ArgumentError(
            "a factory is named package.module:function",
            got=shown(factory),
            do="add what is missing",
        )
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as e:  # of the user's own module too
        raise ArgumentError(f"the factory {factory} cannot be imported", got=one_line(e)) from e
    if not callable(found):
        raise ArgumentError(f"the factory {factory} cannot be called", got=type(found).__name__)
    try:
        return found()
    except Exception as e:
        what = f"the factory {factory} fails; it is called without arguments"
        raise ArgumentError(what, got=one_line(e)) from e
