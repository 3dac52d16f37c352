"""Which step of a wrapped optimizer is the real one, and whose geometry it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch.optim import Optimizer

from geodiag.errors import ArgumentError
from geodiag.optimizers.thresholds import Update

# Where wrappers keep the optimizer inside of them.
KEPT_AS = ("optimizer", "base_optimizer", "_base_optimizer", "optim")
PLAIN = {"AcceleratedOptimizer", "LightningOptimizer"}  # their step is that of the one inside
BY_HAND = "measure around its step: geodiag.Monitor(model, norm, …), with before() and after()"


class Stepping(NamedTuple):
    """An optimizer with its wrappers.

    Attributes:
        outer: the one whose ``step()`` is the real step, with hooks around it.
        inner: the one whose groups and state say what the step is.
        remark: what is to be known of the records; "" if nothing is.
        unknown: why no threshold applies, though one would to ``inner``; "" if one may.
    """

    outer: Optimizer
    inner: Optimizer
    remark: str = ""
    unknown: str = ""


def steppings(given: Any) -> list[Stepping]:
    """:func:`stepping` of one optimizer, or of each in a list.

    Raises:
        ArgumentError: the list is empty, or holds one twice; or as there.
    """
    found = [stepping(each) for each in (given if isinstance(given, (list, tuple)) else [given])]
    if not found or len({id(each.inner) for each in found}) < len(found):
        raise ArgumentError(
            "attach([optimizers], model) takes each optimizer once",
            got=", ".join(type(each.inner).__name__ for each in found) or "an empty list",
        )
    return found


def limited(
    steps: Sequence[Stepping], rule: Callable[[int], Update]
) -> Callable[[int], Update] | None:
    """The rule without a threshold, where wrappers leave none; None where it may have one."""
    unknown = "; ".join(each.unknown for each in steps if each.unknown)
    return (lambda step: replace(rule(step), unknown=unknown)) if unknown else None


def stepping(optimizer: Any) -> Stepping:
    """Look through what wraps an optimizer.

    Raises:
        ArgumentError: it is none, or its steps cannot be observed.
    """
    chain = [optimizer]
    while (found := _inside(chain[-1])) is not None and all(found is not x for x in chain):
        chain.append(found)
    name = type(optimizer).__name__
    if isinstance(getattr(optimizer, "base", None), Optimizer):
        raise ArgumentError(
            "a wrapper that moves the parameters before and after the step inside of it has no "
            "step of one piece",
            got=name,
            do=BY_HAND,
        )
    inner = chain[-1]
    if not isinstance(inner, Optimizer):
        raise ArgumentError("attach(optimizer, model) takes a torch.optim.Optimizer", got=name)
    two_steps = [x for x in chain if _takes_two_steps(x)]
    if two_steps:
        if two_steps[-1] is inner:
            raise ArgumentError(
                "steps that are taken in two calls run no hooks, so nothing would be recorded",
                got=f"{name}, with first_step() and second_step()",
                do=f"attach to the optimizer inside of it; or {BY_HAND}",
            )
        unknown = f"{name} takes {type(inner).__name__}'s step by the gradient at another point"
        return Stepping(inner, inner, unknown=unknown)
    outer = next((x for x in chain if _runs_hooks(x)), None)
    if outer is None:
        raise ArgumentError(
            "the step() of this optimizer runs no hooks, so nothing would be recorded",
            got=name,
            do=f"let its __init__ call that of torch.optim.Optimizer; or {BY_HAND}",
        )
    hidden = [x for x in chain[: chain.index(outer)] if type(x).__name__ not in PLAIN]
    named = isinstance(optimizer, Optimizer) and bool(hidden)
    said = f"the step is that of {type(outer).__name__}: what {name} does besides is not seen"
    return Stepping(outer, inner, said if named else "")


def _inside(optimizer: Any) -> Any:
    kept = (getattr(optimizer, key, None) for key in KEPT_AS)
    return next((x for x in kept if isinstance(x, Optimizer)), None)


def _takes_two_steps(optimizer: Any) -> bool:
    return all(callable(getattr(optimizer, f"{n}_step", None)) for n in ("first", "second"))


def _runs_hooks(optimizer: Any) -> bool:
    """Whether it is an Optimizer whose step was wrapped by torch when it was built."""
    return (
        isinstance(optimizer, Optimizer)
        and hasattr(optimizer, "_optimizer_step_pre_hooks")
        and bool(getattr(type(optimizer).step, "hooked", False))
    )
