"""Where a module keeps its tensors, noted once: looking them up anew takes longer than a small
network's forward pass, and a measurement asks for them again and again.

Other tensors are lent to it by an exchange of the entries of its own dicts, which
``torch.func.functional_call`` does too, at several times the cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from geodiag.core.spaces import Joints, Shapes, Sizes
from geodiag.errors import EngineError

Held = dict[str, Tensor | None]


class Layout:
    """The modules below ``root``, each once, and the dicts that hold their tensors.

    ``root`` may keep it: it does not refer back to it.

    Attributes:
        modules: as ``root.modules()`` has them, but for ``root``.
        parameters: their names in ``root``, the dict that holds each, and its key there.
        slots: (dict, key) of all parameters and buffers.

    Raises:
        EngineError: one of them is a module of torch.jit.
    """

    def __init__(self, root: nn.Module) -> None:
        self.modules: list[nn.Module] = []
        self.parameters: dict[str, tuple[Held, str]] = {}
        self.slots: list[tuple[Held, str]] = []
        self._buffers: list[tuple[Held, str]] = []
        self._seen: list[tuple[nn.Module, dict[str, nn.Module | None], Held, Held]] = []
        self._helds: list[Held] = []
        below = [(prefix, m) for prefix, m in root.named_modules() if m is not root]
        for prefix, m in below:
            if isinstance(m, torch.jit.ScriptModule):
                raise EngineError(
                    "a module compiled by torch.jit cannot be lent other parameters",
                    got=f"{prefix!r}, a {type(m).__name__}",
                    do="measure the module that it was made from",
                )
            self.modules.append(m)
            self._seen.append((m, dict(m._modules), m._parameters, m._buffers))
            self._helds += [m._parameters, m._buffers]
            self.parameters |= {f"{prefix}.{key}": (m._parameters, key) for key in m._parameters}
            self._buffers += [(m._buffers, key) for key in m._buffers]
        self.slots = [*self.parameters.values(), *self._buffers]
        self._keys = list(map(list, self._helds))

    def stands(self) -> bool:
        """Whether no module, parameter or buffer has come or gone since."""
        for m, inner, parameters, buffers in self._seen:
            if m._modules != inner or m._parameters is not parameters or m._buffers is not buffers:
                return False
        return list(map(list, self._helds)) == self._keys

    @contextmanager
    def lent(self, tensors: Mapping[int, Tensor], poison: bool = False) -> Iterator[None]:
        """Inside, the modules have other tensors: ``tensors``, by the ids of those whose place they
        take, and clones of all buffers, of NaN with ``poison``.

        Afterwards they have their own back, their modes, and the tensors that hooks keep as plain
        attributes.
        """
        lent = dict(tensors)
        for held, key in self._buffers:
            b = held[key]
            if b is not None and id(b) not in lent:
                lent[id(b)] = _clone(b, poison)
        own = [(held, key, held[key]) for held, key in self.slots if id(held[key]) in lent]
        plain = [(vars(m), dict(vars(m))) for m in self.modules]
        try:
            for held, key, t in own:
                held[key] = lent[id(t)]
            yield
        finally:
            for held, key, t in own:
                held[key] = t
            for now, saved in plain:
                if len(now) != len(saved) or any(map(is_not, now.values(), saved.values())):
                    _restore(now, saved)


def _restore(now: dict[str, Any], saved: dict[str, Any]) -> None:
    now["training"] = saved["training"]
    for name in [name for name, x in now.items() if isinstance(x, Tensor) and name not in saved]:
        del now[name]
    now.update({name: x for name, x in saved.items() if isinstance(x, Tensor)})


def _clone(buffer: Tensor, poison: bool) -> Tensor:
    clone = buffer.detach().clone()
    return clone.fill_(torch.nan) if poison and clone.is_floating_point() else clone


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
