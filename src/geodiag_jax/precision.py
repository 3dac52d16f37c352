"""In which precision a loss is computed: the coarsest between its parameters and its value.

The parameters' own dtypes do not tell: a flax module's ``dtype``, and casts inside of the loss,
make it coarser. What a device does inside of one operation (TF32 in a matrix product) cannot be
seen.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from geodiag.errors import EngineError
from geodiag_jax.batches import BatchForm
from geodiag_jax.derivatives import Arrays, Form

SINGLE = float(np.finfo(np.float32).eps)


def coarsest(form: Form, batch: BatchForm, point: Arrays, fixed: Arrays, arrays: Arrays) -> float:
    """The largest relative spacing of any array between the parameters and the loss.

    Traces the loss once for a form and shapes.
    """
    shapes = jax.tree_util.tree_map(jax.api_util.shaped_abstractify, (point, fixed, arrays))
    return _coarsest(form, batch, *shapes)


@functools.lru_cache(maxsize=1024)
def _coarsest(form: Form, batch: BatchForm, point: Any, fixed: Any, arrays: Any) -> float:
    def loss(point: Arrays, fixed: Arrays, arrays: Arrays) -> Any:
        return form.evaluate(batch, point, fixed, arrays)

    jaxpr = jax.make_jaxpr(loss)(point, fixed, arrays).jaxpr
    found = _dtypes(jaxpr, set(jaxpr.invars[: len(point)]))
    return max(_eps(dtype) for dtype in {form.dtype, *found})


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


def fine(eps: float) -> float:
    """``eps``, where finite differences of gradients that are rounded to it are of use.

    Raises:
        EngineError: it is more than single precision's.
    """
    if eps > SINGLE:
        raise EngineError(
            "finite differences need a loss that is computed in at least 32 bits",
            got=f"a relative precision of {eps:.1g} on the way from parameters to loss",
            do="convert the parameters to float32, or leave out the casts in the loss",
        )
    return eps
