"""Is a Hessian-vector product the derivative of the gradient? Checked once per model.

A compiled or custom backward pass can give products that are not. They are compared with finite
differences of the gradient, and a disagreement counts only where the error of the difference cannot
explain it: kinks (ReLU) and rounding move the difference itself, which shows when its step is
doubled. A detached part of the loss makes the two disagree too, though the product is right: then
they are compared again with the detached parts held constant.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor, nn

from geodiag.blocks import Blocks, axpy, norm2, scale, subtract
from geodiag_torch.derivatives.evaluation import Evaluation
from geodiag_torch.derivatives.fallback import random_direction
from geodiag_torch.derivatives.graph_inspection import Structure

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


class Passed:
    """The checks that a model has passed, with the same loss, operations, dtypes and device."""

    def __init__(self, evaluation: Evaluation, dtypes: Hashable) -> None:
        self._evaluation, self._dtypes = evaluation, dtypes
        self._everywhere: set[str] = set()  # those that are known to have passed on every rank
        self.structure: Structure | None = None  # of the gradient, once it was inspected

    def here(self, what: str, now: bool = False) -> bool:
        """Whether this check passed before, or ``now``."""
        objective = self._evaluation.objective
        loss = objective.loss
        codes = tuple(getattr(f, "__code__", type(f)) for f in (loss.loss_fn, loss.criterion))
        operations = self.structure, self._evaluation.operations
        key = what, operations, codes, self._dtypes, objective.device.type, objective.stop_gradient
        known = _passed.setdefault(loss.model, set())
        if now:
            known.add(key)
        return key in known

    def everywhere(self, what: str) -> bool:
        """Whether it passed on every rank."""
        if what not in self._everywhere:
            if self._evaluation.objective.ranks.any(not self.here(what)):
                return False
            self._everywhere.add(what)
        return True


def disagreement(
    point: Blocks,
    gradient: Blocks,
    hvp: Product,
    gradient_at: Product,
    eps: float,
    custom: bool = False,
) -> float | None:
    """The relative difference of products and central differences, where they disagree.

    The directions are random and move every tensor in proportion to its own size. Where the
    difference of gradients is too inaccurate to tell, the answer is None: a disagreement must show
    in two directions. The step √ε is smaller than the best for smooth gradients, and crosses fewer
    kinks. Custom functions may be a small part of a model: with them the best step is tried too.
    Costs two gradients and one product where they agree, and at most eight and two; with custom
    functions twice that.
    """
    for h, tolerance in ((eps**0.5, TOLERANCE), (eps ** (1 / 3), eps**0.4))[: 1 + custom]:
        found = _disagreement(point, gradient, hvp, gradient_at, eps, h, tolerance)
        if found is not None:
            return found
    return None


def _disagreement(
    point: Blocks,
    gradient: Blocks,
    hvp: Product,
    gradient_at: Product,
    eps: float,
    h: float,
    tolerance: float,
) -> float | None:
    """The same for a step and a tolerance."""
    rounding = eps / h * norm2(gradient)
    found = 0.0

    def slope(h: float, d: Blocks) -> Blocks:
        ahead, behind = (gradient_at(axpy(t, d, point)) for t in (h, -h))
        return scale(subtract(ahead, behind), 0.5 / h)

    for seed in (0, 1):
        d = random_direction(point, seed)
        exact, near = hvp(d), slope(h, d)
        # A gradient that does not change is rounded or quantised by the model: it tells nothing.
        if agree(exact, near, tolerance) or float(norm2(near)) == 0.0:
            return None
        error = subtract(exact, near)
        uncertainty = norm2(subtract(slope(2 * h, d), near)) + rounding
        if not norm2(error) > RESOLVED * uncertainty:
            return None
        found = _relative(error, exact, near)
    return found


def agree(a: Blocks, b: Blocks, tolerance: float = TOLERANCE) -> bool:
    """Whether two products are equal within the accuracy of differences; also where one is NaN."""
    return not _relative(subtract(a, b), a, b) > tolerance


def weighted_sum(stack: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of a stack's rows, the k-th with weight k."""

    def total(x: Tensor) -> Tensor:
        weights = torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device)
        added: Tensor = torch.tensordot(weights, x, dims=1)
        return added

    return {name: total(x) for name, x in stack.items()}


def _relative(error: Blocks, a: Blocks, b: Blocks) -> float:
    size = max(float(norm2(a)), float(norm2(b)))
    return float(norm2(error)) / size if size > 0.0 else 0.0
