"""Programs compiled: ``Oracle.run`` in one call of XLA, its loops included.

As in :mod:`geodiag_jax.derivatives` the jitted function is the module's: a new problem of the same
loss, at whatever point, finds the compilation of equal programs again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar

import jax
import jax.numpy as jnp

from geodiag.blocks import Array, Blocks
from geodiag.core.spaces import MatrixView, Space
from geodiag.errors import EngineError
from geodiag.oracles import Oracle
from geodiag.oracles.base import Program
from geodiag_jax import derivatives
from geodiag_jax.derivatives import Arrays, StaticCall, StaticLoss
from geodiag_jax.pytree import as_blocks

S = TypeVar("S")
REFUSED = 2  # failures in a row to trace a program, after which it runs eagerly ever after
Product = Callable[[Arrays], Arrays]
Frozen = tuple[Array, Arrays]  # loss and gradient


class TracedOracle(Oracle):
    """Hessian-vector products while JAX traces: loops become XLA's."""

    def __init__(self, space: Space, product: Product, frozen: Frozen | None = None) -> None:
        """``frozen``: the loss and the gradient, if a program may ask for them."""
        self.space, self._product, self._frozen = space, product, frozen

    def hvp(self, d: Blocks) -> Blocks:
        return as_blocks(self.names, self._product(self._arrays(d)))

    def hvps(self, ds: Blocks) -> Blocks:
        return as_blocks(self.names, jax.vmap(self._product)(self._arrays(ds)))

    def _arrays(self, blocks: Blocks) -> Arrays:
        return tuple(self.space.asarray(blocks[name]) for name in self.names)

    def loop(self, cond: Callable[[S], Any], body: Callable[[S], S], state: S) -> S:
        def step(s: S) -> S:
            return body(self._in_order(s))

        def go_on(s: S) -> Any:
            return cond(self._in_order(s))

        start = _settled(step, state)
        return self._in_order(jax.lax.while_loop(go_on, lambda s: _like(step(s), s), start))

    def scan(
        self, step: Callable[[S], tuple[S, tuple[Blocks, ...]]], state: S, length: int
    ) -> tuple[S, tuple[Blocks, ...]]:
        def body(s: S, _: None) -> tuple[S, tuple[Blocks, ...]]:
            new, out = step(self._in_order(s))
            return _like(new, s), out

        start = _settled(lambda s: step(self._in_order(s))[0], state)
        return self._in_order(jax.lax.scan(body, start, length=length))

    def grow(
        self,
        go_on: Callable[[S], Any],
        step: Callable[[S, Blocks], tuple[S, Blocks]],
        state: S,
        rows: Blocks,
    ) -> tuple[S, Blocks]:
        """See :class:`geodiag.oracles.Oracle`; rows are written in place."""
        (most, *_), *_ = (x.shape for x in rows.values())

        def body(s: tuple[Array, S, Blocks]) -> tuple[Array, S, Blocks]:
            count, inner, held = s
            inner, row = step(inner, held)
            held = {
                name: jax.lax.dynamic_update_index_in_dim(x, row[name], count, 0)
                for name, x in held.items()
            }
            return count + 1, inner, held

        start = (jnp.zeros((), jnp.int32), state, rows)
        _, state, rows = self.loop(lambda s: (s[0] < most) & go_on(s[1]), body, start)
        return state, rows

    def _in_order(self, tree: S) -> S:
        """Blocks within ``tree`` in the order of the names again: JAX sorts the keys of dicts."""
        return in_order(self.names, tree)

    def point(self) -> Blocks:
        return _refuse("point()")

    def loss(self) -> Array:
        return self._frozen[0] if self._frozen else _refuse("loss()")

    def gradient(self) -> Blocks:
        if self._frozen is None:
            return _refuse("gradient()")
        return as_blocks(self.names, self._frozen[1])

    def loss_at(self, params: Blocks) -> Array:
        return _refuse("loss_at(w)")

    def gradient_at(self, params: Blocks) -> Blocks:
        return _refuse("gradient_at(w)")


def _refuse(question: str) -> NoReturn:
    raise EngineError(
        "a compiled program asks its oracle for products, the loss and the gradient alone",
        got=question,
        do="pass what else it needs as an argument of oracle.run",
    )


def in_order(names: tuple[str, ...], tree: S) -> S:
    """Dicts of some of these ``names`` within ``tree``, in the order of the names."""
    return _map_blocks(names, lambda x: {name: x[name] for name in names if name in x}, tree)


def _map_blocks(names: tuple[str, ...], f: Callable[[Blocks], Blocks], tree: S) -> S:
    """``tree`` with ``f`` of the dicts in it that have some of these ``names``."""

    def is_blocks(x: Any) -> bool:
        return type(x) is dict and set(x) <= set(names)

    changed: S = jax.tree_util.tree_map(
        lambda x: f(x) if is_blocks(x) else x, tree, is_leaf=is_blocks
    )
    return changed


def _settled(step: Callable[[S], S], state: S) -> S:
    """``state`` in the dtypes that ``step`` keeps; XLA needs them fixed, Python does not.

    A Python number that starts a sum, or an integer that becomes a fraction, is thus no error.
    """
    state = jax.tree_util.tree_map(jnp.asarray, state)
    while True:
        wide: S = jax.tree_util.tree_map(_wider, state, jax.eval_shape(step, state))
        if _dtypes(wide) == _dtypes(state):
            return wide
        state = wide


def _like(tree: S, other: S) -> S:
    """``tree`` in the dtypes of ``other``."""
    cast: S = jax.tree_util.tree_map(lambda x, y: jnp.asarray(x, dtype=y.dtype), tree, other)
    return cast


def _dtypes(tree: Any) -> list[Any]:
    return [x.dtype for x in jax.tree_util.tree_leaves(tree)]


def _wider(x: Array, after: Any) -> Array:
    """``x`` in the dtype that holds both; a Python number widens nothing of its own kind."""
    if x.dtype == after.dtype:
        return x
    other = after.dtype.type(0).item() if after.weak_type else after.dtype
    return x.astype(jnp.result_type(x, other))


class Source(Protocol):
    """How a program's questions are answered from the operands that it is called with; hashable."""

    def open(self, operands: Any) -> tuple[Frozen, Product]:
        """What is frozen, and d ↦ ∇²L d, in the trace at hand."""


@dataclass(frozen=True)
class Kept:
    """By kept linearizations.

    Operands: what is frozen, and (coefficient, linearization) of each batch.
    """

    def open(self, operands: Any) -> tuple[Frozen, Product]:
        frozen, kept = operands
        if len(kept) == 1:
            return frozen, functools.partial(derivatives.apply, kept[0][1])

        def product(d: Arrays) -> Arrays:
            parts = [[x * c.astype(x.dtype) for x in derivatives.apply(f, d)] for c, f in kept]
            return tuple(functools.reduce(jnp.add, each) for each in zip(*parts, strict=True))

        return frozen, product


@dataclass(frozen=True)
class Recomputed:
    """By differentiating one batch for each product; operands: what is frozen, and the inputs."""

    call: StaticCall
    forward: bool

    def open(self, operands: Any) -> tuple[Frozen, Product]:
        frozen, at = operands
        compute = derivatives.forward if self.forward else derivatives.reverse
        return frozen, lambda d: compute(self.call, at, d)[1]


@dataclass(frozen=True)
class Fresh:
    """By a linearization within the program; operands: the inputs.

    One call of XLA fewer, where the oracle has not been asked anything yet.
    """

    call: StaticCall

    def open(self, operands: Any) -> tuple[Frozen, Product]:
        frozen, linear = derivatives.linearized(self.call, operands)
        return frozen, functools.partial(derivatives.apply, linear)


@dataclass(frozen=True)
class Job:
    """What the compilation of a program depends on, apart from the shapes of its arguments."""

    program: Program[Any] = field(compare=False)
    key: Hashable  # of the program, which stands for it
    source: Source
    static: StaticLoss
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    views: tuple[tuple[str, MatrixView], ...]

    @classmethod
    def of(cls, program: Program[Any], source: Source, static: StaticLoss, space: Space) -> Job:
        shapes, views = tuple(space.shapes.items()), tuple(space.matrix_view.items())
        return cls(program, (type(program), program.key), source, static, shapes, views)


def run(job: Job, operands: Any, arguments: tuple[Any, ...]) -> Any:
    """The program's answer."""
    return in_order(tuple(name for name, _ in job.shapes), _run(job, operands, arguments))


@functools.partial(jax.jit, static_argnums=0)
def _run(job: Job, operands: Any, arguments: tuple[Any, ...]) -> Any:
    tree = job.static.tree
    space = tree.placement.space(dict(job.shapes), dict(job.views), tree.dtype, traced=True)
    frozen, product = job.source.open(operands)
    oracle = TracedOracle(space, product, frozen)
    answer = job.program(oracle, *in_order(oracle.names, arguments))
    constrain = functools.partial(tree.placement.constrain_blocks, space.shapes)
    return _map_blocks(space.names, constrain, answer)


@functools.lru_cache(maxsize=1024)
def refusals(job: Job) -> list[None]:
    """As many as the times in a row that the program could not be traced."""
    return []
