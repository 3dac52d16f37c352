"""A JAX problem frozen at one point: loss, gradient and Hessian-vector products.

The engine decides how a Hessian-vector product is computed; ``auto`` may change it, and says so in
``notes``. Over several batches each call is one pass over the data. A pass whose loss differs from
the frozen one means that the data changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import cached_property, partial
from typing import Any, TypeVar

import jax
import numpy as np

from geodiag.blocks import Array, Blocks, all_finite, epsilon, norm2
from geodiag.errors import EngineError
from geodiag.oracles import NOT_FINITE, Differences, Oracle, jittered_hvp, same_loss
from geodiag.oracles.base import Program
from geodiag_jax import derivatives, programs
from geodiag_jax.batches import PreparedBatches
from geodiag_jax.derivatives import Arrays, Inputs, StaticCall, StaticLoss
from geodiag_jax.flags import own_flags
from geodiag_jax.in_float32 import in_float32
from geodiag_jax.inspection import LossStructure, escaped, impure, structure_of
from geodiag_jax.loss_key import LossKey
from geodiag_jax.precision import SINGLE, check_same_loss, curvature, require_float32
from geodiag_jax.pytree import Parameters, as_blocks
from geodiag_jax.sharding import jax_errors_explained
from geodiag_jax.stopped import moved
from geodiag_jax.verdict import Verdict, judge, known_verdict

S = TypeVar("S")

ENGINES = ("auto", "linearize", "recompute", "reverse", "finite-difference")
# A program is compiled for up to so many kept linearizations: the compilation grows with them.
UNROLLED = 8


class JaxOracle(Oracle):
    """Loss, gradient and Hessian-vector products of a JAX loss at a frozen point."""

    def __init__(
        self,
        loss: LossKey,
        parameters: Parameters,
        batches: PreparedBatches,
        engine: str,
        memory: int | None,
    ) -> None:
        self.space, self._parameters = parameters.space, parameters
        self._static = StaticLoss(loss, parameters.tree)
        self._batches, self._memory = batches, memory
        self._auto, self._engine = engine == "auto", engine
        if self._auto:
            self._engine = "linearize" if batches.single else "recompute"
        self._frozen: tuple[Array, Arrays] | None = None
        self._kept: list[tuple[float, Any]] | None = None  # linearizations and their weights
        self._notes: dict[str, None] = {}  # in order, each once
        self._checked = False  # whether products were cross-checked, or need not be
        if self._auto and derivatives.forward_blocked(self._static):
            self._use_reverse()
        if engine == "finite-difference":
            self._note("Hessian-vector products are central differences of gradients")

    def spare(self) -> None:
        if self._auto or self._engine == "linearize":
            self._engine = "reverse"  # for it there is nothing to keep, and no mode is blocked
        self._auto = False

    def surroundings(self) -> AbstractContextManager[Any]:
        return own_flags()

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._batches.notes, *self._notes)

    @cached_property
    @jax_errors_explained()
    def _structure(self) -> LossStructure:
        _, call, at = next(self._inputs())
        return structure_of(call, at)

    @property
    def precision(self) -> float:
        return self._structure.precision

    @jax_errors_explained()
    def independent_hvp(self, d: Blocks) -> Blocks | None:
        if self._engine == "finite-difference":
            return self._differences.independent_hvp(self.gradient_at, d)
        if not self.precision > SINGLE:
            return None
        noise = self.space.random(np.random.default_rng(0))
        return jittered_hvp(self.point(), noise, self.precision, d, self._elsewhere)

    def _elsewhere(self, params: Blocks, d: Blocks) -> Blocks:
        """A product at other parameters; a single one, so no linearization is kept."""
        engine = "recompute" if self._engine == "linearize" else self._engine
        parameters = self._parameters.moved(params)
        return JaxOracle(self._static.loss, parameters, self._batches, engine, None).hvp(d)

    def in_float32(self) -> Oracle | None:
        if not self.precision > SINGLE:
            return None
        with suppress(Exception):  # a loss may reject other dtypes with any; memory may be short
            wider, batches = self._parameters.in_float32(), self._batches.in_float32()
            found = JaxOracle(self._static.loss, wider, batches, "reverse", None)
            found._frozen = self._total(partial(in_float32, found._static, wider))
            here = self._frozen[0] if self._frozen else self._total(derivatives.value)
            return found if same_loss(float(here), float(found.loss()), self.precision) else None
        return None

    @cached_property
    def _differences(self) -> Differences:
        return Differences(self.point(), require_float32(self.precision))

    def point(self) -> Blocks:
        return as_blocks(self.names, self._parameters.point)

    @jax_errors_explained()
    def loss(self) -> Array:
        return self._freeze()[0]

    @jax_errors_explained()
    def gradient(self) -> Blocks:
        return as_blocks(self.names, self._freeze()[1])

    @jax_errors_explained()
    def loss_at(self, params: Blocks) -> Array:
        loss: Array = self._total(derivatives.value, self._arrays(params))
        return loss

    @jax_errors_explained()
    def gradient_at(self, params: Blocks) -> Blocks:
        answer = self._total(derivatives.value_and_gradient, self._arrays(params))
        return as_blocks(self.names, answer[1])

    @jax_errors_explained()
    def hvp(self, d: Blocks) -> Blocks:
        return self._answer(d, many=False)

    @jax_errors_explained()
    def hvps(self, ds: Blocks) -> Blocks:
        return self._answer(ds, many=True)

    def _answer(self, d: Blocks, many: bool) -> Blocks:
        self._check_derivatives()
        if self._engine != "finite-difference":
            try:
                return as_blocks(self.names, self._product(self._arrays(d), many))
            except EngineError as e:
                self._use_differences(e)
        return super().hvps(d) if many else self._differences.hvp(self.gradient_at, d)

    @jax_errors_explained()
    def run(self, program: Program[S], *arguments: Any, asks: Oracle | None = None) -> S:
        """The program, compiled once for equal keys where the data are one batch, or kept.

        A program that cannot be traced (it calls ``float`` on an array) runs uncompiled, and after
        two failures in a row tracing is not tried again.
        """
        self._check_derivatives()
        tried = []
        for source, operands in self._sources(program):
            job = programs.Job.of(program, source, self._static, self.space)
            refusals = programs.refusals(job)
            if len(refusals) >= programs.REFUSED:
                continue
            with suppress(Exception):  # errors that are not of tracing are raised uncompiled too
                answer: S = programs.run(job, operands, arguments)
                refusals.clear()
                return answer
            tried.append(refusals)
        answer = super().run(program, *arguments, asks=asks)
        for refusals in tried:
            refusals.append(None)
        return answer

    def _sources(self, program: Program[Any]) -> Iterator[tuple[programs.Source, Any]]:
        """How the program may be compiled, the fastest first, with the operands of each."""
        if program.key is None or self._engine == "finite-difference":
            return
        unasked = self._frozen is None and self._engine == "linearize" and self._memory is None
        if getattr(program, "alone", False) and unasked and self._batches.single:
            _, call, at = next(self._inputs())
            yield programs.Fresh(call), at
        frozen = self._freeze()
        if self._kept is not None and len(self._kept) <= UNROLLED:
            yield programs.Kept(), (frozen, self._batches.shares(self._kept))
        elif self._kept is None and self._batches.single:
            _, call, at = next(self._inputs())
            yield programs.Recomputed(call, self._engine == "recompute"), (frozen, at)

    def _inputs(self, point: Arrays | None = None) -> Iterator[tuple[float, StaticCall, Inputs]]:
        """One pass: the weight of each batch, and what its compiled functions take."""
        own, fixed = self._parameters.point, self._parameters.fixed
        for weight, batch, arrays in self._batches:
            call, at = StaticCall(self._static, batch), Inputs(own, fixed, arrays)
            yield weight, *((call, at) if point is None else moved(call, at, point))

    def _total(self, f: Callable[[StaticCall, Inputs], Any], point: Arrays | None = None) -> Any:
        """``f`` of every batch, combined over one pass."""
        return self._batches.combine((w, f(call, at)) for w, call, at in self._inputs(point))

    def _arrays(self, blocks: Blocks) -> Arrays:
        """Blocks as arguments of the compiled functions."""
        return tuple(self._parameters.placed(name, blocks[name]) for name in self.names)

    def _freeze(self) -> tuple[Array, Arrays]:
        """Loss and gradient at the point, and the linearization where the engine keeps one."""
        if self._frozen is None and self._engine == "linearize":
            self._frozen = self._linearize()
        if self._frozen is None:
            self._frozen = self._total(derivatives.value_and_gradient)
        return self._frozen

    def _linearize(self) -> tuple[Array, Arrays] | None:
        """Keep the linearization of every batch; None, and another engine, where that fails."""
        left = math.inf if self._memory is None else float(self._memory)
        kept: list[tuple[float, Any]] = []
        answers: list[tuple[float, tuple[Array, Arrays]]] = []
        for weight, call, at in self._inputs():
            try:
                if self._memory is not None:
                    left -= derivatives.kept_bytes(call, at)
                if left < 0:
                    self._engine = "recompute"
                    self._note(
                        f"a kept linearization takes more than memory={self._memory} bytes; "
                        "every Hessian-vector product is recomputed"
                    )
                    return None
                answer, linear = derivatives.linearized(call, at)
                self._try_forward(linear)
            except derivatives.UNDERIVABLE as e:
                if self._auto and "context mesh" in str(e).lower():
                    # Over Explicit axes not every linearization outlives its trace.
                    self._engine = "recompute"
                else:
                    self._fall_back(e)
                return None
            kept.append((weight, linear))
            answers.append((weight, answer))
        frozen: tuple[Array, Arrays] = self._batches.combine(answers)
        self._kept = kept
        return frozen

    def _try_forward(self, linear: Any) -> None:
        """Lower it once per loss: only then a ``custom_vjp`` in a linearization raises."""
        known = derivatives.forward_works(self._static)
        if known != [True]:
            derivatives.apply.lower(linear, self._parameters.point)
            known[:] = [True]

    def _product(self, d: Arrays, many: bool) -> Arrays:
        """∇²L d by the engine, which the first call may change."""
        frozen, _ = self._freeze()
        product: Arrays
        if self._kept is not None:
            apply = derivatives.apply_many if many else derivatives.apply
            product = self._batches.combine((w, apply(linear, d)) for w, linear in self._kept)
            return product
        loss, product = self._total(lambda call, at: self._recomputed(call, at, d, many))
        if not self._batches.single and not isinstance(loss, jax.core.Tracer):
            sizes = *self._scales, curvature(d, product), epsilon(self.point())
            check_same_loss(float(frozen), float(loss), *sizes)
        return product

    def _recomputed(self, call: StaticCall, at: Inputs, d: Arrays, many: bool) -> Any:
        """(loss, product) of one batch."""
        if self._engine == "recompute":
            try:
                return derivatives.PRODUCTS["recompute"][many](call, at, d)
            except derivatives.UNDERIVABLE as e:
                self._fall_back(e)
        try:
            return derivatives.PRODUCTS["reverse"][many](call, at, d)
        except derivatives.UNDERIVABLE as e:
            if (found := derivatives.reverse_error(e)) is None:
                raise
            raise found from e

    def _fall_back(self, error: Exception) -> None:
        """Switch to reverse mode if forward mode has failed; else raise ``error`` again."""
        if (found := derivatives.forward_error(error, self._engine)) is None:
            raise error
        if not derivatives.names_forward_mode(error):
            self._total(derivatives.value_and_gradient)  # raises if it is the loss that fails
        if not self._auto:
            raise found from error
        self._use_reverse()

    def _check_derivatives(self) -> None:
        """Cross-check products, once for each loss that has derivative rules of its own."""
        if self._checked or isinstance(self._parameters.point[0], jax.core.Tracer):
            return
        self._checked = True  # products of the check itself need none
        try:
            structure = self._structure
            if structure.stopped:
                self._note("what stop_gradient stops in the loss is held constant")
            self._note(escaped(structure.constants, self.point()))
            self._notes |= dict.fromkeys(impure(structure))
            differences = self._engine == "finite-difference"
            if structure.custom or (not differences and known_verdict(self._static, False)):
                found = judge(self, self._static, structure, differences)
                if found.differences and self._engine != "finite-difference":
                    self._use_differences(found.disagreement())
                found.require_hessian()
                self._note(found.note)
        except BaseException:
            self._checked = False
            raise

    def _use_differences(self, error: EngineError) -> None:
        """Switch to finite differences, and note why; raise ``error`` where an engine was named."""
        if not self._auto or self._engine == "finite-difference":
            raise error
        why = error.got or error.what
        known_verdict(self._static, False)[:] = [Verdict(differences=why, what=error.what)]
        self._differ(why)

    def _differ(self, why: str) -> None:
        self._engine, self._kept = "finite-difference", None
        self._note(f"Hessian-vector products are finite differences: {why}")

    def use_differences(self) -> bool:
        able = self._auto and self._engine != "finite-difference" and self.precision <= SINGLE
        able = able and bool(all_finite({"": self.loss(), **self.gradient()}))
        if able:
            self._differ(NOT_FINITE)
        return able

    def _use_reverse(self) -> None:
        derivatives.forward_works(self._static)[:] = [False]
        self._engine = "reverse"
        self._note(derivatives.BLOCKED)

    @cached_property
    def _scales(self) -> tuple[float, float]:
        """‖∇L‖ and ‖w‖."""
        return float(norm2(self.gradient())), float(norm2(self.point()))

    def _note(self, text: str) -> None:
        self._notes |= {text: None} if text else {}
