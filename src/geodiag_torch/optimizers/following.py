"""The problem of the parameters that an optimizer moves at the time of a record."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from torch.optim import Optimizer

from geodiag.core.selection import Where
from geodiag.errors import ArgumentError
from geodiag.norms import Norm
from geodiag.problems import NormSource
from geodiag_torch.optimizers.geometry import LiveGeometry
from geodiag_torch.optimizers.selection import Named, Selection, selection
from geodiag_torch.problem import TorchProblem
from geodiag_torch.state.names import unwrap


class Following:
    """The problem and the geometry of those of a model's parameters that an optimizer moves.

    Args:
        optimizer: held weakly.
        model: the module.
        where: only these.
        arguments: the others of :class:`TorchProblem`.
        source: see :class:`LiveGeometry`, like the next one.
        required: whether a norm must be known.

    Attributes:
        problem: of the parameters that are measured.
        geometry: of the optimizer on them.

    Raises:
        GeodiagError: nothing can be measured so.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        where: Where,
        arguments: dict[str, Any],
        source: NormSource | None,
        required: bool = True,
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._model, self._where, self._arguments = model, where, arguments
        self.problem = TorchProblem(model, where=where, **arguments)
        chosen = self.now().chosen
        if set(chosen) != set(self.problem.space.names):
            self.problem = self._problem_of(chosen)
        self._key = _key(chosen)
        self.geometry = LiveGeometry(optimizer, chosen, self.problem.space, source, required)
        oracle = self.problem.at()
        oracle.loss_at(oracle.point())  # one forward pass, so that an unusable loss raises here
        known = source is None and required and not self.geometry.of_the_step(chosen)
        if isinstance(source, Norm) or known:
            self.geometry.norm().bind(self.problem.space)

    def now(self) -> Selection:
        """What the optimizer holds now.

        Raises:
            ParameterError: nothing that is to be measured.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            raise ArgumentError("the optimizer is gone", do="attach to the new one")
        return selection(optimizer, unwrap(self._model), self._where)

    def moved(self, chosen: Named) -> Named:
        """Those for which the optimizer has a state, after its step; all where it has none."""
        optimizer = self._optimizer()
        states = {} if optimizer is None else optimizer.state
        known = {name: p for name, p in chosen.items() if states.get(p)}
        return known or chosen

    def follow(self, chosen: Named) -> bool:
        """Measure these from now on; whether the problem is another one."""
        key = _key(chosen)
        other = key != self._key
        if other:
            problem = self._problem_of(chosen)
            self.problem.close()
            self.problem, self._key = problem, key
        self.geometry.follow(chosen, self.problem.space)
        return other

    def _problem_of(self, chosen: Named) -> TorchProblem:
        names = set(chosen)
        return TorchProblem(self._model, where=lambda name, p: name in names, **self._arguments)


def _key(chosen: Named) -> tuple[Any, ...]:
    """What the problem of these parameters depends on."""
    return tuple((name, tuple(p.shape), p.dtype, p.device) for name, p in chosen.items())
