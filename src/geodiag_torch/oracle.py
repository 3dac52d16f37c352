"""A torch problem frozen at one point: loss, gradient and Hessian-vector products.

Three engines, all reverse-over-reverse or first order, since those work for every module:

    graph               forward and backward, kept for every batch; a product is one more backward
    recompute           forward, backward and second backward per product, batch by batch
    finite-difference   two gradients per product

Products of a stack of directions share the graph that "recompute" builds, and go through a kept
graph in one vectorised pass where that pays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from geodiag.blocks import Blocks, check_like
from geodiag.errors import EngineError
from geodiag.oracles import Oracle
from geodiag_torch.derivatives.crosscheck import agree, disagreement, passed, refuse
from geodiag_torch.derivatives.evaluation import Passes, check_same_loss, watching
from geodiag_torch.derivatives.fallback import FLOAT32, Otherwise
from geodiag_torch.derivatives.forward import Leaves
from geodiag_torch.derivatives.graph import (
    KeptGraph,
    Structure,
    check_graph,
    derivative,
    first_line,
    mix,
    second_derivative,
    second_derivatives,
)
from geodiag_torch.ranks import Sums
from geodiag_torch.state.rng import outside_inference
from geodiag_torch.state.staleness import Watch, stale

if TYPE_CHECKING:
    from geodiag_torch.problem import TorchProblem

ENGINES = ("auto", "graph", "recompute", "finite-difference")
# From how many directions on, and up to how many parameters, one pass for a stack of directions
# pays on a CPU: 0.18–0.5 of the time for networks of 700 parameters, 0.7–0.9 for 2,500 to 5,000.
# For larger ones nothing is gained, and intermediate results take the memory of all directions.
STACK, STACK_PARAMETERS = 4, 10_000
T = TypeVar("T")


class TorchOracle(Oracle):
    """See :class:`geodiag.Oracle`. Raises StaleOracle once the model has changed."""

    def __init__(self, problem: TorchProblem, params: Mapping[str, Any] | None) -> None:
        self._problem, self.space = problem, problem.space
        self._passes = Passes(problem)
        layout = problem.loss.layout()
        live = problem.live(layout)
        self._leaves = outside_inference(lambda: problem.leaves_of(live, params))
        self._at_model = params is None
        self._watch = Watch(layout, () if self._at_model else live.values())
        self._dtypes = tuple([leaf.dtype for leaf in self._leaves.values()])
        self._notes: list[str] = []
        self._engine = problem.engine
        if self._engine == "auto":
            keep = problem.batches.single or problem.memory is not None
            self._engine = "graph" if keep else "recompute"
        self._graph: KeptGraph | None = None
        self._structure: Structure | None = None  # of the gradient, once it was looked at
        self._checked = False  # whether products were compared with differences, or need not be
        self._known: set[str] = set()  # the checks that are known to have passed on every rank
        self._otherwise = Otherwise(problem, self._passes, self._leaves)
        self._stacks = True  # whether one pass for a stack works, as far as is known
        self._plain_backward = False  # whether the kept graph is known to recompute nothing
        self._first: tuple[Tensor, Blocks] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    @property
    def precision(self) -> float:
        return self._eps

    @property
    def _eps(self) -> float:
        if self._passes.eps is None:
            self._loss_and_gradient()
        return self._passes.eps or max(torch.finfo(x.dtype).eps for x in self._leaves.values())

    def independent_hvp(self, d: Blocks) -> Blocks | None:
        if self._engine != "finite-difference":
            note = self._otherwise.vanishing(self._loss_and_gradient()[1], self._eps)
            self._notes += [note] if note and note not in self._notes else []
        return self._otherwise.independent_hvp(d, self._eps)

    def once(self, passes: Passes, d: Blocks) -> Blocks:
        """One product that is not checked, with the randomness of other passes."""
        self._passes, self._engine, self._checked = passes, "recompute", True
        return self.hvp(d)

    def surroundings(self) -> AbstractContextManager[Any]:
        kind = self._problem.device.type
        if not torch.is_autocast_enabled(kind):
            return nullcontext()
        return torch.autocast(kind, enabled=False)

    def point(self) -> Blocks:
        self._check_fresh()
        dtype = self._problem.dtype
        return {k: leaf.detach().to(dtype, copy=True) for k, leaf in self._leaves.items()}

    def loss(self) -> Tensor:
        self._check_fresh()
        return self._loss_and_gradient()[0].clone()

    def gradient(self) -> Blocks:
        self._check_fresh()
        return {name: g.clone() for name, g in self._loss_and_gradient()[1].items()}

    def loss_at(self, params: Blocks) -> Tensor:
        return self._passes.sum(self._leaves_at(params), lambda value, _: {})[0]

    def gradient_at(self, params: Blocks) -> Blocks:
        return self._passes.gradient(self._leaves_at(params))[1]

    def hvp(self, d: Blocks) -> Blocks:
        self._check_fresh(told=True)
        check_like(d, self.space.shapes, "the direction")
        return self._product(self._exact_hvp, self._difference, d)

    def hvps(self, ds: Blocks) -> Blocks:
        self._check_fresh(told=True)
        k = next(iter(ds.values())).shape[0] if ds else 0
        shapes = {name: (k, *shape) for name, shape in self.space.shapes.items()}
        check_like(ds, shapes, "the stack of directions")
        return self._product(self._exact_hvps, super().hvps, ds)

    def _product(
        self, exact: Callable[[Blocks], Blocks], difference: Callable[[Blocks], Blocks], d: Blocks
    ) -> Blocks:
        if self._engine != "finite-difference":
            try:
                product = exact(d)
                self._cross_check()
                return product
            except EngineError as e:
                self._fall_back(e)
        return difference(d)

    def release(self) -> None:
        """Free the kept graph; it is built again when it is needed."""
        self._graph = None

    def _exact_hvp(self, d: Blocks) -> Blocks:
        direction = self._directions(d)
        graph = self._kept()
        if graph is not None:
            return self._summed(direction, lambda: graph.hvp(direction))
        return self._recomputed(
            direction, lambda g: second_derivative(g, self._leaves, direction, False)
        )

    def _exact_hvps(self, ds: Blocks) -> Blocks:
        stack = self._directions(ds)
        graph = self._kept()
        if graph is None:
            return self._recomputed(
                stack, lambda g: second_derivatives(g, self._leaves, stack, False)
            )
        k = len(next(iter(stack.values())))
        small = k >= STACK and self.space.size <= STACK_PARAMETERS
        if self._stacks and k > 1 and (small or self._problem.device.type != "cpu"):
            try:
                found = self._summed(stack, lambda: graph.hvps(stack, batched=True))
                if self._passed("stacks", self._rows_agree(graph, stack, found)):
                    return found
            except EngineError:  # some operation cannot be vectorised, or memory is short
                pass
            self._stacks = False
        return self._summed(stack, lambda: graph.hvps(stack, batched=False))

    def _rows_agree(self, graph: KeptGraph, stack: Leaves, found: Blocks) -> bool:
        """Whether one product alone is what the rows add up to, each with another weight."""
        if self._passed_everywhere("stacks"):
            return True

        mixed = mix(stack)
        alone = self._summed(mixed, lambda: graph.hvp(mixed))
        return agree(alone, mix(found))

    def _directions(self, d: Blocks) -> Leaves:
        """``d`` as autograd wants it: in the dtypes of the leaves, on their device."""
        asarray = self.space.asarray
        named = zip(self._leaves, self._dtypes, strict=True)
        found = {name: (asarray(d[name]), dtype) for name, dtype in named}
        return {name: x if x.dtype is t else x.to(t) for name, (x, t) in found.items()}

    def _kept(self) -> KeptGraph | None:
        """The graph, built where it is to be kept and is not there."""
        if self._engine == "graph" and self._graph is None:
            self._build_graph()
        return self._graph

    def _recomputed(self, asked: Leaves, second: Callable[[Leaves], Leaves]) -> Blocks:
        loss, _ = self._loss_and_gradient()

        def part(value: Tensor, weight: float) -> Leaves:
            gradient = derivative(value, self._leaves, create_graph=True)
            self._look_at(gradient)
            return second(gradient)

        seen, product = self._passes.sum(self._leaves, part, asked=asked)
        check_same_loss(loss, seen, self._eps)
        return product

    def _summed(self, asked: Leaves, run: Callable[[], Leaves]) -> Blocks:
        """A product on the kept graph, over all ranks."""
        nothing = torch.zeros(())
        return self._problem.ranks.sum(
            "a product", asked, lambda: Sums(0.0, nothing, self._backward(run))
        ).blocks

    def _backward(self, run: Callable[[], Leaves]) -> Leaves:
        """A backward pass, with the leaves lent where it recomputes activations."""
        if self._plain_backward or self._passed("plain"):
            return outside_inference(run)
        calls: list[nn.Module] = []
        watched = partial(watching, calls)
        answer = self._passes.inside(self._leaves, run, backward=True, within=watched)
        if not calls:
            self._plain_backward = self._passed("plain", self._recomputes_nothing(run, answer))
        return answer

    def _recomputes_nothing(self, run: Callable[[], Leaves], answer: Leaves) -> bool:
        """Whether a pass is the same one while all that it could read is NaN.

        A checkpointed function may read parameters and buffers without running a module.
        """
        if self._passed("plain"):
            return True
        try:
            poisoned = self._passes.poisoned(self._leaves, run)
        except Exception:  # some code ran that does not like NaN
            return False
        return all(bool(x.isfinite().all()) for x in poisoned.values()) and agree(poisoned, answer)

    def _difference(self, d: Blocks) -> Blocks:
        return self._otherwise.difference(d, self._eps, self._notes)

    def _fall_back(self, error: EngineError) -> None:
        """Go on with finite differences, and note why; unless an engine was asked for by name."""
        if self._problem.engine != "auto" or self._engine == "finite-difference":
            raise error
        why = first_line(error.__cause__) if error.__cause__ else (error.got or error.what)
        self._notes.append(f"Hessian-vector products are finite differences: {why}")
        self._engine = "finite-difference"
        self.release()

    def _look_at(self, gradient: Mapping[str, Tensor]) -> None:
        """Once, at the first batch: the others go through the same operations."""
        if self._structure is None:
            self._structure = check_graph(gradient)

    def _cross_check(self) -> None:
        """Once per model and structure of its gradient: are products its differences?"""
        if self._checked or self._structure is None:
            return
        if not self._passed_everywhere("products"):
            if not self._passes.autocast and self._eps <= FLOAT32:
                refuse(self.disagreement(), 'mend it, or pass engine="finite-difference"')
                self._passed("products", True)
            elif self._structure.custom:
                self._check_custom()
        self._checked = True

    def disagreement(self) -> float | None:
        """How far a product is from a difference of gradients, where they disagree."""
        return disagreement(self, self._exact_hvp, self._otherwise.slope, self._eps)

    def _check_custom(self) -> None:
        """In single precision, where that can be had; else it is noted."""
        if not self._passed_everywhere("uncheckable"):
            checked, found = self._otherwise.checked(self._at_model)
            refuse(found, "mend it, or measure model.float() outside of autocast")
            self._passed("products" if checked else "uncheckable", True)
        if self._passed("uncheckable"):
            self._notes.append("custom autograd functions are not cross-checked below 32 bits")

    def _passed_everywhere(self, what: str) -> bool:
        if what not in self._known and not self._problem.ranks.any(not self._passed(what)):
            self._known.add(what)
        return what in self._known

    def _passed(self, what: str, now: bool = False) -> bool:
        """Whether this check passed before, or ``now``, for this model and the same operations."""
        key = what, self._structure, self._dtypes, self._problem.device.type
        known = passed(self._problem.loss.model)
        if now:
            known.add(key)
        return key in known

    def _loss_and_gradient(self) -> tuple[Tensor, Blocks]:
        if self._first is None and self._engine == "graph":
            try:
                self._build_graph()
            except EngineError as e:
                self._fall_back(e)
        if self._first is None:
            self._first = self._passes.gradient(self._leaves)
        return self._first

    def _build_graph(self) -> None:
        """One graph per batch, unless they would hold more than the allowed memory."""
        allowed = self._problem.memory if self._problem.engine == "auto" else None
        graph = KeptGraph(self._leaves, self._problem.dtype, allowed)

        def part(value: Tensor, weight: float) -> Leaves:
            gradient = derivative(value, self._leaves, create_graph=not graph.full)
            if not graph.full:
                self._look_at(gradient)
                graph.add(weight, gradient)
            return {name: g.detach() for name, g in gradient.items()}

        self._first = self._passes.sum(self._leaves, part, within=graph.counting)
        if allowed is not None and self._problem.ranks.any(graph.full):
            self._notes.append(
                f"products recompute the graph: it holds {graph.bytes} bytes, memory={allowed}"
            )
            self._engine = "recompute"
            return
        graph.whole = self._passes.whole
        self._graph, self._plain_backward = graph, False

    def _leaves_at(self, params: Blocks) -> Leaves:
        self._check_fresh(told=True)
        check_like(params, self.space.shapes, "params")
        return outside_inference(lambda: self._problem.leaves(params))

    def _check_fresh(self, told: bool = False) -> None:
        """``told``: where other ranks would wait for this one, they are told."""
        if self._watch.changed():
            raise self._problem.ranks.told(stale()) if told else stale()
