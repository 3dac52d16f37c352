"""The precision of a loss, and what rounding may change in it.

It is that of the coarsest dtype between the parameters and the value of the loss.

The parameters' own dtypes do not tell: a flax module's ``dtype``, and casts inside of the loss,
make it coarser. What a device does within one operation (TF32 in a matrix product) is not seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from geodiag.errors import DataError, EngineError
from geodiag_jax.derivatives import Arrays, Inputs, StaticCall

SINGLE = float(np.finfo(np.float32).eps)


def precision_of(call: StaticCall, at: Inputs) -> float:
    """The machine epsilon of the coarsest dtype between the parameters and the loss.

    The loss is traced once for the same static parts and shapes.
    """
    return _precision_of(call, jax.tree_util.tree_map(jax.api_util.shaped_abstractify, at))


@functools.lru_cache(maxsize=1024)
def _precision_of(call: StaticCall, shapes: Inputs) -> float:
    jaxpr = jax.make_jaxpr(call.evaluate)(shapes).jaxpr
    found = _dtypes(jaxpr, set(jaxpr.invars[: len(shapes.point)]))
    return max(_eps(dtype) for dtype in {call.static.tree.dtype, *found})


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def _dtypes(jaxpr: Any, reached: set[Any] | None) -> Iterator[Any]:
    """The floating dtypes that are computed from ``reached`` (None: from anything)."""
    for equation in jaxpr.eqns:
        inputs = [v for v in equation.invars if not hasattr(v, "val")]  # literals are not hashable
        if reached is not None:
            if not reached.intersection(inputs):
                continue
            reached.update(equation.outvars)
        for variable in equation.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                yield dtype
        for inner in _inner(list(equation.params.values())):
            yield from _dtypes(inner, None)


def _inner(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _inner(list(value))
        elif hasattr(value, "jaxpr"):  # closed
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value


def require_float32(eps: float) -> float:
    """``eps``; EngineError where it is too large for finite differences of gradients."""
    if eps > SINGLE:
        raise EngineError(
            "finite differences need a loss that is computed in at least 32 bits",
            got=f"a relative precision of {eps:.1g} from parameters to loss",
            do="convert the parameters to float32, or leave out the casts in the loss",
        )
    return eps


def check_same_loss(
    frozen: float, found: float, slope: float, length: float, curved: float, eps: float
) -> None:
    """Compare the losses of two passes at the same parameters.

    Two compiled programs may round differently: by a relative 0.3·√ε of the loss (1e-4 in float32,
    4e-9 in float64) at most, or, where the loss nearly cancels or vanishes, by as much as a change
    of the parameters by δ = 1000·ε‖w‖ changes it: ``slope`` is ‖∇L‖, ``length`` is ‖w‖ and
    ``curved`` is |⟨d, ∇²L d⟩|/‖d‖² in some direction. Other batches change it by far more.
    """
    delta = 1e3 * eps * length
    allowed = 0.3 * math.sqrt(eps) * abs(frozen) + delta * slope + delta**2 * curved
    if math.isfinite(frozen) and math.isfinite(found) and abs(found - frozen) > allowed:
        raise DataError(
            "the data changed between passes: the loss at the same parameters differs",
            got=f"{frozen!r}, then {found!r}",
            do="pass a list of batches, or a loader with a fixed order, no random "
            "augmentation and no dropped examples",
        )


def curvature(d: Arrays, product: Arrays) -> float:
    """|⟨d, Hd⟩|/‖d‖², and zero for d = 0."""
    along = sum(float(jnp.vdot(x, y)) for x, y in zip(d, product, strict=True))
    length2 = sum(float(jnp.vdot(x, x)) for x in d)
    return abs(along) / length2 if length2 else 0.0
