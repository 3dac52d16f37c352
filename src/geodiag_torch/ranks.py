"""Several ranks measure together: sums over their data, and errors announced to all of them.

Each rank passes over its own shard of the data. Before sums are reduced, the ranks gather a few
numbers of each: whether the pass succeeded, which operation it was, its weight and its loss, and a
checksum of the parameters or directions. So an error on one rank raises on all of them, and ranks
that issue different operations raise instead of hanging; decisions that depend on sums are the same
on every rank. A rank that does not answer is an error on the others once the process group's
timeout is over.
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
from geodiag.errors import ArgumentError, DistributedError, EngineError, first_line, shown

SAME = "call geodiag on every rank of the group, with the same arguments but for data="
TEXT = 400  # bytes of an error's text that the other ranks see
SMALL = 2**16  # tensors of up to so many entries are reduced in one message
GOLDEN = (math.sqrt(5) - 1) / 2
TOLERANCE = 1e-6  # of the sum of absolute values: how far checksums may differ
SUCCESS, ENGINE, ERROR = 0, 1, 2
ADDING = 'a pass over the data, with reduction="sum"'
OPERATIONS = ("an error report", "a pass over the data", "a product", "a decision", ADDING)


class Sums(NamedTuple):
    """What a pass over one rank's data adds up to, or over those of all ranks."""

    weight: float
    loss: Tensor
    blocks: Blocks


class Alone:
    """A single process: nothing is exchanged."""

    rank, size = 0, 1
    group: dist.ProcessGroup | None = None

    def sum(self, operation: str, checked: Blocks, local: Callable[[], Sums]) -> Sums:
        """``local()``, added over the ranks; ``checked``: tensors that must be equal on all."""
        return local()

    def announce(self, error: BaseException) -> bool:
        """Tell the other ranks, wherever they wait, of an error; whether they answered."""
        return True

    def any(self, yes: bool) -> bool:
        """Whether it is so on any rank."""
        return yes

    def first(self, yes: bool) -> bool:
        """Whether it is so on the first rank."""
        return yes


class Ranks(Alone):
    """This rank among those of a process group.

    Raises (from its methods):
        DistributedError: another rank met an error, issued another operation, or does not answer.
        EngineError: another rank met one.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group = group
        self._device = device if device.type == "cuda" else torch.device("cpu")
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, operation: str, checked: Blocks, local: Callable[[], Sums]) -> Sums:
        try:
            found = local()
            size = sum(x.numel() for x in found.blocks.values())
            numbers = [size, found.weight, float(found.loss), *_checksum(checked)]
        except BaseException as e:
            self.announce(e)
            raise
        rows = self._exchange(operation, numbers)
        _check_same([row[3] for row in rows], TOLERANCE * rows[0][4])
        loss = torch.full_like(found.loss, sum(row[2] for row in rows))
        return Sums(sum(row[1] for row in rows), loss, self._reduced(found.blocks))

    def any(self, yes: bool) -> bool:
        return any(row[1] for row in self._exchange("a decision", [0, float(yes)]))

    def first(self, yes: bool) -> bool:
        return bool(self._exchange("a decision", [0, float(yes)])[0][1])

    def announce(self, error: BaseException) -> bool:
        """Raises only where another rank met a worse error."""
        if isinstance(error, DistributedError) or getattr(error, "announced", False):
            return True  # all ranks know
        error.announced = True  # type: ignore[attr-defined]
        engine = isinstance(error, EngineError)
        try:
            rows = self._gather([ENGINE if engine else ERROR, 0])
            texts = self._texts(f"{type(error).__name__}: {first_line(error)}")
        except DistributedError:
            return False
        if engine and any(row[0] == ERROR for row in rows):
            self._raise(rows, texts)
        return True

    def _exchange(self, operation: str, numbers: Iterable[float]) -> list[list[float]]:
        """Every rank's numbers, where no rank met an error and all issued the same operation.

        The first of the numbers is the size of what is to be reduced then.
        """
        rows = self._gather([SUCCESS, OPERATIONS.index(operation), *numbers])
        if any(row[0] != SUCCESS for row in rows):
            self._raise(rows, self._texts(""))
        issued = [f"{OPERATIONS[int(row[1])]}, for {row[2]:.0f} numbers" for row in rows]
        if len(set(issued)) > 1:
            raise DistributedError(
                "the ranks issued different operations",
                got="; ".join(f"rank {rank}: {what}" for rank, what in enumerate(issued)),
                do=SAME,
            )
        return [row[2:] for row in rows]

    def _raise(self, rows: list[list[float]], texts: list[str]) -> None:
        """Raise the worst error that a rank met, of the first rank that met such a one."""
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
            do="correct it there; every rank has stopped",
        )

    def _gather(self, row: list[float]) -> list[list[float]]:
        row = row + [0.0] * (2 + 5 - len(row))
        mine = torch.tensor(row, dtype=torch.float64, device=self._device)
        found: list[list[float]] = torch.stack(all_gather(mine, self.group)).tolist()
        return found

    def _texts(self, mine: str) -> list[str]:
        raw = mine.encode()[:TEXT].ljust(TEXT)
        text = torch.tensor(list(raw), dtype=torch.uint8, device=self._device)
        texts = all_gather(text, self.group)
        return [bytes(t.tolist()).decode(errors="replace").strip() for t in texts]

    def _reduced(self, blocks: Blocks) -> Blocks:
        """The blocks added over the ranks: small tensors in one message, others one by one."""
        small = {name: x for name, x in blocks.items() if x.numel() <= SMALL}
        out = dict(blocks)
        if small:
            flat = torch.cat([x.detach().reshape(-1) for x in small.values()])
            all_reduce(flat, self.group)
            parts = torch.split(flat, [x.numel() for x in small.values()])
            named = zip(small.items(), parts, strict=True)
            out |= {name: part.view(x.shape) for (name, x), part in named}
        for name, x in blocks.items():
            if name not in small:
                # A copy: what is reduced may be the gradient that a graph keeps.
                copied = x.detach().clone(memory_format=torch.contiguous_format)
                out[name] = all_reduce(copied, self.group)
        return out


class RankBatches(Batches):
    """The batches of one rank of several: a single batch has its weight too."""

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
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.process_group
    return None


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
            got="the value that a rank outside of the group gets" if outside else shown(group),
            do="pass torch.distributed.group.WORLD for all ranks, or what new_group(...) returned, "
            "after init_process_group(...)",
        )


def is_outside(group: Any) -> bool:
    """Whether this is what ``new_group`` returns on a rank outside of the group."""
    return dist.is_available() and type(group) is int and group == dist.GroupMember.NON_GROUP_MEMBER


def all_gather(x: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    """``x`` of every rank, of one shape and dtype.

    Raises:
        DistributedError: a rank did not answer.
    """
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    _collective(lambda: dist.all_gather(parts, x, group=group))
    return parts


def all_reduce(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """``x``, into which those of the other ranks are added; raises as :func:`all_gather`."""
    _collective(lambda: dist.all_reduce(x, group=group))
    return x


def _collective(run: Callable[[], Any]) -> None:
    try:
        run()
    except RuntimeError as e:
        raise no_answer(e) from e


def no_answer(e: BaseException) -> DistributedError:
    """The error of a rank whose communication failed with ``e``."""
    return DistributedError(
        "a rank did not answer: it ended, hangs, or issued another operation",
        got=first_line(e),
        do="look for an error on the other ranks; if one is only slow, give the process group a "
        "longer timeout",
    )


def _checksum(tensors: Blocks) -> tuple[float, float]:
    """A number that changes with the tensors, and the scale of its rounding error.

    Of rows and columns, it changes too if some of them change places.
    """
    total, size = 0.0, 0.0
    with torch.no_grad():
        for k, x in enumerate(tensors.values()):
            if x.numel():
                table = x.reshape(len(x), -1) if x.dim() else x.reshape(1, 1)
                sums = (table.sum(axis, dtype=torch.float64) for axis in (0, 1))
                total += (1 + k % 7) * sum(float(s @ _weights(s)) for s in sums)
                size += (1 + k % 7) * float(x.abs().sum(dtype=torch.float64))
    return total, size


def _weights(x: Tensor) -> Tensor:
    """A weight in [0, 1) for each place, so that a sum changes if entries change places."""
    places = torch.arange(len(x), dtype=x.dtype, device=x.device)
    return (places * GOLDEN).frac()


def _check_same(values: list[float], tolerance: float) -> None:
    if not all(math.isfinite(v) for v in values):
        return  # reported as NonFiniteError elsewhere
    if max(values) - min(values) > tolerance:
        raise DistributedError(
            "the parameters, or the directions, are not the same on all ranks",
            got="checksums " + "; ".join(f"rank {rank}: {v:.17g}" for rank, v in enumerate(values)),
            do="load the same weights on every rank; pass the same start=, seed= and params=",
        )
