"""Fallback and independent HVPs: finite differences of gradients, and jittered parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geodiag.blocks import Blocks, axpy, map_blocks, norm2, scale, subtract
from geodiag.errors import EngineError
from geodiag.oracles import Differences, jittered_hvp
from geodiag_torch.derivatives.autograd import derivative
from geodiag_torch.derivatives.evaluation import FLOAT32, Evaluation
from geodiag_torch.derivatives.forward import Leaves
from geodiag_torch.derivatives.objective import Objective
from geodiag_torch.derivatives.stop_gradient import Constants, Diverged, is_due_to

# What a loss in float16 is multiplied by, to see whether its gradients underflow: 6e-8 becomes
# 6e-5, the smallest number with full precision; gradients of up to 64 do not overflow.
SCALE = 2.0**10
# A change of the gradient by what is detached that counts: relative to its whole change; and one of
# the gradient or the loss, relative to the rounding.
HELD_TOLERANCE, ROUNDING = 1e-3, 100.0


class FallbackProducts:
    """Products for one oracle, at its ``leaves``; it holds no reference to the oracle."""

    def __init__(self, evaluation: Evaluation, leaves: Leaves) -> None:
        self._evaluation, self._leaves = evaluation, leaves
        self._objective = evaluation.objective
        self.space = evaluation.objective.space
        self._differences: Differences | None = None
        self.constants: Constants | None = None  # what differences hold constant

    def point(self) -> Blocks:
        """The leaves in the measurement dtype."""
        dtype = self._objective.dtype
        return {name: x.detach().to(dtype) for name, x in self._leaves.items()}

    def hvp(self, d: Blocks, eps: float, notes: Iterable[str]) -> Blocks:
        """A central difference of gradients, see :func:`differences`."""
        if self._differences is None:
            self._differences = differences(self.point(), eps, notes)
        return self._differences.hvp(self.gradient_at, d)

    def independent_hvp(self, d: Blocks, eps: float) -> Blocks | None:
        """See :meth:`geodiag.oracles.Oracle.independent_hvp`."""
        if self._differences is not None:
            return self._differences.independent_hvp(self.gradient_at, d)
        if not eps > FLOAT32:
            return None
        noise = self._objective.space.random(np.random.default_rng(0))
        return jittered_hvp(self.point(), noise, eps, d, self._hvp_at)

    def underflow_note(self, gradient: Blocks, eps: float) -> str | None:
        """A note where gradients in float16 underflow: those of a scaled loss differ then."""
        if eps != torch.finfo(torch.float16).eps:
            return None

        def part(value: Tensor, weight: float) -> Leaves:
            return derivative(value * SCALE, self._leaves)

        scaled = scale(self._evaluation.sum(self._leaves, part)[1], 1 / SCALE)
        change, size = float(norm2(subtract(scaled, gradient))), float(norm2(scaled))
        if not change > 16 * eps * size:  # nor where the scaled ones are not finite
            return None
        return (
            f"gradients vanish in float16: with the loss scaled by {SCALE:.0f} they change by "
            f"{change / size:.2g} of it; scale the loss, or measure in bfloat16 or float32"
        )

    def gradient_at(self, params: Blocks) -> Blocks:
        """The gradient at other parameters, with the padding rows of embeddings fixed."""
        return self.pass_at(params)[1]

    def pass_at(self, params: Blocks) -> tuple[Tensor, Blocks]:
        """The loss and :meth:`gradient_at`; what is detached is as it is at the point, if held."""
        return self._pass(params, self.constants)

    def detached(self, here: tuple[Tensor, Blocks], eps: float) -> tuple[Constants, bool] | None:
        """What is detached in the loss, where holding it constant changes the gradient or the loss.

        And whether it changes the loss nearby to first order, so that the gradient, to which it is
        constant, is not that of the loss. ``here``: the loss and its gradient at the point. Costs
        five gradients, and eight more where only the gradient changes.

        :class:`Diverged` is raised where the passes differ in what they compute, fail while they
        are watched, or are in fewer than 32 bits.
        """
        if eps > FLOAT32:
            raise Diverged
        constants, point, h = Constants(), self.point(), eps ** (1 / 3)
        self._watched(point, constants)

        def differ(free: Blocks, held: Blocks, change: float, size: float) -> bool:
            return float(norm2(subtract(free, held))) > max(change, ROUNDING * eps * size)

        for seed in range(3):
            d = random_direction(point, seed)
            near, opposite = (axpy(x, d, point) for x in (h, -h))
            free, held = self._pass(near, None), self._watched(near, constants)
            passes = (free, self._pass(opposite, None)), (held, self._watched(opposite, constants))
            moved, constant = ({"loss": ahead[0] - back[0]} for ahead, back in passes)
            steepest = max(float(norm2(moved)), float(norm2(constant)))
            if differ(moved, constant, 10 * h**2 * steepest, abs(float(here[0]))):
                return constants, True
            change = max(float(norm2(subtract(x[1], here[1]))) for x in (free, held))
            if not differ(free[1], held[1], HELD_TOLERANCE * change, float(norm2(here[1]))):
                return None
        return constants, False

    def _watched(self, params: Blocks, constants: Constants) -> tuple[Tensor, Blocks]:
        found: tuple[Tensor, Blocks] | None = None
        try:
            found = self._pass(params, constants)
        except Exception as e:
            if self._objective.ranks.size == 1 and not is_due_to(e):
                raise
        if self._objective.ranks.any(found is None) or found is None:
            raise Diverged
        return found

    def _pass(self, params: Blocks, constants: Constants | None) -> tuple[Tensor, Blocks]:
        padding = partial(fixed_padding, self._objective, self._leaves)
        with self._evaluation.holding(constants):
            return self._evaluation.gradient(self._objective.leaves(params), padding)

    def _hvp_at(self, params: Blocks, d: Blocks) -> Blocks:
        return self._evaluation.hvp(self._objective.leaves(params), d)


def differences(point: Blocks, eps: float, notes: Iterable[str]) -> Differences:
    """Central differences of gradients that are rounded to a relative ``eps``.

    ``notes``: why finite differences are used, for the error.

    Raises:
        EngineError: ``eps`` is larger than that of float32.
    """
    if eps > FLOAT32:
        raise EngineError(
            "finite differences need a loss that is computed in at least 32 bits",
            got="; ".join((f"a relative precision of {eps:.1g} from parameters to loss", *notes)),
            do="measure model.float(), outside of autocast and without a MixedPrecisionPolicy",
        )
    return Differences(point, eps)


def random_direction(point: Blocks, seed: int) -> Blocks:
    """Normal blocks, each scaled to its parameter's root mean square, or the overall one if 0."""
    device = next(iter(point.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    overall = float(norm2(point)) / sum(x.numel() for x in point.values()) ** 0.5 or 1.0

    def draw(x: Tensor) -> Tensor:
        size = float(x.square().mean().sqrt()) or overall
        return size * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device)

    return map_blocks(draw, point)


@contextmanager
def fixed_padding(objective: Objective, leaves: Leaves) -> Iterator[None]:
    """Inside, embeddings return for padding the row of ``leaves``, whatever their weight is.

    The gradient skips the row ``padding_idx`` of an embedding, though the loss may depend on it:
    training does not change it. Second derivatives skip it too; differences of gradients would not.
    To be entered before leaves replace the parameters.
    """
    names = {id(p): name for name, p in objective.live().items()}
    with ExitStack() as hooks:
        for m in objective.loss.model.modules():
            if isinstance(m, nn.Embedding) and m.padding_idx is not None and id(m.weight) in names:
                row = leaves[names[id(m.weight)]].detach()[m.padding_idx]
                hooks.enter_context(
                    m.register_forward_hook(partial(_padded, row), with_kwargs=True)
                )
        yield


def _padded(
    row: Tensor,
    module: nn.Embedding,
    inputs: tuple[Any, ...],
    named: dict[str, Any],
    output: Tensor,
) -> Tensor:
    indices = inputs[0] if inputs else named["input"]
    here = (indices == module.padding_idx).unsqueeze(-1)
    return torch.where(here, row.to(output.dtype), output)
