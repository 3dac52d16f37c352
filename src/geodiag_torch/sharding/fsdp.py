"""Modules sharded by ``fully_shard`` (FSDP2): gradients through FSDP's own passes.

Everything that has a parameter's shape stays sharded as the parameter is. A Hessian-vector product
is a central difference of two gradients: FSDP's backward pass reduces gradients outside of
autograd, so it cannot be differentiated again. Each rank passes over its own batches; FSDP
communicates in every pass, so a rank that has run out of batches repeats its last one with weight
zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from geodiag.blocks import Blocks, check_like
from geodiag.errors import DistributedError, EngineError
from geodiag.oracles import Differences, Oracle, asymmetry
from geodiag.oracles.base import Program
from geodiag_torch.derivatives.crosscheck import Passed
from geodiag_torch.derivatives.fallback import differences
from geodiag_torch.derivatives.frozen import FrozenOracle
from geodiag_torch.derivatives.objective import Objective
from geodiag_torch.derivatives.verdict import Verdict
from geodiag_torch.ranks import Sums, no_answer
from geodiag_torch.sharding import operations as operations  # registers the rules
from geodiag_torch.sharding.fsdp_state import divisors, local, precision, replaced, reshard
from geodiag_torch.sharding.space import ShardedSpace, ranks_of_mesh
from geodiag_torch.sharding.tensors import like, sharded
from geodiag_torch.state.interrupts import uninterrupted
from geodiag_torch.state.staleness import Versions

__all__ = ["NOTE", "ShardedOracle", "ShardedSpace", "like", "prepare", "ranks_of_mesh", "sharded"]

END = object()
SHARDED = "the parameters are sharded, and FSDP's backward pass cannot be differentiated again"
NOTE = "Hessian-vector products are finite differences: the parameters are sharded"
T = TypeVar("T")


def prepare(model: nn.Module, engine: str) -> None:
    """Check that a sharded model can be measured, and release its gathered parameters.

    Raises:
        EngineError: another engine than finite differences was asked for.
    """
    if engine not in ("auto", "finite-difference"):
        raise EngineError(
            SHARDED,
            got=f"engine={engine!r}",
            do='pass engine="finite-difference", or "auto"',
        )
    reshard(model)


class ShardedOracle(FrozenOracle):
    """See :class:`geodiag.Oracle`."""

    space: ShardedSpace

    def __init__(self, objective: Objective, params: Mapping[str, Any] | None) -> None:
        super().__init__(objective)
        tensors = objective.tensors()
        self._live = objective.live(tensors)
        self._at_model = params is None
        asarray = objective.space.asarray
        own = {name: asarray(p).clone() for name, p in self._live.items()}
        self._point = own if params is None else self.space.place_blocks(params)
        self._versions = Versions(tensors, () if self._at_model else self._live.values())
        self._differences: Differences | None = None
        self._spared = False  # whether differences were ruled out
        self._symmetric = False  # whether they are, as far as is known
        dtypes = tuple(p.dtype for p in self._live.values())
        self._passed = Passed(self._evaluation, dtypes)
        self._divisors = divisors(objective.loss.model, objective.ranks.size)
        self._fsdp_precision = precision(objective.loss.model)

    @property
    def notes(self) -> tuple[str, ...]:
        return (NOTE, *self._objective.batches.notes, *self._evaluation.notes)

    @property
    def precision(self) -> float:
        return max(super().precision, self._fsdp_precision)

    def spare(self) -> None:
        self._spared = True

    def in_float32(self) -> Oracle | None:
        return None  # FSDP gathers in its own dtype

    def point(self) -> Blocks:
        self._versions.check()
        return {name: x.clone() for name, x in self._point.items()}

    def hvp(self, d: Blocks) -> Blocks:
        check_like(d, self.space.shapes, "the direction")
        if self._spared:
            raise EngineError(SHARDED)
        product = self._by_differences().hvp(self.gradient_at, self.space.place_blocks(d))
        self._check_symmetric()
        return product

    def independent_hvp(self, d: Blocks) -> Blocks | None:
        placed = self.space.place_blocks(d)
        return self._by_differences().independent_hvp(self.gradient_at, placed)

    def _check_symmetric(self) -> None:
        """Check that differences are symmetric; once per model."""
        if self._symmetric or self._passed.everywhere("differences"):
            return
        self._symmetric = True
        found = Verdict(asymmetry=asymmetry(self, self.precision))
        self._symmetric = found.asymmetry is None
        found.require_symmetric()
        self._passed.here("differences", True)

    def _by_differences(self) -> Differences:
        if self._differences is None:
            self._differences = differences(self._point, self.precision, self.notes)
        return self._differences

    def loss_at(self, params: Blocks) -> Tensor:
        check_like(params, self.space.shapes, "params")
        return self._pass(self.space.place_blocks(params), backward=False)[0]

    def gradient_at(self, params: Blocks) -> Blocks:
        check_like(params, self.space.shapes, "params")
        return self._pass(self.space.place_blocks(params), backward=True)[1]

    def run(self, program: Program[T], *arguments: Any, asks: Oracle | None = None) -> T:
        """With all blocks, of the arguments and of the result, sharded as the parameters are."""
        found: T = super().run(program, *self.space.place_all(arguments), asks=asks)
        placed: T = self.space.place_all(found)
        return placed

    def _loss_and_gradient(self) -> tuple[Tensor, Blocks]:
        if self._first is None:
            self._first = self._pass(None if self._at_model else self._point, backward=True)
        return self._first

    def _pass(self, params: Blocks | None, backward: bool) -> tuple[Tensor, Blocks]:
        """Loss and gradient over the batches of all ranks, at the model itself or elsewhere."""
        objective, ranks = self._objective, self._objective.ranks
        self._versions.check(ranks.announce)
        new = [(self._live[name], local(entries)) for name, entries in (params or {}).items()]

        def around(run: Callable[[], Sums]) -> Sums:
            with replaced(objective.loss.model, new):
                return self._evaluation.inside({}, run)

        reduced: Blocks = {}

        def local_sums() -> Sums:
            # Between FSDP's collectives nothing can be given back to a signal handler.
            run = partial(self._loss_and_gradient_sums, backward, reduced)
            return uninterrupted(around, run, waits=True)

        sums = ranks.sum("a pass over the data", {}, local_sums)
        divisor = objective.batches.normalise(sums.weight)
        found = {name: x / divisor for name, x in sums.blocks.items()}
        for name, x in reduced.items():
            found[name] = x * (self._divisors.get(id(self._live[name]), 1.0) / divisor)
        return sums.loss / divisor, {name: found[name] for name in self.space.names if backward}

    def _loss_and_gradient_sums(self, backward: bool, reduced: Blocks) -> Sums:
        """The passes over this rank's batches, in step with the other ranks.

        Gradients that FSDP has added over the ranks itself are put into ``reduced``.
        """
        objective, ranks = self._objective, self._objective.ranks
        loss = torch.zeros((), device=objective.device, dtype=objective.dtype)
        weights, last, batches = 0.0, None, iter(objective.batches)
        while True:
            batch = self._announcing(lambda: next(batches, END))
            more = batch is not END
            if not ranks.any(more):
                break
            last = batch if more else last  # repeated for the other ranks' sake, with weight zero
            value = self._announcing(lambda: self._evaluation.value(last))  # noqa: B023
            weight = self._announcing(lambda: objective.batches.weigh(last)) if more else 0.0  # noqa: B023
            ranks.any(False)  # all have come as far as this
            if backward:
                self._announcing(lambda: torch.autograd.backward(value * weight))  # noqa: B023
            loss += weight * value.detach().to(objective.dtype)
            weights += weight
        blocks: Blocks = {}
        for name, p in self._live.items() if backward else ():
            g = torch.zeros_like(p) if p.grad is None else p.grad
            out = reduced if isinstance(p, DTensor) else blocks
            out[name] = self.space.place(name, g)
        return Sums(weights, loss, blocks)

    def _announcing(self, run: Callable[[], T]) -> T:
        """``run()``; its exception is announced to the other ranks before they go on.

        Raises:
            DistributedError: the ranks that FSDP communicates with do not answer.
        """
        try:
            return run()
        except DistributedError:
            raise
        except BaseException as e:
            answered = self._objective.ranks.announce(e)
            if isinstance(e, RuntimeError) and not answered:
                raise no_answer(e) from e
            raise
