"""The gradient of a PyTorch case as a function of a flat vector, by ``loss.backward()``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from tests.support.torch_cases import Case
from tests.support.truths import Truth, Vector, truth

SEED = 7  # of dropout masks: what random state a measurement finds


def torch_truth(case: Case) -> Truth:
    """The truth of a case, on a module of its own."""
    arguments = case(torch.float64)
    model = arguments["model"]
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    batches = arguments["data"] if isinstance(arguments["data"], list) else [arguments["data"]]
    weights = [_length(batch) for batch in batches]

    def gradient(at: Vector) -> Vector:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(at), parameters.values())
        model.zero_grad()
        torch.manual_seed(SEED)
        for batch, weight in zip(batches, weights, strict=True):
            (_loss(arguments, batch) * (weight / sum(weights))).backward()
        rows = [np.zeros(p.numel()) if p.grad is None else p.grad.numpy().ravel()
                for p in parameters.values()]  # fmt: skip
        return np.concatenate(rows)

    point = torch.nn.utils.parameters_to_vector(parameters.values()).detach().numpy().copy()
    sizes = {n.replace("_orig_mod.", ""): p.numel() for n, p in parameters.items()}
    with torch.random.fork_rng(devices=[]), Wide():
        return truth(gradient, point, sizes)


class Wide(TorchFunctionMode):
    """float64 where a model asks for float32, as Hugging Face's do in norms, softmax and loss."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {k: _wide(x) for k, x in (kwargs or {}).items()}
        return func(*map(_wide, args), **named)


def _wide(x: Any) -> Any:
    return torch.float64 if x is torch.float32 else x


def _loss(arguments: dict[str, Any], batch: Any) -> torch.Tensor:
    model = arguments["model"]
    if "loss_fn" in arguments:
        return arguments["loss_fn"](model, batch)  # type: ignore[no-any-return]
    if "criterion" in arguments:
        x, y = batch
        return arguments["criterion"](model(x), y)  # type: ignore[no-any-return]
    return model(**batch).loss  # type: ignore[no-any-return]


def _length(batch: Any) -> int:
    return len(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])
