"""The hook by which geodiag recognises JAX loss callables."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from geodiag import hookimpl
from geodiag.blocks import is_array as is_any_array
from geodiag.core.validation import check_stop_gradient
from geodiag.errors import ArgumentError, ParameterError
from geodiag_jax import checkpoints
from geodiag_jax.problem import JaxProblem
from geodiag_jax.pytree import is_array, is_float, is_ref, leaves_of


# Last: a plain function says nothing about its framework, so others may claim it first.
@hookimpl(trylast=True)
def geodiag_problem(model: Any, arguments: Mapping[str, Any]) -> JaxProblem | None:
    """A callable with ``params=`` that holds JAX or NumPy arrays; anything else is left alone."""
    if not _may_be_loss(model) or not _may_be_params(model, arguments["params"]):
        return None
    own = dict(arguments)
    for name, do in (
        ("criterion", "call it inside the loss: loss(params, *batch) -> scalar"),
        ("loss_fn", "pass that function in place of the model: loss(params, *batch)"),
        ("shapes", "leave it out: names and shapes come from params="),
        ("process_group", "shard the data and the parameters with jax.sharding"),
        ("guard", "let the loss change nothing: it is traced, and runs once for many passes"),
    ):
        if (value := own.pop(name)) is not None:
            raise ArgumentError(
                f"{name}= does not apply to a JAX loss callable", got=type(value).__name__, do=do
            )
    check_stop_gradient(how := own.pop("stop_gradient"))
    if how != "constant":
        raise ArgumentError(
            "jax.lax.stop_gradient makes a constant, and nothing else can be asked of it",
            got=f"stop_gradient={how!r}",
            do="leave it out; take stop_gradient out of the loss to differentiate that part",
        )
    return JaxProblem(model, **own)


@hookimpl
def geodiag_checkpoint(problem: Any, path: Path) -> Any:
    """A checkpoint as a pytree like the parameters of a JAX problem."""
    return checkpoints.read(problem, path) if isinstance(problem, JaxProblem) else None


def _may_be_loss(model: Any) -> bool:
    """A callable that is not a class, a torch module, or an operator."""
    foreign = ("named_parameters", "matvec")
    return (
        callable(model)
        and not isinstance(model, type)
        and not any(hasattr(model, attribute) for attribute in foreign)
    )


def _may_be_params(model: Any, params: Any) -> bool:
    """Whether ``params`` is a point for a JAX loss. A plain function needs one: ParameterError."""
    leaves = leaves_of(params)
    if any(is_array(x) or is_float(x) or is_ref(x) for x in leaves):
        return True
    kinds = (functools.partial, jax.stages.Wrapped)
    is_function = inspect.isroutine(model) or isinstance(model, kinds)
    if is_function and not any(map(is_any_array, leaves)):
        raise ParameterError(
            "a loss callable needs params=, the point to measure at",
            got="no params" if params is None else f"{type(params).__name__} without an array",
            do="pass params= a pytree of floating-point JAX arrays: "
            "geodiag.sharpness(loss, params=params, data=(x, y))",
        )
    return False
