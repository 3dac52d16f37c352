"""Steepest descent in any norm as an optax transformation; see geodiag.optimizers.non_euclidean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from geodiag.blocks import Array
from geodiag.core.validation import as_number, require_flag
from geodiag.errors import ArgumentError, shown
from geodiag.norms import Norm
from geodiag.optimizers.non_euclidean import steepest_step
from geodiag.optimizers.thresholds import require_lr
from geodiag.problems import as_norm
from geodiag_jax.pytree import flatten, is_array, measurement_dtype, places_by_name, space_of
from geodiag_jax.sharding import in_dtype

LearningRate: TypeAlias = "float | Array | Callable[[Array], Array]"


LAST_COUNT = 2**31 - 1  # of int32: the count stays there instead of wrapping


class NonEuclideanState(NamedTuple):
    """The number of steps taken, the argument of a schedule."""

    count: Array  # (), int32


def non_euclidean_gd(
    lr: LearningRate, norm: Norm | str, normalized: bool = False
) -> optax.GradientTransformation:
    """w⁺ = w − lr·‖g‖*·lmo(g), or w − lr·lmo(g) if ``normalized`` (arXiv 2603.05002).

    Blocks are named, and tensors read as matrices, as when the same pytree is measured, so a norm
    means the same to the optimizer and to :func:`geodiag.sharpness`. Computes in float32 at least;
    the updates have the gradients' dtypes. Leaves that are not floating arrays pass unchanged.

    Args:
        lr: positive step size, in parameter units per unit of ‖g‖* (normalized: parameter units),
            or an optax schedule of the step count.
        norm: a registered name or a Norm object.
        normalized: whether every step has the norm lr.

    Returns:
        An ``optax.GradientTransformation`` that may be jitted, scanned and chained.

    Raises:
        ArgumentError: ``lr`` is not positive, or ``norm`` is not a norm.
        UnknownNorm: no norm is registered under the name.
        NormError: from ``update``, if the norm does not apply to the parameters.

    Examples:
        >>> sign_descent = non_euclidean_gd(0.5, "linf", normalized=True)
        >>> gradient = {"w": jnp.array([3.0, -1.0])}
        >>> updates, _ = sign_descent.update(gradient, sign_descent.init(gradient))
        >>> updates["w"].tolist()
        [-0.5, 0.5]
    """
    if not (callable(lr) or isinstance(lr, jax.core.Tracer)):
        require_lr(lr, do="pass e.g. lr=0.01, or an optax schedule")
    normalized = require_flag(normalized, "normalized=")
    chosen = as_norm(norm)

    def init(params: Any) -> NonEuclideanState:
        return NonEuclideanState(jnp.zeros((), jnp.int32))

    def update(
        grads: Any, state: NonEuclideanState, params: Any = None
    ) -> tuple[Any, NonEuclideanState]:
        rate = _rate(lr(state.count) if callable(lr) else lr)
        updates = _descend(grads, chosen, rate, normalized)
        return updates, NonEuclideanState(jnp.minimum(state.count, LAST_COUNT - 1) + 1)

    return optax.GradientTransformation(init, update)


def _descend(grads: Any, norm: Norm, rate: Any, normalized: bool) -> Any:
    """The updates, as a pytree like ``grads``."""
    paths, treedef = flatten(grads)
    leaves = [leaf for _, leaf in paths]
    places = places_by_name(paths, _is_floating)
    if not places:  # a masked or empty group has nothing to move
        return grads
    asarray = in_dtype(measurement_dtype([leaves[i] for i in places.values()]))
    g = {name: asarray(leaves[i]) for name, i in places.items()}
    bound = norm.bind(space_of(paths, places, asarray))
    step = steepest_step(bound, g, dict.fromkeys(g, rate), normalized)
    for name, i in places.items():
        leaves[i] = (-step[name]).astype(leaves[i].dtype)
    return jax.tree_util.tree_unflatten(treedef, leaves)


def _is_floating(leaf: Any) -> bool:
    return is_array(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _rate(answer: Any) -> Array:
    """The learning rate or what a schedule answers, which may be traced."""
    traced = isinstance(answer, (jax.Array, jax.core.Tracer))
    if traced and answer.shape == () and not jnp.issubdtype(answer.dtype, jnp.complexfloating):
        return answer
    if not traced and as_number(answer) is not None:
        return as_number(answer)
    raise ArgumentError("a schedule must answer a number", got=shown(answer))
