"""Tensors as one vector and back, in as few calls as torch takes for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geodiag.spaces import Joints, Shapes, Sizes


def _join(tensors: Sequence[Tensor], sizes: Sizes, lead: tuple[int, ...]) -> Tensor:
    if not lead:
        return torch.cat([x.reshape(-1) for x in tensors])
    return torch.cat([x.reshape(*lead, n) for x, n in zip(tensors, sizes, strict=True)], -1)


def _part(vector: Tensor, sizes: Sizes, shapes: Shapes) -> list[Tensor]:
    pieces = vector.split(sizes, -1)  # type: ignore[no-untyped-call]
    if vector.dim() == 1:
        return [x.view(shape) for x, shape in zip(pieces, shapes, strict=True)]
    lead = vector.shape[:-1]
    return [x.reshape(lead + shape) for x, shape in zip(pieces, shapes, strict=True)]


JOINTS = Joints(_join, _part)
