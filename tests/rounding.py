"""``python -m tests.rounding [count [first [case …]]]``: do the bounds of D and ζ hold?

Random networks, trained or not, with steps of 1e-4 to 0.3 of the parameters' size along the
gradient, its signs or at random, ``count`` of each case (1,000) from the seed ``first`` on; the
truth is the same network in float64, with the very step that was taken. "cast": the loss casts to
bfloat16 itself, so that nothing is computed in float32. Of single calls, of records, and of records
without S. Where a record states nothing, half of the value is what it stands for.

Prints one row for each case and number: the share of errors within the bound, the largest, and the
bound over the error in the median. Ends with 1 if an error is beyond its bound.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import geodiag
import geodiag_jax
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
    if not any(bool(s.any()) for s in step.values()):
        return
    problem = geodiag.problem(
        drawn.model, loss_fn=drawn.loss_fn, data=drawn.data, engine="recompute"
    )
    here = {name: p.detach().clone() for name, p in drawn.model.named_parameters()}
    there = {name: (w.double() + drawn.step[name]).to(w.dtype) for name, w in here.items()}
    true = truths(drawn.exact, drawn.step)
    yield from single(problem.at(), step, *true)
    for options in MODES:
        monitor = geodiag.Monitor(problem, "l2", lr=0.1, every=1, **options)
        yield from recorded(monitor.observe(0, here, there), options, *true)


def jax_draw(case: str, seed: int) -> Iterator[Found]:
    function, dtype = of_jax.CASES[case]
    (here, there, data), (here64, there64, data64) = of_jax.draw(seed, dtype)
    step = {n: there64[n] - here64[n] for n in here}
    exact = geodiag.problem(of_jax.loss, params=here64, data=data64).at()
    true = truths(exact, step)
    yield from single(geodiag.problem(function, params=here, data=data).at(), step, *true)
    for options in MODES:
        monitor = geodiag_jax.Monitor(function, "l2", data=data, lr=0.1, every=1, **options)
        yield from recorded(monitor.observe(0, here, there), options, *true)


def truths(exact: Any, step: Any) -> tuple[float, float]:
    """ζ, NaN if the step does not descend, and D, by two losses and a gradient in float64."""
    slope = float(dot(exact.gradient(), step))
    bend = float(exact.loss_at(add(exact.point(), step)) - exact.loss()) - slope
    return bend / -slope if slope < 0.0 else math.nan, 2 * bend / float(dot(step, step))


def single(oracle: Any, step: Any, true_edge: float, true_d: float) -> Iterator[Found]:
    edge = geodiag.realized_edge(oracle, step)
    if not math.isnan(edge):
        yield Found("ζ", float(edge), true_edge, edge.rounding)
    got = geodiag.directional_smoothness(oracle, step)
    yield Found("D", float(got), true_d, got.rounding)


def recorded(record: Any, options: Any, true_edge: float, true_d: float) -> Iterator[Found]:
    edge, d = record.realized_edge, record.directional_smoothness
    for name, value, true in (("ζ", edge, true_edge), ("D", d, true_d)):
        said = re.search(rf"{name} ± ([^,;]+)", record.note)
        error = float(said[1]) if said else 0.5 * abs(value)
        if not math.isnan(value):
            yield Found(f"{name} of a record{WITHOUT * (len(options) == 1)}", value, true, error)


WITHOUT = " without S"
MODES: tuple[dict[str, Any], ...] = (
    {"max_hvps": 4, "estimator": geodiag.estimators.Lanczos()},
    {"sharpness": False},
)
PRECISIONS = ("float32", "bfloat16", "float16", "autocast bfloat16", "cast bfloat16")
CASES: dict[str, Callable[[int], Iterator[Found]]] = {
    f"torch {precision}": lambda seed, precision=precision: torch_draw(precision, seed)
    for precision in PRECISIONS
} | {f"JAX {case}": lambda seed, case=case: jax_draw(case, seed) for case in of_jax.CASES}


def draws(case: str, seeds: range) -> dict[str, list[Found]]:
    """What was found for each number."""
    found: dict[str, list[Found]] = {}
    for seed in seeds:
        for each in CASES[case](seed):
            found.setdefault(each.name, []).append(each)
    return found


def main(count: int, first: int, cases: list[str]) -> int:
    jax.config.update("jax_enable_x64", True)
    beyond = 0
    for case in cases or CASES:
        for name, found in draws(case, range(first, first + count)).items():
            errors = np.array([each.error for each in found])
            bounded = errors[[not math.isinf(each.rounding) for each in found]]
            beyond += int((errors > 1).sum())
            print(
                f"{case:23} {name:23} {len(found):6}  beyond: {(errors > 1).sum():3}  "
                f"largest error/bound: {errors.max():.2f}  "
                f"median bound/error: {np.median(1 / np.maximum(bounded, 1e-9)):.1f}  "
                f"no bound: {np.mean([math.isinf(each.rounding) for each in found]):.2%}",
                flush=True,
            )
            for i in np.flatnonzero(errors > 1)[:5]:
                print(f"    {found[i]}", flush=True)
    return int(beyond > 0)


if __name__ == "__main__":
    given = sys.argv[1:3] + ["1000", "100000"][len(sys.argv[1:3]) :]
    count, first, *cases = given + sys.argv[3:]
    sys.exit(main(int(count), int(first), cases))
