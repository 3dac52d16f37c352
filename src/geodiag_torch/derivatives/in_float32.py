"""A loss of fewer than 32 bits, computed in float32: by the same code, on a copy of the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from geodiag.blocks import Blocks
from geodiag.oracles import Oracle, same_loss
from geodiag_torch.derivatives.crosscheck import Passed
from geodiag_torch.derivatives.evaluation import FLOAT32, Evaluation
from geodiag_torch.derivatives.float32_copy import attempted, float32_copy
from geodiag_torch.derivatives.objective import Objective

FAILED = "float32"
LEAST = torch.finfo(torch.bfloat16).eps  # float16 too loses more than its own of a small loss


class WithoutAutocast(TorchFunctionMode):
    """Turns autocast off, inside of the user's code too, and notes whether it draws numbers.

    The same generator gives other numbers in another dtype.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device, self._before = device, self._state(device)
        self.drew = False

    @staticmethod
    def _state(device: torch.device) -> list[Tensor]:
        found = [torch.random.get_rng_state()]
        if device.type != "cpu":
            found.append(torch.get_device_module(device).get_rng_state(device))
        return found

    def __enter__(self) -> WithoutAutocast:
        self._before = self._state(self._device)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        after = self._state(self._device)
        self.drew |= not all(map(torch.equal, self._before, after))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.drew |= kwargs.get("generator") is not None
        with torch._C._DisableAutocast():
            return func(*args, **kwargs)


class Float32Oracle(Oracle):
    """Loss, gradient and products at ``point``, by an evaluation in float32."""

    def __init__(self, evaluation: Evaluation, point: Blocks) -> None:
        self._evaluation, self._objective = evaluation, evaluation.objective
        self.space, self._point = self._objective.space, point
        self._mode = WithoutAutocast(self._objective.device)
        evaluation.modes.append(self._mode)
        self._leaves = self._objective.leaves(point)
        self._first = evaluation.gradient(self._leaves)

    @property
    def precision(self) -> float:
        return self._evaluation.precision or 0.0

    @property
    def in_32_bits(self) -> bool:
        """Whether the loss is, and draws no numbers."""
        return self.precision <= FLOAT32 and not self._mode.drew

    def agrees(self, coarse: float, eps: float) -> bool:
        """Whether it is the loss of value ``coarse`` at w, again and again.

        What a copied model moves on itself, as a counter in its ``forward``, nothing gives back.
        """
        first, second = float(self.loss()), float(self.loss_at(self._point))
        return same_loss(coarse, first, max(eps, LEAST)) and same_loss(
            first, second, self.precision
        )

    def point(self) -> Blocks:
        return {name: x.clone() for name, x in self._point.items()}

    def loss(self) -> Tensor:
        return self._first[0].clone()

    def gradient(self) -> Blocks:
        return {name: g.clone() for name, g in self._first[1].items()}

    def hvp(self, d: Blocks) -> Blocks:
        return self._evaluation.hvp(self._leaves, d)

    def loss_at(self, params: Blocks) -> Tensor:
        leaves = self._objective.leaves(params)
        return self._evaluation.sum(leaves, lambda value, _: {})[0]

    def gradient_at(self, params: Blocks) -> Blocks:
        return self._evaluation.gradient(self._objective.leaves(params))[1]


def in_float32(evaluation: Evaluation, point: Blocks, loss: float) -> Oracle | None:
    """See :meth:`geodiag.oracles.Oracle.in_float32`; one gradient and one loss, or two of each.

    The model is copied, unless autocast is all that makes the loss coarser. None where that fails,
    where the loss casts to fewer bits itself, draws random numbers, or is not ``loss``, up to its
    rounding. For each model and loss that draws or casts it is tried once.
    """
    objective, coarse = evaluation.objective, evaluation.precision
    passed = Passed(evaluation, FAILED)
    if not objective.loss.steady or objective.ranks.any(passed.here(FAILED)):
        return None

    def prepare(by_copy: bool) -> Objective:
        return evaluation.inside({}, partial(float32_copy, objective)) if by_copy else objective

    def evaluated(other: Objective) -> Float32Oracle:
        return Float32Oracle(evaluation.without_autocast(other), point)

    narrow = any(torch.finfo(p.dtype).eps > FLOAT32 for p in objective.live().values())
    failed = False
    for by_copy in (True,) if narrow else (False, True):
        found = None
        if (other := attempted(objective, partial(prepare, by_copy))) is not None:
            found = attempted(objective, partial(evaluated, other))
        if found is None:
            failed = True
        elif not objective.ranks.any(not found.in_32_bits):
            agrees = attempted(objective, partial(found.agrees, loss, coarse or 0.0))
            return None if objective.ranks.any(not agrees) else found
    passed.here(FAILED, not failed)
    return None
