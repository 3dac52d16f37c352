"""What a pass writes to outside of itself, saved before it does: tensors and torch's generators."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FRESH = torch.ops.aten.lift_fresh.default  # what a tensor of numbers in Python begins with

UNTOLD = (
    "running_mean",
    "running_var",
)  # batch_norm writes to them, and its schema does not say so


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, writes into memory that was there before are noted, and what was in it is kept.

    Attributes:
        written: by their addresses, a tensor of each memory that was written to.
        draws: whether torch's global generators were drawn from.
        foreign: whether another thread drew from that of the CPU, where the watch ``tracks`` it.
    """

    def __init__(self, tracks: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: dict[int, Tensor] = {}
        self.draws = self.foreign = False
        self._tracks = tracks
        self._expected = torch.get_rng_state() if tracks else None
        self.generators: dict[int, tuple[torch.Generator, Tensor]] = {}
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if draws:
            self._drawn(*args, *kwargs.values())
            self.compare()
        inputs = {address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if func is FRESH:
            self._made |= inputs
        for x in _written(func, args, kwargs):
            self._keep(x)
        answer = func(*args, **kwargs)
        if draws and self._tracks:
            self._expected = torch.get_rng_state()
        outputs = {address(x) for x in tree_leaves(answer) if isinstance(x, Tensor)}
        self._made |= outputs - inputs
        return answer

    def __enter__(self) -> Any:
        # Functions that torch.compile met inside of a mode would never be compiled afterwards.
        self._eager = eager()
        self._eager.__enter__()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
        finally:
            self._eager.__exit__(*error)

    def compare(self) -> None:
        """See whether another thread has drawn since this one did."""
        if self._expected is not None:
            self.foreign |= not torch.equal(self._expected, torch.get_rng_state())

    def restore(self) -> None:
        """Give back what was written to."""
        for memory, before in self._before.values():
            memory.copy_(before)
        for x in self.written.values():
            torch.autograd.graph.increment_version(x)
        for generator, state in self.generators.values():
            generator.set_state(state)

    def _drawn(self, *arguments: Any) -> None:
        found = [x for x in arguments if isinstance(x, torch.Generator)]
        self.draws |= not found
        for x in found:
            self.generators.setdefault(id(x), (x, x.get_state()))

    def _keep(self, x: Tensor) -> None:
        where = address(x)
        if where and where not in self._made and where not in self.written:
            memory = x.untyped_storage()
            self.written[where], self._before[where] = x, (memory, memory.clone())  # type: ignore[no-untyped-call]


def eager() -> AbstractContextManager[Any]:
    """Inside, functions of torch.compile run as they were written, in every thread."""
    stance = getattr(torch.compiler, "set_stance", None)  # from torch 2.6 on
    if stance is None or "torch._dynamo.eval_frame" not in sys.modules:
        return nullcontext()
    found: AbstractContextManager[Any] = stance("force_eager")
    return found


def address(x: Tensor) -> int:
    """Where a tensor's memory begins; 0 where it has none of its own."""
    try:
        return x.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse tensors, and those of vmap
        return 0


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for i, a in enumerate(func._schema.arguments):
        if a.name not in UNTOLD and (a.alias_info is None or not a.alias_info.is_write):
            continue
        x = args[i] if i < len(args) else kwargs.get(a.name)
        yield from (t for t in tree_leaves(x) if isinstance(t, Tensor))
