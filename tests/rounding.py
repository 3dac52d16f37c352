"""``python -m tests.rounding [count]``: whether the stated rounding of D and ζ bounds their error.

Random networks, trained or not, with steps of 1e-4 to 0.3 of the parameters' size along the
gradient, its signs or at random, in five precisions, ``count`` of each (2,000); the truth is the
same network in float64, with the very step that was taken. Prints one row for each precision and
number: the share of errors within the bound, the largest, and the bound over the error in the
median. Ends with 1 if an error is beyond its bound.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import geodiag
from geodiag.blocks import add, dot
from tests.geodiag_jax import test_rounding as of_jax
from tests.geodiag_torch import test_rounding as of_torch


class Found(NamedTuple):
    """A number, the truth, and the stated rounding."""

    name: str
    value: float
    truth: float
    rounding: float

    @property
    def error(self) -> float:
        """In units of what is stated; a ζ that has no truth must be stated to be lost."""
        if math.isinf(self.rounding):
            return 0.0
        error = abs(self.value - self.truth)
        return math.inf if math.isnan(error) else error / (self.rounding or sys.float_info.min)


def torch_draw(precision: str, seed: int) -> Iterator[Found]:
    drawn = of_torch.draw(seed, precision)
    step = {name: s.float() for name, s in drawn.step.items()}
    if any(bool(s.any()) for s in step.values()):
        model = geodiag.problem(
            drawn.model, loss_fn=drawn.loss_fn, data=drawn.data, engine="recompute"
        )
        yield from both(model.at(), drawn.exact, step, drawn.step)


def jax_draw(case: str, seed: int) -> Iterator[Found]:
    function, dtype = of_jax.CASES[case]
    (here, _, data), (here64, there64, data64) = of_jax.draw(seed, dtype)
    step = {n: there64[n] - here64[n] for n in here}
    oracle = geodiag.problem(function, params=here, data=data).at()
    exact = geodiag.problem(of_jax.loss, params=here64, data=data64).at()
    yield from both(oracle, exact, step, step)


def both(oracle: Any, exact: Any, step: Any, exact_step: Any) -> Iterator[Found]:
    """Both numbers, and by two losses and a gradient in float64 their truth."""
    here, slope = exact.point(), float(dot(exact.gradient(), exact_step))
    bend = float(exact.loss_at(add(here, exact_step)) - exact.loss()) - slope
    edge = geodiag.realized_edge(oracle, step)
    if not math.isnan(edge):
        yield Found("ζ", float(edge), bend / -slope if slope < 0.0 else math.nan, edge.rounding)
    got = geodiag.directional_smoothness(oracle, step)
    yield Found("D", float(got), 2 * bend / float(dot(exact_step, exact_step)), got.rounding)


CASES: dict[str, Callable[[int], Iterator[Found]]] = {
    f"torch {precision}": lambda seed, precision=precision: torch_draw(precision, seed)
    for precision in ("float32", "bfloat16", "autocast bfloat16")
} | {
    f"JAX {case}": lambda seed, case=case: jax_draw(case, seed) for case in ("float32", "bfloat16")
}


def draws(case: str, seeds: range) -> dict[str, list[Found]]:
    """What was found for each number."""
    found: dict[str, list[Found]] = {"D": [], "ζ": []}
    for seed in seeds:
        for each in CASES[case](seed):
            found[each.name].append(each)
    return found


def main(count: int) -> int:
    jax.config.update("jax_enable_x64", True)
    beyond = 0
    for case in CASES:
        for name, found in draws(case, range(100_000, 100_000 + count)).items():
            errors = np.array([each.error for each in found])
            bounded = errors[[not math.isinf(each.rounding) for each in found]]
            beyond += int((errors > 1).sum())
            print(
                f"{case:24} {name}  {len(found):6} steps  within: {np.mean(errors <= 1):.4%}  "
                f"largest error/bound: {errors.max():.2f}  "
                f"median bound/error: {np.median(1 / np.maximum(bounded, 1e-9)):.1f}  "
                f"no bound: {np.mean([math.isinf(each.rounding) for each in found]):.2%}",
                flush=True,
            )
            for i in np.flatnonzero(errors > 1)[:5]:
                print(f"    {found[i]}", flush=True)
    return int(beyond > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
