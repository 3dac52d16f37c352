"""What a measurement will take, before it is made: products, passes, vectors, memory, seconds.

Counts are upper bounds by formula: of the search that ``geodiag.sharpness`` would choose for the
norm and the number of parameters, without ``max_hvps``, and of vectors as in docs/memory.md. The
seconds are these counts times the seconds of one loss, one gradient and one product.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from geodiag.blocks import epsilon, norm2
from geodiag.certificates.bracket import TOTAL
from geodiag.core.validation import is_whole
from geodiag.errors import ArgumentError, one_line, shown
from geodiag.estimators import Blockwise, Enumerate, FrankWolfe, Lanczos, choose
from geodiag.estimators.ascent import FEW_STARTS, SINGLE_START
from geodiag.estimators.budgets import COLD_BUDGET, LANCZOS_BUDGET, LARGE_COLD_BUDGET
from geodiag.estimators.lanczos import BASIS, LEAST_BASIS, ROOM
from geodiag.estimators.roundoff import SINGLE
from geodiag.norms.base import Norm
from geodiag.oracles import Oracle
from geodiag.problems import as_norm, resolved_oracle

# Vectors of the searches for few parameters, for more than 2²² and for more than 2²⁴.
ASCENT, BLOCKWISE, CERTIFICATE = (300, 70, 17), (120, 120, 120), (560, 560, 325)
REFRESH = 10  # products of a warm measurement that is no cold restart, at most
WARM, ALONG = (66, 66, 26), 20  # vectors: of a warm measurement, of one along a step
LOSSES = 4  # of the search for a critical step: L(w⁺), and three more
ALONG_STEP = ("step", "critical")
MODES = ("sharpness", "warm", "certificate", "record", *ALONG_STEP)


@dataclass(frozen=True)
class Cost:
    """What a measurement will take at most, where its search goes as searches mostly do.

    Attributes:
        mode: as it was asked for.
        hvps: Hessian-vector products; NaN for a given matrix, whose products cost next to nothing.
        passes: forward passes over the data, with one for each product, which a kept graph saves.
        vectors: as many numbers as there are measured parameters, alive at the peak.
        bytes_per_rank: of these vectors on one of the ranks that share them. Activations and kept
            graphs come on top.
        seconds: of the passes and products, as timed; NaN where they cannot be, for the reason in
            ``note``.
        note: why a number is not known.

    Examples:
        >>> cost = geodiag.estimate_cost(np.eye(3), "spectral", mode="step")
        >>> cost.mode, cost.vectors >= 1
        ('step', True)
    """

    mode: str
    hvps: float
    passes: float
    vectors: int
    bytes_per_rank: int
    seconds: float
    note: str = ""


def estimate_cost(
    model: Any,
    norm: Norm | str | None = "l2",
    *,
    mode: str = "sharpness",
    ranks: int = 1,
    **problem_arguments: Any,
) -> Cost:
    """What a measurement in one of the modes will take, before it is made.

    Args:
        model: as in :func:`geodiag.sharpness`; it is evaluated to be timed: two losses, gradients
            and products.
        norm: a registered name or a Norm; None where the mode needs none.
        mode: "sharpness", a cold :func:`geodiag.sharpness`; "warm", one with ``start=``;
            "certificate", one with ``certificate=True``; "record", of a Monitor in a smooth run;
            "step", of a Monitor with ``sharpness=False``; "critical", the same with
            ``critical=True``.
        ranks: how many share the parameters, where these are sharded.
        **problem_arguments: as in :func:`geodiag.problem`.

    Returns:
        Cost: ``hvps``, ``passes``, ``vectors``, ``bytes_per_rank`` and ``seconds``.

    Raises:
        ArgumentError: an unknown mode, or ``ranks`` that is no number of ranks.

    Examples:
        >>> pair = (lambda w: float(w["x"] @ w["x"]), lambda w: {"x": 2 * w["x"]})
        >>> cost = geodiag.estimate_cost(pair, "linf", params={"x": np.ones(200)})
        >>> cost.hvps, cost.passes, cost.vectors, cost.bytes_per_rank
        (60.0, 61.0, 300, 480000)
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise ArgumentError("unknown mode", got=shown(mode), do=f"use one of {list(MODES)}")
    if not (is_whole(ranks) and ranks >= 1):
        raise ArgumentError("ranks= must be a whole number, at least 1", got=shown(ranks))
    if norm is None and mode not in ALONG_STEP:
        raise ArgumentError(f"mode={mode!r} needs a norm", do='pass one, e.g. "l2"')
    asked = None if norm is None else as_norm(norm)
    with resolved_oracle(model, **problem_arguments) as oracle, oracle.surroundings():
        if mode in ALONG_STEP:
            oracle.spare()
        hvps, losses, vectors = _counts(oracle, asked, mode)
        loss, gradient, product, note = _timings(oracle)
        if note and mode in ALONG_STEP:
            hvps = product = 0.0  # then there is none
        elif oracle.free_hvps:
            note, product = "the products of a given matrix are not counted", math.nan
        like = next(iter(oracle.point().values()))
        size = -(-oracle.space.size // int(ranks)) * int(like.dtype.itemsize)
    seconds = gradient + losses * loss + hvps * product
    return Cost(mode, hvps, 1.0 + losses + hvps, vectors, vectors * size, seconds, note)


def _counts(oracle: Oracle, norm: Norm | None, mode: str) -> tuple[float, int, int]:
    """Products, losses without that of the gradient, and vectors."""
    if mode in ALONG_STEP:
        return 1.0, 1 if mode == "step" else LOSSES, ALONG
    assert norm is not None
    bound, size = norm.bind(oracle.space), oracle.space.size
    tier = (size > FEW_STARTS) + (size > SINGLE_START)
    estimator = choose(bound, oracle.space)
    budget = float(LARGE_COLD_BUDGET if size > SINGLE_START else COLD_BUDGET)
    basis = min(BASIS, max(LEAST_BASIS, ROOM // max(1, size)))
    vectors = math.ceil(1.75 * basis) + 16
    if isinstance(estimator, Lanczos):
        budget = float(min(LANCZOS_BUDGET, 20 * size + 2))
    elif not isinstance(estimator, FrankWolfe):
        vectors = (BLOCKWISE if isinstance(estimator, Blockwise) else ASCENT)[tier]
    if isinstance(estimator, Enumerate):
        budget = float(size + 1)
    if mode == "certificate":
        budget, vectors = float(TOTAL), max(CERTIFICATE[tier], vectors)
    elif mode == "warm":
        budget, vectors = min(budget, float(REFRESH)), WARM[tier]
    elif mode == "record":
        budget, vectors = 2.0, WARM[tier]
    if max(epsilon(oracle.point()), oracle.precision) > SINGLE:
        budget += 1.0  # for the round-off
    return math.nan if oracle.free_hvps else budget, 1 if mode == "record" else 0, vectors


def _timings(oracle: Oracle) -> tuple[float, float, float, str]:
    """The seconds of a loss, a gradient and a product, and why there is no product."""
    here, d = oracle.point(), oracle.space.random(np.random.default_rng(0))
    loss = _timed(lambda: float(oracle.loss_at(here)))
    gradient = _timed(lambda: float(norm2(oracle.gradient_at(here))))
    try:
        return loss, gradient, _timed(lambda: float(norm2(oracle.hvp(d)))), ""
    except Exception as e:
        return loss, gradient, math.nan, f"no Hessian-vector product: {one_line(e)}"


def _timed(run: Callable[[], float]) -> float:
    """The seconds of a second call: what is compiled, or kept, is so by then."""
    run()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
