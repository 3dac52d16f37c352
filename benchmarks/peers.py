"""λ_max to a relative 1e-3: geodiag and its peers, cold and after a training step.

Each procedure runs at the cheapest setting of its public interface that comes within 1e-3 of the
truth in every one of the trials. Cold: five seeds at one point, with what it takes to make the
operator (in JAX without compilation). Warm: five training steps in a row, each measurement started
with the answer of the one before, where the interface takes one.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks import jax_peers, torch_peers
from benchmarks.cases import STEPS, Case, cases
from benchmarks.memory import peak
from benchmarks.report import missing, spread, table
from benchmarks.timing import seconds, timed
from benchmarks.torch_peers import Found

ACCURACY = 1e-3


class Trial(NamedTuple):
    """One measurement: its relative error, products, seconds, and these in gradients."""

    error: float
    hvps: int
    seconds: float
    gradients: float


Trials = Callable[[Any], Iterator[Trial]]


def run(quick: bool) -> None:
    """Print three tables per problem and framework."""
    torch.set_num_threads(1)
    absent = [m for m in ("hessian_eigenthings", "curvlinops", "pyhessian", "matfree")
              if missing(m, m)]  # fmt: skip
    for case in cases(quick):
        frameworks: list[tuple[str, Any, Any]] = [("torch", case, torch_peers.PROCEDURES)]
        if case.name in jax_peers.FORMS:
            frameworks.append(("jax", jax_peers.JaxCase(case), jax_peers.PROCEDURES))
        for framework, problem, procedures in frameworks:
            present = [p for p in procedures if p.module not in absent]
            _compare(framework, problem, present, 1 if quick else 3)


def _compare(framework: str, case: Any, procedures: list[Any], repeats: int) -> None:
    solvers = [procedure(case) for procedure in procedures]
    runs = [partial(cold, solver, case) for solver in solvers]
    chosen = [cheapest(solver.ladders, run) for solver, run in zip(solvers, runs, strict=True)]
    rows = _rows(solvers, chosen, runs, repeats)
    heads = ["procedure", "setting", "worst error", "HVPs", "gradients", "ms"]
    for row, solver, setting in zip(rows, solvers, chosen, strict=True):
        row += [None, None] if setting is None else _passes_and_memory(solver, case, setting)
    where = f"{case.name} ({case.size:,} parameters), {framework}"
    table(f"λ_max cold, {where}", [*heads, "passes", "peak MiB"], rows)
    both = [(s, c) for s, c in zip(solvers, chosen, strict=True) if c is not None]
    solvers, chosen = [list(each) for each in zip(*both, strict=True)]
    runs = [partial(warm, solver, case, first) for solver, first in both]
    title = f"λ_max after a training step, {where}"
    table(f"{title}: settings as cold", heads, _rows(solvers, chosen, runs, repeats))
    chosen = [cheapest(solver.ladders, run) for solver, run in zip(solvers, runs, strict=True)]
    table(f"{title}: cheapest settings", heads, _rows(solvers, chosen, runs, repeats))


def cold(solver: Any, case: Any, setting: Any) -> Iterator[Trial]:
    """From five random starts; in torch the operator is made anew each time."""
    case.at(0)
    for seed in range(STEPS):
        yield _trial(case, 0, lambda seed=seed: _fresh(solver, case).solve(setting, seed))[0]


def warm(solver: Any, case: Any, first: Any, setting: Any) -> Iterator[Trial]:
    """Along five training steps, each from the answer before; the first comes from a cold one."""
    case.at(0)
    found = solver.solve(first, 0)
    for i in range(1, STEPS + 1):
        case.at(i)
        trial, found = _trial(case, i, partial(solver.solve, setting, i, found.vector))
        yield trial


def _fresh(solver: Any, case: Any) -> Any:
    return type(solver)(case) if isinstance(case, Case) else solver


def _trial(case: Any, i: int, solve: Callable[[], Found]) -> tuple[Trial, Found]:
    gradient = seconds(case.gradient, 2)
    found, taken = timed(solve)
    gradient = (gradient + seconds(case.gradient, 2)) / 2
    error = abs(found.value / case.truths[i] - 1)
    return Trial(error, found.hvps, taken, taken / gradient), found


def cheapest(ladders: tuple[Any, ...], trials: Trials) -> Any:
    """The setting with the fewest products that is accurate in every trial, or None.

    Accuracy and cost grow along a ladder, so each is bisected, and cut off where it costs more
    than the best so far.
    """
    fewest, best = math.inf, None
    for ladder in ladders:
        low, high = 0, len(ladder)
        while low < high:
            middle = (low + high) // 2
            accurate, products = True, []
            for trial in trials(ladder[middle]):
                products.append(trial.hvps)
                accurate = trial.error <= ACCURACY
                if not accurate or products[0] > fewest:
                    break
            if not accurate:
                low = middle + 1
                continue
            high = middle
            if statistics.mean(products) < fewest:
                fewest, best = statistics.mean(products), ladder[middle]
    return best


def _rows(
    solvers: list[Any], settings: list[Any], runs: list[Trials], repeats: int
) -> list[list[Any]]:
    """One row per procedure; the procedures take turns."""
    found: list[list[Trial]] = [[] for _ in solvers]
    for turn in range(repeats + 1):
        for setting, run, into in zip(settings, runs, found, strict=True):
            ran = [] if setting is None else list(run(setting))
            into += ran if turn else []  # the first turn compiles and warms up
    return [_row(*each) for each in zip(solvers, settings, found, strict=True)]


def _row(solver: Any, setting: Any, ran: list[Trial]) -> list[Any]:
    if not ran:
        return [solver.name, "none reaches 1e-3", None, None, None, None]
    hvps = sorted({t.hvps for t in ran})
    return [
        solver.name,
        _show(setting),
        f"{max(t.error for t in ran):.0e}",
        f"{hvps[0]}–{hvps[-1]}" if len(hvps) > 1 else hvps[0],
        spread([t.gradients for t in ran]),
        f"{1e3 * statistics.median(t.seconds for t in ran):.3g}",
    ]


def _show(setting: Any) -> str:
    if isinstance(setting, dict):
        return ", ".join(f"{name}={x}" for name, x in setting.items()) or "default"
    parts = setting if isinstance(setting, tuple) else (setting,)
    return ", ".join(f"{x:.2g}" if isinstance(x, float) else str(x) for x in parts)


def _passes_and_memory(solver: Any, case: Any, setting: Any) -> list[Any]:
    """Forward and backward passes of one cold measurement (torch), and its memory."""
    case.at(0)
    passes = None
    if isinstance(case, Case):
        with _counted(case.model) as counts:
            _fresh(solver, case).solve(setting, 0)
        passes = f"{counts['forward']} + {counts['backward']}"
    above = peak(lambda: _fresh(solver, case).solve(setting, 0))[1]
    return [passes, above if above is None else f"{above:.0f}"]


@contextmanager
def _counted(model: torch.nn.Module) -> Iterator[Counter[str]]:
    """Count forward passes of the model and calls of autograd."""
    counts: Counter[str] = Counter()

    def spy(function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            counts["backward"] += 1
            return function(*args, **kwargs)

        return counted

    handle = model.register_forward_pre_hook(lambda *_: counts.update(forward=1))
    grad, backward = torch.autograd.grad, torch.autograd.backward
    try:
        with (
            mock.patch("torch.autograd.grad", spy(grad)),
            mock.patch("torch.autograd.backward", spy(backward)),
        ):
            yield counts
    finally:
        handle.remove()
