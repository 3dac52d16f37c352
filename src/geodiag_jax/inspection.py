"""What the trace of a loss shows: its precision, and where its derivatives are not JAX's own.

A loss is traced once for equal static parts and shapes. Between the parameters and the loss, JAX
differentiates its own operations by rules of its own, twice as well as once. What can make a
product differ from the derivative of the gradient is a rule from outside (``custom_vjp``,
``custom_jvp``, a solver that the user wrote, a primitive of another package). A loss without such
a rule needs no cross-check of its products, and pays for none. Those that JAX itself defines
(``jax.nn.relu``, ``logsumexp``) are written to be differentiated again, and count as its own.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

from geodiag.blocks import Array
from geodiag_jax.derivatives import Inputs, StaticCall
from geodiag_jax.outside_state import changed_by, state_of
from geodiag_jax.rng import NOT_GIVEN_BACK, Draws

CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
TRANSPOSED = ("linear_call", "custom_transpose_call")  # by the user
SOLVE = "custom_linear_solve"
STOP = "stop_gradient"
_JAX = os.path.dirname(jax.__file__)
# Between a function that calls an operation and its trace.
_MACHINERY = re.compile(
    r"interpreters|(core|lax|solves|api|api_util|pjit|linear_util|tree_util|"
    r"traceback_util|source_info_util|custom_derivatives)\.py$"
)


@dataclass
class LossStructure:
    """What was found between the parameters and the loss.

    Attributes:
        precision: the machine epsilon of the coarsest dtype. The parameters' own dtypes do not
            tell: a flax module's ``dtype``, and casts inside of the loss, make it coarser. What a
            device does within one operation (TF32 in a matrix product) is not seen.
        custom: names of the derivative rules that are not JAX's own.
        stopped: whether a part that depends on the parameters is held by ``stop_gradient``.
        constants: the floating arrays that the loss reads apart from its arguments.
        changes: the names of what else a trace changes.
        draws: whether it moved a generator of NumPy or Python that is not given back.
    """

    precision: float = 0.0
    custom: list[str] = field(default_factory=list)
    stopped: bool = False
    constants: list[Array] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    draws: bool = False


def structure_of(call: StaticCall, at: Inputs) -> LossStructure:
    """The structure of a loss; it is traced once for the same static parts and shapes."""
    return _structure_of(call, jax.tree_util.tree_map(jax.api_util.shaped_abstractify, at))


@functools.lru_cache(maxsize=1024)
def _structure_of(call: StaticCall, shapes: Inputs) -> LossStructure:
    loss = call.static.loss.call
    before = state_of(loss)
    draws = Draws()
    with draws.kept():
        closed = jax.make_jaxpr(call.evaluate)(shapes)
    jaxpr, measured = closed.jaxpr, len(shapes.point)
    found = LossStructure(constants=[x for x in _constants(closed) if _is_tensor(x)])
    found.changes, found.draws = changed_by(before, state_of(loss)), draws.left
    dtypes = _dtypes(jaxpr, set(jaxpr.invars[:measured]))
    found.precision = max(_eps(dtype) for dtype in {call.static.tree.dtype, *dtypes})
    _follow(jaxpr, [i < measured for i in range(len(jaxpr.invars))], found)
    return found


def escaped(constants: Sequence[Any], point: Mapping[str, Array]) -> str:
    """A note on measured parameters that the loss also reads from outside; "" if there are none.

    They are equal to a parameter, and not of one value alone; or as a set they have the shapes of
    two parameters or more, a matrix among them, as those of a model from an earlier step.
    """
    same, alike, left = [], [], list(constants)
    for name, x in point.items():
        near = [c for c in left if c.shape == x.shape]
        if near and any(_equal(c, x) for c in near):
            same.append(name)
        if near:
            alike.append(name)
            left = [c for c in left if c is not near[0]]
    matrix = any(len(point[name].shape) > 1 for name in alike)
    if not same and (len(alike) < 2 or not matrix):
        return ""
    listed = ", ".join(map(repr, (same or alike)[:4])) + (" …" if len(same or alike) > 4 else "")
    what = listed if same else f"arrays of the shapes of {listed}"
    return f"the loss also reads {what} from outside of params, where they are held constant"


def impure(found: LossStructure) -> list[str]:
    """Notes on what a trace of the loss changes."""
    notes = [NOT_GIVEN_BACK] if found.draws else []
    if found.changes:
        listed = ", ".join(map(repr, found.changes[:4])) + (" …" if len(found.changes) > 4 else "")
        notes.append(
            f"a trace of the loss changes {listed}, and measurements trace it beside training: a "
            "JAX loss must be pure, so keep what training depends on out of it"
        )
    return notes


def _equal(constant: Any, x: Array) -> bool:
    """Whether they are equal, in the dtype of the constant, and vary."""
    c, w = np.asarray(constant), np.asarray(x).astype(constant.dtype)
    return bool(np.array_equal(c, w)) and bool((c != c.flat[0]).any())


def is_stop(equation: Any) -> bool:
    """Whether an equation is a ``stop_gradient`` that is not of JAX's own functions.

    Those (the maximum in ``logsumexp``) change no derivative of what the function computes.
    """
    return equation.primitive.name == STOP and not _called_by_jax(equation)


def holds_stop(equation: Any) -> bool:
    """Whether there is one in it; rules of custom derivatives are not looked into."""
    if equation.primitive.name in CUSTOM:
        return False
    bodies = inner_jaxprs(list(equation.params.values()))
    return any(is_stop(e) or holds_stop(e) for body in bodies for e in body.eqns)


def _follow(jaxpr: Any, reached: list[bool], found: LossStructure) -> list[bool]:
    """Which outputs have derivatives with respect to the inputs that are ``reached``."""
    known = {v for v, yes in zip(jaxpr.invars, reached, strict=True) if yes}
    for equation in jaxpr.eqns:
        inputs = [_is_variable(v) and v in known for v in equation.invars]
        if not any(inputs):
            continue
        if equation.primitive.name == STOP:
            found.stopped |= is_stop(equation)
            continue
        outputs = _through(equation, inputs, found)
        known.update(
            v for v, yes in zip(equation.outvars, outputs, strict=True) if yes and _is_floating(v)
        )
    return [_is_variable(v) and v in known for v in jaxpr.outvars]


def _through(equation: Any, inputs: list[bool], found: LossStructure) -> list[bool]:
    """The same for one equation; control flow is taken to connect all inputs with all outputs."""
    every = [True] * len(equation.outvars)
    if (name := _foreign_rule(equation)) is not None:
        if name not in found.custom:
            found.custom.append(name)
        return every
    if equation.primitive.name in CUSTOM:
        return every
    bodies = list(inner_jaxprs(list(equation.params.values())))
    control = equation.primitive.name in ("scan", "while", "cond")
    if len(bodies) == 1 and not control and len(bodies[0].invars) == len(inputs):
        outputs = _follow(bodies[0], inputs, found)
        return outputs if len(outputs) == len(every) else every
    for body in bodies:
        _follow(body, [True] * len(body.invars), found)
    return every


def _foreign_rule(equation: Any) -> str | None:
    """The name of a derivative rule that is not JAX's own."""
    primitive = equation.primitive
    if primitive.name == SOLVE:
        return None if _called_by_jax(equation) else SOLVE
    if primitive.name in CUSTOM:
        sources = list(_sources(equation.params))
        name, place = sources[0] if sources else (primitive.name, "")
        own = _is_custom(name, place) and all(_is_own(each) for _, each in sources)
        return None if own else name
    if primitive.name in TRANSPOSED:
        return str(primitive.name)
    rule = ad.primitive_jvps.get(primitive)
    while isinstance(rule, functools.partial):
        rule = rule.func
    module = getattr(rule, "__module__", None) or "jax"
    return None if module.partition(".")[0] == "jax" else primitive.name


def _sources(parameters: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and places of the functions of a custom derivative: itself first, then its rules."""
    for value in parameters.values():
        info = getattr(getattr(value, "jaxpr", value), "debug_info", None)
        text = getattr(info, "func_src_info", None)
        if isinstance(text, str):
            name, _, place = text.partition(" at ")
            yield name, place


def _is_custom(name: str, place: str) -> bool:
    """Whether JAX's own module there has a function of this name with derivatives of its own.

    A rule may be the user's although its function is JAX's: ``jax.custom_jvp(jax.numpy.sin)``.
    """
    if not place.startswith(_JAX):
        return False
    path, _ = os.path.splitext(os.path.relpath(place, os.path.dirname(_JAX)))
    module = sys.modules.get(path.replace(os.sep, "."))
    return isinstance(getattr(module, name, None), (jax.custom_jvp, jax.custom_vjp))


def _is_own(place: str) -> bool:
    """Whether JAX's own code with derivatives of its own is there; solvers take the user's."""
    return place.startswith(_JAX + os.sep) and not any(
        x in place for x in ("control_flow", "sparse")
    )


def _called_by_jax(equation: Any) -> bool:
    """Whether a function of JAX's own, not the user's, called the operation."""
    for frame in getattr(equation.source_info.traceback, "frames", ()):  # the innermost first
        if not (frame.file_name.startswith(_JAX) and _MACHINERY.search(frame.file_name)):
            return _is_own(frame.file_name)
    return False


def _is_variable(v: Any) -> bool:
    return not hasattr(v, "val")  # literals are not hashable


def _is_floating(v: Any) -> bool:
    dtype = getattr(v.aval, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact))


def _constants(closed: Any) -> Iterator[Any]:
    """The arrays that a trace holds, those of functions within it included."""
    yield from closed.consts
    for equation in closed.jaxpr.eqns:
        yield from (v.val for v in equation.invars if not _is_variable(v))
        for value in jax.tree_util.tree_leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "consts")
        ):
            if hasattr(value, "consts"):
                yield from _constants(value)


def _is_tensor(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return bool(floating) and math.prod(getattr(x, "shape", ())) > 1


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def _dtypes(jaxpr: Any, reached: set[Any] | None) -> Iterator[Any]:
    """The floating dtypes that are computed from ``reached`` (None: from anything)."""
    for equation in jaxpr.eqns:
        inputs = [v for v in equation.invars if _is_variable(v)]
        if reached is not None:
            if not reached.intersection(inputs):
                continue
            reached.update(equation.outvars)
        for variable in equation.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                yield dtype
        for inner in inner_jaxprs(list(equation.params.values())):
            yield from _dtypes(inner, None)


def inner_jaxprs(values: list[Any]) -> Iterator[Any]:
    """The functions among the parameters of an equation."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from inner_jaxprs(list(value))
        elif hasattr(value, "jaxpr"):  # closed
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value
