"""A problem whose parameters come with each measurement, and what may come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from geodiag.blocks import Blocks
from geodiag.core.selection import Where
from geodiag.errors import ArgumentError, ParameterError
from geodiag_jax.oracle import JaxOracle
from geodiag_jax.problem import JaxProblem
from geodiag_jax.pytree import is_array, leaves_of, read


class Deferred(JaxProblem):
    """The problem of a loss whose parameters come later. It holds none of them."""

    def __init__(self, loss: Callable[..., Any], where: Where, **arguments: Any) -> None:
        """Check everything but ``where``; the arguments are those of :class:`JaxProblem`."""
        if not callable(loss):
            raise ArgumentError(
                "the loss must be a function: loss(params, *batch)", got=type(loss).__name__
            )
        if "params" in arguments:
            raise ArgumentError(
                "Monitor(loss) takes no params=",
                do="pass them to observe(step, params, new_params)",
            )
        super().__init__(loss, params=np.zeros(()), **arguments)  # until open()
        self._where, self.opened = where, False

    def open(self, params: Any) -> None:
        """Learn the structure of the parameters.

        Raises:
            ParameterError: they cannot be measured.
        """
        self._parameters = replace(read(params, self._where), point=(), fixed=())
        self.opened = True

    @property
    def unit(self) -> float:
        """The largest machine epsilon of the parameters' own dtypes."""
        dtypes = [dtype for _, dtype in self._parameters.tree.measured]
        return max(float(jnp.finfo(t).eps) for t in dtypes)  # type: ignore[no-untyped-call]

    def snapshot(self, params: Any = None) -> Blocks:
        """The point itself: the Monitor copies what it keeps while a step is taken."""
        found = self.point(params)
        check_usable(found)
        return found

    def at(self, params: Any = None) -> JaxOracle:
        """The oracle at ``params``, which there is no default for."""
        if params is None:
            raise ParameterError("the parameters are missing", do="pass them to before and after")
        return super().at(params)


def check_usable(params: Any) -> None:
    """Raise ArgumentError for traced and for deleted arrays."""
    for x in leaves_of(params):
        if isinstance(x, jax.core.Tracer):
            raise ArgumentError(
                "the Monitor was called inside jit, grad, scan or vmap",
                do="call it between compiled steps; inside them use geodiag_jax.tracker",
            )
        if isinstance(x, jax.Array) and x.is_deleted():
            raise ArgumentError(
                "the parameters are deleted: their buffers were donated to the step",
                do="call before(step, params) before the step, and after(new_params) after it",
            )


def is_deleted(tree: Any) -> bool:
    """Whether any of the arrays is gone, as those of a donated state are."""
    leaves = jax.tree_util.tree_leaves(tree)
    return any(isinstance(x, jax.Array) and x.is_deleted() for x in leaves)


def copied(params: Any) -> Any:
    """A copy of the arrays, or ``params`` where that fails: the measurement will say why."""
    try:
        return jax.tree_util.tree_map(lambda x: x.copy() if is_array(x) else x, params)
    except Exception:
        return params
