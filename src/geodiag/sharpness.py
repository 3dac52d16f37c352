"""``geodiag.sharpness``: one call, for any norm, in any framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from geodiag.blocks import zeros_like
from geodiag.certificates.bracket import bracket
from geodiag.core.selection import Where
from geodiag.core.validation import own_arithmetic, require_flag
from geodiag.errors import ArgumentError, NonFiniteError, shown
from geodiag.estimators import Options, SharpnessEstimator, as_start, choose
from geodiag.estimators.roundoff import ONE_PRODUCT, SETTLED, resolved
from geodiag.estimators.starts import last_search
from geodiag.norms.base import Norm, require_norm
from geodiag.oracles import CountingOracle, Oracle
from geodiag.plugins import registry
from geodiag.problems import as_norm, resolved_oracle
from geodiag.results import Bound, SharpnessResult, Status, relative

RTOL = 1e-4  # by default, the relative round-off above which a value gets a note


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
    stop_gradient: str = "constant",
    guard: Any = None,
    seed: int = 0,
    progress: Callable[[dict[str, Any]], None] | bool = False,
    throw: bool = True,
) -> SharpnessResult:
    """Generalized sharpness S = max over ‖d‖ = 1 of ⟨d, ∇²L d⟩ (arXiv 2603.05002).

    Gradient descent in the norm's geometry with step size lr runs at the edge of stability where
    S = 2/lr; see :func:`geodiag.threshold`. The model, its gradients, buffers, mode and the random
    state are left as they are.

    Args:
        model: what to measure, as in :func:`geodiag.problem`; also an Oracle.
        norm: a registered name (``geodiag.available_norms()``) or a Norm object.
        loss_fn: as there, like the arguments up to ``shapes``.
        criterion: for ``(x, y)`` batches of a torch model.
        data: one batch, or several.
        params: the point, where the model does not hold it.
        where: which parameters to measure.
        weight: of a batch in the mean.
        reduction: "mean" or "sum".
        shapes: of a matrix's blocks.
        estimator: "auto" (chosen by the norm's structure), a registered name or an object.
        start: a direction to start from: blocks, an earlier result, or its ``state``. A result or
            state makes the measurement warm: few products update its witness.
        rtol: relative tolerance: of the residual for quadratic norms (default 1e-4), of two
            successive improvements otherwise (default 1e-4; 1e-8 for given matrices).
        max_hvps: budget of Hessian-vector products, the certifying one included. If the loss is
            computed in fewer than 32 bits, one more estimates the round-off of the value.
        certificate: also prove an upper bound, ``result.upper``, for norms that declare a quadratic
            envelope: ``max_hvps`` products in all, by default 250; see docs/certificates.md.
        engine: how products are computed; see :func:`geodiag.problem`.
        memory: bytes that kept graphs may take.
        process_group: torch.distributed group to average over.
        stop_gradient: "constant", "error" or "differentiate", for detached parts of the loss.
        guard: what else the loss changes, and a measurement must give back.
        seed: of the random starts, which are the same in every framework.
        progress: True shows a bar on stderr (of tqdm where it is installed) with the time that is
            left at most; a function gets a dict at each iteration.
        throw: whether a numerical failure raises, or is returned as the result's status.

    Returns:
        SharpnessResult: the value, its witness (a direction of unit norm that attains it), and
        whether it is exact or a lower bound. ``float(result)`` is the value.

    Raises:
        NonFiniteError: NaN or infinity met (with ``throw=False``: status NON_FINITE).
        GeodiagError: another subclass for each kind of unusable argument.

    Examples:
        The largest eigenvalue, and the maximum over the cube of the vertices (±1, ±1):

        >>> H = np.array([[3.0, 1.0], [1.0, 2.0]])
        >>> round(float(geodiag.sharpness(H)), 6)
        3.618034
        >>> result = geodiag.sharpness(H, "linf")
        >>> result.value, result.bound.name, np.abs(result.direction["x"]).tolist()
        (7.0, 'EXACT', [1.0, 1.0])
    """
    options = Options(rtol=rtol, max_hvps=max_hvps, seed=seed, progress=progress)
    certificate, throw = require_flag(certificate, "certificate="), require_flag(throw, "throw=")
    with resolved_oracle(
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
        stop_gradient=stop_gradient,
        guard=guard,
    ) as oracle:
        return measured(
            oracle,
            as_norm(norm),
            options,
            start=start,
            estimator=estimator,
            certificate=certificate,
            throw=throw,
        )


def measured(
    oracle: Oracle,
    asked: Norm,
    options: Options,
    *,
    start: Any = None,
    estimator: SharpnessEstimator | str = "auto",
    certificate: bool = False,
    throw: bool = False,
) -> SharpnessResult:
    """:func:`sharpness` of an oracle, with the options of an estimator: the search mode among them.

    Raises:
        GeodiagError: as there.
    """
    norm = require_norm(asked.bind(oracle.space), "bind of the norm")
    asked_for = named_estimator(estimator)
    chosen = choose(norm, oracle.space) if asked_for is None else asked_for
    with oracle.surroundings(), own_arithmetic():
        first, age = as_start(start, oracle, norm)
    options = replace(options, age=age, searched=last_search(start, oracle))

    def search(counted: CountingOracle) -> SharpnessResult:
        with _decompositions_checked(), counted.surroundings(), own_arithmetic():
            if certificate:
                result = bracket(chosen, counted, norm, first, options)
            else:
                result = chosen.estimate(counted, norm, first, options)
            return resolved(oracle, result, options.rtol or RTOL)

    counted = CountingOracle(oracle)
    try:
        try:
            result = search(counted)
        except NonFiniteError:
            if not oracle.use_differences():
                raise
            spent = counted.num_hvps
            if options.max_hvps is not None:
                options = replace(options, max_hvps=max(options.max_hvps - spent, 2))
            result = search(CountingOracle(counted))
            _require_second_derivative(result)
            result = replace(result, num_hvps=result.num_hvps + spent)
    except NonFiniteError as e:
        if throw:
            raise
        result = _failed(counted, norm, chosen, str(e))
    name = repr(asked)  # as asked for, not as bound
    return result if result.norm == name else replace(result, norm=name)


def _require_second_derivative(result: SharpnessResult) -> None:
    """Raise a NonFiniteError where another step of the differences makes another value."""
    share = relative(result.rounding or 0.0, result.value) / ONE_PRODUCT
    if share > SETTLED:
        raise NonFiniteError(
            "the loss has no second derivative at this point",
            got="a product that is not finite, and differences of gradients that change by "
            f"{share:.2g} of their size with their step",
            do="measure where no norm, root or power with a slope of its own is at zero",
        )


def named_estimator(estimator: SharpnessEstimator | str) -> SharpnessEstimator | None:
    """The estimator of a registered name, or the object itself; None for "auto".

    Raises:
        GeodiagError: it is neither, or no estimator has the name.
    """
    if isinstance(estimator, SharpnessEstimator):
        return estimator
    if not isinstance(estimator, str):
        raise ArgumentError(
            "estimator= must be a name or a SharpnessEstimator object",
            got=shown(estimator),
            do='pass "auto", or e.g. geodiag.estimators.Ascent()',
        )
    return None if estimator == "auto" else registry.estimator(estimator)


@contextmanager
def _decompositions_checked() -> Iterator[None]:
    """Report a decomposition that did not converge as numbers that are not finite."""
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
        loss=float(oracle.loss()),
        notes=(why,),
    )
