"""Whether anything that a loss depends on has changed since an oracle was made."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from geodiag.errors import StaleOracle
from geodiag_torch.state.module_tensors import ModuleTensors, TensorDict


class Versions:
    """The versions of a module's tensors, and the modes of its modules, as they are now.

    Holds the tensors, so that none of their ids is used again. Those ``ignored`` may change.
    """

    def __init__(self, tensors: ModuleTensors, ignored: Iterable[Tensor] = ()) -> None:
        # Buffers of what torch.jit has compiled are written to, and get their values again. The
        # module that it was made from may hold them too.
        self._ignored = set(map(id, ignored)) | set(map(id, tensors.written))
        self._module_tensors = tensors
        self.renew()

    def renew(self) -> None:
        """Take all as it is now."""
        tensors = self._module_tensors
        self._training = [m.training for m in tensors.modules]
        self._slots: list[tuple[TensorDict, str, Tensor | None, int, int]] = []
        for owner, name in tensors.slots:
            t = owner[name]
            if id(t) not in self._ignored:
                version = (0, 0) if t is None else (t.data_ptr(), t._version)
                self._slots.append((owner, name, t, *version))

    def changed(self) -> bool:
        """Whether a tensor was written to, replaced or added, or a module or its mode changed."""
        tensors = self._module_tensors
        if not tensors.is_current() or [m.training for m in tensors.modules] != self._training:
            return True
        for owner, name, t, pointer, version in self._slots:
            if owner[name] is not t:
                return True
            if t is not None and (t._version != version or t.data_ptr() != pointer):
                return True
        return False

    def check(self, announce: Callable[[StaleOracle], object] | None = None) -> None:
        """Raise StaleOracle where something has changed; ``announce``: called with it before."""
        if not self.changed():
            return
        error = StaleOracle(
            "the model's parameters, buffers or mode changed after the oracle was made",
            do="ask the problem for a new one: problem.at()",
        )
        if announce is not None:
            announce(error)
        raise error
