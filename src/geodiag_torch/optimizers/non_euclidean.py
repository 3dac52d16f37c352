"""Steepest descent in any norm as a torch optimizer; see geodiag.optimizers.non_euclidean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from geodiag.core.validation import require_flag
from geodiag.errors import GeodiagError, NonFiniteError, NormError, ParameterError, shown
from geodiag.norms import Norm
from geodiag.optimizers.non_euclidean import steepest_step
from geodiag.optimizers.thresholds import require_lr
from geodiag.problems import as_norm
from geodiag_torch.problem import device_and_dtype, space_of
from geodiag_torch.sharding.detection import as_sharded, sharded_like


class NonEuclideanGD(torch.optim.Optimizer):
    """Gradient descent in the geometry of ``norm``.

    The dual norm ‖g‖* is joint over all parameter groups; each group may have its own ``lr``.
    A parameter whose gradient is zero or None stays where it is.

    Args:
        params: parameters, ``model.named_parameters()``, or parameter groups of either. Norms with
            name patterns (ByParameter, radii by name, Preconditioned) need the names.
        lr: step size η > 0.
        norm: a registered name or a Norm object.
        normalized: leave out the factor ‖g‖*.

    Raises:
        ArgumentError: lr ≤ 0.
        ParameterError: no parameters, or other things than tensors; complex ones, parameters on
            several devices, two of one name.
        NormError: the norm does not apply to these parameters.

    Examples:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, -1.0]))
        >>> optimizer = NonEuclideanGD([w], lr=0.5, norm="linf", normalized=True)
        >>> (w**2).sum().backward()
        >>> optimizer.step()
        >>> w.tolist()
        [2.5, -0.5]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        norm: Norm | str = "l2",
        normalized: bool = False,
    ) -> None:
        lr = require_lr(lr)
        self.normalized = require_flag(normalized, "normalized=")
        self.norm = as_norm(norm)
        with _refusals():
            super().__init__(params, {"lr": lr})
        self._bound = self._bind()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the norm is bound again to all parameters, or the group is not added."""
        if not isinstance(param_group, dict) or "params" not in param_group:
            got = shown(param_group)
            raise ParameterError("a parameter group is a dict with params", got=got)
        if "lr" in param_group:
            param_group["lr"] = require_lr(param_group["lr"])
        with _refusals():
            super().add_param_group(param_group)
        if hasattr(self, "_bound"):
            try:
                self._bound = self._bind()
            except GeodiagError:
                self.param_groups.pop()
                raise

    def __repr__(self) -> str:
        own = f"norm={self.norm!r}, normalized={self.normalized}"
        return super().__repr__().replace("(", f"({own}", 1)

    def __getstate__(self) -> dict[str, Any]:
        own = {"norm": self.norm, "normalized": self.normalized}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "norm" in state:  # copied or unpickled; load_state_dict comes here without it
            self._bound = self._bind()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step along −lmo(g); returns the closure's loss.

        Raises:
            ParameterError: a gradient is sparse.
            NonFiniteError: the norm's LMO failed at the gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = {name: self._gradient(p) for name, _, p in self._named()}
        rates = {name: group["lr"] for name, group, _ in self._named()}
        try:
            updates = steepest_step(self._bound, gradients, rates, self.normalized)
        except torch.linalg.LinAlgError as e:  # type: ignore[attr-defined]
            raise NonFiniteError(
                "the linear minimisation oracle failed, most likely at a gradient that is not "
                "finite",
                got=str(e),
                do="check the loss; the training may have diverged",
            ) from e
        for name, _, p in self._named():
            p.sub_(sharded_like(updates[name].to(p.dtype), p))
        return loss

    def _named(self) -> Iterable[tuple[str, dict[str, Any], Tensor]]:
        """(name, group, parameter) of all; parameters given without names are numbered."""
        at = 0
        for group in self.param_groups:
            names = group.get("param_names")
            for i, p in enumerate(group["params"]):
                yield (names[i] if names else str(at)), group, p
                at += 1

    def _gradient(self, p: Tensor) -> Tensor:
        if p.grad is None:
            return torch.zeros_like(as_sharded(p), dtype=self._dtype)
        if p.grad.layout != torch.strided:
            raise ParameterError(
                "sparse gradients are not supported",
                got=str(p.grad.layout),
                do="build the embedding with sparse=False",
            )
        return as_sharded(p.grad).to(self._dtype)

    def _bind(self) -> Norm:
        named: dict[str, Tensor] = {}
        for name, _, p in self._named():
            if name in named:
                raise ParameterError(
                    f"two parameters have the name {name!r}",
                    do="prefix the names: [(f'encoder.{n}', p) for n, p in …named_parameters()]",
                )
            named[name] = p
        device, self._dtype = device_and_dtype(named)
        try:
            return self.norm.bind(space_of(named, device, self._dtype))
        except GeodiagError as e:
            if any(group.get("param_names") for group in self.param_groups):
                raise
            raise NormError(
                f"{self.norm!r} does not apply to these parameters, which have no names",
                got=e.what,
                do="pass model.named_parameters() instead of model.parameters()",
            ) from e


@contextmanager
def _refusals() -> Iterator[None]:
    """Inside, torch refuses parameters by a ParameterError."""
    try:
        yield
    except GeodiagError:
        raise
    except (TypeError, ValueError, IndexError) as e:
        raise ParameterError(
            "an optimizer cannot take these parameters",
            got=str(e),
            do="pass model.named_parameters(), model.parameters(), or groups of either",
        ) from e
