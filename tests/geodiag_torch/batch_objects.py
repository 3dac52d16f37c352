"""Batches in the forms that other packages give them."""

from __future__ import annotations

import dataclasses
from collections import UserDict, namedtuple
from types import SimpleNamespace
from typing import Any

import torch

Pair = namedtuple("Pair", ["x", "y"])


@dataclasses.dataclass
class Plain:
    x: Any
    y: Any
    name: str = "a name"


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    x: Any
    y: Any


class Iterated:
    """Made to be unpacked, ``x, y = batch``."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter((self.x, self.y))


class MovesItself:
    """``to`` changes the object, and returns nothing."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device):
        self.x, self.y = self.x.to(device), self.y.to(device)


class Graphs:
    """As in PyTorch Geometric: tensors in a store, iterated as (name, tensor), moved in place."""

    def __init__(self, num_graphs=None, **tensors):
        self.__dict__["_store"] = UserDict(tensors)
        self.__dict__["num_graphs"] = num_graphs

    def __getattr__(self, name):
        if name == "_store" or name not in self._store:
            raise AttributeError(name)
        return self._store[name]

    def __iter__(self):
        return iter(self._store.items())

    def __len__(self):
        return len(self._store)

    def __call__(self, *names):
        return iter([(name, self._store[name]) for name in names])

    def __copy__(self):
        return Graphs(self.num_graphs, **self._store)

    def to(self, device):
        for name, x in self._store.items():
            self._store[name] = x.to(device)
        return self


def encoding(x, y):
    import transformers

    return transformers.BatchEncoding({"x": x, "y": y})


def model_output(x, y):
    import transformers

    return transformers.utils.ModelOutput({"x": x, "y": y})


FORMS = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "namedtuple": Pair,
    "dict": lambda x, y: {"x": x, "y": y},
    "UserDict": lambda x, y: UserDict(x=x, y=y),
    "BatchEncoding": encoding,
    "ModelOutput": model_output,
    "namespace": lambda x, y: SimpleNamespace(x=x, y=y),
    "dataclass": Plain,
    "frozen dataclass": Frozen,
    "dataclass with slots": Slotted,
    "iterated": Iterated,
    "moves itself": MovesItself,
    "graphs": lambda x, y: Graphs(len(y), x=x, y=y),
}


def parts(batch):
    """x and y of a batch in any form."""
    if isinstance(batch, (tuple, list)):
        x, y = batch
        return x, y
    if hasattr(batch, "keys") and not isinstance(batch, Graphs):
        return batch["x"], batch["y"]
    return batch.x, batch.y


def tensors(batch):
    return [x for x in parts(batch) if isinstance(x, torch.Tensor)]
