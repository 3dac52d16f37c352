"""The forward pass: from a module and a batch to a scalar loss, at replaced parameters.

For the time of one run, autograd leaves replace the parameters of the user's module, and clones
replace its buffers; its own are restored also when the run raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from geodiag.errors import ArgumentError, DataError, LossError, first_line, shown
from geodiag_torch.derivatives.batches import foreign_array
from geodiag_torch.state.module_tensors import ModuleTensors

# What torch says where it has no kernel for a dtype on a device.
NO_KERNEL = ("could not create a primitive", "not implemented for 'Half'", "for 'BFloat16'")
GIVE_A_LOSS = "pass criterion=, for criterion(model(x), y), or loss_fn=(model, batch) -> loss"
Leaves = dict[str, Tensor]
T = TypeVar("T")


class LossModule(nn.Module):
    """A model with its loss, as one module whose tensors can be replaced."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Tensor] | None,
        criterion: Callable[[Any, Any], Tensor] | None,
    ) -> None:
        super().__init__()
        if loss_fn is not None and criterion is not None:
            raise ArgumentError(
                "loss_fn= and criterion= exclude each other",
                do="pass criterion(model(x), y) or loss_fn(model, batch), not both",
            )
        for name, f in (("loss_fn", loss_fn), ("criterion", criterion)):
            if f is not None and (not callable(f) or isinstance(f, type)):
                raise ArgumentError(
                    f"{name}= must be callable", got=shown(f), do="pass a function or an instance"
                )
        self.model = model
        # A module among them registers itself, so that its buffers are cloned too.
        self.loss_fn, self.criterion = loss_fn, criterion
        self._tensors: ModuleTensors | None = None
        self.lent = False  # whether the loss is known to be the same with leaves
        self.steady = True  # and from pass to pass, as far as was seen

    def tensors(self, besides: Sequence[nn.Module] = ()) -> ModuleTensors:
        """Where the modules, and ``besides``, keep their tensors now."""
        found = self._tensors
        if found is None or found.besides is not besides or not found.is_current():
            found = self._tensors = ModuleTensors(self, besides)
        return found

    def value(self, batch: Any) -> Tensor:
        """The loss of one batch, checked; to be called while leaves replace the parameters.

        Raises:
            LossError: not a real scalar tensor that depends on the leaves.
            DataError: it fails on arrays that are not torch's.
        """
        try:
            value = self._compute(batch)
        except (TypeError, AttributeError) as e:
            foreign = foreign_array(batch)
            if foreign is None:
                raise
            raise DataError(
                "the loss fails on a batch of arrays that are not torch's",
                got=f"{foreign}: {first_line(e)}",
                do="convert them, e.g. by torch.as_tensor(x, dtype=torch.float32)",
            ) from e
        except RuntimeError as e:
            if not any(mark in str(e) for mark in NO_KERNEL):
                raise
            raise LossError(
                "the model does not run in this precision on this device",
                got=first_line(e),
                do="measure it in float32 or bfloat16, outside of autocast",
            ) from e
        if isinstance(value, Tensor) and value.dim() and value.numel() == 1:
            value = value.reshape(())
        if not isinstance(value, Tensor) or value.dim() != 0 or not value.is_floating_point():
            raise LossError(
                "the loss must be a real scalar tensor",
                got=f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
                if isinstance(value, Tensor)
                else type(value).__name__,
                do="reduce it, e.g. criterion=nn.MSELoss(reduction='mean')",
            )
        if not value.requires_grad:
            raise LossError(
                "the loss does not depend on the measured parameters",
                do="compute it from the model that is passed in, without detach() or no_grad()",
            )
        return value

    def _compute(self, batch: Any) -> Any:
        if self.loss_fn is not None:
            return self.loss_fn(self.model, batch)
        if self.criterion is None:
            return self._own_loss(batch)
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise DataError(
                "criterion= needs batches (x, y), or (x1, …, xk, y)",
                got="no data" if batch is None else type(batch).__name__,
                do="pass data=(x, y), or a list of such batches (a list is read as batches: "
                "make a single one a tuple), or use loss_fn(model, batch)",
            )
        *inputs, target = batch
        return self.criterion(self.model(*inputs), target)

    def _own_loss(self, batch: Any) -> Any:
        if batch is None:
            raise DataError("there is no loss to measure: no data", do="pass data= and criterion=")
        named = batch if isinstance(batch, Mapping) else {}
        several = isinstance(batch, (tuple, list))
        positional = () if named is batch else tuple(batch) if several else (batch,)
        try:
            inspect.signature(self.model.forward).bind(*positional, **named)
        except TypeError as e:
            raise LossError(
                "neither criterion= nor loss_fn= was given, and the model does not take the batch",
                got=str(e),
                do=GIVE_A_LOSS,
            ) from e
        output = self.model(*positional, **named)
        loss = output.get("loss") if isinstance(output, Mapping) else None
        loss = getattr(output, "loss", None) if loss is None else loss
        if loss is None:
            raise LossError(
                "the model's output has no .loss",
                got=type(output).__name__,
                do=GIVE_A_LOSS,
            )
        return loss
