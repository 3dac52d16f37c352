"""Is a Hessian-vector product the derivative of the gradient? Once per model, by differences.

A compiled or custom backward, or a detached part of the loss, can give products that are not. They
are refused only where the error of the difference cannot explain what is seen: kinks (ReLU) and
rounding move the difference itself, which shows when its step is doubled.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

import torch
from torch import nn

from geodiag.blocks import Blocks, axpy, map_blocks, norm2, scale, subtract
from geodiag.errors import EngineError
from geodiag.oracles import Oracle

# How far a product may be from the difference, relative to their size: far above the rounding of
# the difference (up to 3e-3 in float32), and below what a dropped term makes (3e-2 and more).
TOLERANCE = 0.02
# How far, relative to what doubling the step changes. For true products this was at most 1 where
# the gradient is smooth, and 2.7 where it jumps (ReLU, max-pooling, ℓ1 losses), but more for the
# sum of very many equal jumps: 5 for the ℓ1 loss of 10⁵ residuals in float32, 12 for 10⁶.
RESOLVED = 10.0

Product = Callable[[Blocks], Blocks]

# For each model, the checks that it passed.
_passed: weakref.WeakKeyDictionary[nn.Module, set[Hashable]] = weakref.WeakKeyDictionary()


def passed(model: nn.Module) -> set[Hashable]:
    """The checks that this model passed, to be added to."""
    return _passed.setdefault(model, set())


def disagreement(oracle: Oracle, hvp: Product, gradient_at: Product, eps: float) -> float | None:
    """Products against central differences of gradients, along random directions: how far they
    are from each other, where they disagree.

    The directions move every tensor in proportion to its own size. Where the difference cannot
    tell, nothing is said: an alarm needs two directions. The step √ε is smaller than the best for
    smooth gradients, and crosses fewer kinks. Costs two gradients and one product where they
    agree, and at most eight and two.
    """
    h, point = eps**0.5, oracle.point()
    rounding = eps / h * norm2(oracle.gradient())
    found = 0.0

    def slope(h: float, d: Blocks) -> Blocks:
        ahead, behind = (gradient_at(axpy(t, d, point)) for t in (h, -h))
        return scale(subtract(ahead, behind), 0.5 / h)

    for seed in (0, 1):
        d = _direction(point, seed)
        exact, near = hvp(d), slope(h, d)
        # A gradient that stands still is rounded or quantised by the model: no measure of products.
        if agree(exact, near) or float(norm2(near)) == 0.0:
            return None
        error = subtract(exact, near)
        unsure = norm2(subtract(slope(2 * h, d), near)) + rounding
        if not norm2(error) > RESOLVED * unsure:
            return None
        found = _relative(error, exact, near)
    return found


def refuse(found: float | None, do: str) -> None:
    """Let products pass that do not disagree.

    Raises:
        EngineError: these do.
    """
    if found is not None:
        raise EngineError(
            "Hessian-vector products disagree with finite differences of the gradient",
            got=f"a relative difference of {found:.2g}, as a compiled function, a custom autograd "
            "function or a detached part can make",
            do=do,
        )


def agree(a: Blocks, b: Blocks) -> bool:
    """Whether two products are equal to what a difference can tell; also where one is NaN."""
    return not _relative(subtract(a, b), a, b) > TOLERANCE


def _relative(error: Blocks, a: Blocks, b: Blocks) -> float:
    size = max(float(norm2(a)), float(norm2(b)))
    return float(norm2(error)) / size if size > 0.0 else 0.0


def _direction(point: Blocks, seed: int) -> Blocks:
    """Normal blocks, each scaled to its parameter's root mean square (to the overall one if 0)."""
    device = next(iter(point.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    overall = float(norm2(point)) / sum(x.numel() for x in point.values()) ** 0.5 or 1.0

    def draw(x: torch.Tensor) -> torch.Tensor:
        size = float(x.square().mean().sqrt()) or overall
        return size * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device)

    return map_blocks(draw, point)
