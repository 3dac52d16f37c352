"""Is a Hessian-vector product the derivative of the gradient? Checked once per model.

A compiled or custom backward pass, or a detached part of the loss, can give products that are not.
They are compared with finite differences of the gradient, and refused only where the error of the
difference cannot explain the disagreement: kinks (ReLU) and rounding move the difference itself,
which shows when its step is doubled.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from geodiag.blocks import Blocks, axpy, map_blocks, norm2, scale, subtract
from geodiag.errors import EngineError
from geodiag_torch.derivatives.batches import move, wide
from geodiag_torch.derivatives.evaluation import FLOAT32, Evaluation
from geodiag_torch.derivatives.fallback import FallbackProducts
from geodiag_torch.derivatives.forward import LossModule, T
from geodiag_torch.derivatives.objective import Objective
from geodiag_torch.state.rng import outside_inference

# How far a product may be from the difference, relative to their size: far above the rounding of
# the difference (up to 3e-3 in float32), and below what a dropped term makes (3e-2 and more).
TOLERANCE = 0.02
# How far, relative to what doubling the step changes. For true products this was at most 1 where
# the gradient is smooth, and 2.7 where it jumps (ReLU, max-pooling, ℓ1 losses), but more for the
# sum of very many equal jumps: 5 for the ℓ1 loss of 10⁵ residuals in float32, 12 for 10⁶.
RESOLVED = 10.0

Product = Callable[[Blocks], Blocks]

# The checks that each model has passed.
_passed: weakref.WeakKeyDictionary[nn.Module, set[Hashable]] = weakref.WeakKeyDictionary()


def passed(model: nn.Module) -> set[Hashable]:
    """The checks that this model has passed; to be added to."""
    return _passed.setdefault(model, set())


def disagreement(
    point: Blocks, gradient: Blocks, hvp: Product, gradient_at: Product, eps: float
) -> float | None:
    """The relative difference of products and central differences, where they disagree.

    The directions are random and move every tensor in proportion to its own size. Where the
    difference of gradients is too inaccurate to tell, the answer is None: a disagreement must show
    in two directions. The step √ε is smaller than the best for smooth gradients, and crosses fewer
    kinks. Costs two gradients and one product where they agree, and at most eight and two.
    """
    h = eps**0.5
    rounding = eps / h * norm2(gradient)
    found = 0.0

    def slope(h: float, d: Blocks) -> Blocks:
        ahead, behind = (gradient_at(axpy(t, d, point)) for t in (h, -h))
        return scale(subtract(ahead, behind), 0.5 / h)

    for seed in (0, 1):
        d = _direction(point, seed)
        exact, near = hvp(d), slope(h, d)
        # A gradient that does not change is rounded or quantised by the model: it tells nothing.
        if agree(exact, near) or float(norm2(near)) == 0.0:
            return None
        error = subtract(exact, near)
        uncertainty = norm2(subtract(slope(2 * h, d), near)) + rounding
        if not norm2(error) > RESOLVED * uncertainty:
            return None
        found = _relative(error, exact, near)
    return found


def refuse(found: float | None, do: str) -> None:
    """Raise an EngineError where :func:`disagreement` has found one; ``do``: what to do then."""
    if found is not None:
        raise EngineError(
            "Hessian-vector products disagree with finite differences of the gradient",
            got=f"a relative difference of {found:.2g}, as a compiled function, a custom autograd "
            "function or a detached part can make",
            do=do,
        )


def agree(a: Blocks, b: Blocks) -> bool:
    """Whether two products are equal within the accuracy of differences; also where one is NaN."""
    return not _relative(subtract(a, b), a, b) > TOLERANCE


def weighted_sum(stack: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of a stack's rows, the k-th with weight k."""

    def total(x: Tensor) -> Tensor:
        weights = torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device)
        added: Tensor = torch.tensordot(weights, x, dims=1)
        return added

    return {name: total(x) for name, x in stack.items()}


def compare_in_float32(evaluation: Evaluation, point: Blocks) -> bool:
    """Whether products could be compared, where the loss is computed in fewer than 32 bits.

    The loss is first computed without autocast, and where this does not suffice, with a copy of the
    model in 32 bits. Nothing can be compared where the model cannot be copied, insists on 16 bits,
    or casts to fewer itself.

    Raises:
        EngineError: they disagree.
    """
    objective = evaluation.objective

    def attempt(run: Callable[[], T | None]) -> T | None:
        """None where it fails on any rank: a model may reject other dtypes with any exception."""
        try:
            answer = outside_inference(run)
        except Exception:
            answer = None
        return None if objective.ranks.any(answer is None) else answer

    def prepare(in_32_bits: bool) -> tuple[Evaluation, Blocks]:
        other = float32_copy(objective) if in_32_bits else objective
        return evaluation.without_autocast(other), other.leaves(point)

    for in_32_bits in (False, True) if evaluation.autocast else (True,):
        prepared = attempt(partial(prepare, in_32_bits))
        found = None if prepared is None else attempt(partial(_compare, *prepared))
        if found is not None:
            refuse(found[0], "correct it, or measure model.float() outside of autocast")
            return True
    return False


def _compare(evaluation: Evaluation, leaves: dict[str, Tensor]) -> tuple[float | None] | None:
    """The disagreement of products; None where they are computed in fewer than 32 bits."""
    gradient = evaluation.gradient(leaves)[1]
    eps = evaluation.precision
    if eps is None or eps > FLOAT32:
        return None
    fallback = FallbackProducts(evaluation, leaves)
    product = partial(evaluation.hvp, leaves)
    return (disagreement(fallback.point(), gradient, product, fallback.gradient_at, eps),)


def float32_copy(objective: Objective) -> Objective:
    """The objective of a copy of the model, with everything of fewer than 32 bits in 32 bits.

    Raises what torch and Python raise where a model cannot be copied.
    """
    loss: LossModule = copy.deepcopy(objective.loss, _widened(objective.loss))

    def value(model: nn.Module, batch: Any) -> Tensor:
        # A loss that closes over its model runs that one, whose buffers must be cloned as ever.
        batch = move(batch, objective.device, widened=True)
        return objective.with_leaves({}, lambda: loss.value(batch))

    return replace(objective, loss=LossModule(loss.model, value, None))


def _widened(module: nn.Module) -> dict[int, Any]:
    """What a deep copy holds in the place of parameters and buffers, by their ids."""
    found: dict[int, Any] = {}
    for p in module.parameters():
        found[id(p)] = nn.Parameter(wide(p.detach()).clone(), p.requires_grad)
    for b in module.buffers():
        found[id(b)] = wide(b.detach()).clone()
    return found


def _relative(error: Blocks, a: Blocks, b: Blocks) -> float:
    size = max(float(norm2(a)), float(norm2(b)))
    return float(norm2(error)) / size if size > 0.0 else 0.0


def _direction(point: Blocks, seed: int) -> Blocks:
    """Normal blocks, each scaled to its parameter's root mean square, or the overall one if 0."""
    device = next(iter(point.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    overall = float(norm2(point)) / sum(x.numel() for x in point.values()) ** 0.5 or 1.0

    def draw(x: torch.Tensor) -> torch.Tensor:
        size = float(x.square().mean().sqrt()) or overall
        return size * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device)

    return map_blocks(draw, point)
