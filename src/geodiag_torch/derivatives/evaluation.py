"""Passes over an objective's data: the loss and its derivatives, each with the same randomness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from geodiag.blocks import Blocks
from geodiag.core.batch_forms import arrays_of
from geodiag.core.threads import others
from geodiag.errors import DataError, GeodiagError, LossError, ParameterError, first_line
from geodiag_torch.derivatives.autograd import derivative, reentrant_derivative, second_derivative
from geodiag_torch.derivatives.batches import move
from geodiag_torch.derivatives.forward import Leaves, T
from geodiag_torch.derivatives.graph_inspection import check_reached, graph_of
from geodiag_torch.derivatives.kept_graph import add_weighted
from geodiag_torch.derivatives.objective import Objective
from geodiag_torch.derivatives.stop_gradient import Attached, Constants
from geodiag_torch.derivatives.written import settle
from geodiag_torch.ranks import ADDING, Sums
from geodiag_torch.state.interrupts import Lent, uninterrupted
from geodiag_torch.state.rng import FrozenRandomState
from geodiag_torch.state.threads import turn
from geodiag_torch.state.writes import Watch, address

FLOAT32 = torch.finfo(torch.float32).eps
Part = Callable[[Tensor, float], Mapping[str, Tensor]]
Context = Callable[[], AbstractContextManager[Any]]


class Evaluation:
    """Evaluates an objective at any parameters.

    All passes start from the random state, and run under the autocast, of the moment that this was
    made, or of ``random_state``.
    """

    def __init__(self, objective: Objective, random_state: FrozenRandomState | None = None) -> None:
        self.objective = objective
        # The machine epsilon of the coarsest dtype on the way to the loss, after the first pass.
        self.precision: float | None = None
        self.divisor = 1.0  # of the last sum over the batches
        self._random = random_state or FrozenRandomState(objective.device, objective.data)
        self.operations, self.custom, self._reentrant = 0, False, False  # of it, see LossGraph
        # What the user's code runs under: what it detaches is differentiated, or held constant.
        attached = objective.stop_gradient == "differentiate"
        self.modes: list[TorchFunctionMode] = [Attached()] if attached else []
        self._measured: Leaves = {}  # the module's own parameters, while leaves replace them
        self._state = objective.guard.frozen()
        self._batches: set[int] = set()  # the addresses of the batches of a watched pass
        self._own: Sums | None = None  # of the pass at the module's own parameters
        self._looked_at = objective.guard.looked
        self.after_look: Callable[[], object] = bool

    @property
    def autocast(self) -> bool:
        """Whether passes run under autocast."""
        return self._random.autocast

    def without_autocast(self, objective: Objective) -> Evaluation:
        """Of another objective, from the same state, random or not, and without autocast."""
        found = Evaluation(objective, self._random.without_autocast())
        found._state = self._state
        return found

    def inside(
        self,
        leaves: Leaves,
        run: Callable[[], T],
        backward: bool = False,
        context: Context = nullcontext,
        poison: bool = False,
    ) -> T:
        """``run()`` in ``context``, with the frozen random state and ``leaves`` as the parameters.

        Signals interrupt the run alone, not what replaces and restores. ``backward``: it is a
        backward pass. ``poison``: fill parameters and buffers with NaN.
        """
        if leaves and (self.precision is None or self._reentrant):
            self._measured = self.objective.live()
        if poison:
            leaves = {name: torch.full_like(x, torch.nan) for name, x in leaves.items()}

        def around(run: Callable[[], T]) -> T:
            generators = self._random.one_pass(backward)
            with self._random.modes(), Lent(*generators, self._state.one_pass()), context():
                answer = self.objective.with_leaves(leaves, run, poison)
                generators[0].completed = True
                return answer

        with turn() if leaves else nullcontext():  # sharded modules have none, and communicate
            answer = uninterrupted(around, run)
        self._random.shared.refuse_foreign()
        return answer

    def look(self) -> None:
        """A first pass, without derivatives: what it changes is found out, and given back.

        Beside other threads each evaluation makes one, to know whether it draws random numbers.
        """
        guard, shared = self.objective.guard, self._random.shared
        shared.probing = not shared.drawn and bool(others())
        if guard.looked and not shared.probing:
            return

        def around(run: Callable[[], Sums]) -> Sums:
            with guard.watching(lambda: self._batches) as watch:
                return self.inside({}, partial(self._noting_draws, run, watch))

        try:
            with turn():
                self._own = uninterrupted(around, self._own_sum)
        finally:
            if shared.probing:
                shared.probing, self._own = False, None
        if not self._looked_at:
            self._looked_at, self._state = True, guard.frozen()
            self.after_look()

    def _noting_draws(self, run: Callable[[], Sums], watch: Watch) -> Sums:
        """``run()``; whether it, or another thread, draws from torch's global generators."""
        sums, shared = run(), self._random.shared
        if shared.probing:
            watch.compare()
            shared.foreign = watch.draws and watch.foreign
            shared.drawn["torch"] = shared.drawn["device"] = watch.draws
        return sums

    def try_out(self, batch: Any) -> None:
        """Compute the loss of one batch; what that changes is given back."""
        guard, leaves = self.objective.guard, self.objective.leaves(None)

        def around(run: Callable[[], Tensor]) -> Tensor:
            with guard.watching(lambda: self._batches):
                return self.inside(leaves, run)

        try:
            uninterrupted(around, lambda: self._value(batch))
        finally:
            guard.looked = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a measurement cannot give back."""
        return tuple(self.objective.guard.notes)

    def gradient(self, leaves: Leaves, context: Context = nullcontext) -> tuple[Tensor, Blocks]:
        """The loss, and its gradient."""

        def part(value: Tensor, weight: float) -> Leaves:
            with self._user_code():
                if self._reentrant:
                    return reentrant_derivative(value, leaves, self._parameters(), self._measured)
                return derivative(value, leaves)

        return self.sum(leaves, part, context)

    def hvp(self, leaves: Leaves, d: Blocks) -> Blocks:
        """∇²L d by a backward pass through the gradient of each batch, of which nothing is kept."""
        direction = self.objective.directions(d, {name: x.dtype for name, x in leaves.items()})
        second = partial(second_derivative, leaves=leaves, direction=direction, keep=False)
        return self.through_gradient(leaves, direction, second)[1]

    def through_gradient(
        self, leaves: Leaves, directions: Leaves, second: Callable[[Leaves], Leaves]
    ) -> tuple[Tensor, Blocks]:
        """The loss, and the sum of ``second`` of each batch's gradient, which carries its graph."""

        def part(value: Tensor, weight: float) -> Leaves:
            with self._user_code():
                gradient = derivative(value, leaves, create_graph=True)
            return second(gradient)

        return self.sum(leaves, part, checked=directions)

    def sum(
        self,
        leaves: Leaves,
        part: Part,
        context: Context = nullcontext,
        checked: Leaves | None = None,
    ) -> tuple[Tensor, Blocks]:
        """The loss, and ``part(loss, weight)``, summed over all ranks' batches and normalised.

        One batch's graph exists at a time, unless ``part`` keeps it. ``checked``: what must be
        equal on all ranks, if not ``leaves``.
        """

        def run() -> Sums:
            return self._sum(part)

        sums = self.objective.ranks.sum(
            self._operation(),
            leaves if checked is None else checked,
            lambda: self._looked(leaves, lambda: self.inside(leaves, run, context=context)),
        )
        divisor = self.divisor = self.objective.batches.normalise(sums.weight)
        if divisor == 1.0:
            return sums.loss, sums.blocks
        return sums.loss / divisor, {name: x / divisor for name, x in sums.blocks.items()}

    def check_lent(self, loss: Tensor | None = None) -> bool:
        """Whether the loss stays as it is from pass to pass, with leaves as without them.

        A loss that tells them apart (by their identity, their type, or attributes) can leave out a
        part of itself. Costs one forward pass where ``loss``, at the module's parameters with
        leaves, is known. A loss that changes by itself is not compared.

        Raises:
            ParameterError: it is another.
        """

        def at(leaves: Leaves) -> Tensor:
            return self.sum(leaves, lambda value, _: {})[0]

        leaves, eps = self.objective.leaves(None), self.precision or 0.0
        loss, own = at(leaves) if loss is None else loss, self._at_own()
        if same_loss(loss, own, eps):
            return True
        if not same_loss(loss, at(leaves), eps):
            return False
        raise ParameterError(
            "the loss is another once tensors are put in the place of its parameters",
            got=f"{float(own):.8g} with the parameters, {float(loss):.8g} with equal tensors",
            do="let it not depend on the identity, the type (nn.Parameter) or attributes of the "
            "parameters, nor take their gradients by tensors kept elsewhere",
        )

    def value(self, batch: Any, inspect: bool = False) -> Tensor:
        """The loss of one batch; to be called in a run of :meth:`inside`.

        ``inspect``: its graph; that of the first batch is inspected in any case.
        """
        value = self._value(batch)
        if inspect or self.precision is None:
            graph = graph_of(value)
            check_reached(n for n, p in self._measured.items() if id(p) in graph.leaves)
            if self.precision is None:
                self.precision, self._reentrant = graph.precision, graph.reentrant
                self.operations, self.custom = graph.operations, graph.custom
        return value

    def _value(self, batch: Any) -> Tensor:
        """The loss of one batch."""
        guard = self.objective.guard
        batch = move(batch, self.objective.device, copied=guard.copies_batch)
        if not guard.looked:
            self._batches |= {address(x) for x in arrays_of(batch) if isinstance(x, Tensor)}
        try:
            with self._user_code():
                return self.objective.loss.value(batch)
        except RuntimeError as e:
            if self.objective.stop_gradient != "differentiate" or isinstance(e, GeodiagError):
                raise
            raise LossError(
                "the loss fails once nothing in it is detached",
                got=first_line(e),
                do='pass stop_gradient="constant" to hold constant what is detached',
            ) from e

    @contextmanager
    def holding(self, constants: Constants | None) -> Iterator[None]:
        """Inside, one pass is made with these constants, which the first such pass records."""
        if constants is None:
            yield
            return
        constants.rewind()
        self.modes.insert(0, constants)
        try:
            yield
        finally:
            self.modes.pop(0)

    def _user_code(self) -> ExitStack:
        modes = ExitStack()
        for mode in self.modes:
            modes.enter_context(mode)
        return modes

    def _operation(self) -> str:
        adds = self.objective.batches.reduction == "sum"
        return ADDING if adds else "a pass over the data"

    def _parameters(self) -> list[Tensor]:
        """What a backward pass may reach beside the leaves."""
        roots = (self.objective.loss, *self.objective.guard.modules)
        return [p for m in roots for p in m.parameters()]

    def _looked(self, leaves: Leaves, run: Callable[[], Sums]) -> Sums:
        self.look()
        settle(self.objective, leaves, lambda: self.inside(leaves, self._own_sum))
        return run()

    def _own_sum(self) -> Sums:
        """The loss at the module's own parameters; to be called in a run of :meth:`inside`."""
        losses: dict[str, Tensor] = {}
        weights = 0.0
        for batch in self.objective.batches:
            weight = self.objective.batches.weigh(batch)
            loss = {"loss": self._value(batch).detach()}
            add_weighted(losses, loss, weight, self.objective.dtype)
            weights += weight
        return Sums(weights, losses["loss"], {})

    def _at_own(self) -> Tensor:
        """The loss at the module's own parameters, on all ranks' batches."""
        known, ranks = self._own, self.objective.ranks

        def local() -> Sums:
            return self.inside({}, self._own_sum) if known is None else known

        sums = ranks.sum(self._operation(), {}, local)
        return sums.loss / self.objective.batches.normalise(sums.weight)

    def _sum(self, part: Part) -> Sums:
        dtype, batches = self.objective.dtype, self.objective.batches
        total: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        weights, inspect = 0.0, self.precision is None
        for batch in batches:
            weight, value = batches.weigh(batch), self.value(batch, inspect)
            add_weighted(total, part(value, weight), weight, dtype)
            add_weighted(losses, {"loss": value.detach()}, weight, dtype)
            weights += weight
        return Sums(weights, losses["loss"], total)


def same_loss(loss: Tensor, seen: Tensor, eps: float) -> bool:
    """Whether two losses are equal up to rounding, of a relative ``eps``; also where one is NaN."""
    return not bool((seen - loss).abs() > 1e3 * eps * (loss.abs() + seen.abs()))


def check_same_loss(loss: Tensor, seen: Tensor, eps: float) -> None:
    """Raise a DataError where the losses of two passes differ by more than rounding.

    That is of a relative ``eps``. Data and model must be deterministic.
    """
    if not same_loss(loss, seen, eps):
        raise DataError(
            "the data or the model changed between two passes",
            got=f"loss {float(loss):.8g}, then {float(seen):.8g}",
            do="pass a list of batches, or a loader whose batches do not change from pass to "
            "pass, and a model without randomness of its own",
        )
