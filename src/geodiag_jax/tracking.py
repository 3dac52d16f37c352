"""Sharpness as a pure function, for a training step that is itself compiled.

``geodiag.sharpness`` decides on the host how it goes on. Here all is decided when JAX traces: so
many products, then an answer, which may be taken inside ``jit``, ``scan`` and ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from geodiag import blocks
from geodiag.blocks import Array, Blocks, dot, positive, scale
from geodiag.core.selection import Where
from geodiag.core.stacks import one, only
from geodiag.errors import ArgumentError, shown
from geodiag.norms import Norm, QuadraticNorm
from geodiag.oracles import Oracle
from geodiag.problems import as_norm
from geodiag.solvers import ravel
from geodiag.solvers.lanczos.fused import Search
from geodiag.solvers.lanczos.recurrence import begin
from geodiag.solvers.multistart import MultiStart, Plan
from geodiag.solvers.warm_start import Refresh
from geodiag_jax import derivatives
from geodiag_jax.batches import prepare
from geodiag_jax.derivatives import Inputs, StaticCall, StaticLoss
from geodiag_jax.flags import own_flags
from geodiag_jax.loss_key import LossKey
from geodiag_jax.programs import TracedOracle, in_order
from geodiag_jax.pytree import as_blocks, read

CHECK = 20  # measurements from one cold search to the next
REFRESH_RTOL = 0.01  # a warm search computes a third product where the second gained this much
KRYLOV, MODEL_STEPS, MIXTURES, CLIMB = 5, 8, 8, 12  # of a cold search: 19 products at most
LANCZOS_COLD, LANCZOS_WARM = 19, 3  # steps in quadratic norms; one more product is the answer's
LEAST = 8  # steps before rounding is looked for
NOISE_COLD, NOISE_WARM = 0.3, 0.02  # exactly an eigenvector, a start would hide larger ones


class Sharpness(NamedTuple):
    """One measurement; all 0-d arrays.

    Examples:
        >>> import jax.numpy as jnp
        >>> import geodiag_jax
        >>> tracker = geodiag_jax.tracker(lambda w: (w * jnp.array([3.0, 1.0])) @ w / 2)
        >>> sharpness, _ = tracker.measure(tracker.init(jnp.ones(2)), jnp.ones(2))
        >>> round(float(sharpness.dual_norm), 4)  # of (3, 1)
        3.1623
    """

    # ⟨d, Hd⟩ at the witness: a lower bound of S. NaN where a product was not finite, and where
    # there is no witness (neither a gradient at the first measurement, nor positive curvature).
    value: Array
    dual_norm: Array  # ‖∇L‖*
    num_hvps: Array


class TrackerState(NamedTuple):
    """What one measurement leaves to the next.

    Examples:
        >>> import jax.numpy as jnp
        >>> import geodiag_jax
        >>> tracker = geodiag_jax.tracker(lambda w: (w * jnp.array([3.0, 1.0])) @ w / 2)
        >>> int(tracker.init(jnp.ones(2)).count)
        0
    """

    witness: Blocks  # the direction of unit norm that attained the value; zero at first
    count: Array  # () int32: measurements so far, since the last that was not finite


class Tracker(NamedTuple):
    """A pair of pure functions, as an optax transformation is.

    Examples:
        >>> import jax.numpy as jnp
        >>> import geodiag_jax
        >>> tracker = geodiag_jax.tracker(lambda w: (w * jnp.array([3.0, 1.0])) @ w / 2)
        >>> tracker._fields
        ('init', 'measure')
    """

    init: Callable[[Any], TrackerState]
    measure: Callable[..., tuple[Sharpness, TrackerState]]


class Reached(NamedTuple):
    """Where a search ended."""

    direction: Blocks
    image: Blocks
    fresh: Array  # whether the image is a product as asked, not a combination
    num_hvps: Array


def tracker(
    loss: Callable[..., Any],
    norm: Norm | str = "l2",
    *,
    where: Where = None,
    check: int = CHECK,
    seed: int = 0,
) -> Tracker:
    """Sharpness along a run as pure functions, for ``jit``, ``scan`` and ``vmap``.

        tracker = geodiag_jax.tracker(loss, "spectral")
        state = tracker.init(params)
        sharpness, state = tracker.measure(state, params, x, y)  # also inside jit or scan

    The first measurement and every ``check``-th after it search from nothing, with 20
    Hessian-vector products at most. The others go on from the last witness, with 2 to 4: one there,
    one where it points, a third where that gained more than a hundredth, and one at the end where
    that is none of these; in quadratic norms with 4. Values are lower bounds of S. Computes as
    :func:`geodiag.sharpness` does: blocks have the same names, the dtype is float32 or float64.

    Args:
        loss: ``loss(params, *batch)``, a real scalar.
        norm: a registered name or a Norm object that JAX can trace.
        where: which arrays to measure; see :func:`geodiag.core.selection.select`.
        check: measurements from one cold search to the next; 1: every one is cold.
        seed: of the random part of cold searches.

    Returns:
        ``init(params) -> state`` and ``measure(state, params, *batch) -> (Sharpness, state)``.

    Raises:
        ArgumentError: ``check`` is not a positive integer.
        UnknownNorm: no norm is registered under the name.
        ParameterError, LossError, NormError: from the two functions, when they are traced.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import geodiag_jax
        >>> tracker = geodiag_jax.tracker(lambda w: (w * jnp.array([3.0, 1.0])) @ w / 2, "l2")
        >>> w = jnp.ones(2)
        >>> sharpness, state = jax.jit(tracker.measure)(tracker.init(w), w)
        >>> round(float(sharpness.value), 3)
        3.0
    """
    if isinstance(check, bool) or not isinstance(check, int) or check < 1:
        raise ArgumentError("check= must be a positive integer", got=shown(check))
    asked, held = as_norm(norm), LossKey(loss)

    @own_flags()
    def init(params: Any) -> TrackerState:
        layout = read(params, where)
        zeros = as_blocks(layout.space.names, [jnp.zeros_like(x) for x in layout.point])
        # Where the answers will be: elsewhere, the second measurement would recompile.
        return TrackerState(zeros, layout.tree.placement.place(jnp.zeros((), jnp.int32)))

    @own_flags()
    def measure(state: TrackerState, params: Any, *batch: Any) -> tuple[Sharpness, TrackerState]:
        layout, (form, arrays) = read(params, where), prepare(batch)
        slope, product = derivatives.inline(
            StaticCall(StaticLoss(held, layout.tree), form),
            Inputs(layout.point, layout.fixed, arrays),
        )
        oracle, gradient = TracedOracle(layout.space, product), as_blocks(layout.space.names, slope)
        bound = asked.bind(layout.space)
        steepest = bound.lmo(gradient)
        old = in_order(oracle.names, state.witness)
        start = blocks.where(dot(old, old) > 0, old, steepest)
        key = jax.random.fold_in(jax.random.key(seed), state.count)

        def search(cold: bool) -> Reached:
            if isinstance(bound, QuadraticNorm):
                return _lanczos(oracle, bound, gradient, start, key, cold)
            return _ascend(oracle, bound, gradient, start, key, cold)

        found = jax.lax.cond(state.count % check == 0, lambda: search(True), lambda: search(False))
        direction = in_order(oracle.names, found.direction)
        # Without positive curvature an ascent in the ball ends at its origin, which is no witness.
        origin = bound.value(direction) == 0
        direction, fresh = blocks.where(origin, start, direction), found.fresh & ~origin
        image = jax.lax.cond(
            fresh,
            lambda: in_order(oracle.names, found.image),
            lambda: oracle.hvp(direction),
        )
        size = bound.value(direction)
        length = positive(size)
        direction, value = scale(direction, 1 / length), dot(direction, image) / length**2
        finite = jnp.isfinite(value) & (size > 0)
        answer = Sharpness(
            jnp.where(finite, value, jnp.nan),
            dot(gradient, steepest),
            found.num_hvps + ~fresh,
        )
        count = jnp.where(finite, state.count + 1, 0).astype(jnp.int32)
        return answer, TrackerState(blocks.where(finite, direction, old), count)

    return Tracker(init, measure)


def _ascend(
    oracle: Oracle, norm: Norm, gradient: Blocks, start: Blocks, key: Array, cold: bool
) -> Reached:
    """The core's ascent: from several starts, or a step or two from ``start``."""
    if not cold:
        answer = Refresh(norm, REFRESH_RTOL)(oracle, one(start))
    else:
        krylov = min(KRYLOV, oracle.space.size)
        noise, rest = _normal(key, gradient, MIXTURES * krylov)
        plan = Plan(krylov, candidates=1, model_steps=MODEL_STEPS, race=0, climb=CLIMB)
        mixtures = jnp.reshape(rest, (MIXTURES, krylov))
        answer = MultiStart(norm, plan)(oracle, one(start), gradient, noise, mixtures)
    best = answer.best
    return Reached(only(best.direction), only(best.image), best.fresh[0], answer.num_hvps)


def _lanczos(
    oracle: TracedOracle,
    norm: QuadraticNorm,
    gradient: Blocks,
    start: Blocks,
    key: Array,
    cold: bool,
) -> Reached:
    """The top Ritz vector of P⁻¹H on the Krylov space of ``start`` and some noise."""
    steps = min(LANCZOS_COLD if cold else LANCZOS_WARM, oracle.space.size)
    seen, flat_norm, view = ravel.quadratic(oracle, norm)
    noise = _normal(key, gradient)[0]
    if view is not None:
        noise, start = view.flat(noise), view.flat(start)
    search = Search(seen, flat_norm, steps, min(LEAST, steps), 0.0, 0.0, steps, steps)
    first = begin(flat_norm, start, noise, NOISE_COLD if cold else NOISE_WARM)
    found, rows = search.run(first)
    witness = search.witness(found, rows)
    direction = view.full(witness) if view is not None else witness
    return Reached(direction, direction, jnp.asarray(False), found.count)


def _normal(key: Array, like: Blocks, more: int = 0) -> tuple[Blocks, Array]:
    """Standard normal blocks, and ``more`` numbers: if small, one draw, which compiles faster."""
    n, dtype = blocks.size(like), next(iter(like.values())).dtype
    if n > ravel.LIMIT:  # one by one: every device of a mesh would hold the whole draw
        keys = jax.random.split(key, len(like) + 1)
        named = zip(like.items(), keys[1:], strict=True)
        each = {name: jax.random.normal(k, x.shape, dtype) for (name, x), k in named}
        return each, jax.random.normal(keys[0], (more,), dtype)
    drawn = jax.random.normal(key, (n + more,), dtype)
    shapes = {name: x.shape for name, x in like.items()}
    return blocks.unflatten(drawn[:n], shapes), drawn[n:]
