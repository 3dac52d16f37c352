"""JAX losses with known derivatives; the formulas are in NumPy and know nothing of JAX."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import geodiag

rng = np.random.default_rng(7)
X = rng.standard_normal((20, 4))
Y = (rng.random(20) > 0.5).astype(float)
W = rng.standard_normal(4)
B = 0.3


class Truth(NamedTuple):
    """Loss, gradient and Hessian of a function of one vector."""

    loss: float
    gradient: np.ndarray
    hessian: np.ndarray


def logistic(params: dict[str, Any], x: Any, y: Any) -> Any:
    """Mean cross-entropy of logistic regression; blocks b () and w (4,)."""
    z = x @ params["w"] + params["b"]
    return jnp.mean(jax.nn.softplus(z) - y * z)


def logistic_params() -> dict[str, Any]:
    return {"w": jnp.asarray(W), "b": jnp.asarray(B)}


def logistic_truth(x: np.ndarray = X, y: np.ndarray = Y, weights: Any = None) -> Truth:
    """∇L = Aᵀ(p − y)/n and H = Aᵀ diag(p(1 − p)) A/n, coordinates b, w (JAX sorts the keys)."""
    A = np.column_stack([np.ones(len(x)), x])
    z = A @ np.concatenate([[B], W])
    p = 1 / (1 + np.exp(-z))
    c = np.full(len(x), 1 / len(x)) if weights is None else weights
    loss = float(c @ (np.logaddexp(0, z) - y * z))
    return Truth(loss, A.T @ (c * (p - y)), (A.T * (c * p * (1 - p))) @ A)


def flat(blocks: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(blocks[name])) for name in sorted(blocks)])


def directions(oracle: geodiag.Oracle, seed: int = 0) -> dict[str, Any]:
    return oracle.space.random(np.random.default_rng(seed))


def dense(oracle: geodiag.Oracle) -> np.ndarray:
    """The Hessian, one unit direction after another, names sorted."""
    names = sorted(oracle.names)
    sizes = [int(np.prod(oracle.shapes[n])) for n in names]
    columns = []
    for row in np.eye(sum(sizes)):
        parts = np.split(row, np.cumsum(sizes)[:-1])
        d = {
            n: oracle.space.asarray(v.reshape(oracle.shapes[n]))
            for n, v in zip(names, parts, strict=True)
        }
        columns.append(flat(oracle.hvp(d)))
    return np.array(columns).T


class Counted:
    """A loss that counts how often Python runs it: once per trace."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.calls = loss, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.loss(*args)


@jax.custom_vjp
def guarded(x: Any) -> Any:
    """A sigmoid whose backward rule calls itself: forward mode through it is blocked."""
    return jax.nn.sigmoid(x)


def _forward(x: Any) -> Any:
    return guarded(x), x


def _backward(x: Any, ct: Any) -> Any:
    s = guarded(x)
    return (ct * s * (1 - s),)


guarded.defvjp(_forward, _backward)


def guarded_logistic(params: dict[str, Any], x: Any, y: Any) -> Any:
    """The same loss as :func:`logistic`, through the guarded sigmoid."""
    p = guarded(x @ params["w"] + params["b"])
    return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))
