"""Whether anything that a loss depends on has changed since an oracle was made."""

from __future__ import annotations

from collections.abc import Mapping, Set

from torch import Tensor, nn

from geodiag.errors import StaleOracle

Held = Mapping[str, Tensor | None]


class Watch:
    """The modules of a loss, their modes, and all their tensors, but for some.

    Holds the tensors, so that none of their ids is used again.

    Args:
        module: with everything below it.
        skipped: the ids of tensors that may change.
    """

    def __init__(self, module: nn.Module, skipped: Set[int]) -> None:
        self._modules: list[tuple[nn.Module, bool, dict[str, nn.Module | None]]] = []
        self._tensors: list[tuple[Held, str, Tensor, int, int]] = []
        self._absent: list[tuple[Held, str]] = []
        self._sizes: list[tuple[Held, int]] = []
        for m in module.modules():
            self._modules.append((m, m.training, dict(m._modules)))
            for held in (m._parameters, m._buffers):
                self._sizes.append((held, len(held)))
                for name, t in held.items():
                    if t is None:
                        self._absent.append((held, name))
                    elif id(t) not in skipped:
                        self._tensors.append((held, name, t, t.data_ptr(), t._version))

    def changed(self) -> bool:
        """Whether a tensor was written to, replaced or added, or a module or its mode changed."""
        for m, training, inner in self._modules:
            if m.training is not training or m._modules != inner:
                return True
        for held, size in self._sizes:
            if len(held) != size:
                return True
        for held, name in self._absent:
            if held.get(name) is not None:
                return True
        for held, name, t, pointer, version in self._tensors:
            if held.get(name) is not t or t._version != version or t.data_ptr() != pointer:
                return True
        return False


def stale() -> StaleOracle:
    """What is raised then."""
    return StaleOracle(
        "the model's parameters, buffers or mode changed after the oracle was made",
        do="ask the problem for a new one: problem.at()",
    )
