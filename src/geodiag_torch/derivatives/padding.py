"""Padding rows of embeddings, which must stand still where gradients are compared.

The gradient skips the row ``padding_idx`` of an embedding, though the loss may depend on it:
training leaves it where it is. Second derivatives skip it too; differences of gradients would not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from geodiag_torch.derivatives.forward import Leaves

Rows = list[tuple[nn.Embedding, Tensor]]


def padding_rows(model: nn.Module, live: Mapping[str, Tensor], leaves: Leaves) -> Rows:
    """The embeddings with a padding row among the measured parameters, and that row.

    Args:
        model: what holds them.
        live: its measured parameters; tied ones stand under one name.
        leaves: the point, under the same names.
    """
    names = {id(p): name for name, p in live.items()}
    return [
        (m, leaves[names[id(m.weight)]].detach()[m.padding_idx])
        for m in model.modules()
        if isinstance(m, nn.Embedding) and m.padding_idx is not None and id(m.weight) in names
    ]


@contextmanager
def held(rows: Rows) -> Iterator[None]:
    """Inside, these embeddings give these rows for padding, whatever their weight is."""
    hooks = [m.register_forward_hook(partial(_padded, row)) for m, row in rows]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _padded(row: Tensor, module: nn.Embedding, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    here = (inputs[0] == module.padding_idx).unsqueeze(-1)
    return torch.where(here, row.to(output.dtype), output)
