"""``check_oracle``: whether the problem is frozen, and its derivatives are those of its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from geodiag.blocks import (
    Blocks,
    axpy,
    check_like,
    dot,
    epsilon,
    norm2,
    scale,
    stack,
    subtract,
    unstack,
    zeros_like,
)
from geodiag.errors import EngineError, ShapeError, shown
from geodiag.oracles.base import Oracle
from geodiag.testing import probes

DIRECTIONS = 3


def check_oracle(oracle: Oracle, *, seed: int = 0) -> None:
    """Check that ``oracle`` is one frozen problem whose derivatives agree with each other.

    Properties: names, shapes and dtypes; the same question twice gives the same bits; loss_at and
    gradient_at at the point are loss and gradient; the gradient is the derivative of loss_at and
    hvp that of gradient_at (central differences along random directions); hvp is linear and
    symmetric, and zero at zero; hvps is hvp, row by row.

    Args:
        oracle: at a point where the loss is twice differentiable.
        seed: of the random directions.

    Raises:
        ShapeError: wrong names, shapes, dtypes or kinds of answers.
        NonFiniteError: an answer holds NaN or infinity.
        EngineError: the property that fails, with the numbers.

    Examples:
        >>> from geodiag.testing import check_oracle
        >>> check_oracle(geodiag.problem(np.diag([1.0, 2.0])).at())
    """
    if not isinstance(oracle, Oracle):
        raise ShapeError("check_oracle takes an Oracle", got=shown(oracle), do="pass problem.at()")
    probes.require_seed(seed)
    checker = _Checker(oracle, seed)
    checker.kinds()
    checker.frozen()
    checker.at_the_point()
    checker.linear()
    checker.symmetric()
    checker.stacked()
    checker.gradient_of_loss()
    checker.hvp_of_gradient()
    checker.frozen()


class _Checker:
    def __init__(self, oracle: Oracle, seed: int) -> None:
        self.oracle = oracle
        self.name = type(oracle).__name__
        self.point = probes.require_blocks(oracle.point(), ShapeError)
        check_like(self.point, oracle.space.shapes, f"point() of {self.name}")
        rng = np.random.default_rng(seed)
        self.ds = [oracle.space.random(rng) for _ in range(DIRECTIONS)]
        # √ε: an engine may take central differences, exact to about ε^{2/3}; a wrong derivative is
        # off by O(1).
        self.tol = float(np.sqrt(epsilon(self.point)))
        self.answers: dict[str, dict[str, Any]] = {}

    def fail(self, what: str, got: str, do: str) -> EngineError:
        return EngineError(f"{self.name}: {what}", got=got, do=do)

    def blocks(self, got: Blocks, what: str) -> Blocks:
        check_like(got, self.oracle.space.shapes, f"{what} of {self.name}")
        probes.check_arrays(got, self.point, f"{what} of {self.name}", ShapeError)
        return got

    def kinds(self) -> None:
        o = self.oracle
        if o.names != o.space.names or dict(o.shapes) != dict(o.space.shapes):
            raise ShapeError(
                f"{self.name}: names and shapes must be those of its space",
                got=f"{o.names} and {o.space.names}",
            )
        like = next(iter(self.point.values()))
        probes.scalar(o.loss(), like, f"loss() of {self.name}", ShapeError)
        probes.scalar(o.loss_at(self.point), like, f"loss_at() of {self.name}", ShapeError)
        self.blocks(o.gradient(), "gradient()")
        self.blocks(o.gradient_at(self.point), "gradient_at()")
        self.blocks(self.ds[0], "space.random()")
        self.blocks(o.hvp(self.ds[0]), "hvp()")

    def frozen(self) -> None:
        """The same bits at each call, after other calls too."""
        elsewhere = axpy(0.1, self.ds[0], self.point)
        o = self.oracle
        questions: dict[str, Callable[[], Blocks]] = {
            "point()": o.point,
            "gradient()": o.gradient,
            "hvp(d)": lambda: o.hvp(self.ds[0]),
            "gradient_at(w)": lambda: o.gradient_at(elsewhere),
            "loss()": lambda: {"loss": o.loss()},
            "loss_at(w)": lambda: {"loss": o.loss_at(elsewhere)},
        }
        for _ in range(2):
            for what, ask in questions.items():
                answer = probes.host(ask())
                first = self.answers.setdefault(what, answer)
                if not probes.same_bits(first, answer):
                    off = max(float(np.max(abs(first[n] - x))) for n, x in answer.items() if x.size)
                    raise self.fail(
                        f"{what} gives another answer to the same question",
                        f"a difference of {off:.3g}",
                        "freeze the batch, the random state (dropout) and the parameters",
                    )

    def at_the_point(self) -> None:
        o = self.oracle
        here, there = float(o.loss()), float(o.loss_at(self.point))
        if abs(here - there) > self.tol * abs(here):
            got = f"{here:.9g} and {there:.9g}"
            raise self.fail("loss() must be loss_at(point())", got, "use the same batch for both")
        g = o.gradient()
        off = float(norm2(subtract(g, o.gradient_at(self.point))))
        if off > self.tol * float(norm2(g)):
            got = f"a difference of norm {off:.3g} at a gradient of norm {float(norm2(g)):.3g}"
            raise self.fail("gradient() must be gradient_at(point())", got, "use the same batch")

    def linear(self) -> None:
        o, (u, v, _) = self.oracle, self.ds
        hu, hv = o.hvp(u), o.hvp(v)
        size = float(norm2(hu)) + float(norm2(hv))
        off = float(norm2(subtract(o.hvp(axpy(-2.0, v, u)), axpy(-2.0, hv, hu))))
        if off > self.tol * size:
            raise self.fail(
                "hvp is not linear",
                f"‖H(u − 2v) − (Hu − 2Hv)‖ = {off:.3g} at ‖Hu‖ + ‖Hv‖ = {size:.3g}",
                "return the second derivative at the frozen point, unnormalised",
            )
        zero = float(norm2(o.hvp(zeros_like(u))))
        if zero > self.tol * size:
            raise self.fail("hvp(0) must be 0", f"norm {zero:.3g}", "remove the offset")

    def symmetric(self) -> None:
        o, (u, v, _) = self.oracle, self.ds
        hu, hv = o.hvp(u), o.hvp(v)
        left, right = float(dot(u, hv)), float(dot(v, hu))
        size = float(norm2(u) * norm2(hv) + norm2(v) * norm2(hu))
        if abs(left - right) > self.tol * size:
            raise self.fail(
                "hvp is not symmetric",
                f"⟨u, Hv⟩ = {left:.9g}, ⟨v, Hu⟩ = {right:.9g}",
                "check that all parameters enter, and that nothing is detached on the way",
            )

    def stacked(self) -> None:
        rows = unstack(self.oracle.hvps(stack(self.ds)))
        if len(rows) != len(self.ds):
            raise ShapeError(f"{self.name}: hvps must give a row for each", got=f"{len(rows)} rows")
        for d, row in zip(self.ds, rows, strict=True):
            one = self.oracle.hvp(d)
            off = float(norm2(subtract(self.blocks(row, "a row of hvps()"), one)))
            if off > self.tol * float(norm2(one)):
                got = f"a difference of norm {off:.3g}"
                raise self.fail("hvps(ds) must be hvp(d) row by row", got, "check its batching")

    def gradient_of_loss(self) -> None:
        o, g = self.oracle, self.oracle.gradient()
        for d in self.ds:
            exact = float(dot(g, d))
            slope, truncation, h = self._central(lambda w: {"loss": o.loss_at(w)}, d)
            one = float(slope["loss"])
            rounding = 100 * epsilon(self.point) * (abs(float(o.loss())) + abs(exact) * h) / h
            size = float(norm2(g)) * float(norm2(d))
            if abs(one - exact) > truncation + rounding + self.tol * size:
                raise self.fail(
                    "gradient is not the derivative of loss_at",
                    f"⟨g, d⟩ = {exact:.9g}, central difference {one:.9g}",
                    "check the reduction, the batch, and that all parameters enter",
                )

    def hvp_of_gradient(self) -> None:
        o = self.oracle
        size = float(norm2(o.gradient()))
        for d in self.ds:
            exact = o.hvp(d)
            one, truncation, h = self._central(o.gradient_at, d)
            off, length = float(norm2(subtract(one, exact))), float(norm2(exact))
            rounding = 100 * epsilon(self.point) * (size + length * h) / h
            if off > truncation + rounding + self.tol * length:
                raise self.fail(
                    "hvp is not the derivative of gradient_at",
                    f"a difference of norm {off:.3g} at ‖Hd‖ = {length:.3g}, where the central "
                    f"difference is exact to about {truncation + rounding:.2g}",
                    "check the engine against float64, and that the loss is twice differentiable",
                )

    def _central(
        self, function: Callable[[Blocks], Blocks], d: Blocks
    ) -> tuple[Blocks, float, float]:
        """The central difference along d, a bound on its truncation error, and its h.

        The error is O(h²): a third of what doubling h changes. h is ε^{1/3}, relative to the point:
        it balances truncation and rounding.
        """
        cube_root = float(epsilon(self.point) ** (1 / 3))
        h = cube_root * (1 + float(norm2(self.point))) / float(norm2(d))

        def difference(h: float) -> Blocks:
            ahead, behind = axpy(h, d, self.point), axpy(-h, d, self.point)
            return scale(subtract(function(ahead), function(behind)), 0.5 / h)

        one = difference(h)
        return one, float(norm2(subtract(difference(2 * h), one))), h
