"""Several ranks as one measurement: sums over all of them, and what one met told to the others.

Each rank passes over its own shard of the data. Before sums are added, the ranks exchange a few
numbers: whether the pass went well, what it was, its weight and its loss, and a checksum of what it
was at. So an error on one rank is one on all, and ranks that do not do the same are told so; what
is decided by sums is decided alike everywhere. A rank that does not answer is an error on the
others once the process group's timeout is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geodiag.blocks import Blocks
from geodiag.core.batches import Batches
from geodiag.errors import ArgumentError, DistributedError, EngineError, GeodiagError, shown
from geodiag_torch.derivatives.graph import first_line

SAME = "call geodiag on every rank of the group, with the same arguments but for data="
TEXT = 400  # bytes of an error's text that the other ranks see
TOGETHER = 2**16  # tensors of up to so many entries are added in one message
AGREE = 1e-6  # of the sum of absolute values: how far checksums may be apart
FINE, ENGINE, ERROR = 0, 1, 2
QUESTIONS = ("a failure", "a pass over the data", "a product", "a choice")


class Sums(NamedTuple):
    """What a pass over one rank's data adds up to, or over those of all ranks."""

    weight: float
    loss: Tensor
    blocks: Blocks


class Alone:
    """One process by itself: nothing is exchanged."""

    rank, size = 0, 1
    group: dist.ProcessGroup | None = None

    def sum(self, question: str, asked: Blocks, local: Callable[[], Sums]) -> Sums:
        """``local()``, added over the ranks; ``asked``: tensors that must be equal on all."""
        return local()

    def told(self, error: GeodiagError) -> GeodiagError:
        """The error, of which the others have been told."""
        return error

    def tell(self, error: BaseException) -> bool:
        """Tell the others, wherever they wait, of an error; whether they answered."""
        return True

    def any(self, yes: bool) -> bool:
        """Whether it is so on any rank."""
        return yes

    def lead(self, yes: bool) -> bool:
        """Whether it is so on the first rank."""
        return yes


class Ranks(Alone):
    """This rank among those of a process group.

    Raises (from its methods):
        DistributedError: another rank met an error, asks something else, or does not answer.
        EngineError: another rank met one.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group = group
        self._device = device if device.type == "cuda" else torch.device("cpu")
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, question: str, asked: Blocks, local: Callable[[], Sums]) -> Sums:
        try:
            found = local()
            size = sum(x.numel() for x in found.blocks.values())
            numbers = [size, found.weight, float(found.loss), *_checksum(asked)]
        except BaseException as e:
            self.tell(e)
            raise
        rows = self._exchange(question, numbers)
        _check_same([row[3] for row in rows], AGREE * rows[0][4])
        loss = torch.full_like(found.loss, sum(row[2] for row in rows))
        return Sums(sum(row[1] for row in rows), loss, self._added(found.blocks))

    def told(self, error: GeodiagError) -> GeodiagError:
        self.tell(error)
        return error

    def any(self, yes: bool) -> bool:
        return any(row[1] for row in self._exchange("a choice", [0, float(yes)]))

    def lead(self, yes: bool) -> bool:
        return bool(self._exchange("a choice", [0, float(yes)])[0][1])

    def _exchange(self, question: str, numbers: Iterable[float]) -> list[list[float]]:
        """Every rank's numbers, where no rank met an error and all ask the same.

        The first of them is the size of what is to be added then.
        """
        row = [FINE, QUESTIONS.index(question), *numbers]
        rows = self._gather(row)
        failed = [rank for rank, (status, *_) in enumerate(rows) if status != FINE]
        if failed:
            self._report(rows, self._texts(""))
        asked = [f"{QUESTIONS[int(row[1])]}, for {row[2]:.0f} numbers" for row in rows]
        if len(set(asked)) > 1:
            raise DistributedError(
                "the ranks do not ask the same",
                got="; ".join(f"rank {rank}: {what}" for rank, what in enumerate(asked)),
                do=SAME,
            )
        return [row[2:] for row in rows]

    def tell(self, error: BaseException) -> bool:
        """Raises only where one of the others met something worse."""
        if isinstance(error, DistributedError) or getattr(error, "told_to_ranks", False):
            return True  # all know
        error.told_to_ranks = True  # type: ignore[attr-defined]
        engine = isinstance(error, EngineError)
        try:
            rows = self._gather([ENGINE if engine else ERROR, 0])
            texts = self._texts(f"{type(error).__name__}: {first_line(error)}")
        except DistributedError:
            return False
        if engine and any(row[0] == ERROR for row in rows):
            self._report(rows, texts)
        return True

    def _report(self, rows: list[list[float]], texts: list[str]) -> None:
        """Raise what a rank has met: the worst, of the first rank that met such a thing."""
        worst = max(row[0] for row in rows)
        rank = next(rank for rank, row in enumerate(rows) if row[0] == worst)
        if worst == ENGINE:
            raise EngineError(
                f"rank {rank} could not compute the derivative",
                got=f"on rank {rank}, {texts[rank]}",
                do='pass engine="finite-difference"',
            )
        raise DistributedError(
            f"rank {rank} met an error",
            got=texts[rank],
            do="mend it there; every rank has stopped",
        )

    def _gather(self, row: list[float]) -> list[list[float]]:
        row = row + [0.0] * (2 + 5 - len(row))
        mine = torch.tensor(row, dtype=torch.float64, device=self._device)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        collective(lambda: dist.all_gather(rows, mine, group=self.group))
        found: list[list[float]] = torch.stack(rows).tolist()
        return found

    def _texts(self, mine: str) -> list[str]:
        raw = mine.encode()[:TEXT].ljust(TEXT)
        text = torch.tensor(list(raw), dtype=torch.uint8, device=self._device)
        texts = [torch.empty_like(text) for _ in range(self.size)]
        collective(lambda: dist.all_gather(texts, text, group=self.group))
        return [bytes(t.tolist()).decode(errors="replace").strip() for t in texts]

    def _added(self, blocks: Blocks) -> Blocks:
        """The blocks added over the ranks: small tensors in one message, others one by one."""
        small = {name: x for name, x in blocks.items() if x.numel() <= TOGETHER}
        out = dict(blocks)
        if small:
            flat = torch.cat([x.detach().reshape(-1) for x in small.values()])
            self._add(flat)
            parts = torch.split(flat, [x.numel() for x in small.values()])
            named = zip(small.items(), parts, strict=True)
            out |= {name: part.view(x.shape) for (name, x), part in named}
        for name, x in blocks.items():
            if name not in small:
                # A copy: what is added may be the gradient that a graph keeps.
                out[name] = x.detach().clone(memory_format=torch.contiguous_format)
                self._add(out[name])
        return out

    def _add(self, x: Tensor) -> None:
        collective(lambda: dist.all_reduce(x, group=self.group))


class RankBatches(Batches):
    """One rank's batches, of which others have more: a single batch has its weight too."""

    def __init__(self, data: Any, weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(data, weight, reduction)
        self._no_data = data is None
        self.single = False

    def weigh(self, batch: Any) -> float:
        return 1.0 if self._no_data else super().weigh(batch)


def ranks_of(model: nn.Module, group: Any, device: torch.device) -> Alone:
    """The ranks that measure ``model`` together: those of ``group``, else of its DDP wrapper.

    Raises:
        ArgumentError: ``group`` is no process group that this rank is in.
    """
    if group is not None:
        _check_group(group)
    else:
        group = _wrapped_group(model)
        if group is None or not _alive(group):
            return Alone()
    return ranks_among(group, device)


def world_size(group: dist.ProcessGroup | None) -> int:
    """Of a group, or of the default one; 1 where there is none."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def ranks_among(group: dist.ProcessGroup | None, device: torch.device) -> Alone:
    """This rank among those of a group that it is in."""
    if group is None or dist.get_world_size(group) == 1:
        return Alone()
    return Ranks(group, device)


def _wrapped_group(model: nn.Module) -> dist.ProcessGroup | None:
    while not isinstance(model, nn.parallel.DistributedDataParallel):
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return None
        model = inner
    return model.process_group


def _alive(group: Any) -> bool:
    try:
        return bool(dist.is_initialized() and dist.get_process_group_ranks(group))
    except KeyError:
        return False


def _check_group(group: Any) -> None:
    here = dist.is_available() and isinstance(group, dist.ProcessGroup)
    if not here or not _alive(group):
        outside = is_outside(group)
        raise ArgumentError(
            "process_group= must be a torch.distributed process group that this rank is in",
            got="the mark of a rank outside of the group" if outside else shown(group),
            do="pass torch.distributed.group.WORLD for all ranks, or what new_group(...) returned, "
            "after init_process_group(...)",
        )


def is_outside(group: Any) -> bool:
    """Whether this is what a rank outside of a new group gets in its place."""
    return dist.is_available() and type(group) is int and group == dist.GroupMember.NON_GROUP_MEMBER


def collective(run: Callable[[], Any]) -> None:
    """Communicate.

    Raises:
        DistributedError: a rank did not answer.
    """
    try:
        run()
    except RuntimeError as e:
        raise no_answer(e) from e


def no_answer(e: BaseException) -> DistributedError:
    """The error of a rank whose communication failed with ``e``."""
    return DistributedError(
        "a rank did not answer: it ended, hangs, or does something else",
        got=first_line(e),
        do="look for an error on the other ranks; if one is only slow, give the process group a "
        "longer timeout",
    )


def _checksum(asked: Blocks) -> tuple[float, float]:
    """A number that changes with the tensors, and the scale of its rounding."""
    total, size = 0.0, 0.0
    with torch.no_grad():
        for k, x in enumerate(asked.values()):
            total += (1 + k % 7) * float(x.sum(dtype=torch.float64))
            size += (1 + k % 7) * float(x.abs().sum(dtype=torch.float64))
    return total, size


def _check_same(values: list[float], tolerance: float) -> None:
    if not all(math.isfinite(v) for v in values):
        return  # which is another error's business
    if max(values) - min(values) > tolerance:
        raise DistributedError(
            "the parameters, or the directions, are not the same on all ranks",
            got="checksums " + "; ".join(f"rank {rank}: {v:.17g}" for rank, v in enumerate(values)),
            do="load the same weights on every rank; pass the same start=, seed= and params=",
        )
