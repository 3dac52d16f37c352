"""A pair of NumPy (array API) callables ``(loss, gradient)`` of blocks as a problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from geodiag.blocks import Array, Blocks, array_namespace, check_like, epsilon, is_array
from geodiag.core.selection import Where, select
from geodiag.core.spaces import Space, arrays_like
from geodiag.core.validation import as_blocks, as_number, is_mapping_of_names, is_real
from geodiag.errors import ArgumentError, LossError, ParameterError, shown
from geodiag.oracles.base import Oracle, Problem
from geodiag.oracles.crosscheck import asymmetry
from geodiag.oracles.differences import Differences


class CallablesOracle(Oracle):
    """Loss and gradient as given; Hessian-vector products by central differences."""

    def __init__(
        self,
        loss: Callable[[Blocks], Any],
        gradient: Callable[[Blocks], Blocks],
        space: Space,
        params: Blocks,
        fixed: Blocks,
        checked: dict[str, bool],
    ) -> None:
        self._checked = checked  # of the problem: whether products are known to be symmetric
        self._loss, self._gradient = loss, gradient
        self.space, self._point, self._fixed = space, params, fixed
        self._differences = Differences(params)
        self._own_loss: Array = None
        self._own_gradient: Blocks | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return ("Hessian-vector products are central differences of the given gradient",)

    def point(self) -> Blocks:
        return self._point

    def loss(self) -> Array:
        if self._own_loss is None:
            self._own_loss = self.loss_at(self._point)
        return self._own_loss

    def gradient(self) -> Blocks:
        if self._own_gradient is None:
            self._own_gradient = self.gradient_at(self._point)
        return self._own_gradient

    def hvp(self, d: Blocks) -> Blocks:
        product = self._differences.hvp(self.gradient_at, d)
        if not self._checked:
            self._checked["symmetric"] = True
            self._check_symmetric()
        return product

    def _check_symmetric(self) -> None:
        found = asymmetry(self, epsilon(self._point))
        if found is not None:
            self._checked.clear()
            raise LossError(
                "the gradient is not that of any loss: its Jacobian is not symmetric, so S is not "
                "defined",
                got=f"⟨u, Hv⟩ and ⟨v, Hu⟩ differ by {found:.2g} of their size",
                do="pass the gradient of the loss",
            )

    def independent_hvp(self, d: Blocks) -> Blocks | None:
        return self._differences.independent_hvp(self.gradient_at, d)

    def loss_at(self, params: Blocks) -> Array:
        answer = self._loss({**self._fixed, **params})
        value = as_number(answer)
        if value is None:
            raise LossError(
                "the loss must be a scalar, and real",
                got=f"shape {answer.shape}" if is_array(answer) else shown(answer),
                do="reduce it, e.g. by a mean",
            )
        return self.space.asarray(answer if is_array(answer) else value)

    def gradient_at(self, params: Blocks) -> Blocks:
        full = {**self._fixed, **params}
        answer = self._gradient(full)
        check_like(answer, {n: tuple(x.shape) for n, x in full.items()}, "the gradient")
        return as_blocks({n: answer[n] for n in self.names}, self.space, "the gradient")


class CallablesProblem(Problem):
    """``loss(blocks) -> scalar`` and ``gradient(blocks) -> blocks`` at ``params``."""

    def __init__(self, loss: Any, gradient: Any, params: Any, where: Where = None) -> None:
        if not isinstance(params, Mapping) or not params:
            raise ArgumentError(
                "a (loss, gradient) pair needs params=, the point, as a dict of arrays",
                got=type(params).__name__,
                do='pass params={"w": array, ...}',
            )
        if not is_mapping_of_names(params):
            raise ParameterError("the names of params= must be texts", got=shown(list(params)))
        self._loss, self._gradient = loss, gradient
        self._params = {name: _real(name, x) for name, x in params.items()}
        try:
            array_namespace(*self._params.values())
        except TypeError as e:
            raise ParameterError(
                "the arrays of params= belong to several frameworks",
                got=shown(e),
                do="convert them",
            ) from e
        self._measured = tuple(select(self._params, where))
        self._checked: dict[str, bool] = {}

    def at(self, params: Any = None) -> CallablesOracle:
        chosen = {name: self._params[name] for name in self._measured}
        xp = array_namespace(*chosen.values())
        dtype = xp.result_type(*chosen.values(), xp.float32)
        shapes = {name: tuple(x.shape) for name, x in chosen.items()}
        fixed = {n: x + 0 for n, x in self._params.items() if n not in shapes}
        space = Space.rows_first(shapes, arrays_like(next(iter(chosen.values())), dtype))
        here = as_blocks(chosen if params is None else params, space, "params")
        point = {name: x + 0 for name, x in here.items()}  # a copy, so that it is frozen
        return CallablesOracle(self._loss, self._gradient, space, point, fixed, self._checked)

    def unmeasured(self, params: Any = None) -> Blocks:
        """The arrays that ``where`` leaves out, as they are now."""
        return {n: x for n, x in self._params.items() if n not in self._measured}


def _real(name: str, x: Any) -> Any:
    if not is_array(x):
        raise ParameterError(f"params[{name!r}] must be an array", got=type(x).__name__)
    if not is_real(x) or not array_namespace(x).isdtype(x.dtype, "real floating"):
        raise ParameterError(
            f"params[{name!r}] must be of a real floating dtype",
            got=f"dtype {x.dtype}",
            do="convert it to float64",
        )
    return x
