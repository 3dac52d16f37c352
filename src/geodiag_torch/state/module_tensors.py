"""Where a module keeps its tensors, and how they are replaced for the time of one run.

The places are looked up once: doing so again takes longer than a small network's forward pass, and
a measurement needs them for each pass. Tensors are replaced in the module's own dicts, as
``torch.func.functional_call`` does, at a fraction of its cost.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from geodiag.core.spaces import Joints, Shapes, Sizes
from geodiag.core.threads import others as other_threads
from geodiag.errors import EngineError, ParameterError
from geodiag_torch.state.interrupts import Lending, Lent
from geodiag_torch.state.threads import ForEach
from geodiag_torch.state.writes import address, eager

TensorDict = dict[str, Tensor | None]


class ModuleTensors:
    """The modules below ``root``, each once, and the dicts that hold their tensors.

    ``root`` may keep it: it does not refer back to it. What torch.jit has compiled cannot be
    replaced; its buffers get their values again. ``besides``: modules that are treated alike.
    """

    def __init__(self, root: nn.Module, besides: Sequence[nn.Module] = ()) -> None:
        self.modules: list[nn.Module] = []
        self.besides = besides
        # By its name in ``root``, the dict that holds each parameter, and its key there.
        self.parameters: dict[str, tuple[TensorDict, str]] = {}
        self.buffers: dict[str, tuple[TensorDict, str]] = {}  # the same for buffers
        self._dicts: list[TensorDict] = []
        self._scripted: list[str] = []  # names of modules
        self.written: list[Tensor] = []  # their buffers
        self._fixed: TensorDict = {}  # their parameters, for those who look for changes
        self._found: list[
            tuple[nn.Module, dict[str, nn.Module | None], TensorDict, TensorDict]
        ] = []
        seen: set[int] = set()
        for prefix, m in root.named_modules():
            if m is root:
                continue
            if isinstance(m, torch.jit.ScriptModule):
                self._script(prefix, m)
                continue
            seen.add(id(m))
            self._add(prefix, m)
        for i, other in enumerate(besides):
            for prefix, m in other.named_modules(prefix=f"besides.{i}"):
                if id(m) not in seen:
                    seen.add(id(m))
                    (self._script if isinstance(m, torch.jit.ScriptModule) else self._add)(
                        prefix, m
                    )
        self.slots: list[tuple[TensorDict, str]] = list((self.parameters | self.buffers).values())
        self.slots += [(self._fixed, key) for key in self._fixed]
        self._keys = list(map(list, self._dicts))

    def _script(self, prefix: str, m: nn.Module) -> None:
        self._scripted.append(prefix)
        self.written += m.buffers(recurse=False)
        named = m.named_parameters(recurse=False)
        self._fixed |= {f"{prefix}.{key}": p for key, p in named}

    def _add(self, prefix: str, m: nn.Module) -> None:
        parameters: Any = m._parameters
        self.modules.append(m)
        self._found.append((m, dict(m._modules), parameters, m._buffers))
        self._dicts += [parameters, m._buffers]
        self.parameters |= {f"{prefix}.{key}": (parameters, key) for key in parameters}
        self.buffers |= {f"{prefix}.{key}": (m._buffers, key) for key in m._buffers}

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

    def replaced(
        self,
        tensors: Mapping[int, Tensor],
        others: Mapping[str, Tensor],
        poison: bool = False,
        updated: Container[int] = (),
        besides: Iterable[Lending] = (),
    ) -> AbstractContextManager[object]:
        """Inside, the modules hold other tensors, and clones of their buffers.

        ``tensors``: by the ids of those that they replace. ``others``: by name, whose clones
        replace parameters and buffers too. ``poison``: fill the clones of floating buffers with
        NaN. ``updated``: the addresses and ids of parameters to be cloned as well. ``besides``:
        what else is lent.
        """
        new = dict(tensors)
        for name, x in others.items():
            owner, key = self.parameters.get(name) or self.buffers[name]
            own = owner[key]
            if own is not None and id(own) not in new:
                x = x.to(own.device, own.dtype)
                new[id(own)] = _clone(x, poison and name in self.buffers)
        cloned = list(self.buffers.values())
        if updated:
            cloned += [
                (owner, key)
                for owner, key in self.parameters.values()
                if (p := owner[key]) is not None and (id(p) in updated or address(p) in updated)
            ]
        for owner, key in cloned:
            b = owner[key]
            if b is not None and id(b) not in new:
                new[id(b)] = _clone(b, poison)
        foreign = other_threads()
        written = [_Written(self.written)] if self.written else []
        if not foreign:
            return Lent(*written, _ForAll(self.slots, new), *besides)
        # torch.compile would trace the dicts that answer each thread with its own.
        return _eagerly(Lent(*written, _ForThisThread(self._found, new, foreign), *besides))


@contextmanager
def _eagerly(context: AbstractContextManager[object]) -> Iterator[None]:
    with eager(), context:
        yield


class _Written:
    """Buffers of what torch.jit has compiled, which keep their places.

    Their memory is written to past torch's operations, which :class:`Watch` takes for the loss's.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._memory: list[Any] = [b.untyped_storage() for b in buffers]
        self._before: list[Any] = []
        self._inside: list[Any] | None = None

    def lend(self) -> None:
        self._before = [x.clone() for x in self._memory]
        if self._inside is not None:
            self._put(self._inside)

    def give_back(self, for_good: bool) -> None:
        if not for_good:
            self._inside = [x.clone() for x in self._memory]
        self._put(self._before)

    def _put(self, values: Sequence[Any]) -> None:
        for memory, value in zip(self._memory, values, strict=False):
            memory.copy_(value)


class _ForAll:
    """Tensors exchanged in the modules' own dicts."""

    def __init__(self, slots: Sequence[tuple[TensorDict, str]], new: Mapping[int, Tensor]) -> None:
        self._slots, self._new = slots, new
        self._own: list[tuple[TensorDict, str, Tensor | None]] = []
        self._inside: list[tuple[TensorDict, str, Tensor | None]] | None = None

    def lend(self) -> None:
        new = self._new
        inside = self._inside
        if inside is None:
            found = [(owner, key, owner[key]) for owner, key in self._slots]
            self._own = [(owner, key, t) for owner, key, t in found if id(t) in new]
            inside = [(owner, key, new[id(t)]) for owner, key, t in self._own]
        else:
            self._own = [(owner, key, owner[key]) for owner, key, _ in self._own]
        for owner, key, t in inside:
            owner[key] = t

    def give_back(self, for_good: bool) -> None:
        if not for_good:
            self._inside = [(owner, key, owner[key]) for owner, key, _ in self._own]
        for owner, key, t in self._own:
            owner[key] = t


class _ForThisThread:
    """The modules' dicts exchanged for those that other threads find unchanged."""

    def __init__(
        self,
        found: Sequence[tuple[nn.Module, Any, TensorDict, TensorDict]],
        new: Mapping[int, Tensor],
        foreign: frozenset[int],
    ) -> None:
        self._dicts: list[tuple[dict[str, Any], str, TensorDict, ForEach]] = []
        for m, _, parameters, buffers in found:
            for name, own in (("_parameters", parameters), ("_buffers", buffers)):
                if any(id(t) in new for t in own.values()):
                    inside = {key: new.get(id(t), t) for key, t in own.items()}
                    self._dicts.append((vars(m), name, own, ForEach(own, inside, foreign)))

    def lend(self) -> None:
        for owner, name, _, both in self._dicts:
            owner[name] = both

    def give_back(self, for_good: bool) -> None:
        for owner, name, own, _ in self._dicts:
            owner[name] = own


def require_initialised(params: Mapping[str, Tensor]) -> None:
    """Raise a ParameterError where one has no values, or none that can be differentiated by."""
    for name, p in params.items():
        if p.is_inference():
            raise ParameterError(
                f"the parameter {name!r} was made in inference mode",
                do="build the model outside of torch.inference_mode()",
            )
        if p.is_meta:
            raise ParameterError(
                f"the parameter {name!r} is on the meta device", do="initialise it"
            )


def _clone(buffer: Tensor, poison: bool) -> Tensor:
    clone = buffer.detach().clone()
    if poison and clone.is_floating_point():
        return clone.fill_(torch.nan)
    return clone.requires_grad_() if buffer.requires_grad else clone


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


def _inner(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype is y.dtype and x.dtype in (torch.float32, torch.float64):
        return torch.dot(x.reshape(-1), y.reshape(-1))
    return (x * y).sum()


# How the core joins tensors to one vector, with torch's own functions, which are quicker.
JOINTS = Joints(_join, _part, _inner)
