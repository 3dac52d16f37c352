"""Modules whose parameters are sharded by ``fully_shard``: gradients through FSDP's own passes.

Everything that has a parameter's shape stays sharded as the parameter is. A product is a central
difference of two gradients: FSDP's backward pass reduces gradients outside of autograd, so it
cannot be differentiated again. Each rank passes over its own batches; FSDP communicates in every
pass, so ranks that have run out of batches repeat their last one with weight zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from geodiag.blocks import Blocks, check_like
from geodiag.core.spaces import Space
from geodiag.errors import (
    ArgumentError,
    DistributedError,
    EngineError,
    ParameterError,
    StaleOracle,
)
from geodiag.oracles import Differences, Oracle
from geodiag.oracles.base import Program
from geodiag_torch.derivatives.evaluation import Passes
from geodiag_torch.derivatives.forward import move
from geodiag_torch.derivatives.precision import coarsest
from geodiag_torch.ranks import Alone, Sums, no_answer, ranks_among
from geodiag_torch.sharding.fsdp_state import divisors, held, local, precisions, reshard
from geodiag_torch.sharding.tensors import like, sharded
from geodiag_torch.state.interrupts import uninterrupted
from geodiag_torch.state.staleness import Watch

if TYPE_CHECKING:
    from geodiag_torch.problem import TorchProblem

FLOAT32 = torch.finfo(torch.float32).eps
END = object()
NOTE = "Hessian-vector products are finite differences: the parameters are sharded"
T = TypeVar("T")


def ours(x: Tensor) -> Tensor:
    """A DTensor as a sharded tensor of this package; others as they are."""
    return sharded(x) if isinstance(x, DTensor) else x


def prepared(model: nn.Module, engine: str) -> None:
    """Check that the sharded ``model`` can be measured so, and give it its sharded parameters.

    Raises:
        EngineError: another engine was asked for.
    """
    if engine not in ("auto", "finite-difference"):
        raise EngineError(
            "the parameters are sharded, and FSDP's backward pass cannot be differentiated again",
            got=f"engine={engine!r}",
            do='pass engine="finite-difference", or "auto"',
        )
    reshard(model)


def ranks_of_mesh(model: nn.Module, group: Any, device: torch.device) -> Alone:
    """The ranks of the mesh that the parameters are sharded over.

    Raises:
        ParameterError: there are several meshes.
        ArgumentError: ``group`` has other ranks.
    """
    meshes = {p.device_mesh for p in model.parameters() if isinstance(p, DTensor)}
    if len(meshes) != 1:
        raise ParameterError(
            "the parameters are sharded over several meshes",
            got=", ".join(map(str, meshes)),
            do="shard the whole model over one mesh",
        )
    (mesh,) = meshes
    own: dist.ProcessGroup | None
    if mesh.ndim == 1:
        own = mesh.get_group()
    elif mesh.size() == dist.get_world_size():
        own = dist.group.WORLD
    else:
        own = mesh._flatten().get_group()
    if group is not None and dist.get_process_group_ranks(group) != mesh.mesh.flatten().tolist():
        raise ArgumentError(
            "process_group= has other ranks than the parameters are sharded over",
            do="leave it out: a module sharded by fully_shard brings its own",
        )
    return ranks_among(own, device)


@dataclass(frozen=True)
class ShardedSpace(Space):
    """A space whose blocks are spread as the parameters are."""

    models: Mapping[str, Tensor] = field(default_factory=dict)  # by name, one that is spread so

    @classmethod
    def around(cls, space: Space, params: Mapping[str, Tensor]) -> ShardedSpace:
        """The space whose blocks are spread as ``params`` are."""
        models = {name: ours(p.detach()) for name, p in params.items()}

        def placing(model: Tensor) -> Callable[[Any], Tensor]:
            return lambda x: like(space.asarray(x), model)

        places = {name: placing(model) for name, model in models.items()}
        return cls(space.shapes, space.matrix_view, space.asarray, places, True, models=models)

    def placed(self, tree: Any) -> Any:
        """All blocks of the space, and stacks of such, in a tree."""
        if isinstance(tree, dict):
            ours = set(tree) <= set(self.shapes)
            tensors = all(isinstance(x, Tensor) for x in tree.values())
            return {n: self._block(n, x) for n, x in tree.items()} if ours and tensors else tree
        if isinstance(tree, tuple) and hasattr(tree, "_fields"):
            return type(tree)(*map(self.placed, tree))
        return type(tree)(map(self.placed, tree)) if isinstance(tree, (tuple, list)) else tree

    def _block(self, name: str, x: Tensor) -> Tensor:
        lead = x.ndim - len(self.shapes[name])
        fits = lead in (0, 1) and tuple(x.shape[lead:]) == tuple(self.shapes[name])
        return like(x, self.models[name], lead) if fits else x


class ShardedOracle(Oracle):
    """See :class:`geodiag.Oracle`. Raises StaleOracle once the model has changed."""

    space: ShardedSpace

    def __init__(self, problem: TorchProblem, params: Mapping[str, Any] | None) -> None:
        assert isinstance(problem.space, ShardedSpace)
        self._problem, self.space = problem, problem.space
        self._passes = Passes(problem)
        self._live = problem.live()
        self._at_model = params is None
        own = {name: problem.space.asarray(p).clone() for name, p in self._live.items()}
        self._point = own if params is None else self._placed(params)
        layout = problem.loss.layout()
        self._watch = Watch(layout, () if self._at_model else self._live.values())
        self._first: tuple[Tensor, Blocks] | None = None
        self._eps: float | None = None
        self._differences: Differences | None = None
        self._divisors = divisors(problem.loss.model, problem.ranks.size)

    @property
    def notes(self) -> tuple[str, ...]:
        return (NOTE,)

    @property
    def precision(self) -> float:
        if self._eps is None:
            self.loss()
        assert self._eps is not None
        return self._eps

    def release(self) -> None:
        """Nothing is kept."""

    def surroundings(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._problem.device.type, enabled=False)

    def point(self) -> Blocks:
        self._check_fresh()
        return {name: x.clone() for name, x in self._point.items()}

    def loss(self) -> Tensor:
        return self._loss_and_gradient()[0].clone()

    def gradient(self) -> Blocks:
        return {name: g.clone() for name, g in self._loss_and_gradient()[1].items()}

    def hvp(self, d: Blocks) -> Blocks:
        check_like(d, self.space.shapes, "the direction")
        if self.precision > FLOAT32:
            raise EngineError(
                "finite differences need at least 32 bits",
                got=f"a relative precision of {self.precision:.1g} between parameters and loss",
                do="measure in float32, without a MixedPrecisionPolicy and outside of autocast",
            )
        return self._by_differences().hvp(self.gradient_at, self._placed(d))

    def independent_hvp(self, d: Blocks) -> Blocks | None:
        return self._by_differences().independent_hvp(self.gradient_at, self._placed(d))

    def _by_differences(self) -> Differences:
        if self._differences is None:
            self._differences = Differences(self._point, self.precision)
        return self._differences

    def loss_at(self, params: Blocks) -> Tensor:
        check_like(params, self.space.shapes, "params")
        return self._pass(self._placed(params), backward=False)[0]

    def gradient_at(self, params: Blocks) -> Blocks:
        check_like(params, self.space.shapes, "params")
        return self._pass(self._placed(params), backward=True)[1]

    def run(self, program: Program[T], *arguments: Any, asks: Oracle | None = None) -> T:
        """With all blocks, of the arguments and of the answer, spread as the parameters are."""
        answer: T = super().run(program, *self.space.placed(arguments), asks=asks)
        placed: T = self.space.placed(answer)
        return placed

    def _placed(self, blocks: Mapping[str, Any]) -> Blocks:
        return {name: self.space.place(name, blocks[name]) for name in self.space.names}

    def _loss_and_gradient(self) -> tuple[Tensor, Blocks]:
        self._check_fresh()
        if self._first is None:
            self._first = self._pass(None if self._at_model else self._point, backward=True)
        return self._first

    def _pass(self, params: Blocks | None, backward: bool) -> tuple[Tensor, Blocks]:
        """Loss and gradient over the batches of all ranks, at the model itself or elsewhere."""
        ranks = self._problem.ranks
        if self._watch.changed():
            raise ranks.told(_stale())
        written = {} if params is None else self._entries(params)

        def around(run: Callable[[], Sums]) -> Sums:
            with held(self._problem.loss.model, written):
                return self._passes.inside({}, run)

        kept: Blocks = {}

        def local_sums() -> Sums:
            return uninterrupted(around, lambda: self._sums(backward, kept))

        sums = ranks.sum("a pass over the data", {}, local_sums)
        whole = self._problem.batches.normalise(sums.weight)
        found = {name: x / whole for name, x in sums.blocks.items()}
        found |= {name: x * (self._divisor(name) / whole) for name, x in kept.items()}
        return sums.loss / whole, {name: found[name] for name in self.space.names if backward}

    def _entries(self, params: Blocks) -> dict[str, tuple[Tensor, Tensor]]:
        """The parameters, and what they are to hold on this rank."""
        return {name: (p, local(params[name]).to(p.dtype)) for name, p in self._live.items()}

    def _divisor(self, name: str) -> float:
        return self._divisors.get(id(self._live[name]), 1.0)

    def _sums(self, backward: bool, kept: Blocks) -> Sums:
        """The passes over this rank's batches, in step with the other ranks.

        Gradients that FSDP has added over the ranks are put into ``kept``.
        """
        problem, ranks = self._problem, self._problem.ranks
        loss = torch.zeros((), device=problem.device, dtype=problem.dtype)
        weights, last, batches = 0.0, None, iter(problem.batches)
        while True:
            batch = self._told(lambda: next(batches, END))
            more = batch is not END
            if not ranks.any(more):
                break
            last = batch if more else last
            weight, value = self._told(lambda: self._forward(last, more))  # noqa: B023
            ranks.any(False)  # all have come as far as this
            if backward:
                self._told(lambda: torch.autograd.backward(value * weight))  # noqa: B023
            loss += weight * value.detach().to(problem.dtype)
            weights += weight
        blocks: Blocks = {}
        for name, p in self._live.items() if backward else ():
            g = torch.zeros_like(p) if p.grad is None else p.grad
            out = kept if isinstance(p, DTensor) else blocks
            out[name] = self.space.place(name, g)
        return Sums(weights, loss, blocks)

    def _forward(self, batch: Any, more: bool) -> tuple[float, Tensor]:
        """The weight, zero for a batch that is run for others' sake, and the loss."""
        problem = self._problem
        value = problem.loss.of(move(batch, problem.device))
        if self._eps is None:
            self._eps = max(coarsest(value)[0], *precisions(problem.loss.model))
        return problem.batches.weigh(batch) if more else 0.0, value

    def _told(self, run: Callable[[], T]) -> T:
        """``run()``; whatever it raises the other ranks are told before they go on.

        Raises:
            DistributedError: the ranks that FSDP communicates with do not answer.
        """
        try:
            return run()
        except DistributedError:
            raise
        except BaseException as e:
            answered = self._problem.ranks.tell(e)
            if isinstance(e, RuntimeError) and not answered:
                raise no_answer(e) from e
            raise

    def _check_fresh(self) -> None:
        if self._watch.changed():
            raise _stale()


def _stale() -> StaleOracle:
    return StaleOracle(
        "the model's parameters, buffers or mode changed after the oracle was made",
        do="ask the problem for a new one: problem.at()",
    )
