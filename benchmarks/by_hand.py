"""A measurement as a script would write it: what is left when a monitor's care is taken away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import geodiag
from benchmarks.problems import Batch, Criterion
from geodiag.blocks import divide, dot, subtract
from geodiag.problems import as_norm


class ByHand:
    """The loss and its gradient, one product at lmo(Hd), and D and the curvature along the step.

    Two products, two forward passes and a gradient, which no record does without. Random numbers,
    buffers and modes are left as the passes leave them, no operation and no number is checked, and
    there is no search: a maximum that overtakes is missed.
    """

    def __init__(self, net: nn.Module, criterion: Criterion, batch: Batch, norm: str) -> None:
        self._net, self._criterion, self._batch = net, criterion, batch
        self._held = {
            f"{prefix}.{key}".lstrip("."): (m._parameters, key)
            for prefix, m in net.named_modules()
            for key in m._parameters
        }
        with geodiag.problem(net, criterion=criterion, data=batch) as problem:
            self._norm = as_norm(norm).bind(problem.at().space)
        self._ahead = {name: torch.randn_like(p) for name, p in net.named_parameters()}
        self.records: list[dict[str, float]] = []

    def before(self) -> None:
        """At w, before the step."""
        self._here = {
            name: p.detach().clone().requires_grad_() for name, p in self._net.named_parameters()
        }
        loss = self._loss(self._here)
        leaves = list(self._here.values())
        self._gradient = torch.autograd.grad(loss, leaves, create_graph=True)
        d = divide(self._ahead, self._norm.value(self._ahead))
        image = self._product(d)
        self._ahead = self._norm.lmo(image)
        g = self._named(x.detach() for x in self._gradient)
        self._known = {
            "loss": float(loss.detach()),
            "sharpness": float(dot(d, image)),
            "dual_norm": float(self._norm.dual(g)),
        }

    def after(self) -> None:
        """At w⁺, after it."""
        there = {name: p.detach() for name, p in self._net.named_parameters()}
        step = subtract(there, {name: x.detach() for name, x in self._here.items()})
        length = float(self._norm.value(step))
        slope = float(dot(self._named(x.detach() for x in self._gradient), step))
        curvature = float(dot(step, self._product(step))) / length**2
        after = float(self._loss(there).detach())
        smoothness = 2 * (after - self._known["loss"] - slope) / length**2
        self.records.append(
            self._known | {"curvature": curvature, "directional_smoothness": smoothness}
        )

    def _loss(self, params: dict[str, Tensor]) -> Tensor:
        own = [(held, key, held[key]) for held, key in self._held.values()]
        x, y = self._batch
        try:
            for name, (held, key) in self._held.items():
                held[key] = params[name]  # type: ignore[assignment]
            return self._criterion(self._net(x), y)
        finally:
            for held, key, parameter in own:
                held[key] = parameter

    def _product(self, d: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = list(self._here.values())
        return self._named(
            torch.autograd.grad(self._gradient, leaves, list(d.values()), retain_graph=True)
        )

    def _named(self, tensors: Any) -> dict[str, Tensor]:
        return dict(zip(self._here, tensors, strict=True))
