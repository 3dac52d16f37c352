"""Where a module keeps its tensors, and how they are replaced for the time of one run.

The places are looked up once: doing so again takes longer than a small network's forward pass, and
a measurement needs them for each pass. Tensors are replaced in the module's own dicts, as
``torch.func.functional_call`` does, at a fraction of its cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from geodiag.core.spaces import Joints, Shapes, Sizes
from geodiag.errors import EngineError

TensorDict = dict[str, Tensor | None]


class ModuleTensors:
    """The modules below ``root``, each once, and the dicts that hold their tensors.

    ``root`` may keep it: it does not refer back to it. What torch.jit has compiled cannot be
    replaced; its buffers get their values again.
    """

    def __init__(self, root: nn.Module) -> None:
        self.modules: list[nn.Module] = []
        # By its name in ``root``, the dict that holds each parameter, and its key there.
        self.parameters: dict[str, tuple[TensorDict, str]] = {}
        self.buffers: dict[str, tuple[TensorDict, str]] = {}  # the same for buffers
        self._dicts: list[TensorDict] = []
        self._scripted: list[str] = []  # names of modules
        self._written: list[Tensor] = []  # their buffers
        fixed: dict[str, Tensor | None] = {}  # their parameters, for those who look for changes
        self._found: list[
            tuple[nn.Module, dict[str, nn.Module | None], TensorDict, TensorDict]
        ] = []
        for prefix, m in root.named_modules():
            if m is root:
                continue
            if isinstance(m, torch.jit.ScriptModule):
                self._scripted.append(prefix)
                self._written += m.buffers(recurse=False)
                fixed |= {f"{prefix}.{key}": p for key, p in m.named_parameters(recurse=False)}
                continue
            self.modules.append(m)
            self._found.append((m, dict(m._modules), m._parameters, m._buffers))
            self._dicts += [m._parameters, m._buffers]
            self.parameters |= {f"{prefix}.{key}": (m._parameters, key) for key in m._parameters}
            self.buffers |= {f"{prefix}.{key}": (m._buffers, key) for key in m._buffers}
        self.slots: list[tuple[TensorDict, str]] = list((self.parameters | self.buffers).values())
        self.slots += [(fixed, key) for key in fixed]
        self._keys = list(map(list, self._dicts))

    def named(self, names: Iterable[str]) -> list[Tensor]:
        """The parameters and buffers of these names, as they are now."""
        slots = (self.parameters.get(name) or self.buffers[name] for name in names)
        return [t for owner, key in slots if (t := owner[key]) is not None]

    def require_replaceable(self, names: Mapping[str, str]) -> None:
        """Check that parameters can be replaced; their names, and what these are in ``root``.

        Raises:
            EngineError: one of them is in a module that torch.jit has compiled.
        """
        for name, raw in names.items():
            owner = raw.rpartition(".")[0]
            if owner in self._scripted:
                raise EngineError(
                    "the parameters of a module compiled by torch.jit cannot be replaced",
                    got=f"{name!r}, in {owner.removeprefix('model.')!r}",
                    do="measure the module that it was made from; or hold these parameters fixed, "
                    "by where= or requires_grad_(False)",
                )

    def is_current(self) -> bool:
        """Whether no module, parameter or buffer was added or removed since."""
        for m, inner, parameters, buffers in self._found:
            if m._modules != inner or m._parameters is not parameters or m._buffers is not buffers:
                return False
        return list(map(list, self._dicts)) == self._keys

    @contextmanager
    def replaced(
        self, tensors: Mapping[int, Tensor], others: Mapping[str, Tensor], poison: bool = False
    ) -> Iterator[None]:
        """Inside, the modules hold other tensors, and clones of their buffers.

        Afterwards they have their own again, their modes, and the tensors that hooks keep as plain
        attributes. ``tensors``: by the ids of those that they replace. ``others``: by name, whose
        clones replace parameters and buffers too. ``poison``: fill the clones of floating buffers
        with NaN.
        """
        new = dict(tensors)
        for name, x in others.items():
            owner, key = self.parameters.get(name) or self.buffers[name]
            own = owner[key]
            if own is not None and id(own) not in new:
                x = x.to(own.device, own.dtype)
                new[id(own)] = _clone(x, poison and name in self.buffers)
        for owner, key in self.buffers.values():
            b = owner[key]
            if b is not None and id(b) not in new:
                new[id(b)] = _clone(b, poison)
        before = [(owner, key, owner[key]) for owner, key in self.slots if id(owner[key]) in new]
        attributes = [(vars(m), dict(vars(m))) for m in self.modules]
        written = [(b, b.detach().clone()) for b in self._written]
        try:
            for owner, key, t in before:
                owner[key] = new[id(t)]
            yield
        finally:
            for owner, key, t in before:
                owner[key] = t
            with torch.no_grad():
                for b, values in written:  # batch_norm does not count as writing to them
                    b.copy_(values)
            for now, saved in attributes:
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


# How the core joins tensors to one vector, with torch's own functions, which are quicker.
JOINTS = Joints(_join, _part)
