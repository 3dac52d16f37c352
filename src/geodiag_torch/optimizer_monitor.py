"""A monitor that measures in the hooks of optimizers' steps: what :func:`attach` returns."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import hypot
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from geodiag.blocks import Blocks, norm2
from geodiag.core.validation import whole_step
from geodiag.errors import ArgumentError
from geodiag.monitoring.monitor import Monitor
from geodiag.monitoring.observation import Observation
from geodiag.monitoring.rules import rule_at
from geodiag.monitoring.unmeasured import listed
from geodiag.optimizers.clipping import Clipping, Received
from geodiag.optimizers.comparison import follow
from geodiag.optimizers.thresholds import Update
from geodiag_torch.optimizers.following import Following
from geodiag_torch.optimizers.iteration import Iteration, untraced
from geodiag_torch.optimizers.selection import Selection, as_they_were, copied, entries
from geodiag_torch.optimizers.wrappers import Stepping


class OptimizerMonitor(Monitor):
    """A Monitor that :func:`attach` has attached to one optimizer, or to several.

    Attributes:
        steps: the number of their steps so far; the next record's ``step``. May be set before
            training resumes from a checkpoint.

    Examples:
        >>> import torch, geodiag_torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> data = torch.ones(8, 3), torch.ones(8, 1)
        >>> mse = torch.nn.functional.mse_loss
        >>> monitor = geodiag_torch.attach(optimizer, model, criterion=mse, data=data)
        >>> isinstance(monitor, geodiag_torch.OptimizerMonitor), monitor.steps
        (True, 0)
        >>> monitor.detach()
    """

    def __init__(
        self,
        steps: Sequence[Stepping],
        following: Following,
        *,
        update: Update | Callable[[int], Update] | None = None,
        **options: Any,
    ) -> None:
        geometry = following.geometry
        rule = geometry.update if update is None else update
        super().__init__(following.problem, geometry.norm, update=rule, **options)
        self.steps = 0
        self._parts = following.geometry.parts
        self._following, self._rule_given = following, update is not None
        self._gradient: Blocks | None = None  # of the measured loss, before the step
        self._selected: Selection | None = None
        self._copies: Mapping[str, Tensor] = {}  # of what is selected, if S waits for the step
        self._lengths: list[tuple[float, float]] = []  # of gradients received: whole, measured
        optimizers = [each.outer for each in steps]
        self._inner = {id(each.outer): weakref.ref(each.inner) for each in steps}
        self._iteration = Iteration(optimizers)
        # Only the optimizers' hooks hold the monitor, so that all are freed together.
        self._hooks = [
            hook
            for each in optimizers
            for hook in (
                each.register_step_pre_hook(untraced(self._before_step)),
                each.register_step_post_hook(untraced(self._after_step)),
            )
        ]
        self._finalizers = [weakref.finalize(o, _close, weakref.ref(self)) for o in optimizers]

    def detach(self) -> None:
        """Remove the hooks from the optimizer, and close: the pending record is written.

        ``records`` stays. May be called twice.
        """
        for hook in self._hooks:
            hook.remove()
        for finalizer in self._finalizers:
            finalizer.detach()
        try:
            if self._iteration.open:
                self._end()
            super().close()
        finally:
            self._following.problem.close()

    def close(self) -> None:
        """The same as :meth:`detach`."""
        self.detach()

    def abandon(self) -> None:
        """The same as :meth:`geodiag.Monitor.abandon`; nothing is kept of the step."""
        super().abandon()
        self._selected, self._copies, self._gradient = None, {}, None

    def state_dict(self) -> dict[str, Any]:
        """The state of :class:`geodiag.Monitor`, with the number of steps."""
        return super().state_dict() | {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned.

        Raises:
            ArgumentError: ``state`` is something else.
        """
        if not isinstance(state, dict) or "steps" not in state:
            raise ArgumentError(
                "this is not the state of an attached monitor",
                got=type(state).__name__,
                do="pass what its state_dict() returned",
            )
        steps = whole_step(state["steps"])
        super().load_state_dict(state)
        self.steps = steps

    def _measure_before(self, pending: Observation, params: Any) -> None:
        """Follow the optimizer; S waits for the step where the norm is that of its state then."""
        self._selected, self._copies, self._gradient = None, {}, None
        self._lengths = []
        with pending.noting("the measurement"):
            self._selected = found = self._following.now()
            pending.note(found.note)
            if self._noise or self._following.geometry.of_the_step(found.chosen):
                self._copies = copied(found.chosen)
                pending.rest = copied(entries(found.others))
            else:
                self._follow(pending, found.chosen)
                pending.copy(params, entries(found.others))
                pending.freeze(params)
                self._measure(pending)
                self._gradient = self._gradient_of(pending)

    def _measure_after(self, pending: Observation, params: Any) -> None:
        found, self._selected = self._selected, None
        if found is not None:
            with self._following.geometry.read_once():
                self._measure_along(pending, params, found)

    def _measure_along(self, pending: Observation, params: Any, found: Selection) -> None:
        besides: list[str] = []
        with pending.noting("the measurement"):
            besides = pending.moved_besides(entries(found.others))
            if self._copies:
                self._measure_at_copies(pending, found, besides)
        self._compare(pending)
        self._gradient = None
        with pending.noting("the step"):
            pending.measure_step(params, besides)

    def _measure_at_copies(
        self, pending: Observation, found: Selection, besides: Sequence[str]
    ) -> None:
        """S at the point before the step, in the norm that the step used."""
        of_the_step = self._following.geometry.of_the_step(found.chosen)
        chosen = self._following.moved(found.chosen) if of_the_step else found.chosen
        idle = [name for name in found.chosen if name not in chosen]
        if idle:
            pending.note(f"not measured: parameters without a gradient so far: {listed(idle)}")
        self._follow(pending, chosen)
        asarray = self._following.problem.space.asarray
        pending.here = {name: asarray(self._copies[name]) for name in chosen}
        self._copies = {}
        earlier = {name: pending.rest[name] for name in besides if name in pending.rest}

        def measure() -> None:
            pending.freeze(None)
            self._measure(pending)
            self._gradient = self._gradient_of(pending)

        as_they_were(found.others, earlier, measure)

    def _optimizer(self) -> Mapping[str, Any]:
        return self._following.geometry.describe()

    def _gradient_of(self, pending: Observation) -> Blocks | None:
        known = pending.result is not None or bool(pending.parts) or self._noise is not None
        asked = (known and not self._rule_given) or self._clip_norm is not None
        if not asked or pending.oracle is None:
            return None
        return pending.oracle.gradient()

    def _rule(self, pending: Observation) -> Update | None:
        """The update rule in force at the step, unless the step contradicts it."""
        rule = rule_at(pending.step, self._lr, self._update)
        known = rule is not None and (bool(pending.parts) or not rule.unknown)
        compared = known and pending.here is not None and not self._rule_given
        gradient = self._gradient if compared else None
        if rule is None or gradient is None or pending.here is None:
            return self._clipped(rule, pending)
        pending.there = there = self._problem.point()
        geometry = self._following.geometry
        found, clipping = geometry.compare(gradient, pending.here, there), self._clipping(pending)
        says = follow if clipping is None else clipping.follow
        for part in pending.parts.values():
            if part.update is not None and (said := found.get(part.joins, found.get(""))):
                part.update = says(part.update, said)
        if pending.parts:
            return rule
        if left_out := self._iteration.left_out():
            return replace(rule, unknown=f"{' and '.join(left_out)} took no part in the step")
        (said,) = found.values()
        return says(rule, said)

    def _clipping(self, pending: Observation) -> Clipping | None:
        if self._clip_norm is None or self._gradient is None:
            return None
        received = None
        if self._lengths:
            each, measured = zip(*self._lengths, strict=True)
            received = Received(max(each), hypot(*each), hypot(*measured))
        length = float(norm2(self._gradient))
        return Clipping(self._clip_norm, length, not pending.rest, received)

    def _follow(self, pending: Observation, chosen: Mapping[str, Tensor]) -> None:
        """Measure these parameters."""
        if self._following.follow(chosen):
            self._problem = pending.problem = self._following.problem
            self._tracker.move(self._following.problem.space.shapes)
            self._part_trackers.clear()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._iteration.ended_before(optimizer):
            self._end()
        if not self._iteration.open and self.due(self.steps):
            self.before(self.steps)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._iteration.took(optimizer)
        inner, pending = self._inner[id(optimizer)](), self._pending
        if pending is not None and inner is not None:
            if self._clip_norm is not None:
                with pending.noting("what the optimizer received"):
                    self._lengths.append(self._following.geometry.received(inner))
            if len(self._inner) > 1:
                with pending.noting("the step"):
                    self._following.geometry.took(inner)
        if self._iteration.complete:
            self._end()

    def _end(self) -> None:
        try:
            self.after()
        finally:  # the step was taken, even if Ctrl-C comes now
            self.steps += 1
            self._iteration.close()


def _close(monitor: weakref.ref[OptimizerMonitor]) -> None:
    found = monitor()
    if found is not None:
        found.close()
