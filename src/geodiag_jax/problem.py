"""A JAX loss callable with its data and its parameter pytree as a Problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from geodiag.blocks import Blocks
from geodiag.core.batch_forms import is_unsure, one_or_many
from geodiag.core.selection import Where
from geodiag.core.spaces import Space
from geodiag.core.validation import check_engine
from geodiag.errors import ParameterError
from geodiag.oracles import Problem
from geodiag_jax.batches import PreparedBatches
from geodiag_jax.flags import own_flags
from geodiag_jax.loss_key import LossKey
from geodiag_jax.oracle import ENGINES, JaxOracle
from geodiag_jax.pytree import (
    Parameters,
    flatten,
    is_array,
    is_blocks,
    name_of,
    places_by_name,
    read,
)
from geodiag_jax.rng import Draws
from geodiag_jax.sharding import Placement


class JaxProblem(Problem):
    """``loss(params, *batch)`` over ``data``, as a function of the arrays that ``where`` selects.

    Compiled functions are shared by all problems of the same loss, shapes and dtypes, so neither a
    new point nor a new problem compiles again. The loss must be a pure function: what it reads
    apart from its arguments is constant to the compiler (see :mod:`geodiag_jax.loss_key`).

    The measurement runs in float64 if a measured array is float64, else in float32; arrays of
    fewer bits are cast at the boundary. A single batch is kept from the start (NumPy memory is
    copied). JAX arrays cannot be written to, so a point is frozen by itself; do not donate its
    buffers to another function while it is being measured.

    Examples:
        >>> import jax.numpy as jnp
        >>> import geodiag_jax
        >>> loss = lambda w: (w * jnp.array([3.0, 1.0])) @ w / 2
        >>> round(float(geodiag.sharpness(geodiag_jax.JaxProblem(loss, params=jnp.ones(2)))), 3)
        3.0
    """

    @own_flags()
    def __init__(
        self,
        loss: Callable[..., Any],
        *,
        data: Any = None,
        params: Any = None,
        where: Where = None,
        weight: Callable[[Any], float] | None = None,
        reduction: str = "mean",
        engine: str = "auto",
        memory: int | None = None,
    ) -> None:
        """Check the arguments; nothing is computed yet.

        Args:
            loss: called as ``loss(params, *batch)`` for a tuple batch, ``loss(params, batch)`` for
                a dict or an array, ``loss(params)`` without data. Returns a real scalar.
            data: one batch (tuple, dict, array), or a list or re-iterable of batches.
            params: the point: any pytree with floating-point arrays. Python floats are such, of
                shape (), except in Equinox modules.
            where: which arrays to measure; see :func:`geodiag.core.selection.select`.
            weight: of a batch in the mean over batches; default: its length.
            reduction: "mean" if the loss averages over a batch, "sum" if it adds.
            engine: how Hessian-vector products are computed. "linearize": forward over reverse,
                kept at each point. "recompute": forward over reverse, repeated for every
                product. "reverse": reverse over reverse. "finite-difference": central differences
                of gradients. "auto": "linearize" for one batch, "recompute" for several,
                "reverse" where forward mode is blocked (a ``custom_vjp``).
            memory: bytes that a kept linearization may take; beyond them products are recomputed.

        Raises:
            ParameterError: the parameters cannot be measured.
            DataError: the data are empty, one-shot or unusable.
            ArgumentError: another argument has an unusable value.
        """
        check_engine(engine, ENGINES, memory)
        self._parameters = read(params, where)
        self._loss = LossKey(loss)
        self._batches = PreparedBatches(data, weight, reduction)
        self._batches.notes += (note,) if (note := self._loss.note()) else ()
        # Whether a list [x, y] is one batch is asked of the loss, once there are parameters.
        self._unsure = (data, weight, reduction) if is_unsure(data) else None
        self._placed: tuple[Any, PreparedBatches] | None = None
        self._engine, self._memory = engine, None if memory is None else int(memory)

    @property
    def space(self) -> Space:
        """Names, shapes and matrix views of the measured parameters."""
        return self._parameters.space

    @own_flags()
    def at(self, params: Any = None) -> JaxOracle:
        """The oracle at ``params``: a pytree like the problem's, or blocks of the measured names.

        Default: the problem's own ``params``.

        Raises:
            ShapeError: another structure, or other names or shapes.
            DataError: the loss takes a list neither as batches nor as one batch.
        """
        parameters = self._parameters if params is None else self._parameters.moved(params)
        if self._unsure is not None:
            self._settle(parameters, *self._unsure)
        batches = self._data_for(parameters.tree.placement)
        self._loss = self._loss.now()
        return JaxOracle(self._loss, parameters, batches, self._engine, self._memory)

    def unmeasured(self, params: Any = None) -> Blocks:
        """The floating arrays of a pytree that are not measured.

        Of flax's variables, a dict with ``"params"``, the other collections are state, and no part
        of a step.
        """
        if params is None or is_blocks(params, self.space):
            return {}
        paths, _ = flatten(params)
        if isinstance(params, Mapping) and "params" in params:
            paths = [(path, leaf) for path, leaf in paths if name_of(path[:1]) == "params"]
        places = places_by_name(
            paths, lambda x: is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)
        )
        return {n: paths[i][1] for n, i in places.items() if n not in self.space.shapes}

    @own_flags()
    def require_whole(self, params: Any) -> None:
        """Raise a ParameterError where ``params`` is blocks of another point than the problem's."""
        if params is None or not is_blocks(params, self.space):
            return
        leaves = (leaf for _, leaf in flatten(self.template())[0] if is_array(leaf))
        rest = sum(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves) - len(self.space.names)
        moved, known = self._parameters.moved(params).point, self._parameters.point
        same = (jnp.array_equal(a, b, equal_nan=True) for a, b in zip(moved, known, strict=True))
        if rest > 0 and not all(same):
            raise ParameterError(
                "params= holds the measured arrays alone, of another point than the problem's",
                got=f"nothing of {rest} other arrays, which the loss depends on too",
                do="pass the whole pytree",
            )

    def template(self) -> Any:
        """The problem's own parameters."""
        return self._parameters.tree.build(self._parameters.point, self._parameters.fixed)

    def describe(self) -> dict[str, Any]:
        """The name of the loss, how many numbers are measured, and the data."""
        call = self._loss.call
        name = getattr(call, "__qualname__", type(call).__name__)
        size = self.space.size
        return {"model": name, "parameters": size, "data": self._batches.description}

    def _settle(self, parameters: Parameters, data: Any, *options: Any) -> None:
        """Take the data for one batch where the loss, traced, takes that alone."""

        def failure(batch: Any) -> Exception | None:
            try:
                batches = PreparedBatches([batch], None, "mean")
                oracle = JaxOracle(self._loss, parameters, batches, "recompute", None)
                jax.eval_shape(oracle.loss)
            except Exception as e:
                return e
            return None

        with Draws(data).kept():
            settled, notes = one_or_many(data, failure)
        if settled is not data:
            self._batches, self._placed = PreparedBatches(settled, *options), None
            self._batches.notes += notes
        self._unsure = None

    def _data_for(self, placement: Placement) -> PreparedBatches:
        """The data on the devices of the parameters; kept for the next point."""
        if self._placed is None or self._placed[0] != placement.common:
            self._placed = placement.common, self._batches.placed(placement)
        return self._placed[1]
