"""Fallback and cross-check HVPs: finite differences, jittered rounding, no autocast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from geodiag.blocks import Blocks, norm2, scale, subtract
from geodiag.errors import EngineError
from geodiag.oracles import Differences, jittered_hvp
from geodiag_torch.derivatives.evaluation import Passes
from geodiag_torch.derivatives.float32_copy import in_single
from geodiag_torch.derivatives.forward import Leaves
from geodiag_torch.derivatives.graph import derivative
from geodiag_torch.derivatives.padding import held, padding_rows
from geodiag_torch.state.rng import outside_inference

if TYPE_CHECKING:
    from geodiag_torch.oracle import TorchOracle
    from geodiag_torch.problem import TorchProblem

T = TypeVar("T")

# What a loss in float16 is scaled by, to see whether its gradients vanish: 6e-8 becomes 6e-5, from
# where on numbers have all their digits; gradients of up to 64 do not overflow.
SCALE = 2.0**10
FLOAT32 = torch.finfo(torch.float32).eps


def _itself(problem: TorchProblem) -> TorchProblem:
    return problem


def _compared(twin: TorchOracle) -> tuple[float | None] | None:
    """A disagreement of products in single precision; None where they are coarser."""
    return None if twin.precision > FLOAT32 else (twin.disagreement(),)


class Otherwise:
    """For one oracle, at its ``leaves``; it holds no reference to it."""

    def __init__(self, problem: TorchProblem, passes: Passes, leaves: Leaves) -> None:
        self._problem, self._passes, self._leaves = problem, passes, leaves
        self._differences: Differences | None = None

    def difference(self, d: Blocks, eps: float, notes: list[str]) -> Blocks:
        """A product by differences of gradients that are rounded to a relative ``eps``.

        Raises:
            EngineError: they are rounded to less than single precision.
        """
        if self._differences is None:
            if eps > FLOAT32:
                why = "".join(f"; {note}" for note in notes)
                raise EngineError(
                    "finite differences need a loss that is computed in at least 32 bits",
                    got=f"a relative precision of {eps:.1g} on the way from parameters to loss"
                    + why,
                    do="measure model.float(), outside of autocast",
                )
            self._differences = Differences(self._point(), eps)
        return self._differences.hvp(self.slope, d)

    def independent_hvp(self, d: Blocks, eps: float) -> Blocks | None:
        """See :meth:`geodiag.oracles.base.Oracle.independent_hvp`."""
        if self._differences is not None:
            return self._differences.independent_hvp(self.slope, d)
        if not eps > FLOAT32:
            return None
        noise = self._problem.space.random(np.random.default_rng(0))
        return jittered_hvp(self._point(), noise, eps, d, self._elsewhere)

    def vanishing(self, gradient: Blocks, eps: float) -> str | None:
        """A note where gradients in float16 vanish: where those of a loss scaled up are others."""
        if eps != torch.finfo(torch.float16).eps:
            return None

        def part(value: torch.Tensor, weight: float) -> Leaves:
            return derivative(value * SCALE, self._leaves)

        scaled = scale(self._passes.sum(self._leaves, part)[1], 1 / SCALE)
        change, size = float(norm2(subtract(scaled, gradient))), float(norm2(scaled))
        if not change > 16 * eps * size:  # nor where the scaled ones are not finite
            return None
        return (
            f"gradients vanish in float16: with the loss scaled by {SCALE:.0f} they change by "
            f"{change / size:.2g} of it; scale the loss, or measure in bfloat16 or float32"
        )

    def slope(self, params: Blocks) -> Blocks:
        """The gradient at other parameters, as differences need it."""
        rows = padding_rows(self._problem.loss.model, self._problem.live(), self._leaves)
        leaves = outside_inference(lambda: self._problem.leaves(params))
        return self._passes.gradient(leaves, partial(held, rows))[1]

    def checked(self, at_model: bool) -> tuple[bool, float | None]:
        """Whether products could be compared with differences in single precision, and how far
        apart they were, where they disagreed.

        The loss is then that without autocast; where this does not do, that of a copy of the model
        in 32 bits. Nothing can be compared where the model cannot be copied, insists on 16 bits, or
        makes some of its own.
        """
        for way in (_itself, in_single) if self._passes.autocast else (in_single,):
            twin = self._attempt(partial(self._twin, way, at_model))
            compared = None if twin is None else self._attempt(partial(_compared, twin))
            if compared is not None:
                return True, compared[0]
        return False, None

    def _twin(self, way: Callable[[TorchProblem], TorchProblem], at_model: bool) -> TorchOracle:
        with torch.autocast(self._problem.device.type, enabled=False):
            return way(self._problem).at(None if at_model else self._point())

    def _attempt(self, run: Callable[[], T | None]) -> T | None:
        """None where it fails on any rank: a model may object to other numbers in any way."""
        try:
            answer = outside_inference(run)
        except Exception:
            answer = None
        return None if self._problem.ranks.any(answer is None) else answer

    def _elsewhere(self, params: Blocks, d: Blocks) -> Blocks:
        """A product at other parameters, with the same randomness, of which no graph is kept."""
        return self._problem.at(params).once(self._passes, d)

    def _point(self) -> Blocks:
        return {k: x.detach().to(self._problem.dtype) for k, x in self._leaves.items()}
