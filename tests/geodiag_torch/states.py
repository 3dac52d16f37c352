"""Losses with a state outside of tensors and registered modules."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclasses.dataclass
class Counts:
    n: int = 0


class Holder:
    """An object with attributes."""


class Slotted:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Lib:
    """A state: ``begin(h)`` puts it on the holder ``h``; ``use(h, x)`` changes it, and returns what
    is added to the loss; ``said(h)`` tells it."""

    def __init__(self, begin: Any, use: Any, said: Any) -> None:
        self.begin, self.use, self.said = begin, use, said


def _set(**values: Callable[[], Any]) -> Any:
    def begin(h: Any) -> None:
        for name, make in values.items():
            setattr(h, name, make())

    return begin


def _count(h: Any, x: Tensor) -> Any:
    h.n += 1
    return x.mean() * 0.01 * h.n


def _listed(h: Any, x: Tensor) -> Any:
    h.seen.append(float(x.detach().mean()))
    return x.mean() * 0.01 * len(h.seen)


def _dict(h: Any, x: Tensor) -> Any:
    h.seen["n"] = h.seen.get("n", 0) + 1
    return x.mean() * 0.01 * h.seen["n"]


def _nested(h: Any, x: Tensor) -> Any:
    h.seen["a"][0].append(1)
    return x.mean() * 0.01 * len(h.seen["a"][0])


def _set_member(h: Any, x: Tensor) -> Any:
    h.seen.add(len(h.seen))
    return x.mean() * 0.01 * len(h.seen)


def _object(h: Any, x: Tensor) -> Any:
    h.counts.n += 1
    return x.mean() * 0.01 * h.counts.n


def _hidden(h: Any, x: Tensor) -> Any:
    a, b = h.hidden
    h.hidden = (0.9 * a + x.detach().mean(0), b + 1)
    return (x * h.hidden[0]).mean() + 0.01 * x.mean() * h.hidden[1]


def _in_place(h: Any, x: Tensor) -> Any:
    h.ema.mul_(0.9).add_(0.1 * x.detach().mean(0))
    return (x / (1 + h.ema.square())).mean()


def _array(h: Any, x: Tensor) -> Any:
    h.array += 1
    return x.mean() * float(h.array[0]) * 0.01


def _rebound(h: Any, x: Tensor) -> Any:
    h.ema = 0.9 * h.ema + 0.1 * x.detach().mean(0)
    return (x * h.ema).mean()


def _generator(h: Any, x: Tensor) -> Any:
    return (x * torch.rand(x.shape, generator=h.rng)).mean()


def _numpy(h: Any, x: Tensor) -> Any:
    return x.mean() * float(h.rng.random())


def _libraries(h: Any, x: Tensor) -> Any:
    return x.mean() * (random.random() + float(np.random.random()) + float(torch.rand(())))


def _module(h: Any, x: Tensor) -> Any:
    return h.critic(x).mean()


def _ema_teacher(h: Any, x: Tensor) -> Any:
    for p in h.teacher[0].parameters():
        p.data = 0.9 * p.data + 0.01
    return (x - h.teacher[0](x.detach()).detach()).square().mean()


def _momentum(h: Any, x: Tensor) -> Any:
    with torch.no_grad():
        for p in h.encoder.parameters():
            p.mul_(0.9).add_(0.01)
    return (h.encoder(x)).square().mean()


def _data_in_place(h: Any, x: Tensor) -> Any:
    for p in h.encoder.parameters():
        p.data.mul_(0.9).add_(0.01)
    return (h.encoder(x)).square().mean()


def _cache(h: Any, x: Tensor) -> Any:
    h.cache = torch.cat([h.cache, x.detach()])[-20:]
    return (x * h.cache.mean(0)).mean()


def _large(h: Any, x: Tensor) -> Any:
    h.queue[:, :2] += x.detach()[:1]
    return (x * h.queue.mean()).mean()


def _critic() -> nn.Module:
    sn = nn.utils.spectral_norm
    return nn.Sequential(sn(nn.Linear(2, 3)), nn.BatchNorm1d(3), nn.Dropout(0.3), nn.Linear(3, 1))


def _frozen(n: int = 2) -> nn.Module:
    return nn.Linear(2, n).requires_grad_(False)


def _tensors(m: nn.Module) -> list[Any]:
    return [t.tolist() for t in m.state_dict().values()]


STATES = {
    "int": Lib(_set(n=lambda: 0), _count, lambda h: h.n),
    "list": Lib(_set(seen=list), _listed, lambda h: list(h.seen)),
    "deque": Lib(
        _set(seen=lambda: collections.deque(maxlen=3)), _listed, lambda h: list(h.seen)
    ),
    "dict": Lib(_set(seen=dict), _dict, lambda h: dict(h.seen)),
    "Counter": Lib(_set(seen=collections.Counter), _dict, lambda h: dict(h.seen)),
    "OrderedDict": Lib(_set(seen=collections.OrderedDict), _dict, lambda h: dict(h.seen)),
    "nested": Lib(_set(seen=lambda: {"a": [[]]}), _nested, lambda h: str(h.seen)),
    "set": Lib(_set(seen=set), _set_member, lambda h: sorted(h.seen)),
    "bytearray": Lib(
        _set(seen=bytearray),
        lambda h, x: (h.seen.append(1), x.mean() * 0.01 * len(h.seen))[1],
        lambda h: bytes(h.seen),
    ),
    "dataclass": Lib(_set(counts=Counts), _object, lambda h: h.counts.n),
    "slots": Lib(_set(counts=Slotted), _object, lambda h: h.counts.n),
    "hidden tuple": Lib(
        _set(hidden=lambda: (torch.ones(2), torch.zeros(()))),
        _hidden,
        lambda h: [t.tolist() for t in h.hidden],
    ),
    "tensor in place": Lib(_set(ema=lambda: torch.ones(2)), _in_place, lambda h: h.ema.tolist()),
    "tensor rebound": Lib(_set(ema=lambda: torch.ones(2)), _rebound, lambda h: h.ema.tolist()),
    "large tensor": Lib(
        _set(queue=lambda: torch.ones(300, 70)), _large, lambda h: float(h.queue.sum())
    ),
    "array": Lib(_set(array=lambda: np.zeros(2)), _array, lambda h: h.array.tolist()),
    "cache": Lib(_set(cache=lambda: torch.ones(1, 2)), _cache, lambda h: h.cache.tolist()),
    "torch.Generator": Lib(
        _set(rng=lambda: torch.Generator().manual_seed(1)),
        _generator,
        lambda h: h.rng.get_state().tolist(),
    ),
    "numpy Generator": Lib(
        _set(rng=lambda: np.random.default_rng(1)), _numpy, lambda h: h.rng.bit_generator.state
    ),
    "RandomState": Lib(
        _set(rng=lambda: np.random.RandomState(1)), lambda h, x: x.mean() * h.rng.rand(),
        lambda h: str(h.rng.get_state()),
    ),
    "random.Random": Lib(
        _set(rng=lambda: random.Random(1)), _numpy, lambda h: h.rng.getstate()
    ),
    "library generators": Lib(
        _set(),
        _libraries,
        lambda h: (random.random(), float(np.random.random()), float(torch.rand(()))),
    ),
    "module": Lib(_set(critic=_critic), _module, lambda h: _tensors(h.critic)),
    "EMA teacher": Lib(
        _set(teacher=lambda: [_frozen()]), _ema_teacher, lambda h: _tensors(h.teacher[0])
    ),
    "momentum encoder": Lib(_set(encoder=_frozen), _momentum, lambda h: _tensors(h.encoder)),
    "encoder by .data": Lib(_set(encoder=_frozen), _data_in_place, lambda h: _tensors(h.encoder)),
}  # fmt: skip
