"""Which of a model's parameters its optimizers move, and what else they move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from geodiag.core.selection import Where, select
from geodiag.errors import ParameterError
from geodiag.monitoring.unmeasured import listed
from geodiag_torch.sharding.detection import local, sharding_of
from geodiag_torch.state.interrupts import Lent, uninterrupted
from geodiag_torch.state.names import named_parameters, public_names

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Selection:
    """What the optimizers hold now.

    Attributes:
        chosen: the trainable parameters of the model that they hold, and that are to be measured.
        others: the other tensors that they may move, in the model or not.
        note: what is left out though nobody asked for that; "" if nothing is.
    """

    chosen: Named
    others: Named
    note: str


def selection(optimizers: Sequence[Optimizer], model: nn.Module, where: Where) -> Selection:
    """The parameters to measure: trainable, held by an optimizer, and chosen by ``where``.

    Raises:
        ParameterError: there are none, or two optimizers hold one.
    """
    sharding = sharding_of(model)
    if sharding is not None:
        sharding.reshard(model)  # the optimizer holds the sharded parameters
    own = named_parameters(model)
    trainable = {name: own[raw] for name, raw in public_names(model).items()}
    wanted = select(trainable, where)
    held = _held(optimizers, {id(p): name for name, p in own.items()})
    chosen = {name: p for name, p in wanted.items() if id(p) in held}
    if not chosen:
        raise ParameterError(
            "the optimizer holds none of the parameters to measure",
            got=", ".join(list(wanted)[:6]),
            do="pass the model that the optimizer was built for; build the optimizer after the "
            "model is moved or wrapped",
        )
    measured = set(map(id, chosen.values()))
    names = {id(p): name for name, p in own.items()}
    others = {
        names.get(i, outside): p
        for i, (outside, p) in held.items()
        if i not in measured and (p.requires_grad or p.grad is not None)
    }
    foreign = [name for name, p in others.items() if id(p) not in names]
    free = [name for name, p in wanted.items() if id(p) not in held]
    notes = []
    if foreign:
        notes.append(f"tensors of the optimizer that the model does not have: {listed(foreign)}")
    if free:
        notes.append(f"parameters that the optimizer does not hold: {listed(free)}")
    return Selection(chosen, others, "not measured: " + "; ".join(notes) if notes else "")


def _held(optimizers: Sequence[Optimizer], own: Mapping[int, str]) -> dict[int, tuple[str, Tensor]]:
    """By their ids, the tensors of the optimizers, each with its name or its place there."""
    found: dict[int, tuple[str, Tensor]] = {}
    for optimizer in optimizers:
        places = _places(optimizer)
        if len(optimizers) > 1 and not any(i in own for i in places):
            raise ParameterError(
                f"{type(optimizer).__name__} holds no parameter of the model",
                do="leave it out of the list, or pass a module that has its parameters",
            )
        if twice := sorted(own.get(i, found[i][0]) for i in places if i in found):
            raise ParameterError(
                "two of the optimizers hold the same parameter, so that neither rule is its own",
                got=listed(twice),
                do="give each parameter to one of them",
            )
        found |= places
    return found


def _places(optimizer: Optimizer) -> dict[int, tuple[str, Tensor]]:
    found: dict[int, tuple[str, Tensor]] = {}
    for i, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or ()
        for j, p in enumerate(group["params"]):
            name = names[j] if j < len(names) else f"param_groups[{i}].params[{j}]"
            found[id(p)] = name, p
    return found


def entries(tensors: Named) -> dict[str, Tensor]:
    """What this rank holds of them, in the same memory."""
    return {name: local(p.detach()) for name, p in tensors.items()}


def copied(tensors: Named) -> dict[str, Tensor]:
    """Their entries in memory of their own."""
    return {name: p.detach().clone() for name, p in tensors.items()}


def as_they_were(tensors: Named, copies: Named, run: Callable[[], None]) -> None:
    """``run()`` while these tensors hold the copies of their :func:`entries`."""
    if not copies:
        run()
        return
    earlier = _Earlier(tensors, copies)

    def around(run: Callable[[], None]) -> None:
        with Lent(earlier):
            run()

    uninterrupted(around, run)


class _Earlier:
    """Tensors that hold earlier entries; see :class:`geodiag_torch.state.interrupts.Lending`."""

    def __init__(self, tensors: Named, copies: Named) -> None:
        self._own = {name: tensors[name] for name in copies}
        self._inside, self._now = dict(copies), dict[str, Tensor]()

    def lend(self) -> None:
        self._now = {}
        for name, x in self._inside.items():  # which may fail halfway, for want of memory
            self._now[name] = _replaced(self._own[name], x)

    def give_back(self, for_good: bool) -> None:
        for name, x in self._now.items():
            inside = _replaced(self._own[name], x)
            if not for_good:
                self._inside[name] = inside


def _replaced(p: Tensor, x: Tensor) -> Tensor:
    """Give a tensor the entries ``x``; returns those that it had."""
    mine = local(p)
    if mine is p:
        old, p.data = p.data, x
        return old
    old = mine.detach().clone()  # FSDP keeps other references to a shard's memory
    mine.detach().copy_(x)
    return old
