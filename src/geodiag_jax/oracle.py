"""A JAX problem at one point.

The engine decides how a Hessian-vector product is made; ``auto`` may change it, and says so in
``notes``. Over several batches each question is one pass over the data, and a pass that does not
find the frozen loss again means that the data changed.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from geodiag.blocks import Array, Blocks, epsilon, norm2
from geodiag.errors import DataError, EngineError, GeodiagError
from geodiag.oracles import Differences, Oracle, jittered_hvp
from geodiag.oracles.base import Program
from geodiag_jax import derivatives, programs
from geodiag_jax.batches import BatchForm, Feed
from geodiag_jax.derivatives import Arrays, Form
from geodiag_jax.precision import SINGLE, coarsest, fine
from geodiag_jax.pytree import Layout, as_blocks
from geodiag_jax.sharding import refusals_explained, relabel

S = TypeVar("S")

ENGINES = ("auto", "linearize", "recompute", "reverse", "finite-difference")

_PRODUCTS = {
    "recompute": (derivatives.forward, derivatives.forward_many),
    "reverse": (derivatives.reverse, derivatives.reverse_many),
}
# What JAX raises where a derivative does not exist in some mode.
_UNDERIVABLE = (TypeError, ValueError, NotImplementedError)
# Kept linearizations that a program is compiled for: the compilation grows with their number.
UNROLLED = 8
_FORWARD_MARKS = ("forward-mode", "jvp", "custom_vjp")


class JaxOracle(Oracle):
    """Loss, gradient and Hessian-vector products of a JAX loss at a frozen point."""

    def __init__(
        self, form: Form, layout: Layout, feed: Feed, engine: str, memory: int | None
    ) -> None:
        self.space, self._layout = layout.space, layout
        self._form, self._feed, self._memory = form, feed, memory
        self._point, self._fixed = layout.point, layout.fixed
        self._kind = form.dtype, layout.places
        self._auto = engine == "auto"
        self._engine = engine
        if self._auto:
            self._engine = "linearize" if feed.single else "recompute"
        self._frozen: tuple[Array, Arrays] | None = None
        self._kept: list[tuple[float, Any]] | None = None  # linearizations and their weights
        self._scales: tuple[float, float] | None = None  # ‖∇L‖ and ‖w‖, once asked for
        self._differences: Differences | None = None
        self._notes: list[str] = []
        if engine == "finite-difference":
            self._note("Hessian-vector products are central differences of gradients")

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    @cached_property
    @refusals_explained()
    def precision(self) -> float:
        _, batch, arrays = next(iter(self._feed))
        return coarsest(self._form, batch, self._point, self._fixed, arrays)

    @refusals_explained()
    def independent_hvp(self, d: Blocks) -> Blocks | None:
        if self._engine == "finite-difference":
            return self._central().independent_hvp(self.gradient_at, d)
        eps = self.precision
        if not eps > SINGLE:
            return None
        noise = self.space.random(np.random.default_rng(0))
        return jittered_hvp(self.point(), noise, eps, d, self._elsewhere)

    def _elsewhere(self, params: Blocks, d: Blocks) -> Blocks:
        """A product at other parameters; for one, no linearization is kept."""
        engine = "recompute" if self._engine == "linearize" else self._engine
        layout = self._layout.moved(params)
        return JaxOracle(self._form, layout, self._feed, engine, None).hvp(d)

    def _central(self) -> Differences:
        if self._differences is None:
            self._differences = Differences(self.point(), fine(self.precision))
        return self._differences

    def point(self) -> Blocks:
        return as_blocks(self.names, self._point)

    @refusals_explained()
    def loss(self) -> Array:
        return self._freeze()[0]

    @refusals_explained()
    def gradient(self) -> Blocks:
        return as_blocks(self.names, self._freeze()[1])

    @refusals_explained()
    def loss_at(self, params: Blocks) -> Array:
        point = self._arrays(params)
        loss: Array = self._feed.total(
            lambda batch, arrays: derivatives.value(self._form, batch, point, self._fixed, arrays)
        )
        return loss

    @refusals_explained()
    def gradient_at(self, params: Blocks) -> Blocks:
        return as_blocks(self.names, self._value_and_gradient(self._arrays(params))[1])

    @refusals_explained()
    def hvp(self, d: Blocks) -> Blocks:
        if self._engine == "finite-difference":
            return self._central().hvp(self.gradient_at, d)
        return as_blocks(self.names, self._product(self._arrays(d), many=False))

    @refusals_explained()
    def hvps(self, ds: Blocks) -> Blocks:
        if self._engine == "finite-difference":
            return super().hvps(ds)
        return as_blocks(self.names, self._product(self._arrays(ds), many=True))

    @refusals_explained()
    def run(self, program: Program[S], *arguments: Any, asks: Oracle | None = None) -> S:
        """The program compiled, once for equal ones, where the loss is held in memory.

        One that cannot be traced (it calls ``float`` on an array) runs as it is, and after twice in
        a row it is not tried again; once may have been an accident.
        """
        sources = (self._fresh, self._held) if getattr(program, "alone", False) else (self._held,)
        tried = []
        for source in sources:
            found = None if program.key is None else source()
            if found is None:
                continue
            job = programs.Job.of(program, found[0], self.space, *self._kind)
            refusals = programs.refusals(job)
            if len(refusals) >= programs.REFUSED:
                continue
            with suppress(Exception):  # what is not of the tracing is raised by the run as it is
                answer: S = programs.run(job, found[1], arguments)
                refusals.clear()
                return answer
            tried.append(refusals)
        answer = super().run(program, *arguments, asks=asks)
        for refusals in tried:
            refusals.append(None)
        return answer

    def _fresh(self) -> tuple[programs.Source, Any] | None:
        """The source of a program that linearizes for itself, where nothing has been asked yet."""
        unasked = self._frozen is None and self._engine == "linearize" and self._memory is None
        if not unasked or not self._feed.single or (self._auto and derivatives.blocked(self._form)):
            return None
        ((_, batch, arrays),) = self._feed
        return programs.Fresh(self._form, batch), (self._point, self._fixed, arrays)

    def _held(self) -> tuple[programs.Source, Any] | None:
        """The source of a program from what this oracle keeps, and its operands.

        None if there is none to compile for.
        """
        if self._engine == "finite-difference":
            return None
        frozen = self._freeze()
        if self._kept is not None and len(self._kept) <= UNROLLED:
            return programs.Kept(), (frozen, self._feed.shares(self._kept))
        if self._kept is None and self._feed.single:
            ((_, batch, arrays),) = self._feed
            forward = self._engine == "recompute" and not (
                self._auto and derivatives.blocked(self._form)
            )
            where = (self._point, self._fixed, arrays)
            return programs.Recomputed(self._form, batch, forward), (frozen, where)
        return None

    def _arrays(self, blocks: Blocks) -> Arrays:
        """Blocks as the compiled functions take them."""
        dtype = self._form.dtype
        return tuple(
            relabel(x) if isinstance(x, jax.Array) and x.dtype == dtype else self._moved(name, x)
            for name, x in ((name, blocks[name]) for name in self.names)
        )

    def _moved(self, name: str, x: Any) -> Array:
        """One tensor, or a stack of such, as an array of ours."""
        one = x.shape == self.space.shapes[name]
        return self.space.place(name, x) if one else self.space.asarray(x)

    def _freeze(self) -> tuple[Array, Arrays]:
        """Loss and gradient at the point, and the linearization where the engine keeps one."""
        if self._frozen is None and self._engine == "linearize":
            self._frozen = self._linearize()
        if self._frozen is None:
            self._frozen = self._value_and_gradient(self._point)
        return self._frozen

    def _value_and_gradient(self, point: Arrays) -> tuple[Array, Arrays]:
        answer: tuple[Array, Arrays] = self._feed.total(
            lambda batch, arrays: derivatives.value_and_gradient(
                self._form, batch, point, self._fixed, arrays
            )
        )
        return answer

    def _linearize(self) -> tuple[Array, Arrays] | None:
        """Keep the linearization of every batch; None, and another engine, where that fails."""
        room = math.inf if self._memory is None else float(self._memory)
        kept: list[tuple[float, Any]] = []
        answers: list[tuple[float, tuple[Array, Arrays]]] = []
        for weight, batch, arrays in self._feed:
            question = (self._form, batch, self._point, self._fixed, arrays)
            if self._auto and derivatives.blocked(self._form):
                self._use_reverse()
                return None
            try:
                if self._memory is not None:
                    room -= derivatives.kept_bytes(*question)
                if room < 0:
                    self._engine = "recompute"
                    self._note(
                        f"a kept linearization takes more than memory={self._memory} bytes; "
                        "every Hessian-vector product is recomputed"
                    )
                    return None
                loss, gradient, linear = derivatives.linearized(*question)
                self._try_forward(linear)
            except _UNDERIVABLE as e:
                if self._auto and "context mesh" in str(e).lower():
                    # Over Explicit axes not every linearization outlives its trace.
                    self._engine = "recompute"
                else:
                    self._fall_back(e)
                return None
            kept.append((weight, linear))
            answers.append((weight, (loss, gradient)))
        frozen: tuple[Array, Arrays] = self._feed.combine(answers)
        self._kept = kept
        return frozen

    def _try_forward(self, linear: Any) -> None:
        """Once per loss: a ``custom_vjp`` in a linearization raises only when it is lowered."""
        known = derivatives.forward_works(self._form)
        if known != [True]:
            derivatives.apply.lower(linear, self._point)
            known[:] = [True]

    def _product(self, d: Arrays, many: bool) -> Arrays:
        """∇²L d by the engine; the first question settles which one it is."""
        frozen, _ = self._freeze()
        product: Arrays
        if self._kept is not None:
            apply = derivatives.apply_many if many else derivatives.apply
            product = self._feed.combine((w, apply(linear, d)) for w, linear in self._kept)
            return product
        loss, product = self._feed.total(
            lambda batch, arrays: self._recomputed(batch, arrays, d, many)
        )
        if not self._feed.single and not isinstance(loss, jax.core.Tracer):
            self._check_unchanged(float(frozen), float(loss), _curvature(d, product))
        return product

    def _recomputed(self, batch: BatchForm, arrays: Arrays, d: Arrays, many: bool) -> Any:
        """(loss, product) of one batch."""
        question = (self._form, batch, self._point, self._fixed, arrays, d)
        if self._auto and self._engine == "recompute" and derivatives.blocked(self._form):
            self._use_reverse()
        if self._engine == "recompute":
            try:
                return _PRODUCTS["recompute"][many](*question)
            except _UNDERIVABLE as e:
                self._fall_back(e)
        try:
            return _PRODUCTS["reverse"][many](*question)
        except _UNDERIVABLE as e:
            if isinstance(e, GeodiagError):
                raise
            raise EngineError(
                "JAX cannot differentiate the gradient of this loss",
                got=f"{type(e).__name__}: {str(e).splitlines()[0]}",
                do='pass engine="finite-difference"',
            ) from e

    def _fall_back(self, error: Exception) -> None:
        """Go on in reverse mode if forward mode was the trouble; else raise ``error`` again."""
        text = str(error).lower()
        if isinstance(error, GeodiagError) or not any(mark in text for mark in _FORWARD_MARKS):
            raise error
        if not self._auto:
            raise EngineError(
                f"forward-mode differentiation, which engine={self._engine!r} needs, is blocked",
                got=f"{type(error).__name__}: {str(error).splitlines()[0]}",
                do='pass engine="auto" or engine="reverse"',
            ) from error
        self._use_reverse()

    def _use_reverse(self) -> None:
        derivatives.forward_works(self._form)[:] = [False]
        self._engine = "reverse"
        self._note(
            "forward-mode differentiation is blocked (by a custom_vjp); "
            "Hessian-vector products are reverse over reverse"
        )

    def _check_unchanged(self, frozen: float, found: float, curvature: float) -> None:
        """Raise if a pass met another loss than the frozen one.

        Two compiled programs may round differently: by a relative 0.3·√ε of the loss (1e-4 in
        float32, 4e-9 in float64) at most, or, where the loss nearly cancels or vanishes, by what a
        change of the parameters by δ = 1000·ε‖w‖ does to it. Other batches differ by far more.
        """
        if not (math.isfinite(frozen) and math.isfinite(found)):
            return
        if self._scales is None:
            self._scales = float(norm2(self.gradient())), float(norm2(self.point()))
        slope, length = self._scales
        eps = epsilon(self.point())
        delta = 1e3 * eps * length
        allowed = 0.3 * math.sqrt(eps) * abs(frozen) + delta * slope + delta**2 * curvature
        if abs(found - frozen) > allowed:
            raise DataError(
                "the data changed between passes: the loss at the same parameters is another one",
                got=f"{frozen!r}, then {found!r}",
                do="pass a list of batches, or a loader with a fixed order, no random "
                "augmentation and no dropped examples",
            )

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)


def _curvature(d: Arrays, product: Arrays) -> float:
    """|⟨d, Hd⟩|/‖d‖², and zero for d = 0."""
    along = sum(float(jnp.vdot(x, y)) for x, y in zip(d, product, strict=True))
    length2 = sum(float(jnp.vdot(x, x)) for x in d)
    return abs(along) / length2 if length2 else 0.0
