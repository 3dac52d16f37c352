"""Passes over an objective's data: the loss and its derivatives, each with the same randomness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from geodiag.blocks import Blocks
from geodiag.errors import DataError
from geodiag_torch.derivatives.autograd import derivative, reentrant_derivative, second_derivative
from geodiag_torch.derivatives.forward import Leaves, T, move
from geodiag_torch.derivatives.graph_inspection import precision_of
from geodiag_torch.derivatives.kept_graph import add_weighted
from geodiag_torch.derivatives.objective import Objective
from geodiag_torch.ranks import Sums
from geodiag_torch.state.interrupts import uninterrupted
from geodiag_torch.state.rng import FrozenRandomState

FLOAT32 = torch.finfo(torch.float32).eps
Part = Callable[[Tensor, float], Mapping[str, Tensor]]
Context = Callable[[], AbstractContextManager[Any]]


class Evaluation:
    """Evaluates an objective at any parameters.

    All passes start from the random state, and run under the autocast, of the moment that this was
    made, or of ``random_state``.
    """

    def __init__(self, objective: Objective, random_state: FrozenRandomState | None = None) -> None:
        self.objective = objective
        # The machine epsilon of the coarsest dtype on the way to the loss, after the first pass.
        self.precision: float | None = None
        self.divisor = 1.0  # of the last sum over the batches
        self._random = random_state or FrozenRandomState(objective.device, objective.data)
        self._reentrant = False

    @property
    def autocast(self) -> bool:
        """Whether passes run under autocast."""
        return self._random.autocast

    def without_autocast(self, objective: Objective) -> Evaluation:
        """Of another objective, with the same random state, and without autocast."""
        return Evaluation(objective, self._random.without_autocast())

    def inside(
        self,
        leaves: Leaves,
        run: Callable[[], T],
        backward: bool = False,
        context: Context = nullcontext,
        poison: bool = False,
    ) -> T:
        """``run()`` in ``context``, with the frozen random state and ``leaves`` as the parameters.

        Signals interrupt the run alone, not what replaces and restores. ``backward``: it is a
        backward pass. ``poison``: fill parameters and buffers with NaN.
        """
        if poison:
            leaves = {name: torch.full_like(x, torch.nan) for name, x in leaves.items()}

        def around(run: Callable[[], T]) -> T:
            with self._random.restored(backward), context():
                return self.objective.with_leaves(leaves, run, poison)

        return uninterrupted(around, run)

    def gradient(self, leaves: Leaves, context: Context = nullcontext) -> tuple[Tensor, Blocks]:
        """The loss, and its gradient."""

        def part(value: Tensor, weight: float) -> Leaves:
            if self._reentrant:
                return reentrant_derivative(value, leaves, self.objective.loss.parameters())
            return derivative(value, leaves)

        return self.sum(leaves, part, context)

    def hvp(self, leaves: Leaves, d: Blocks) -> Blocks:
        """∇²L d by a backward pass through the gradient of each batch, of which nothing is kept."""
        direction = self.objective.directions(d, {name: x.dtype for name, x in leaves.items()})
        second = partial(second_derivative, leaves=leaves, direction=direction, keep=False)
        return self.through_gradient(leaves, direction, second)[1]

    def through_gradient(
        self, leaves: Leaves, directions: Leaves, second: Callable[[Leaves], Leaves]
    ) -> tuple[Tensor, Blocks]:
        """The loss, and the sum of ``second`` of each batch's gradient, which carries its graph."""

        def part(value: Tensor, weight: float) -> Leaves:
            return second(derivative(value, leaves, create_graph=True))

        return self.sum(leaves, part, checked=directions)

    def sum(
        self,
        leaves: Leaves,
        part: Part,
        context: Context = nullcontext,
        checked: Leaves | None = None,
    ) -> tuple[Tensor, Blocks]:
        """The loss, and ``part(loss, weight)``, summed over all ranks' batches and normalised.

        One batch's graph exists at a time, unless ``part`` keeps it. ``checked``: what must be
        equal on all ranks, if not ``leaves``.
        """
        sums = self.objective.ranks.sum(
            "a pass over the data",
            leaves if checked is None else checked,
            lambda: self.inside(leaves, lambda: self._sum(part), context=context),
        )
        divisor = self.divisor = self.objective.batches.normalise(sums.weight)
        if divisor == 1.0:
            return sums.loss, sums.blocks
        return sums.loss / divisor, {name: x / divisor for name, x in sums.blocks.items()}

    def value(self, batch: Any) -> Tensor:
        """The loss of one batch; to be called in a run of :meth:`inside`."""
        value = self.objective.loss.value(move(batch, self.objective.device))
        if self.precision is None:
            self.precision, self._reentrant = precision_of(value)
        return value

    def _sum(self, part: Part) -> Sums:
        dtype, batches = self.objective.dtype, self.objective.batches
        total: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        weights = 0.0
        for batch in batches:
            weight, value = batches.weigh(batch), self.value(batch)
            add_weighted(total, part(value, weight), weight, dtype)
            add_weighted(losses, {"loss": value.detach()}, weight, dtype)
            weights += weight
        return Sums(weights, losses["loss"], total)


def check_same_loss(loss: Tensor, seen: Tensor, eps: float) -> None:
    """Raise a DataError where the losses of two passes differ by more than rounding.

    That is of a relative ``eps``. Data and model must be deterministic.
    """
    if bool((seen - loss).abs() > 1e3 * eps * (loss.abs() + seen.abs())):
        raise DataError(
            "the data or the model changed between two passes",
            got=f"loss {float(loss):.8g}, then {float(seen):.8g}",
            do="pass a list of batches, or a loader whose batches do not change from pass to "
            "pass, and a model without randomness of its own",
        )
