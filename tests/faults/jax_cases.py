"""A JAX problem that reports when its loss is traced, and the measurements that faults come into.

Every problem has a loss of its own, so that all is traced and compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import geodiag
from tests.faults.injector import Injector

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 2))
PARAMS = {"b": jnp.asarray(RNG.standard_normal(2)), "w": jnp.asarray(RNG.standard_normal((3, 2)))}
STEP = {name: 0.01 * jnp.ones_like(x) for name, x in PARAMS.items()}


def new_loss(injector: Injector) -> Callable[..., Any]:
    def loss(params, x, y):
        injector.tick("loss")
        return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - y) ** 2)

    return loss


class Loader:
    """Two batches."""

    def __init__(self, injector: Injector) -> None:
        self.injector = injector

    def __iter__(self):
        self.injector.tick("iteration")
        for rows in (slice(0, 4), slice(4, 6)):
            self.injector.tick("batch")
            yield X[rows], Y[rows]


def new_problem(injector: Injector, batches: bool, **options: Any) -> Any:
    data = Loader(injector) if batches else (X, Y)
    return geodiag.problem(new_loss(injector), params=PARAMS, data=data, **options)


def questions(problem: Any) -> Any:
    oracle = problem.at()
    w = oracle.point()
    stack = {name: jnp.stack([x, 2 * x]) for name, x in w.items()}
    answers = [oracle.loss(), oracle.loss_at(w), oracle.gradient(), oracle.gradient_at(w)]
    return [*answers, oracle.hvp(w), oracle.hvps(stack)]


# Name: (measurement, whether over batches, options of the problem).
MEASUREMENTS: dict[str, Any] = {
    "l2": (lambda p: geodiag.sharpness(p, "l2", max_hvps=6), False, {}),
    "l2 on batches": (lambda p: geodiag.sharpness(p, "l2", max_hvps=4), True, {}),
    "linf": (lambda p: geodiag.sharpness(p, "linf", estimator="ascent", max_hvps=9), False, {}),
    "spectral certificate": (
        lambda p: geodiag.sharpness(p, "spectral", max_hvps=12, certificate=True), False, {},
    ),
    "frank-wolfe": (
        lambda p: geodiag.sharpness(p, "spectral", estimator="frank_wolfe", max_hvps=4), False, {},
    ),
    "differences": (
        lambda p: geodiag.sharpness(p, "l2", max_hvps=3), False, {"engine": "finite-difference"},
    ),
    "remainder": (lambda p: geodiag.directional_smoothness(p, STEP, "linf"), False, {}),
    "questions on batches": (questions, True, {}),
}  # fmt: skip


def said(answer: Any) -> Any:
    """An answer as comparable bytes."""
    if isinstance(answer, dict):
        return {name: said(x) for name, x in answer.items()}
    if isinstance(answer, list):
        return [said(x) for x in answer]
    if isinstance(answer, geodiag.SharpnessResult):
        return answer.value.hex(), said(dict(answer.direction)), answer.upper, answer.num_hvps
    return np.asarray(answer).tobytes() if hasattr(answer, "shape") else float(answer).hex()
