"""Products of a loss in fewer than 32 bits, compared with differences in 32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from geodiag.blocks import Blocks
from geodiag_torch.derivatives.batches import move, wide
from geodiag_torch.derivatives.evaluation import FLOAT32, Evaluation
from geodiag_torch.derivatives.fallback import FallbackProducts
from geodiag_torch.derivatives.forward import LossModule, T
from geodiag_torch.derivatives.objective import Objective
from geodiag_torch.derivatives.verdict import Verdict, judge
from geodiag_torch.state.rng import outside_inference


def compare_in_float32(evaluation: Evaluation, point: Blocks) -> Verdict | None:
    """The verdict on products of a loss in fewer than 32 bits; None where nothing can be compared.

    The loss is first computed without autocast, and where this does not suffice, with a copy of the
    model in 32 bits. Nothing can be compared where the model cannot be copied, insists on 16 bits,
    or casts to fewer itself.

    Raises:
        EngineError: they disagree, or are not symmetric.
    """
    objective = evaluation.objective

    def prepare(in_32_bits: bool) -> tuple[Evaluation, Blocks]:
        other = float32_copy(objective) if in_32_bits else objective
        return evaluation.without_autocast(other), other.leaves(point)

    for in_32_bits in (False, True) if evaluation.autocast else (True,):
        prepared = attempted(objective, partial(prepare, in_32_bits))
        found = None if prepared is None else attempted(objective, partial(_compare, *prepared))
        if found is not None:
            found.refuse_wrong("correct it, or measure model.float() outside of autocast")
            return found
    return None


def attempted(objective: Objective, run: Callable[[], T | None]) -> T | None:
    """``run()``, or None where it fails on any rank.

    A model may reject other dtypes with any exception, and memory may be short.
    """
    try:
        answer = outside_inference(run)
    except Exception:
        answer = None
    return None if objective.ranks.any(answer is None) else answer


def _compare(evaluation: Evaluation, leaves: dict[str, Tensor]) -> Verdict | None:
    """The verdict on products; None where they are computed in fewer than 32 bits."""
    here = evaluation.gradient(leaves)
    eps = evaluation.precision
    if eps is None or eps > FLOAT32:
        return None
    return judge(FallbackProducts(evaluation, leaves), here, partial(evaluation.hvp, leaves), eps)


def float32_copy(objective: Objective) -> Objective:
    """The objective of a copy of the model, with everything of fewer than 32 bits in 32 bits.

    Raises what torch and Python raise where a model cannot be copied.
    """
    # Modules that the loss reaches by its code are not copied.
    loss: LossModule = copy.deepcopy(
        objective.loss, _widened(objective.loss) | {id(objective.loss._tensors): None}
    )

    def value(model: nn.Module, batch: Any) -> Tensor:
        # A loss that closes over its model runs that one, whose buffers must be cloned as ever.
        batch = move(batch, objective.device, widened=True)
        return objective.with_leaves({}, lambda: loss.value(batch))

    others = {name: wide(x) for name, x in objective.others.items()}
    return replace(objective, loss=LossModule(loss.model, value, None), others=others)


def _widened(module: nn.Module) -> dict[int, Any]:
    """What a deep copy holds in the place of parameters and buffers, by their ids."""
    found: dict[int, Any] = {}
    for p in module.parameters():
        found[id(p)] = nn.Parameter(wide(p.detach()).clone(), p.requires_grad)
    for b in module.buffers():
        found[id(b)] = wide(b.detach()).clone()
    return found
