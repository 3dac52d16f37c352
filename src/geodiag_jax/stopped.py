"""A loss with its stop-gradients held at the values of another point.

``stop_gradient`` makes a part of the loss a constant to the derivatives, but not to the loss at
other parameters. So gradients there are not those of one function, and their differences are not
the Hessian, nor symmetric. Held, the parts are constants to all of them: L(w, s) with s = s(w₀).

The loss is evaluated equation by equation at both points, and what is stopped is taken from w₀.
What stops within a ``while_loop``, which has no gradient, or a ``shard_map`` is not held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.core import eval_jaxpr

from geodiag.blocks import Array
from geodiag_jax.derivatives import Arrays, Inputs, StaticCall
from geodiag_jax.inspection import holds_stop, is_stop, structure_of

Pairs = list[tuple[Any, Any]]  # each value at the point, and at the one that stopped parts are of
# Functions that are evaluated as a part of the one that calls them.
CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")


class HeldInputs(NamedTuple):
    """The traced arguments of a held loss."""

    point: Arrays
    fixed: Arrays
    batch: Arrays
    base: Arrays  # the parameters that the stopped parts are of


@dataclass(frozen=True)
class HeldCall(StaticCall):
    """A :class:`StaticCall` whose stopped parts are constants."""

    def evaluate(self, at: HeldInputs) -> Array:  # type: ignore[override]
        """The loss at ``at.point``, with the stopped parts of ``at.base``."""
        closed = jax.make_jaxpr(super().evaluate)(Inputs(*at[:3]))
        rest = [*at.fixed, *at.batch]
        pairs = [*zip(at.point, at.base, strict=True), *((x, x) for x in rest)]
        ((loss, _),) = _evaluate(closed.jaxpr, closed.consts, pairs)
        return loss


def moved(call: StaticCall, at: Inputs, point: Arrays) -> tuple[StaticCall, Any]:
    """A loss at another point, with its stopped parts as they are at ``at``."""
    if not structure_of(call, at).stopped:
        return call, at._replace(point=point)
    return HeldCall(call.static, call.batch), HeldInputs(point, at.fixed, at.batch, at.point)


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Pairs) -> Pairs:
    known = dict(zip(jaxpr.invars, arguments, strict=True))
    known.update((v, (x, x)) for v, x in zip(jaxpr.constvars, consts, strict=True))

    def read(v: Any) -> tuple[Any, Any]:
        return (v.val, v.val) if hasattr(v, "val") else known[v]

    for equation in jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        if is_stop(equation):
            outputs = [(base, base) for _, base in inputs]
        elif holds_stop(equation):
            outputs = _inside(jaxpr, equation, inputs)
        else:
            outputs = _both(jaxpr, equation, inputs)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _both(jaxpr: Any, equation: Any, inputs: Pairs) -> Pairs:
    """The equation as it is, at each of the two points."""
    given = {v: x for v, x in zip(equation.invars, inputs, strict=True) if not hasattr(v, "val")}
    debug = jaxpr.debug_info.with_unknown_names()
    one = jaxpr.replace(
        constvars=[], invars=[*given], outvars=equation.outvars, eqns=[equation], debug_info=debug
    )
    here, base = (eval_jaxpr(one, [], *(x[i] for x in given.values())) for i in (0, 1))
    return list(zip(here, base, strict=True))


def _inside(jaxpr: Any, equation: Any, inputs: Pairs) -> Pairs:
    """The equation with the stops within it: a loop over pairs, a branch over pairs, or a call."""
    parameters = equation.params
    if equation.primitive.name == "scan":
        return _scan(parameters, inputs)
    if equation.primitive.name == "cond":
        (index, _), *operands = inputs
        branches = [_of_pairs(branch) for branch in parameters["branches"]]
        return jax.lax.switch(index, branches, operands)  # type: ignore[no-any-return]
    if equation.primitive.name in CALLS:
        body = parameters.get("jaxpr", parameters.get("call_jaxpr"))
        return _evaluate(getattr(body, "jaxpr", body), getattr(body, "consts", ()), inputs)
    return _both(jaxpr, equation, inputs)


def _of_pairs(closed: Any) -> Any:
    return lambda pairs: _evaluate(closed.jaxpr, closed.consts, pairs)


def _scan(parameters: Any, inputs: Pairs) -> Pairs:
    body, consts, carried = parameters["jaxpr"], parameters["num_consts"], parameters["num_carry"]
    first = consts + carried

    def step(carry: Pairs, xs: Pairs) -> tuple[Pairs, Pairs]:
        out = _evaluate(body.jaxpr, body.consts, [*inputs[:consts], *carry, *xs])
        return out[:carried], out[carried:]

    carry, ys = jax.lax.scan(
        step,
        inputs[consts:first],
        inputs[first:],
        length=parameters["length"],
        reverse=parameters["reverse"],
    )
    return [*carry, *ys]
