"""The geometry of an optax optimizer: its norm and its update rule, read from its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geodiag.core.selection import Where
from geodiag.core.spaces import Space
from geodiag.core.validation import as_number, is_number
from geodiag.errors import ArgumentError, shown
from geodiag.norms import Norm
from geodiag.optimizers.comparison import UNKNOWN_GRADIENT
from geodiag.optimizers.families import plain_descent
from geodiag.optimizers.geometry import Geometry
from geodiag.optimizers.thresholds import Update
from geodiag_jax.optimizers.readers import plain_rate, slots_of
from geodiag_jax.optimizers.states import DEFAULTS, DIMENSIONS
from geodiag_jax.pytree import read

STATE_BEFORE = (
    "the norm is that of the optimizer's state before the step, which is not the one that the step "
    "used: pass the state after it too, after(new_params, opt_state)"
)
NOT_COMPARED = "the step was not compared with the rule, since nothing was measured"


def geometry(
    opt_state: Any,
    params: Any,
    *,
    lr: float | None = None,
    where: Where = None,
    hyperparams: Mapping[str, Any] | None = None,
) -> tuple[Norm, Update]:
    """The norm in which an optax optimizer descends, and its update rule, read from its state.

    Args:
        opt_state: the state after at least one step of adam, adamw, nadam, amsgrad, rmsprop, lion
            or contrib.muon, also inside chain, masked, partition and inject_hyperparams.
        params: the parameters that it belongs to.
        lr: the learning rate in force; default: that of inject_hyperparams.
        where: only these parameters; see :func:`geodiag.core.selection.select`.
        hyperparams: what the state does not hold, by optax's names: b1, b2, eps, eps_root,
            eps_in_sqrt, nesterov, momentum, beta, consistent_rms, weight_decay. Default: those of
            inject_hyperparams, else optax's own, without weight decay. And
            muon_weight_dimension_numbers, where contrib.muon was given them.

    Returns:
        The norm, and an :class:`geodiag.Update`. Where no threshold applies, its ``unknown`` gives
        the reason.

    Raises:
        ArgumentError: the geometry is not known, or a hyperparameter cannot be used.
        ParameterError: the parameters cannot be measured.
        NormError: the preconditioner is not known yet, or not positive.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> params = {"w": jnp.ones(3)}
        >>> adam = optax.adam(0.1, b1=0.5)
        >>> _, state = adam.update(params, adam.init(params))
        >>> norm, update = geometry(state, params, lr=0.1, hyperparams={"b1": 0.5})
        >>> norm, round(float(update.threshold(None)), 4)  # (2 / 0.1) · (1 + 0.5) / (1 − 0.5)
        (Preconditioned(P), 60.0)
    """
    check_hyperparams(hyperparams)
    if lr is not None and as_number(lr) is None:
        raise ArgumentError("lr= must be a number", got=shown(lr))
    found = read_geometry(opt_state, read(params, where).space, lr, hyperparams)
    return found.norm(), found.update()


def read_geometry(
    opt_state: Any,
    space: Space,
    lr: float | None = None,
    hyperparams: Mapping[str, Any] | None = None,
    before: Any = None,
    measured: Norm | None = None,
) -> Geometry:
    """The geometry of the parameters of a space; other arguments as for :func:`geometry`.

    ``before``: the state before the step, if known; the two show the gradient of the step.
    ``measured``: the norm that is measured, if it is not the optimizer's own: a state without
    statistics is then taken for that of plain descent in it, which the step confirms or not.
    """
    given = dict(hyperparams or {}) | ({} if lr is None else {"learning_rate": lr})
    rate = None if measured is None else plain_rate(opt_state, given)
    if measured is not None and rate is not None and rate == rate:
        return Geometry(plain_descent(measured, rate, space), space)
    return Geometry(slots_of(opt_state, space, given, before), space)


def latest(states: tuple[Any, Any]) -> tuple[Any, Any]:
    """The state after the step, or else before it, and the one before that.

    Raises:
        ArgumentError: there is none.
    """
    after, before = states
    if after is None:  # the best there is
        after, before = before, None
    if after is None:
        raise ArgumentError(
            "without norm=, the norm is read from the optimizer's state",
            got="no opt_state",
            do="pass observe(step, params, new_params, opt_state), or say norm=",
        )
    return after, before


def with_advice(unknown: str) -> str:
    """Why a threshold does not apply, with what to do about it; "" stays ""."""
    if unknown == UNKNOWN_GRADIENT:
        return (
            f"{unknown}: call observe at every step, with the state; it measures where due. If the "
            "step donates the state, call before and after, with it"
        )
    if unknown.startswith("the step"):
        return (
            f"{unknown}; pass the state after the step, all that hyperparams= should hold, or "
            "norm= and update= for another rule"
        )
    return unknown


def check_hyperparams(hyperparams: Any) -> None:
    """Raise ArgumentError where the argument is no mapping from known names to numbers."""
    if hyperparams is None:
        return
    if not isinstance(hyperparams, Mapping):
        raise ArgumentError("hyperparams= must be a dict", got=type(hyperparams).__name__)
    known = (*DEFAULTS, *(f"adam_{name}" for name in DEFAULTS), DIMENSIONS)
    unknown = [str(name) for name in hyperparams if name not in known]
    if unknown:
        raise ArgumentError(
            "hyperparams= holds names that mean nothing here",
            got=", ".join(unknown),
            do=f"use those of {', '.join(DEFAULTS)}; the learning rate is lr=",
        )
    for name, value in hyperparams.items():
        if name == DIMENSIONS:
            continue
        default = DEFAULTS[name.removeprefix("adam_")]
        switch = isinstance(default, bool) and isinstance(value, bool)
        if not (switch or is_number(value) or (value is None and default is None)):
            raise ArgumentError(f"hyperparams[{name!r}] must be a number", got=shown(value))
