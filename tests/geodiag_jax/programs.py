"""Small programs for ``Oracle.run``, and norms that can and cannot be compiled."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import geodiag
from geodiag.blocks import dot, flatten, map_blocks, namespace, stack, unstack, where


class Answer(NamedTuple):
    value: Any
    direction: Any
    num_hvps: Any


@dataclass(frozen=True)
class UnitSteps:
    """d ← lmo(Hd) while the value grows, from the better of two starts."""

    norm: geodiag.Norm
    limit: int = 20

    @property
    def key(self) -> Hashable | None:
        return None if self.norm.key is None else (self.norm.key, self.limit)

    def __call__(self, oracle, first, second):
        image, other = unstack(oracle.hvps(stack([first, second])))
        value = dot(first, image)
        better = dot(second, other) > value
        d, image = where(better, second, first), where(better, other, image)
        value = dot(d, image)

        def step(s):
            new = self.norm.lmo(s[1])
            image = oracle.hvp(new)
            return new, image, dot(new, image), s[2], s[4] + 1

        d, _, value, _, count = oracle.loop(
            lambda s: (s[2] > 1.000001 * s[3]) & (s[4] < self.limit),
            step,
            (d, image, value, 0 * value, 2),
        )
        return Answer(value, d, count)


@dataclass(frozen=True)
class Asking:
    """Any function of the oracle, with an argument."""

    ask: Callable[..., Any]

    @property
    def key(self) -> Hashable | None:
        return self.ask

    def __call__(self, oracle, *arguments):
        return Answer(self.ask(oracle, *arguments), None, 1)


def flat_product(oracle, d):
    return flatten(oracle.hvp(d))


class GroupLinf(geodiag.Norm):
    """The largest entry; the five lines of a user who knows nothing of compilation."""

    runs = 0  # of lmo by Python: once per trace

    def value(self, d):
        xp = namespace(d)
        return xp.max(xp.stack([xp.max(xp.abs(x)) for x in d.values()]))

    def lmo(self, g):
        GroupLinf.runs += 1
        return map_blocks(namespace(g).sign, g)


class Hosted(GroupLinf):
    """The same by way of Python numbers, which cannot be traced."""

    def lmo(self, g):
        GroupLinf.runs += 1
        return map_blocks(lambda x: x * 0 + np.sign(np.asarray(x)), g)


class Weighted(GroupLinf):
    """max |d_i|/c with a c in an array, which could change: it is never compiled."""

    def __init__(self, c):
        self.c = np.asarray(c)

    def lmo(self, g):
        return map_blocks(lambda x: float(self.c) * namespace(g).sign(x), g)


class Broken(GroupLinf):
    """A norm with a mistake in it."""

    def lmo(self, g):
        raise ValueError("a mistake")
