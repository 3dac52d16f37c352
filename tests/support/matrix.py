"""All cells of the support matrix, framework by framework."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import torch

import geodiag
from geodiag_jax import loss_contents
from tests.support import jax_cases, torch_cases
from tests.support.cells import Outcome, measure
from tests.support.torch_truths import SEED, torch_truth
from tests.support.truths import SINGLE_STEP, STEP, Truth, truth

ENGINES = {
    "torch": ("graph", "recompute", "finite-difference", "auto"),
    "jax": ("linearize", "recompute", "reverse", "finite-difference", "auto"),
}
PRECISIONS = {
    "torch": ("float64", "float32", "bfloat16", "float16", "autocast bfloat16", "autocast float16"),
    "jax": ("float64", "float32", "bfloat16", "float16"),
}
CASES: dict[str, dict[str, Any]] = {"torch": torch_cases.CASES, "jax": jax_cases.CASES}
SINGLE_INSIDE = torch_cases.SINGLE_INSIDE | jax_cases.SINGLE_INSIDE
Key = tuple[str, str, str, str]  # framework, case, precision, engine


def keys(framework: str) -> Iterator[Key]:
    """Every cell of a framework; those that share compiled functions follow each other."""
    for case in CASES[framework]:
        for precision in PRECISIONS[framework]:
            for engine in ENGINES[framework]:
                yield framework, case, precision, engine


def bound_of(key: Key) -> str:
    """The precision whose bound a cell must keep."""
    _, case, precision, _ = key
    single = precision == "float64" and case in SINGLE_INSIDE
    return "float32" if single else precision.removeprefix("autocast ")


def cell(key: Key) -> Outcome:
    """Measure one."""
    framework, case, precision, engine = key
    return (_torch_cell if framework == "torch" else _jax_cell)(case, precision, engine)


@cache
def true(framework: str, case: str) -> Truth:
    """The truth of a case."""
    build = CASES[framework][case]
    if framework == "torch":
        return torch_truth(build)
    step = SINGLE_STEP if case in jax_cases.SINGLE_INSIDE else STEP
    return truth(*jax_cases.flat_gradient(build(jnp.float64)), step)


def _torch_cell(case: str, precision: str, engine: str) -> Outcome:
    if "torch.compile" in case:  # after some recompilations torch runs such modules uncompiled
        torch.compiler.reset()
    exact, autocast, name = true("torch", case), *precision.rpartition(" ")[::2]
    dtype = getattr(torch, name)
    arguments = torch_cases.CASES[case](torch.float32 if autocast else dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        with torch.autocast("cpu", dtype=dtype) if autocast else nullcontext():
            return measure(partial(geodiag.problem, **arguments), engine, torch.tensor, exact)


@cache
def _jax_arguments(case: str, precision: str) -> dict[str, Any]:
    """Made once: a loss is compiled for as long as it is the same object."""
    return jax_cases.CASES[case](jnp.dtype(precision))  # type: ignore[no-any-return]


def _jax_cell(case: str, precision: str, engine: str) -> Outcome:
    loss_contents._seen.clear()  # each precision has a loss of its own, and none is recompiled
    problem = partial(geodiag.problem, **_jax_arguments(case, precision))
    return measure(problem, engine, jnp.asarray, true("jax", case))
