"""The contracts of a Problem (loss, data, parameters) and of an Oracle (the problem at one point).

A bare matrix is enough to test any algorithm against: see :mod:`geodiag.oracles.dense`. An adapter
subclasses both; :func:`geodiag.testing.check_oracle` tells whether it got them right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

from geodiag.blocks import Array, Blocks, map_blocks, stack, unstack
from geodiag.core.spaces import MatrixView, Space

S = TypeVar("S")
R = TypeVar("R", covariant=True)
# Why products are differences, see Oracle.use_differences.
NOT_FINITE = "other ones are not finite at this point, though loss and gradient are"


class Program(Protocol[R]):
    """A part of an estimate as a pure function of an oracle and of arrays.

    It asks the oracle for ``hvp`` and ``hvps`` and iterates by its ``loop`` and ``scan``, so that
    an adapter can compile the whole of it. Arguments and answer are trees (tuples, lists, dicts)
    of arrays; the answer has a 0-d ``num_hvps``, the products that were spent.
    """

    @property
    def key(self) -> Hashable | None:
        """What the program does, as a hashable value: programs of equal keys are compiled once.

        None: it is never compiled.
        """

    def __call__(self, oracle: Oracle, *arguments: Any) -> R: ...


class Oracle(ABC):
    """A loss at one frozen point: the same question twice gives the same answer.

    Batch, randomness and parameters are frozen. Every answer is in the measurement dtype (float32
    or better) on the device of the model. ``loss`` and ``gradient`` are asked for more than once:
    keep their answers. What a new method here asks, :class:`geodiag.oracles.DelegatingOracle` must
    forward.

    Attributes:
        space: names, shapes and matrix views of the parameters.
        free_hvps: whether a Hessian-vector product costs next to nothing (a given matrix).
        grow: where loops are compiled, one that keeps a row of blocks per step. In
            ``state, rows = grow(go_on, step, state, rows)`` each step, ``state, row = step(state,
            rows)`` while ``go_on(state)``, replaces one row of a stack of zeros. None elsewhere.

    Examples:
        >>> oracle = geodiag.problem(np.diag([2.0, 1.0])).at()
        >>> oracle.names, oracle.hvp({"x": np.array([1.0, 1.0])})["x"].tolist()
        (('x',), [2.0, 1.0])
    """

    space: Space
    free_hvps: bool = False
    grow: Callable[..., Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.space.names

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.space.shapes

    @property
    def matrix_view(self) -> Mapping[str, MatrixView]:
        return self.space.matrix_view

    @property
    def notes(self) -> tuple[str, ...]:
        """What this oracle does differently from what was asked (another engine), and why."""
        return ()

    @property
    def precision(self) -> float:
        """The machine epsilon of the coarsest dtype that the loss is computed in.

        0 stands for the measurement dtype's own. Half precision, autocast and casts inside a model
        make it larger.
        """
        return 0.0

    @property
    def steady(self) -> bool:
        """Whether each pass computes the same loss; if not, no value is EXACT."""
        return True

    def independent_hvp(self, d: Blocks) -> Blocks | None:
        """∇²L(w) d computed in another way, as accurate as :meth:`hvp`, to estimate its error.

        None where products are as exact as the measurement dtype. See
        :class:`geodiag.oracles.Differences` for finite differences, and
        :func:`geodiag.oracles.jittered_hvp` for fewer than 32 bits.
        """
        return None

    def in_float32(self) -> Oracle | None:
        """The same loss at the same point in float32, if it is computed in fewer than 32 bits.

        None where it is not, and where it cannot be: it then insists on fewer bits, draws random
        numbers, which would be others, or differs there by more than rounding.
        """
        return None

    def use_differences(self) -> bool:
        """Take differences of gradients for products from now on; whether these are others.

        Asked where products are not finite: a norm, a root or a power at zero may have a gradient
        and no second derivative. To be refused where another way was asked for, where loss or
        gradient are not finite, and in fewer than 32 bits.
        """
        return False

    def spare(self) -> None:
        """Make nothing ready for Hessian-vector products, as one at most will be asked for.

        An adapter then keeps no graph, so that loss and gradient cost what they cost in training,
        and :meth:`hvp` raises an EngineError where it would fall back to differences of gradients.
        """
        return None

    def surroundings(self) -> AbstractContextManager[Any]:
        """A context that an estimate must run in: it turns off the user's autocast, for one."""
        return nullcontext()

    @abstractmethod
    def point(self) -> Blocks:
        """The parameters w that the oracle is frozen at."""

    @abstractmethod
    def loss(self) -> Array:
        """L(w), a 0-d array."""

    @abstractmethod
    def gradient(self) -> Blocks:
        """∇L(w)."""

    @abstractmethod
    def hvp(self, d: Blocks) -> Blocks:
        """∇²L(w) d."""

    @abstractmethod
    def loss_at(self, params: Blocks) -> Array:
        """L at other parameters, on the same batch with the same randomness."""

    @abstractmethod
    def gradient_at(self, params: Blocks) -> Blocks:
        """∇L at other parameters, on the same batch with the same randomness."""

    def hvps(self, ds: Blocks) -> Blocks:
        """∇²L(w) d for k directions stacked on a leading axis; override where batching pays."""
        return stack([self.hvp(d) for d in unstack(ds)])

    def loop(self, cond: Callable[[S], Any], body: Callable[[S], S], state: S) -> S:
        """``while cond(state): state = body(state)``; an adapter may compile it."""
        while bool(cond(state)):
            state = body(state)
        return state

    def scan(
        self, step: Callable[[S], tuple[S, tuple[Blocks, ...]]], state: S, length: int
    ) -> tuple[S, tuple[Blocks, ...]]:
        """``state, out = step(state)``, ``length`` times; the outs stacked, blocks by blocks."""
        outs = []
        for _ in range(length):
            state, out = step(state)
            outs.append(out)
        return state, tuple(stack(column) for column in zip(*outs, strict=True))

    def run(self, program: Program[S], *arguments: Any, asks: Oracle | None = None) -> S:
        """``program(asks or self, *arguments)``; an adapter may compile it, once for equal keys.

        ``asks``: an oracle around this one that counts, for a program that is not compiled.
        """
        return program(asks or self, *arguments)


class Problem(ABC):
    """Loss, data and the choice of parameters, still free of the point. A context manager.

    Examples:
        >>> with geodiag.problem(np.diag([2.0, 1.0])) as problem:
        ...     warm = geodiag.sharpness(problem, "linf", start=geodiag.sharpness(problem, "linf"))
        >>> isinstance(problem, geodiag.Problem), float(warm)
        (True, 3.0)
    """

    # Whether this process writes the records, where several measure together.
    leads: bool = True

    def agree(self, yes: bool) -> bool:
        """``yes`` as the leading process has it, where several measure together."""
        return yes

    def anywhere(self, yes: bool) -> bool:
        """``yes`` on any process, where several measure together."""
        return yes

    def unmeasured(self, params: Any = None) -> Mapping[str, Array]:
        """The trainable tensors that are not measured, in ``params`` or in the model now.

        A step that moves them is not along the measured parameters alone. Default: none.
        """
        return {}

    def require_whole(self, params: Any) -> None:
        """Check that a point which a user gives says all that the loss depends on.

        Blocks of the measured names are another point only in part, where a model has more tensors;
        :meth:`at` takes these, too, and leaves the others as they are. Default: it is whole.

        Raises:
            ParameterError: it is a part of another point.
        """
        return None

    @abstractmethod
    def at(self, params: Any = None) -> Oracle:
        """The oracle at ``params`` (default: the model's parameters now)."""

    def point(self, params: Any = None) -> Blocks:
        """The measured part of ``params`` (default: the model's parameters now) as blocks."""
        return self.at(params).point()

    def snapshot(self, params: Any = None) -> Blocks:
        """:meth:`point` in memory of its own, which an optimizer does not write into."""
        return map_blocks(lambda x: x + 0, self.point(params))

    def describe(self) -> dict[str, Any]:
        """For the header of a log: ``model`` (its name), ``parameters`` (how many), ``data``."""
        return {"model": type(self).__name__, "parameters": self.at().space.size}

    def close(self) -> None:
        """Free what the problem holds (kept graphs, cached batches); by default nothing."""
        return None

    def __enter__(self) -> Problem:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
