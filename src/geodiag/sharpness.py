"""``geodiag.sharpness``: one call, for any norm, in any framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from geodiag.blocks import Array, Blocks, place, zeros_like
from geodiag.certificates.two_sided import bracket
from geodiag.core.selection import Where
from geodiag.core.validation import own_arithmetic, require_flag
from geodiag.errors import ArgumentError, NonFiniteError, PluginError, shown
from geodiag.estimators import Options, SharpnessEstimator, as_start, choose
from geodiag.estimators.roundoff import resolved
from geodiag.estimators.starts import STATE
from geodiag.norms.base import Norm, require_norm
from geodiag.oracles import CountingOracle, Oracle
from geodiag.plugins import registry
from geodiag.problems import as_norm, resolve_oracle
from geodiag.results import Bound, SharpnessResult, Status

RTOL = 1e-4  # what a value is to be resolved to, where no tolerance was asked for


def sharpness(
    model: Any,
    norm: Norm | str = "l2",
    *,
    loss_fn: Callable[..., Any] | None = None,
    criterion: Callable[..., Any] | None = None,
    data: Any = None,
    params: Any = None,
    where: Where = None,
    weight: Callable[[Any], float] | None = None,
    reduction: str = "mean",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    estimator: SharpnessEstimator | str = "auto",
    start: Any = None,
    rtol: float | None = None,
    max_hvps: int | None = None,
    certificate: bool = False,
    engine: str = "auto",
    memory: int | None = None,
    process_group: Any = None,
    seed: int = 0,
    progress: Callable[[dict[str, Any]], None] | bool = False,
    throw: bool = True,
) -> SharpnessResult:
    """Generalized sharpness S = max over ‖d‖ = 1 of ⟨d, ∇²L d⟩ (arXiv 2603.05002).

    Gradient descent in the norm's geometry with step size lr runs at the edge of stability where
    S = 2/lr; see :func:`geodiag.threshold`. The model, its gradients, buffers, mode and the random
    state are left as they are.

    Args:
        model: what to measure; see :func:`geodiag.problem` for this and the arguments up to
            ``shapes``, and for ``engine``, ``memory`` and ``process_group``. Also an Oracle.
        norm: a registered name (``geodiag.available_norms()``) or a Norm object.
        estimator: "auto" (chosen by the norm's structure), a registered name or an object.
        start: a direction to begin from: blocks, an earlier result, or its ``state``. With the two
            latter the measurement is warm: it goes on from the last one with few products.
        rtol: relative tolerance: of the residual for quadratic norms (default 1e-4), of two
            successive improvements otherwise (default 1e-4; 1e-8 for given matrices).
        max_hvps: budget of Hessian-vector products, the certifying one included. Where the loss is
            computed in fewer than 32 bits, one more measures what that leaves of the value.
        certificate: also prove an upper bound, ``result.upper``, for norms that declare a quadratic
            envelope: ``max_hvps`` products in all, by default 250; see docs/certificates.md.
        seed: of the random starts, which are the same in every framework.
        progress: True prints to stderr; a function gets a dict at each iteration.
        throw: whether a numerical failure raises, or is returned as the result's status.

    Returns:
        SharpnessResult: the value, a witness direction of unit norm that attains it, and what kind
        of value it is. ``float(result)`` is the value.

    Raises:
        NonFiniteError: NaN or infinity met (with ``throw=False``: status NON_FINITE).
        GeodiagError: another subclass for each kind of unusable argument.
    """
    options = Options(rtol=rtol, max_hvps=max_hvps, seed=seed, progress=progress)
    certificate, throw = require_flag(certificate, "certificate="), require_flag(throw, "throw=")
    oracle, made = resolve_oracle(
        model,
        loss_fn=loss_fn,
        criterion=criterion,
        data=data,
        params=params,
        where=where,
        weight=weight,
        reduction=reduction,
        shapes=shapes,
        engine=engine,
        memory=memory,
        process_group=process_group,
    )
    try:
        asked = as_norm(norm)
        bound_norm = require_norm(asked.bind(oracle.space), "bind of the norm")
        chosen = _resolve_estimator(estimator, bound_norm, oracle)
        with own_arithmetic():
            first, age = _known(start, oracle, bound_norm) or as_start(start, oracle, bound_norm)
        counted = CountingOracle(oracle)
        try:
            with _decompositions_checked(), counted.surroundings(), own_arithmetic():
                options = replace(options, age=age)
                if certificate:
                    result = bracket(chosen, counted, bound_norm, first, options)
                else:
                    result = chosen.estimate(counted, bound_norm, first, options)
                result = resolved(oracle, result, options.rtol or RTOL)
        except NonFiniteError as e:
            if throw:
                raise
            result = _failed(counted, bound_norm, chosen, str(e))
        name = repr(asked)  # as asked for, not as bound
        return result if result.norm == name else replace(result, norm=name)
    finally:
        if made is not None:
            made.close()


def _known(start: Any, oracle: Oracle, norm: Norm) -> tuple[Blocks, int | None] | None:
    """:func:`as_start` where there is nothing to convert or to check: an earlier witness."""
    if not isinstance(start, SharpnessResult) or set(start.state) != STATE:
        return None
    point, witness = oracle.point(), start.direction
    # An attained value that is neither NaN nor 0 is that of a finite direction that is not 0.
    if not math.isfinite(start.value) or start.value == 0 or set(witness) != set(point):
        return None
    if any(_kind(witness[name]) != _kind(x) for name, x in point.items()):
        return None
    age = start.state["age"] if start.state["norm"] == repr(norm) else None
    return {name: witness[name] for name in oracle.names}, age


def _kind(x: Array) -> tuple[Any, ...]:
    return type(x), x.dtype, tuple(x.shape), place(x)


def _resolve_estimator(
    estimator: SharpnessEstimator | str, norm: Norm, oracle: Oracle
) -> SharpnessEstimator:
    if isinstance(estimator, SharpnessEstimator):
        return estimator
    if not isinstance(estimator, str):
        raise ArgumentError(
            "estimator= must be a name or a SharpnessEstimator object",
            got=shown(estimator),
            do='pass "auto", or e.g. geodiag.estimators.Ascent()',
        )
    if estimator == "auto":
        return choose(norm, oracle.space)
    found = registry.estimator(estimator)
    if not isinstance(found, SharpnessEstimator):
        raise PluginError(
            f"the estimator {estimator!r} is not a SharpnessEstimator", got=type(found).__name__
        )
    return found


@contextmanager
def _decompositions_checked() -> Iterator[None]:
    """Report a decomposition that did not converge as what it comes from."""
    try:
        yield
    except Exception as e:
        if not type(e).__name__.endswith("LinAlgError"):  # each framework has its own
            raise
        raise NonFiniteError(
            "a matrix decomposition of the norm failed",
            got=str(e),
            do="check the parameters and the data; the training may have diverged",
        ) from e


def _failed(
    oracle: CountingOracle, norm: Norm, estimator: SharpnessEstimator, why: str
) -> SharpnessResult:
    return SharpnessResult(
        value=math.nan,
        direction=zeros_like(oracle.point()),
        bound=Bound.LOWER,
        status=Status.NON_FINITE,
        norm=repr(norm),
        estimator=repr(estimator),
        num_hvps=oracle.num_hvps,
        dual_norm=math.nan,
        notes=(why,),
    )
