"""When a step begins and ends that several optimizers take together.

A step is all that the optimizers do with one gradient. It begins before the first of them, and ends
after the last; if one of them is left out, when the next step begins: where an optimizer steps
again, or where gradients have been computed again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.compiler import disable
from torch.optim import Optimizer


class Iteration:
    """Which optimizers have taken the current step so far.

    Args:
        optimizers: held weakly.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = [weakref.ref(each) for each in optimizers]
        self._stepped: list[int] = []
        # Of each optimizer its smallest gradient, after the last of the steps.
        self._watched: list[tuple[int, Tensor, Tensor | None, int]] = []

    @property
    def open(self) -> bool:
        """Whether one has stepped, and others may follow."""
        return bool(self._stepped)

    @property
    def complete(self) -> bool:
        """Whether all have stepped."""
        return all(id(each) in self._stepped for each in self._alive())

    def took(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""
        self._stepped.append(id(optimizer))
        self._watched = [] if self.complete else [_smallest(each) for each in self._alive()]

    def ended_before(self, optimizer: Optimizer) -> bool:
        """Whether the step that this optimizer is about to take is another one."""
        return self.open and (
            id(optimizer) in self._stepped or any(map(self._renewed, self._watched))
        )

    def close(self) -> None:
        """The step is over."""
        self._stepped, self._watched = [], []

    def left_out(self) -> list[str]:
        """The optimizers that have not stepped."""
        return [type(o).__name__ for o in self._alive() if id(o) not in self._stepped]

    def _alive(self) -> list[Optimizer]:
        found = [each() for each in self._optimizers]
        return [each for each in found if each is not None]

    def _renewed(self, watched: tuple[int, Tensor, Tensor | None, int]) -> bool:
        """Whether a gradient is another one, and not the same that was set to zero or clipped."""
        of, p, old, version = watched
        now = p.grad
        if now is None or now is not old:
            return now is not None
        changed = of in self._stepped and now._version != version
        return changed and bool((now != 0).any())


def _smallest(optimizer: Optimizer) -> tuple[int, Tensor, Tensor | None, int]:
    own: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    found = min(own, key=lambda p: (p.grad is None or p.grad.is_sparse, p.numel()))
    return id(optimizer), found, found.grad, 0 if found.grad is None else found.grad._version


def untraced(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook, which torch.compile leaves alone: to trace a measurement takes minutes."""
    found: Callable[..., None] = disable(hook)  # type: ignore[no-untyped-call]
    return found
