"""Whether anything that a loss depends on has changed since an oracle was made."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from geodiag.errors import StaleOracle
from geodiag_torch.state.module_tensors import Held, Layout


class Watch:
    """The modules of a loss, their modes, and all their tensors, but for some.

    Holds the tensors, so that none of their ids is used again.

    Args:
        layout: of the loss, as it is now.
        skipped: tensors that may change.
    """

    def __init__(self, layout: Layout, skipped: Iterable[Tensor]) -> None:
        skips = set(map(id, skipped))
        self._layout = layout
        self._training = [m.training for m in layout.modules]
        self._absent: list[tuple[Held, str]] = []
        self._tensors: list[tuple[Held, str, Tensor, int, int]] = []
        for held, name in layout.slots:
            t = held[name]
            if t is None:
                self._absent.append((held, name))
            elif id(t) not in skips:
                self._tensors.append((held, name, t, t.data_ptr(), t._version))

    def changed(self) -> bool:
        """Whether a tensor was written to, replaced or added, or a module or its mode changed."""
        layout = self._layout
        if not layout.stands() or [m.training for m in layout.modules] != self._training:
            return True
        for held, name in self._absent:
            if held[name] is not None:
                return True
        for held, name, t, pointer, version in self._tensors:
            if held[name] is not t or t._version != version or t.data_ptr() != pointer:
                return True
        return False


def stale() -> StaleOracle:
    """What is raised then."""
    return StaleOracle(
        "the model's parameters, buffers or mode changed after the oracle was made",
        do="ask the problem for a new one: problem.at()",
    )
