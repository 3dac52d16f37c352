"""Passes over a problem's data, from loss to derivatives, each with the same randomness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from geodiag.blocks import Blocks
from geodiag.errors import DataError
from geodiag_torch.derivatives.forward import Leaves, move
from geodiag_torch.derivatives.graph import add_weighted, derivative
from geodiag_torch.derivatives.precision import coarsest
from geodiag_torch.derivatives.reentrant import accumulated
from geodiag_torch.ranks import Sums
from geodiag_torch.state.interrupts import uninterrupted
from geodiag_torch.state.rng import frozen, random_state

if TYPE_CHECKING:
    from geodiag_torch.problem import TorchProblem

T = TypeVar("T")
Part = Callable[[Tensor, float], Mapping[str, Tensor]]
Within = Callable[[], AbstractContextManager[Any]]
NOTHING: Within = nullcontext


class Passes:
    """All of them see the random state, and autocast, of the moment that this was made."""

    def __init__(self, problem: TorchProblem) -> None:
        self._problem = problem
        self.whole = 1.0  # what the last sum was divided by
        self._random = random_state(problem.device, problem.data)
        self._eps: float | None = None
        self._reentrant = False

    @property
    def eps(self) -> float | None:
        """The relative spacing of the coarsest numbers on the way to the loss, once one was run."""
        return self._eps

    @property
    def autocast(self) -> bool:
        return bool(self._random["autocast"][0])

    def inside(
        self, leaves: Leaves, run: Callable[[], T], backward: bool = False, within: Within = NOTHING
    ) -> T:
        """``run()`` with frozen randomness, and ``leaves`` in the place of the parameters.

        Ctrl-C interrupts the run alone, never what is lent or given back, nor ``within``.
        """

        def lent(run: Callable[[], T]) -> T:
            with self._frozen(backward), within():
                return self._problem.lend(leaves, run)

        return uninterrupted(lent, run)

    def poisoned(self, leaves: Leaves, run: Callable[[], T]) -> T:
        """A backward pass, as in :meth:`inside`, while every parameter and buffer is NaN."""
        nothing = {name: torch.full_like(x, torch.nan) for name, x in leaves.items()}

        def lent(run: Callable[[], T]) -> T:
            with self._frozen(backward=True):
                return self._problem.lend(nothing, run, poison=True)

        return uninterrupted(lent, run)

    def gradient(self, leaves: Leaves, within: Within = NOTHING) -> tuple[Tensor, Blocks]:
        """The loss, and its gradient."""

        def part(value: Tensor, weight: float) -> Leaves:
            if self._reentrant:
                return accumulated(value, leaves, self._problem.loss.parameters())
            return derivative(value, leaves)

        return self.sum(leaves, part, within)

    def sum(
        self, leaves: Leaves, part: Part, within: Within = NOTHING, asked: Leaves | None = None
    ) -> tuple[Tensor, Blocks]:
        """The loss, and the sum of ``part(loss, weight)`` over the batches, normalised.

        One batch's graph exists at a time, unless ``part`` keeps it. Over the batches of all
        ranks, where there are several; ``asked``: what must be equal on them, if not ``leaves``.
        """
        sums = self._problem.ranks.sum(
            "a pass over the data",
            leaves if asked is None else asked,
            lambda: self.inside(leaves, lambda: self._sum(part), within=within),
        )
        whole = self.whole = self._problem.batches.normalise(sums.weight)
        if whole == 1.0:
            return sums.loss, sums.blocks
        return sums.loss / whole, {name: x / whole for name, x in sums.blocks.items()}

    def _frozen(self, backward: bool) -> AbstractContextManager[None]:
        return frozen(self._random, self._problem.device, backward)

    def _sum(self, part: Part) -> Sums:
        dtype = self._problem.dtype
        total: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        weights = 0.0
        for weight, value in self._values():
            add_weighted(total, part(value, weight), weight, dtype)
            add_weighted(losses, {"loss": value.detach()}, weight, dtype)
            weights += weight
        return Sums(weights, losses["loss"], total)

    def _values(self) -> Iterator[tuple[float, Tensor]]:
        """Each batch's weight and loss."""
        batches, device = self._problem.batches, self._problem.device
        for batch in batches:
            weight, value = batches.weigh(batch), self._problem.loss.of(move(batch, device))
            if self._eps is None:
                self._eps, self._reentrant = coarsest(value)
            yield weight, value


def check_same_loss(loss: Tensor, seen: Tensor, eps: float) -> None:
    """The loss of every pass is compared with the frozen one: a free determinism probe.

    Raises:
        DataError: they differ by more than rounding, of a relative ``eps``.
    """
    if bool((seen - loss).abs() > 1e3 * eps * (loss.abs() + seen.abs())):
        raise DataError(
            "the data or the model changed between two passes",
            got=f"loss {float(loss):.8g}, then {float(seen):.8g}",
            do="pass a list of batches, or a loader whose batches do not change from pass to "
            "pass, and a model without randomness of its own",
        )


@contextmanager
def watching(calls: list[nn.Module]) -> Iterator[None]:
    """Put every module that is called into ``calls``."""
    handle = register_module_forward_pre_hook(lambda module, _: calls.append(module))
    try:
        yield
    finally:
        handle.remove()
