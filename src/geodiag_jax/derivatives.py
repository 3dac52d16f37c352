"""Compiled losses, gradients and Hessian-vector products, shared by all problems of one loss.

What decides the compilation is static and hashable (:class:`StaticCall`); what changes from
measurement to measurement is traced (:class:`Inputs`).

value, value_and_gradient    L; L and ∇L
linearized                   L, ∇L and d ↦ ∇²L d, kept: the cheapest for many products
forward                      L and ∇²L d by forward over reverse mode, recomputed
reverse                      L and ∇²L d as ∇⟨∇L, d⟩, for losses without forward mode

Points and directions are tuples of arrays, in the order of the measured names.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from geodiag.blocks import Array
from geodiag.errors import EngineError, GeodiagError, LossError, first_line
from geodiag_jax.batches import StaticBatch
from geodiag_jax.loss_key import LossKey
from geodiag_jax.outside_state import no_tracers_left
from geodiag_jax.pytree import Tree
from geodiag_jax.rng import Draws
from geodiag_jax.sharding import call_on_user_axes

BLOCKED = (
    "forward-mode differentiation is blocked (by a custom_vjp); "
    "Hessian-vector products are reverse over reverse"
)
Arrays: TypeAlias = tuple[Array, ...]
Compiled: TypeAlias = Callable[..., Any]

# What JAX, and packages on top of it, raise where a derivative does not exist in some mode.
UNDERIVABLE = (TypeError, ValueError, NotImplementedError, RuntimeError)
OTHER = (GeodiagError, jax.errors.JaxRuntimeError)  # the second is of memory, say
_FORWARD_MARKS = ("forward-mode", "jvp", "custom_vjp")


@dataclass(frozen=True)
class StaticLoss:
    """What the compilation of a loss depends on, apart from its batch and shapes; hashable."""

    loss: LossKey
    tree: Tree


class Inputs(NamedTuple):
    """The traced arguments of a loss."""

    point: Arrays
    fixed: Arrays
    batch: Arrays


@dataclass(frozen=True)
class StaticCall:
    """A loss with the static part of its batch: a static argument of compiled functions."""

    static: StaticLoss
    batch: StaticBatch

    def evaluate(self, at: Inputs) -> Array:
        """The loss in the measurement dtype; LossError if it is not a real scalar."""
        tree, loss = self.static.tree, self.static.loss.call
        n = len(at.point), len(at.point) + len(at.fixed)

        def call(every: Arrays) -> Array:
            params = tree.build(every[: n[0]], every[n[0] : n[1]])
            rest = self.batch.arguments(every[n[1] :])
            check_call(loss, (params, *rest))
            with Draws().kept(), no_tracers_left(loss):
                value = loss(params, *rest)
            return check_loss(value).astype(tree.dtype)

        return call_on_user_axes(
            call, (at.point + at.fixed, tree.user_sharding), (at.batch, self.batch.user_sharding)
        )


def check_call(loss: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Raise LossError where ``loss`` cannot be called with so many arguments."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as e:
        raise LossError(
            f"the loss cannot be called as loss(params, *batch) with {len(arguments) - 1} array(s)",
            got=f"{signature}: {e}",
            do="let it take the parts of a tuple batch one by one, or pass "
            "lambda params, *batch: loss(params, batch); a list is read as batches",
        ) from e


def check_loss(loss: Any) -> Array:
    """``loss``; LossError if it is no JAX array of shape () and of a real floating dtype."""
    if isinstance(loss, (tuple, list)):
        raise LossError(
            "the loss must be one scalar",
            got=f"a {type(loss).__name__} of {len(loss)}",
            do="return the loss alone, e.g. lambda params, *batch: loss(params, *batch)[0]",
        )
    if not isinstance(loss, jax.Array):
        raise LossError(
            "the loss must be a scalar that JAX computes from the parameters",
            got=type(loss).__name__,
            do="return a jax.numpy scalar, without float() or NumPy on the way",
        )
    if loss.shape != ():
        raise LossError(
            "the loss must be a scalar",
            got=f"shape {tuple(loss.shape)}",
            do="reduce it, e.g. by jnp.mean, so that its shape is ()",
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise LossError(
            "the loss must be real and of a floating dtype",
            got=f"dtype {loss.dtype}",
            do="take the real part or the squared modulus, or convert it to floating point",
        )
    return loss


def _derivative(call: StaticCall, at: Inputs, point: Arrays) -> tuple[Array, Arrays]:
    """L and ∇L at ``point``."""
    loss, gradient = jax.value_and_grad(lambda w: call.evaluate(at._replace(point=w)))(point)
    return loss, call.static.tree.placement.constrain(gradient)


def _value(call: StaticCall, at: Inputs) -> Array:
    return call.evaluate(at)


def _value_and_gradient(call: StaticCall, at: Inputs) -> tuple[Array, Arrays]:
    return _derivative(call, at, at.point)


def _forward(call: StaticCall, at: Inputs, d: Arrays) -> tuple[Array, Arrays]:
    derivative = functools.partial(_derivative, call, at)
    (loss, _), (_, product) = jax.jvp(derivative, (at.point,), (d,))
    return loss, product


def _reverse(call: StaticCall, at: Inputs, d: Arrays) -> tuple[Array, Arrays]:
    def slope(point: Arrays) -> tuple[Array, Array]:
        loss, gradient = _derivative(call, at, point)
        pairs = zip(gradient, d, strict=True)
        return functools.reduce(jnp.add, [jnp.sum(g * x) for g, x in pairs]), loss

    product, loss = jax.grad(slope, has_aux=True)(at.point)
    return loss, call.static.tree.placement.constrain(product)


def _linearized(call: StaticCall, at: Inputs) -> tuple[tuple[Array, Arrays], Any]:
    return jax.linearize(functools.partial(_derivative, call, at), at.point)


def _apply(linear: Any, d: Arrays) -> Arrays:
    return linear(d)[1]  # type: ignore[no-any-return]  # [0] is the loss's own slope ⟨∇L, d⟩


def _many(f: Compiled) -> Compiled:
    """A product for k directions stacked on a leading axis; the loss is returned once."""

    def batched(call: StaticCall, at: Inputs, ds: Arrays) -> tuple[Array, Arrays]:
        one = functools.partial(f, call, at)
        answer: tuple[Array, Arrays] = jax.vmap(one, out_axes=(None, 0))(ds)
        return answer

    return batched


_jit = functools.partial(jax.jit, static_argnums=0)
value = _jit(_value)
value_and_gradient = _jit(_value_and_gradient)
linearized = _jit(_linearized)
forward = _jit(_forward)
reverse = _jit(_reverse)
forward_many = _jit(_many(_forward))
reverse_many = _jit(_many(_reverse))
PRODUCTS = {"recompute": (forward, forward_many), "reverse": (reverse, reverse_many)}
apply = jax.jit(_apply)
apply_many = jax.jit(jax.vmap(_apply, in_axes=(None, 0)))


def inline(call: StaticCall, at: Inputs) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
    """∇L and d ↦ ∇²L d within the current trace, over which the loss may close."""
    try:
        (_, gradient), linear = _linearized(call, at)
        product = functools.partial(_apply, linear)
        jax.eval_shape(jax.vmap(product), tuple(x[None] for x in at.point))
    except UNDERIVABLE:  # in forward mode, as by a custom_vjp
        return _value_and_gradient(call, at)[1], lambda d: _reverse(call, at, d)[1]
    return gradient, product


def kept_bytes(call: StaticCall, at: Inputs) -> int:
    """The bytes that a kept linearization takes, from its shapes alone."""
    eval_shape: Compiled = linearized.eval_shape
    linear = eval_shape(call, at)[1]
    return sum(x.size * x.dtype.itemsize for x in jax.tree_util.tree_leaves(linear))


@functools.lru_cache(maxsize=1024)
def forward_works(static: StaticLoss) -> list[bool]:
    """[whether forward mode works], or [] where that is not known yet; to be written to.

    JAX does not remember what failed.
    """
    return []


def forward_blocked(static: StaticLoss) -> bool:
    """Whether forward mode is known not to work."""
    return forward_works(static) == [False]


def forward_error(error: Exception, engine: str) -> EngineError | None:
    """The error of an engine where forward mode fails; None for errors that are no derivatives'."""
    if isinstance(error, OTHER):
        return None
    return EngineError(
        f"forward-mode differentiation, which engine={engine!r} needs, is blocked",
        got=f"{type(error).__name__}: {first_line(error)}",
        do='pass engine="auto" or engine="reverse"',
    )


def names_forward_mode(error: Exception) -> bool:
    """Whether an error says that it is of forward mode, so that the loss itself works."""
    return any(mark in str(error).lower() for mark in _FORWARD_MARKS)


def reverse_error(error: Exception) -> EngineError | None:
    """The error where reverse mode fails too; None for errors that are no derivatives'."""
    if isinstance(error, OTHER):
        return None
    return EngineError(
        "JAX cannot differentiate the gradient of this loss",
        got=f"{type(error).__name__}: {first_line(error)}",
        do='pass engine="finite-difference"',
    )
