"""What the oracles of torch share, of whole and of sharded parameters."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from geodiag.blocks import Blocks
from geodiag.oracles import Oracle
from geodiag_torch.derivatives.evaluation import FLOAT32, Evaluation
from geodiag_torch.derivatives.in_float32 import in_float32
from geodiag_torch.derivatives.objective import Objective
from geodiag_torch.state.staleness import Versions


class FrozenOracle(Oracle):
    """An oracle at a frozen point; it raises StaleOracle once the model has changed."""

    _versions: Versions
    _first: tuple[Tensor, Blocks] | None = None

    def __init__(self, objective: Objective) -> None:
        self._objective, self.space = objective, objective.space
        self._evaluation = Evaluation(objective)

    @abstractmethod
    def _loss_and_gradient(self) -> tuple[Tensor, Blocks]:
        """Both at the point; from the second call on those of ``_first``."""

    @property
    def precision(self) -> float:
        if self._evaluation.precision is None:
            self._loss_and_gradient()
        assert self._evaluation.precision is not None
        return self._evaluation.precision

    @property
    def steady(self) -> bool:
        return bool(self._objective.loss.steady)

    def in_float32(self) -> Oracle | None:
        if not self.precision > FLOAT32:
            return None
        return in_float32(self._evaluation, self.point(), float(self._loss_and_gradient()[0]))

    def surroundings(self) -> AbstractContextManager[Any]:
        kind = self._objective.device.type
        if not torch.is_autocast_enabled(kind):
            return nullcontext()
        return torch.autocast(kind, enabled=False)

    def loss(self) -> Tensor:
        self._versions.check()
        return self._loss_and_gradient()[0].clone()

    def gradient(self) -> Blocks:
        self._versions.check()
        return {name: g.clone() for name, g in self._loss_and_gradient()[1].items()}
