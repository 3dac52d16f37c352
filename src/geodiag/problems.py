"""From a model, a callable or a matrix to a Problem and an Oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from geodiag.core.selection import Where
from geodiag.core.validation import refuse
from geodiag.errors import ArgumentError, PluginError, UnknownModel
from geodiag.norms.base import Norm, require_norm
from geodiag.oracles import Oracle, Problem
from geodiag.plugins import registry

BUILT = "pass it to geodiag.problem(...), which builds the problem"
NormSource: TypeAlias = "Norm | Callable[[], Norm]"
NormLike: TypeAlias = "Norm | str | Callable[[], Norm] | None"


def problem(
    model: Any,
    *,
    loss_fn: Callable[..., Any] | None = None,
    criterion: Callable[..., Any] | None = None,
    data: Any = None,
    params: Any = None,
    where: Where = None,
    weight: Callable[[Any], float] | None = None,
    reduction: str = "mean",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    engine: str = "auto",
    memory: int | None = None,
    process_group: Any = None,
    stop_gradient: str = "constant",
    guard: Any = None,
) -> Problem:
    """Loss, data and parameters, to be measured at any point: ``problem.at(params)``.

    Keep it to measure the same model often: what can be compiled is compiled once. As a context
    manager it frees what it keeps at the end.

    Args:
        model: a ``torch.nn.Module``; a JAX loss callable ``loss(params, *batch)``; a symmetric
            (n, n) matrix or SciPy LinearOperator; a pair of callables ``(loss, gradient)`` of
            blocks; or a Problem, which is returned as it is.
        loss_fn: torch: ``loss_fn(model, batch) -> scalar``.
        criterion: torch: ``criterion(model(x), y) -> scalar`` for batches ``(x, y)``.
        data: one batch (tuple, dict, array, object with arrays), or a list or loader of batches.
        params: the point, for JAX callables (a pytree) and for pairs of callables (a dict); of a
            torch module a whole state_dict, with its buffers, which is not loaded into the module.
            A part of another point than the model is at is refused.
        where: which parameters to measure: a regular expression, a list of them, or a predicate
            ``(name, array) -> bool``. The others are held fixed.
        weight: the weight of a batch in the mean; default: what a known loss averages over, else
            its length.
        reduction: "mean" if the loss averages over a batch, "sum" if it adds.
        shapes: for a matrix: its coordinates as named blocks, ``{"W": (3, 4), ...}``.
        engine: how Hessian-vector products are computed; "auto", or one the adapter names.
        memory: bytes that kept graphs may take, where the adapter keeps any.
        process_group: torch.distributed group to average over.
        stop_gradient: what becomes of parts of a torch loss that are detached from the parameters:
            "constant" holds them fixed, as in training; "error" refuses them; "differentiate" sees
            through ``detach()``, ``.data`` and ``no_grad()``.
        guard: torch: a list of modules, generators and objects with state that the loss changes and
            that a measurement must give back, where it does not find them itself; see
            docs/faults.md.

    Returns:
        Problem: the adapter's problem of the model.

    Raises:
        UnknownModel: no adapter recognises ``model``.
        GeodiagError: another subclass for anything else that cannot be used.

    Examples:
        >>> A = np.array([[3.0, 1.0], [1.0, 2.0]])
        >>> loss, gradient = lambda w: w["w"] @ A @ w["w"] / 2, lambda w: {"w": A @ w["w"]}
        >>> with geodiag.problem((loss, gradient), params={"w": np.ones(2)}) as problem:
        ...     oracle = problem.at()
        ...     print(float(oracle.loss()), oracle.gradient()["w"])
        3.5 [4. 3.]
    """
    arguments = {
        "loss_fn": loss_fn,
        "criterion": criterion,
        "data": data,
        "params": params,
        "where": where,
        "weight": weight,
        "reduction": reduction,
        "shapes": shapes,
        "engine": engine,
        "memory": memory,
        "process_group": process_group,
        "stop_gradient": stop_gradient,
        "guard": guard,
    }
    if isinstance(model, Problem):
        refuse(arguments, "a Problem, already built,", BUILT)
        return model
    if isinstance(model, Oracle):
        raise ArgumentError(
            "an Oracle is already frozen at its point", do="pass the Problem it came from"
        )
    found = registry.problem(model, arguments)
    if found is None:
        raise UnknownModel(
            "no adapter recognises the model",
            got=f"{type(model).__module__}.{type(model).__qualname__}",
            do="pass a torch.nn.Module, a JAX loss callable with params=, a symmetric matrix, a "
            "SciPy LinearOperator, a pair of callables (loss, gradient) with params=, or a "
            "geodiag Problem; an adapter's framework must be installed and imported",
        )
    if not isinstance(found, Problem):
        raise PluginError(
            "a plugin's geodiag_problem must return a Problem or None", got=type(found).__name__
        )
    return found


@contextmanager
def resolved_oracle(model: Any, **arguments: Any) -> Iterator[Oracle]:
    """The oracle to measure. A problem that is built for it is closed at the end."""
    if isinstance(model, Oracle):
        refuse(arguments, "an Oracle, already built,", BUILT)
        yield model
    elif isinstance(model, Problem):
        params = arguments.pop("params", None)
        refuse(arguments, "a Problem, already built,", BUILT)
        if params is not None:
            model.require_whole(params)
        yield model.at(params)
    else:
        with problem(model, **arguments) as built:
            yield built.at()


def as_norm(norm: Norm | str) -> Norm:
    """The norm of a registered name, or the norm itself, not yet bound to parameters."""
    return registry.norm(norm) if isinstance(norm, str) else require_norm(norm, "norm=")


def norm_source(norm: NormLike) -> NormSource:
    """The norm, or a function that returns it at each measurement of a run."""
    return norm if callable(norm) and not isinstance(norm, Norm) else as_norm(norm)  # type: ignore[arg-type]


def current_norm(source: NormSource) -> Norm:
    """The norm of a :func:`norm_source` now."""
    return source if isinstance(source, Norm) else as_norm(source())


def is_of_optimizer(norm: NormLike) -> bool:
    """Whether ``norm=`` asks for the optimizer's own: it is None or "auto"."""
    return norm is None or (isinstance(norm, str) and norm == "auto")
