"""A torch problem frozen at one point: loss, gradient and Hessian-vector products.

Three engines, all reverse-over-reverse or first order, since those work for every module:

    graph               one forward and one backward, kept; each product is one more backward
    recompute           forward, backward and second backward per product, batch by batch
    finite-difference   two gradients per product
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geodiag.blocks import Blocks
from geodiag.errors import DataError, EngineError, StaleOracle
from geodiag.oracles import Oracle, finite_difference_hvp
from geodiag_torch.forward import Leaves
from geodiag_torch.frozen import frozen, random_state
from geodiag_torch.graph import KeptGraph, check_graph, derivative, first_line, second_derivative

if TYPE_CHECKING:
    from geodiag_torch.problem import TorchProblem

ENGINES = ("auto", "graph", "recompute", "finite-difference")


class TorchOracle(Oracle):
    """See :class:`geodiag.Oracle`. Raises StaleOracle once the model's tensors have changed."""

    def __init__(self, problem: TorchProblem, params: Mapping[str, Tensor] | None) -> None:
        self._problem, self.space = problem, problem.space
        self._random = random_state(problem.device, problem.data)
        with torch.inference_mode(False):
            self._leaves = problem.leaves(params)
        self._watched = list(problem.tensors(measured=params is None))
        self._versions = self._fingerprint()
        self._notes: list[str] = []
        self._engine = problem.engine
        if self._engine == "auto":
            self._engine = "graph" if problem.batches.single else "recompute"
        self._graph: KeptGraph | None = None
        self._graph_checked = False
        self._first: tuple[Tensor, Blocks] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def point(self) -> Blocks:
        self._check_fresh()
        with torch.no_grad():
            return self._measured(self._leaves, copy=True)

    def loss(self) -> Tensor:
        return self._loss_and_gradient()[0]

    def gradient(self) -> Blocks:
        return dict(self._loss_and_gradient()[1])

    def loss_at(self, params: Blocks) -> Tensor:
        self._check_fresh()
        with self._frozen():
            return self._whole_loss(self._problem.leaves(params)).detach()

    def gradient_at(self, params: Blocks) -> Blocks:
        self._check_fresh()
        with self._frozen():
            return self._sum_gradients(self._problem.leaves(params))[1]

    def hvp(self, d: Blocks) -> Blocks:
        self._check_fresh()
        if self._engine == "finite-difference":
            return finite_difference_hvp(self.gradient_at, self.point(), d)
        try:
            return self._exact_hvp(d)
        except EngineError as e:
            self._fall_back(e)
            return self.hvp(d)

    def release(self) -> None:
        """Free the kept graph; it is built again when it is needed."""
        self._graph = None

    def _fall_back(self, error: EngineError) -> None:
        """Go on with finite differences, and note why; unless an engine was asked for by name."""
        if self._problem.engine != "auto":
            raise error
        why = first_line(error.__cause__ or error)
        self._notes.append(f"Hessian-vector products are finite differences: {why}")
        self._engine = "finite-difference"
        self.release()

    def _exact_hvp(self, d: Blocks) -> Blocks:
        direction = {name: d[name].to(leaf.dtype) for name, leaf in self._leaves.items()}
        if self._engine == "graph":
            if self._graph is None:
                self._build_graph()
            if self._graph is not None:
                return self._measured(self._graph.hvp(direction))
        return self._recomputed_hvp(direction)

    def _recomputed_hvp(self, direction: Leaves) -> Blocks:
        loss, _ = self._loss_and_gradient()
        total: dict[str, Tensor] = {}
        seen = torch.zeros_like(loss)
        weights = 0.0
        with self._frozen():
            for weight, batch in self._weighted_batches():
                value = self._problem.evaluate(self._leaves, batch)
                gradient = derivative(value, self._leaves, create_graph=True)
                self._check_once(gradient)
                part = second_derivative(gradient, self._leaves, direction, keep=False)
                seen += weight * value.detach()
                weights += weight
                _accumulate(total, weight, self._measured(part))
        whole = self._problem.batches.normalise(weights)
        self._check_same_data(loss, seen / whole)
        return {name: x / whole for name, x in total.items()}

    def _check_same_data(self, loss: Tensor, seen: Tensor) -> None:
        """The loss of every pass is compared with the frozen one: a free determinism probe."""
        tolerance = 1e3 * torch.finfo(self._lowest_dtype()).eps
        if bool((seen - loss).abs() > tolerance * (loss.abs() + seen.abs())):
            raise DataError(
                "the data or the model changed between two passes",
                got=f"loss {float(loss):.8g}, then {float(seen):.8g}",
                do="pass a list of batches, or a loader whose batches do not change from pass to "
                "pass, and a model without randomness of its own",
            )

    def _loss_and_gradient(self) -> tuple[Tensor, Blocks]:
        self._check_fresh()
        if self._first is None and self._engine == "graph":
            try:
                self._build_graph()
            except EngineError as e:
                self._fall_back(e)
        if self._first is None:
            with self._frozen():
                self._first = self._sum_gradients(self._leaves)
        return self._first

    def _sum_gradients(self, leaves: Leaves) -> tuple[Tensor, Blocks]:
        """Loss and gradient, batch by batch, so that one batch's graph exists at a time."""
        total: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self._problem.device, dtype=self._problem.dtype)
        weights = 0.0
        for weight, batch in self._weighted_batches():
            value = self._problem.evaluate(leaves, batch)
            _accumulate(total, weight, self._measured(derivative(value, leaves)))
            loss += weight * value.detach()
            weights += weight
        whole = self._problem.batches.normalise(weights)
        return loss / whole, {name: x / whole for name, x in total.items()}

    def _whole_loss(self, leaves: Leaves) -> Tensor:
        """The loss over all batches, as one differentiable tensor in the measurement dtype."""
        loss = torch.zeros((), device=self._problem.device, dtype=self._problem.dtype)
        weights = 0.0
        for weight, batch in self._weighted_batches():
            loss = loss + weight * self._problem.evaluate(leaves, batch)
            weights += weight
        return loss / self._problem.batches.normalise(weights)

    def _build_graph(self) -> None:
        """One graph of the whole loss, unless it would hold more than the allowed memory."""
        with self._frozen():
            graph = KeptGraph(
                lambda: self._whole_loss(self._leaves),
                self._leaves,
                count_bytes=self._problem.memory is not None,
            )
        self._check_once(graph.with_graph)
        self._first = graph.loss, self._measured(graph.gradient())
        allowed = self._problem.memory
        if allowed is not None and self._problem.engine == "auto" and graph.bytes > allowed:
            self._notes.append(
                f"products recompute the graph: it holds {graph.bytes} bytes, memory={allowed}"
            )
            self._engine = "recompute"
            return
        self._graph = graph

    def _check_once(self, gradient: Mapping[str, Tensor]) -> None:
        """The same module gives the same operations: one look per oracle is enough."""
        if not self._graph_checked:
            check_graph(gradient)
            self._graph_checked = True

    def _weighted_batches(self) -> Iterator[tuple[float, Any]]:
        batches = self._problem.batches
        yield from ((batches.weigh(batch), batch) for batch in batches)

    def _measured(self, blocks: Mapping[str, Tensor], copy: bool = False) -> Blocks:
        return {name: x.to(self._problem.dtype, copy=copy) for name, x in blocks.items()}

    def _frozen(self) -> AbstractContextManager[None]:
        return frozen(self._random, self._problem.device, self._problem.data)

    def _lowest_dtype(self) -> torch.dtype:
        return max((p.dtype for p in self._leaves.values()), key=lambda t: torch.finfo(t).eps)

    def _fingerprint(self) -> list[tuple[int, int]]:
        return [(t.data_ptr(), t._version) for t in self._watched]

    def _check_fresh(self) -> None:
        if self._fingerprint() != self._versions:
            raise StaleOracle(
                "the model's parameters or buffers changed after the oracle was made",
                do="ask the problem for a new one: problem.at()",
            )


def _accumulate(total: dict[str, Tensor], share: float, part: Mapping[str, Tensor]) -> None:
    for name, x in part.items():
        total[name] = total[name].add_(x, alpha=share) if name in total else x * share
