"""The problem of the parameters that the optimizers move at the time of a record."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from geodiag.core.selection import Where
from geodiag.norms import Norm
from geodiag.problems import NormSource
from geodiag_torch.optimizers.geometry import LiveGeometry, alive
from geodiag_torch.optimizers.selection import Named, Selection, selection
from geodiag_torch.problem import TorchProblem
from geodiag_torch.sharding.detection import sharding_of
from geodiag_torch.state.module_tensors import ModuleTensors
from geodiag_torch.state.names import unwrap


class Following:
    """The problem and the geometry of those of a model's parameters that its optimizers move.

    Args:
        optimizers: held weakly.
        model: the module.
        where: only these.
        arguments: the others of :class:`TorchProblem`.
        source: see :class:`LiveGeometry`, like the next one.
        required: whether a norm must be known.

    Attributes:
        problem: of the parameters that are measured.
        geometry: of the optimizers on them.

    Raises:
        GeodiagError: nothing can be measured so.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        model: nn.Module,
        where: Where,
        arguments: dict[str, Any],
        source: NormSource | None,
        required: bool = True,
    ) -> None:
        self._optimizers = [weakref.ref(each) for each in optimizers]
        self._model, self._where, self._arguments = model, where, arguments
        self._seen: tuple[ModuleTensors | None, list[object], Selection | None] = None, [], None
        self.problem = TorchProblem(model, where=where, **arguments)
        chosen = self.now().chosen
        if set(chosen) != set(self.problem.space.names):
            self.problem = self._problem_of(chosen)
        self._key = _key(chosen)
        self.geometry = LiveGeometry(optimizers, chosen, self.problem.space, source, required)
        oracle = self.problem.at()
        oracle.loss_at(oracle.point())  # one forward pass, so that an unusable loss raises here
        known = source is None and required and not self.geometry.of_the_step(chosen)
        if isinstance(source, Norm) or known:
            self.geometry.check()

    def now(self) -> Selection:
        """What the optimizers hold now.

        Raises:
            ParameterError: nothing that is to be measured.
        """
        optimizers, tensors = alive(self._optimizers), self.problem.tensors()
        signature = _signature(optimizers, tensors)
        before, known, found = self._seen
        if found is None or before is not tensors or known != signature:
            model = unwrap(self._model)
            found = selection(optimizers, model, self._where)
            kept = not callable(self._where) and sharding_of(model) is None
            self._seen = tensors, signature, found if kept else None
        return found

    def moved(self, chosen: Named) -> Named:
        """Those for which their optimizer has a state, after its step; all where it has none."""
        idle: set[int] = set()
        for optimizer in alive(self._optimizers):
            own = [p for group in optimizer.param_groups for p in group["params"]]
            if any(optimizer.state.get(p) for p in own):
                idle |= {id(p) for p in own if not optimizer.state.get(p)}
        return {name: p for name, p in chosen.items() if id(p) not in idle} or chosen

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


def _signature(optimizers: Sequence[Optimizer], tensors: ModuleTensors) -> list[object]:
    """What a selection depends on, in a model of these tensors that is not sharded."""
    found: list[object] = []
    for owner, key in tensors.slots:
        t = owner[key]
        found += (id(t), t is not None and t.requires_grad)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            found.append(group.get("param_names"))
            for p in group["params"]:
                found += (id(p), p.requires_grad or p.grad is not None)
    return found


def _key(chosen: Named) -> tuple[Any, ...]:
    """What the problem of these parameters depends on."""
    return tuple((name, tuple(p.shape), p.dtype, p.device) for name, p in chosen.items())
