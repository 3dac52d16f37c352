"""A torch problem frozen at one point: loss, gradient and Hessian-vector products.

Three engines compute products, by reverse over reverse mode or from gradients, since these work for
every module:

    graph               forward and backward, kept for every batch; a product is one more backward
    recompute           forward, backward and second backward per product, batch by batch
    finite-difference   two gradients per product

Products of a stack of directions share the graph that "recompute" builds, and go through a kept
graph in one vectorised pass where that pays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from geodiag.blocks import Blocks, all_finite, check_like
from geodiag.errors import DataError, EngineError, ParameterError, first_line
from geodiag.oracles import NOT_FINITE, asymmetry
from geodiag_torch.derivatives.autograd import derivative, second_derivative, second_derivatives
from geodiag_torch.derivatives.crosscheck import Passed, agree, weighted_sum
from geodiag_torch.derivatives.evaluation import FLOAT32, check_same_loss
from geodiag_torch.derivatives.fallback import FallbackProducts
from geodiag_torch.derivatives.float32_copy import compare_in_float32
from geodiag_torch.derivatives.forward import Leaves
from geodiag_torch.derivatives.frozen import FrozenOracle
from geodiag_torch.derivatives.graph_inspection import check_graph
from geodiag_torch.derivatives.kept_graph import KeptGraph
from geodiag_torch.derivatives.objective import Objective
from geodiag_torch.derivatives.verdict import (
    DECLARED,
    HELD,
    Judged,
    Verdict,
    hold_detached,
    judge,
    refuse_detached,
)
from geodiag_torch.ranks import Sums
from geodiag_torch.state.rng import outside_inference
from geodiag_torch.state.staleness import Versions

ENGINES = ("auto", "graph", "recompute", "finite-difference")
UNCHECKABLE = "custom autograd functions are not cross-checked below 32 bits"
UNSTEADY = (
    "the loss changes from pass to pass (a generator or a counter of its own), as may training: "
    "pass what holds its state in guard=[…]; products are of one pass"
)
NOTES = (HELD, DECLARED, UNCHECKABLE)
# On a CPU one vectorised pass for a stack pays from so many directions on, and up to so many
# parameters: 0.18–0.5 of the time for networks of 700 parameters, 0.7–0.9 for 2,500 to 5,000.
# For larger ones nothing is gained, and intermediate results take the memory of all directions.
STACK, STACK_PARAMETERS = 4, 10_000


class TorchOracle(FrozenOracle):
    """See :class:`geodiag.Oracle`. ``memory``: bytes of kept graphs, where the engine is "auto"."""

    def __init__(
        self,
        objective: Objective,
        params: Mapping[str, Any] | None,
        engine: str = "auto",
        memory: float | None = None,
    ) -> None:
        super().__init__(objective)
        tensors = objective.tensors()
        live = objective.live(tensors)
        self._leaves = objective.leaves(params, live)
        replaced = () if params is None else (*live.values(), *tensors.named(objective.others))
        self._versions = Versions(tensors, replaced)
        self._evaluation.after_look = self._versions.renew
        self._at_model = params is None
        self._dtypes = {name: leaf.dtype for name, leaf in self._leaves.items()}
        self._notes: list[str] = []
        self._auto, self._memory, self._engine = engine == "auto", memory, engine
        if self._auto:
            keep = objective.batches.single or memory is not None
            self._engine = "graph" if keep else "recompute"
        self._graph: KeptGraph | None = None
        self._passed = Passed(self._evaluation, tuple(self._dtypes.values()))
        self._checked = False  # whether products were cross-checked, or need not be
        self._differences_checked = False  # the same for differences
        self._fallback = FallbackProducts(self._evaluation, self._leaves)
        self._stacks = True  # whether a vectorised pass for a stack works, as far as is known
        self._plain_backward = False  # whether the kept graph is known to recompute nothing

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._objective.batches.notes, *self._evaluation.notes, *self._notes)

    def add_note(self, text: str) -> None:
        """Add to the notes, where there is anything to say."""
        self._notes += [text] if text else []

    def independent_hvp(self, d: Blocks) -> Blocks | None:
        if self._engine != "finite-difference":
            note = self._fallback.underflow_note(self._loss_and_gradient()[1], self.precision)
            self._notes += [note] if note and note not in self._notes else []
        return self._fallback.independent_hvp(d, self.precision)

    def use_differences(self) -> bool:
        able = self._auto and self._engine != "finite-difference" and self.precision <= FLOAT32
        loss, gradient = self._loss_and_gradient()
        able = able and bool(all_finite({"": loss, **gradient}))
        if able:
            self._fall_back(EngineError(NOT_FINITE))
        return able

    def spare(self) -> None:
        if self._engine == "graph":
            self._engine = "recompute"
        self._auto = False

    def point(self) -> Blocks:
        self._versions.check()
        dtype = self._objective.dtype
        return {k: leaf.detach().to(dtype, copy=True) for k, leaf in self._leaves.items()}

    def loss_at(self, params: Blocks) -> Tensor:
        return self._evaluation.sum(self._leaves_at(params), lambda value, _: {})[0]

    def gradient_at(self, params: Blocks) -> Blocks:
        return self._evaluation.gradient(self._leaves_at(params))[1]

    def hvp(self, d: Blocks) -> Blocks:
        self._versions.check(self._objective.ranks.announce)
        check_like(d, self.space.shapes, "the direction")
        return self._product(self._exact_hvp, self._difference, d)

    def hvps(self, ds: Blocks) -> Blocks:
        self._versions.check(self._objective.ranks.announce)
        k = next(iter(ds.values())).shape[0] if ds else 0
        shapes = {name: (k, *shape) for name, shape in self.space.shapes.items()}
        check_like(ds, shapes, "the stack of directions")
        return self._product(self._exact_hvps, super().hvps, ds)

    def _product(
        self, exact: Callable[[Blocks], Blocks], fallback: Callable[[Blocks], Blocks], d: Blocks
    ) -> Blocks:
        if self._engine != "finite-difference":
            try:
                product = exact(d)
                verdict = self._cross_check()
            except EngineError as e:
                self._fall_back(e)
            else:
                verdict.require_symmetric()
                return product
        return fallback(d)

    def release(self) -> None:
        """Free the kept graph; it is rebuilt when it is needed."""
        self._graph = None

    def _exact_hvp(self, d: Blocks) -> Blocks:
        return self._exact(second_derivative, self._objective.directions(d, self._dtypes))

    def _exact_hvps(self, ds: Blocks) -> Blocks:
        stack = self._objective.directions(ds, self._dtypes)
        k = len(next(iter(stack.values())))
        small = k >= STACK and self.space.size <= STACK_PARAMETERS
        pays = k > 1 and (small or self._objective.device.type != "cpu")
        if pays and self._stacks and self._kept() is not None:
            try:
                found = self._exact(partial(second_derivative, batched=True), stack)
                if self._passed.here("stacks", self._rows_agree(stack, found)):
                    return found
            except EngineError:  # some operation cannot be vectorised, or memory is short
                pass
            self._stacks = False
        return self._exact(second_derivatives, stack)

    def _rows_agree(self, stack: Leaves, found: Blocks) -> bool:
        """Whether the product of a weighted sum of directions is that of the rows found."""
        if self._passed.everywhere("stacks"):
            return True
        return agree(self._exact(second_derivative, weighted_sum(stack)), weighted_sum(found))

    def _kept(self) -> KeptGraph | None:
        """The kept graph, built if need be; None where the engine keeps none."""
        if self._engine == "graph" and self._graph is None:
            self._build_graph()
        return self._graph

    def _exact(self, second: Callable[..., Leaves], directions: Leaves) -> Blocks:
        """The product, or those of a stack, by a ``second`` derivative on kept or new graphs."""
        graph = self._kept()
        keep = graph is not None
        product = partial(second, leaves=self._leaves, direction=directions, keep=keep)
        if graph is None:
            return self._recomputed(directions, product)
        nothing = torch.zeros(())

        def local() -> Sums:
            return Sums(0.0, nothing, self._backward(lambda: graph.sum(product)))

        return self._objective.ranks.sum("a product", directions, local).blocks

    def _recomputed(self, directions: Leaves, product: Callable[[Leaves], Leaves]) -> Blocks:
        loss, _ = self._loss_and_gradient()

        def inspected(gradient: Leaves) -> Leaves:
            self._inspect(gradient)
            return product(gradient)

        seen, found = self._evaluation.through_gradient(self._leaves, directions, inspected)
        check_same_loss(loss, seen, self.precision)
        return found

    def _backward(self, run: Callable[[], Leaves]) -> Leaves:
        """A backward pass, with the leaves in the module where it recomputes activations."""
        if self._plain_backward or self._passed.here("plain"):
            return outside_inference(run)
        calls: list[nn.Module] = []
        recording = partial(register_module_forward_pre_hook, lambda m, _: calls.append(m))
        answer = self._evaluation.inside(self._leaves, run, backward=True, context=recording)
        if not calls:
            self._plain_backward = self._passed.here("plain", self._recomputes_nothing(run, answer))
        return answer

    def _recomputes_nothing(self, run: Callable[[], Leaves], answer: Leaves) -> bool:
        """Whether a backward pass gives the same while all that it could read is NaN.

        A checkpointed function may read parameters and buffers without running a module.
        """
        if self._passed.here("plain"):
            return True
        try:
            poisoned = self._evaluation.inside(self._leaves, run, backward=True, poison=True)
        except Exception:  # some code ran that rejects NaN
            return False
        return all(bool(x.isfinite().all()) for x in poisoned.values()) and agree(poisoned, answer)

    def _fall_back(self, error: EngineError) -> None:
        """Switch to finite differences, and note why; raise where an engine was named."""
        if not self._auto or self._engine == "finite-difference":
            raise error
        why = first_line(error.__cause__) if error.__cause__ else (error.got or error.what)
        self._notes.append(f"Hessian-vector products are finite differences: {why}")
        self._engine = "finite-difference"
        self.release()

    def _inspect(self, gradient: Mapping[str, Tensor]) -> None:
        """Check the graph of the first batch; the others go through the same operations."""
        if self._passed.structure is None:
            self._passed.structure = check_graph(gradient, self._evaluation.custom)

    def _cross_check(self) -> Verdict:
        """Compare products with finite differences, once per model and structure of its graph."""
        structure, passed, verdict = self._passed.structure, self._passed, Verdict()
        if structure is None or self._checked:
            return verdict
        if not passed.everywhere("products"):
            if not self._evaluation.autocast and self.precision <= FLOAT32:
                here = self._loss_and_gradient()
                verdict = judge(
                    self._fallback, here, self._exact_hvp, self.precision, structure.custom
                )
                verdict.refuse_wrong('correct it, or pass engine="finite-difference"')
            elif structure.custom and not passed.everywhere(UNCHECKABLE):
                compared = compare_in_float32(self._evaluation, self._fallback.point())
                verdict = compared or Verdict(note=UNCHECKABLE)
        self._checked = verdict.asymmetry is None
        if self._checked:
            passed.here("products", verdict.note != UNCHECKABLE)
            passed.here(verdict.note, True)
            self._notes += [note for note in NOTES if passed.here(note)]
        return verdict

    def _difference(self, d: Blocks) -> Blocks:
        """A product by differences; of the first it is checked that they are symmetric."""
        fallback, eps = self._fallback, self.precision
        check = not (self._differences_checked or eps > FLOAT32)
        check = check and not self._passed.everywhere("differences")
        here = self._loss_and_gradient()
        held = check and hold_detached(fallback, here, eps)
        product = fallback.hvp(d, eps, self._notes)
        if check:
            judged = Judged(fallback, here, lambda d: fallback.hvp(d, eps, self._notes))
            Verdict(asymmetry=asymmetry(judged, eps)).require_symmetric()
            self._passed.here("differences", not held)
            self._notes += [HELD] if held and HELD not in self._notes else []
        self._differences_checked = True
        return product

    def _loss_and_gradient(self) -> tuple[Tensor, Blocks]:
        if self._first is None and self._engine == "graph":
            try:
                self._build_graph()
            except EngineError as e:
                self._fall_back(e)
        if self._first is None:
            self._first = self._evaluation.gradient(self._leaves)
        self._check_loss(self._first)
        return self._first

    def _check_loss(self, here: tuple[Tensor, Blocks]) -> None:
        """Once: the loss is the same with leaves, and has no detached part, where asked for."""
        objective, how = self._objective, self._objective.stop_gradient
        if not objective.loss.lent:
            try:
                found = self._evaluation.check_lent(here[0] if self._at_model else None)
            except ParameterError:
                self._versions.check()  # another thread trains the model
                raise
            objective.loss.steady, objective.loss.lent = found, True
        if not objective.loss.steady and UNSTEADY not in self._notes:
            if self._engine == "finite-difference":
                raise DataError(UNSTEADY, do="let it count nothing")
            self._notes.append(UNSTEADY)
        if how != "constant" and not self._passed.everywhere("attached"):
            refuse_detached(self._fallback, here, self.precision, how)
            self._passed.here("attached", True)

    def _build_graph(self) -> None:
        """One graph per batch, unless they would hold more than the allowed memory."""
        limit = self._memory if self._auto else None
        graph = KeptGraph(self._objective.dtype, limit)

        def part(value: Tensor, weight: float) -> Leaves:
            gradient = derivative(value, self._leaves, create_graph=not graph.full)
            if not graph.full:
                self._inspect(gradient)
                graph.add(weight, gradient)
            return {name: g.detach() for name, g in gradient.items()}

        self._first = self._evaluation.sum(self._leaves, part, context=graph.counting)
        if limit is not None and self._objective.ranks.any(graph.full):
            self._notes.append(
                f"products recompute the graph: it holds {graph.bytes} bytes, memory={limit}"
            )
            self._engine = "recompute"
            return
        graph.divisor = self._evaluation.divisor
        self._graph, self._plain_backward = graph, False

    def _leaves_at(self, params: Blocks) -> Leaves:
        self._versions.check(self._objective.ranks.announce)
        check_like(params, self.space.shapes, "params")
        return self._objective.leaves(params)
