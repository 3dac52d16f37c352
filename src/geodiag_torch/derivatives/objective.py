"""The objective: the loss over the data as a function of the measured parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from geodiag.blocks import Blocks
from geodiag.core.batches import Batches
from geodiag.core.spaces import Space
from geodiag.errors import EngineError, ParameterError
from geodiag_torch.derivatives.forward import Leaves, LossModule, T
from geodiag_torch.ranks import Alone
from geodiag_torch.state.guard import Guard
from geodiag_torch.state.module_tensors import ModuleTensors, TensorDict
from geodiag_torch.state.rng import outside_inference

# Of each kernel of attention: whether it is enabled, what enables it, and whether it is the last.
KERNELS = [
    (getattr(torch._C, f"_get_{kernel}_sdp_enabled"), getattr(torch._C, f"_set_sdp_use_{kernel}"),
     kernel == "math")
    for kernel in ("cudnn", "flash", "mem_efficient", "overrideable", "math")
    if hasattr(torch._C, f"_get_{kernel}_sdp_enabled")
]  # fmt: skip
ABSENT: tuple[TensorDict, str] = ({"": None}, "")


@dataclass(frozen=True)
class Objective:
    """What an oracle needs to know of a problem."""

    loss: LossModule
    data: Any  # as the user gave them
    batches: Batches
    ranks: Alone  # those that measure together
    space: Space
    device: torch.device
    dtype: torch.dtype  # of the measurement
    raw_names: Mapping[str, str]  # of each measured parameter, its name in ``loss``
    guard: Guard  # what passes give back besides the model's tensors
    stop_gradient: str = "constant"  # see :func:`geodiag.problem`
    # Of a state_dict, by their names in ``loss``: they replace buffers and unmeasured parameters.
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> ModuleTensors:
        """Where the model, and the modules that its loss reaches, keep their tensors now."""
        return self.loss.tensors(self.guard.modules)

    def live(self, tensors: ModuleTensors | None = None) -> Leaves:
        """The measured parameters as they are now; ``tensors``: those of the loss, where known.

        Raises:
            ParameterError: the model lost one, or it has another shape.
        """
        slots, shapes = (tensors or self.tensors()).parameters, self.space.shapes
        found: dict[str, Tensor] = {}
        for name, raw in self.raw_names.items():
            owner, key = slots.get(raw, ABSENT)
            p = owner[key]
            if p is None or tuple(p.shape) != shapes[name]:
                raise ParameterError(
                    f"the model's structure changed: {name!r} had shape {shapes[name]}",
                    got="no such parameter" if p is None else f"shape {tuple(p.shape)}",
                    do="make a new geodiag.problem",
                )
            found[name] = p
        if len(set(map(id, found.values()))) < len(found):
            raise ParameterError(
                "the model's structure changed: measured parameters were tied",
                do="make a new geodiag.problem",
            )
        return found

    def leaves(self, params: Mapping[str, Any] | None, live: Leaves | None = None) -> Leaves:
        """Autograd leaves at ``params``, or sharing storage with the live parameters where None.

        ``live``: the live parameters, where they are known.
        """
        found = self.live() if live is None else live

        def make() -> Leaves:
            if params is None:
                return {name: p.detach().requires_grad_() for name, p in found.items()}
            asarray = self.space.asarray
            at = {n: asarray(params[n]).to(p.dtype, copy=True) for n, p in found.items()}
            return {name: x.requires_grad_() for name, x in at.items()}

        return outside_inference(make)

    def directions(self, d: Blocks, dtypes: Mapping[str, torch.dtype]) -> Leaves:
        """``d`` in the dtypes of the leaves, on their device, as autograd needs it."""
        asarray = self.space.asarray
        found = {name: (asarray(d[name]), dtype) for name, dtype in dtypes.items()}
        return {name: x if x.dtype is t else x.to(t) for name, (x, t) in found.items()}

    def with_leaves(self, leaves: Leaves, run: Callable[[], T], poison: bool = False) -> T:
        """``run()`` while ``leaves`` replace the measured parameters, and clones the buffers.

        Clones of ``others`` replace what they are named after.

        Backward passes must run inside of it too: they recompute checkpointed activations, with
        whatever the module holds then. Attention runs on the math kernel: the fused ones have no
        double backward. ``poison``: fill the clones of buffers with NaN.

        Raises:
            EngineError: inside of ``torch.nn.utils.parametrize.cached``, which would hide leaves.
        """
        if getattr(parametrize, "_cache_enabled", 0):
            raise EngineError(
                "inside of torch.nn.utils.parametrize.cached() the loss does not depend on its "
                "leaves",
                do="measure outside of that context",
            )
        tensors = self.tensors()
        live = self.live(tensors) if leaves else {}
        new = {id(live[name]): leaf for name, leaf in leaves.items()}
        updated = self.guard.updated
        with tensors.replaced(new, self.others, poison, updated, [_MathKernel()]):
            return run()


class _MathKernel:
    """Attention by torch's own operations, as in ``torch.nn.attention.sdpa_kernel``."""

    def lend(self) -> None:
        self._before = [enabled() for enabled, _, _ in KERNELS]
        for _, enable, is_math in KERNELS:
            enable(is_math)

    def give_back(self, for_good: bool) -> None:
        for (_, enable, _), before in zip(KERNELS, self._before, strict=True):
            enable(before)
