"""A torch problem frozen at one point: loss, gradient and Hessian-vector products.

Three engines, all reverse-over-reverse or first order, since those work for every module:

    graph               one forward and one backward, kept; each product is one more backward
    recompute           forward, backward and second backward per product, batch by batch
    finite-difference   two gradients per product
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from geodiag.blocks import Blocks, check_like, norm2, subtract
from geodiag.errors import DataError, EngineError, StaleOracle
from geodiag.oracles import Oracle, finite_difference_hvp
from geodiag_torch.forward import Leaves, move
from geodiag_torch.frozen import frozen, random_state
from geodiag_torch.graph import (
    KeptGraph,
    check_graph,
    derivative,
    first_line,
    second_derivative,
)

if TYPE_CHECKING:
    from geodiag_torch.problem import TorchProblem

ENGINES = ("auto", "graph", "recompute", "finite-difference")
# How far a product may be from a finite difference, relative to their size: far above the error
# of the difference (2e-5 in float32), far below what a dropped term makes.
CROSS_CHECK = 0.02
FLOAT32 = torch.finfo(torch.float32).eps
T = TypeVar("T")


class TorchOracle(Oracle):
    """See :class:`geodiag.Oracle`. Raises StaleOracle once the model has changed."""

    def __init__(self, problem: TorchProblem, params: Mapping[str, Any] | None) -> None:
        self._problem, self.space = problem, problem.space
        self._random = random_state(problem.device, problem.data)
        with torch.inference_mode(False):
            self._leaves = problem.leaves(params)
        self._eps = max(torch.finfo(p.dtype).eps for p in self._leaves.values())
        self._at_model = params is None
        # The tensors are kept alive, so that no id is used again.
        self._watched, self._fingerprint = problem.watch(self._at_model)
        self._notes: list[str] = []
        self._engine = problem.engine
        if self._engine == "auto":
            self._engine = "graph" if problem.batches.single else "recompute"
        self._graph: KeptGraph | None = None
        self._plain_backward = False  # whether the kept graph is known to recompute nothing
        self._first: tuple[Tensor, Blocks] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def point(self) -> Blocks:
        self._check_fresh()
        return {k: self._measured(leaf.detach()).clone() for k, leaf in self._leaves.items()}

    def loss(self) -> Tensor:
        self._check_fresh()
        return self._loss_and_gradient()[0].clone()

    def gradient(self) -> Blocks:
        self._check_fresh()
        return {name: g.clone() for name, g in self._loss_and_gradient()[1].items()}

    def loss_at(self, params: Blocks) -> Tensor:
        return self._at(params, lambda value, leaves: {})[0]

    def gradient_at(self, params: Blocks) -> Blocks:
        return self._at(params, derivative)[1]

    def hvp(self, d: Blocks) -> Blocks:
        self._check_fresh()
        check_like(d, self.space.shapes, "the direction")
        if self._engine == "graph":
            self._loss_and_gradient()  # may find that the engine does not work
        if self._engine == "finite-difference":
            return self._difference(d)
        try:
            product = self._exact_hvp(d)
            self._cross_check()
            return product
        except EngineError as e:
            self._fall_back(e)
            return self.hvp(d)

    def release(self) -> None:
        """Free the kept graph; it is built again when it is needed."""
        self._graph = None

    def _exact_hvp(self, d: Blocks) -> Blocks:
        direction = {
            name: self.space.asarray(d[name]).to(leaf.dtype) for name, leaf in self._leaves.items()
        }
        loss, _ = self._loss_and_gradient()
        if self._engine == "graph" and self._graph is None:
            self._build_graph()
        graph = self._graph
        if graph is not None:
            found = self._backward(lambda: graph.hvp(direction))
            return {name: self._measured(x) for name, x in found.items()}
        seen, product = self._inside(
            self._leaves, lambda: self._sum(lambda value: self._second(value, direction))
        )
        self._check_same_data(loss, seen)
        return product

    def _backward(self, run: Callable[[], T]) -> T:
        """A backward pass, with the leaves lent only where it recomputes activations.

        At the model's own parameters it is enough that the first product ran no module; elsewhere
        a checkpointed function may read the parameters without one.
        """
        if self._plain_backward:
            with torch.inference_mode(False):
                return run()
        calls: list[nn.Module] = []
        handle = register_module_forward_pre_hook(lambda module, _: calls.append(module))
        try:
            answer = self._inside(self._leaves, run, backward=True)
        finally:
            handle.remove()
        own = [m for m in calls if m is not self._problem.loss]
        self._plain_backward = self._at_model and not own
        return answer

    def _second(self, value: Tensor, direction: Leaves) -> dict[str, Tensor]:
        gradient = derivative(value, self._leaves, create_graph=True)
        self._look_at(gradient)
        return second_derivative(gradient, self._leaves, direction, keep=False)

    def _difference(self, d: Blocks) -> Blocks:
        if self._eps > FLOAT32:
            raise EngineError(
                "finite differences need parameters of at least 32 bits",
                got=f"a relative precision of {self._eps:.1g}",
                do="measure model.float()",
            )
        return finite_difference_hvp(self.gradient_at, self.point(), d)

    def _fall_back(self, error: EngineError) -> None:
        """Go on with finite differences, and note why; unless an engine was asked for by name."""
        if self._problem.engine != "auto" or self._engine == "finite-difference":
            raise error
        why = first_line(error.__cause__) if error.__cause__ else (error.got or error.what)
        self._notes.append(f"Hessian-vector products are finite differences: {why}")
        self._engine = "finite-difference"
        self.release()

    def _look_at(self, gradient: Mapping[str, Tensor]) -> None:
        """Once per problem: the same module gives the same operations."""
        if self._problem.custom_functions is None:
            self._problem.custom_functions = check_graph(gradient)

    def _cross_check(self) -> None:
        """Once per problem with custom functions: do products agree with finite differences?"""
        if not self._problem.custom_functions:
            return
        if self._eps > FLOAT32:
            note = "custom autograd functions are not cross-checked below 32 bits"
            self._notes += [] if note in self._notes else [note]
            return
        d = self.space.random(np.random.default_rng(0))
        exact, difference = self._exact_hvp(d), self._difference(d)
        size = max(float(norm2(exact)), float(norm2(difference)))
        error = float(norm2(subtract(exact, difference)))
        if error > CROSS_CHECK * size:
            raise EngineError(
                "Hessian-vector products disagree with finite differences of the gradient",
                got=f"a custom autograd function, and a relative difference of {error / size:.2g}",
                do='mend its backward, or pass engine="finite-difference"',
            )
        self._problem.custom_functions = False

    def _check_same_data(self, loss: Tensor, seen: Tensor) -> None:
        """The loss of every pass is compared with the frozen one: a free determinism probe."""
        if bool((seen - loss).abs() > 1e3 * self._eps * (loss.abs() + seen.abs())):
            raise DataError(
                "the data or the model changed between two passes",
                got=f"loss {float(loss):.8g}, then {float(seen):.8g}",
                do="pass a list of batches, or a loader whose batches do not change from pass to "
                "pass, and a model without randomness of its own",
            )

    def _loss_and_gradient(self) -> tuple[Tensor, Blocks]:
        if self._first is None and self._engine == "graph":
            try:
                self._build_graph()
            except EngineError as e:
                self._fall_back(e)
        if self._first is None:
            self._first = self._inside(
                self._leaves, lambda: self._sum(lambda value: derivative(value, self._leaves))
            )
        return self._first

    def _build_graph(self) -> None:
        """One graph of the whole loss, unless it would hold more than the allowed memory."""
        allowed = self._problem.memory
        graph = self._inside(
            self._leaves, lambda: KeptGraph(self._whole_loss, self._leaves, allowed is not None)
        )
        self._look_at(graph.gradient)
        gradient = {name: self._measured(g.detach()) for name, g in graph.gradient.items()}
        self._first = self._measured(graph.loss), gradient
        if allowed is not None and self._problem.engine == "auto" and graph.bytes > allowed:
            self._notes.append(
                f"products recompute the graph: it holds {graph.bytes} bytes, memory={allowed}"
            )
            self._engine = "recompute"
            return
        self._graph, self._plain_backward = graph, False

    def _at(
        self, params: Blocks, part: Callable[[Tensor, Leaves], Mapping[str, Tensor]]
    ) -> tuple[Tensor, Blocks]:
        """Loss and summed parts at other parameters."""
        self._check_fresh()
        check_like(params, self.space.shapes, "params")
        with torch.inference_mode(False):
            leaves = self._problem.leaves(params)
        return self._inside(leaves, lambda: self._sum(lambda value: part(value, leaves)))

    def _inside(self, leaves: Leaves, run: Callable[[], T], backward: bool = False) -> T:
        """``run()`` with frozen randomness, and ``leaves`` in the place of the parameters."""
        with frozen(self._random, self._problem.device, self._problem.data, backward):
            return self._problem.lend(leaves, run)

    def _sum(self, part: Callable[[Tensor], Mapping[str, Tensor]]) -> tuple[Tensor, Blocks]:
        """Loss and parts, summed batch by batch, so that one batch's graph exists at a time."""
        total: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self._problem.device, dtype=self._problem.dtype)
        weights = 0.0
        for weight, value in self._values():
            for name, x in part(value).items():
                x = self._measured(x) * weight
                total[name] = total[name] + x if name in total else x
            loss += weight * value.detach()
            weights += weight
        whole = self._problem.batches.normalise(weights)
        return loss / whole, {name: x / whole for name, x in total.items()}

    def _whole_loss(self) -> Tensor:
        """The loss over all batches, as one differentiable tensor."""
        loss = torch.zeros((), device=self._problem.device, dtype=self._problem.dtype)
        weights = 0.0
        for weight, value in self._values():
            loss = loss + weight * value
            weights += weight
        return loss / self._problem.batches.normalise(weights)

    def _values(self) -> Iterator[tuple[float, Tensor]]:
        """Each batch's weight and loss."""
        batches, device = self._problem.batches, self._problem.device
        for batch in batches:
            yield batches.weigh(batch), self._problem.loss.of(move(batch, device))

    def _measured(self, x: Tensor) -> Tensor:
        return x.to(self._problem.dtype)

    def _check_fresh(self) -> None:
        if self._problem.watch(self._at_model)[1] != self._fingerprint:
            raise StaleOracle(
                "the model's parameters, buffers or mode changed after the oracle was made",
                do="ask the problem for a new one: problem.at()",
            )
