"""Procedures for λ_max in JAX: ours and matfree's; see :mod:`benchmarks.torch_peers`.

Compilation is excluded for both: what is compiled is made before the clock starts, and the point
is an argument of it.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import torch

import geodiag
from benchmarks.cases import Case
from benchmarks.torch_peers import DEPTHS, OURS, Found


def perceptron(params: Any, x: Any) -> Any:
    """A tanh MLP whose layers are named as in ``torch.nn.Sequential``."""
    layers = sorted({int(name.split(".")[0]) for name in params})
    for i in layers:
        x = x @ params[f"{i}.weight"].T + params[f"{i}.bias"]
        x = x if i == layers[-1] else jnp.tanh(x)
    return x


def convolutional(params: Any, x: Any) -> Any:
    """The CNN of :mod:`benchmarks.problems`, with its torch kernels."""
    x = x.reshape(-1, 1, 8, 8)
    for i in (1, 4):
        w = params[f"{i}.weight"]
        x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")
        x = jnp.tanh(x + params[f"{i}.bias"][:, None, None])
        n, c, h, _ = x.shape
        x = x.reshape(n, c, h // 2, 2, h // 2, 2).mean(axis=(3, 5))
    return x.reshape(len(x), -1) @ params["8.weight"].T + params["8.bias"]


def cross_entropy(output: Any, y: Any) -> Any:
    """Mean over examples."""
    return -jnp.take_along_axis(jax.nn.log_softmax(output), y[:, None], axis=1).mean()


def squared_error(output: Any, y: Any) -> Any:
    """Mean over examples of the squared distance."""
    return ((output - y) ** 2).sum(axis=1).mean()


FORMS = {
    "mlp 784-200-200-10": (perceptron, cross_entropy),
    "mlp, edge": (perceptron, squared_error),
    "cnn, edge": (convolutional, squared_error),
}


class JaxCase:
    """A case with the same weights and data as JAX arrays."""

    def __init__(self, case: Case) -> None:
        forward, criterion = FORMS[case.name]

        def loss(params: Any, x: Any, y: Any) -> Any:
            return criterion(forward(params, x), y)

        self.name, self.truths, self.size, self.loss = case.name, case.truths, case.size, loss
        self.points = [{n: _array(p) for n, p in point.items()} for point in case.points]
        self.batch = tuple(_array(t) for t in case.batch)
        self._gradient = jax.jit(jax.grad(loss))
        self.at(0)

    def at(self, i: int) -> None:
        """Take the i-th point's weights."""
        self.params = self.points[i]

    def gradient(self) -> Any:
        """What a training step computes."""
        return jax.block_until_ready(self._gradient(self.params, *self.batch))


def _array(t: torch.Tensor) -> jax.Array:
    return jnp.asarray(t.numpy().astype(np.int32) if t.dtype == torch.int64 else t.numpy())


class Ours:
    """``geodiag.sharpness`` of a problem that is built once; see there for the settings."""

    name, module = "geodiag", "geodiag"
    ladders: ClassVar[tuple[Any, ...]] = OURS

    def __init__(self, case: JaxCase) -> None:
        self.case = case
        self.problem = geodiag.problem(case.loss, params=case.params, data=case.batch)

    def solve(self, setting: Any, seed: int, start: Any = None) -> Found:
        params = self.case.params
        r = geodiag.sharpness(self.problem, "l2", params=params, seed=seed, start=start, **setting)
        return Found(r.value, r, r.num_hvps)


class OursDefault(Ours):
    """At its defaults."""

    name = "geodiag, default"
    ladders = (({},),)


class Matfree:
    """matfree's Lanczos on ``jax.linearize`` of the gradient, compiled whole.

    A setting is the number of steps. Of its options these are the fastest here: ``jax.jvp`` of the
    gradient took 1.7 times as long, and full reorthogonalisation up to 2 times, at the same error.
    """

    name, module = "matfree", "matfree"
    ladders: ClassVar[tuple[Any, ...]] = (DEPTHS,)

    def __init__(self, case: JaxCase) -> None:
        self.case = case
        self.run = lru_cache(maxsize=None)(self._compile)

    def _compile(self, depth: int) -> Any:
        from matfree import decomp

        tridiagonalise = decomp.tridiag_sym(depth, reortho="none", custom_vjp=False)

        @jax.jit
        def top(params: Any, start: Any) -> tuple[Any, Any]:
            gradient = jax.grad(lambda p: self.case.loss(p, *self.case.batch))
            Q, T, *_ = tridiagonalise(jax.linearize(gradient, params)[1], start)
            values, vectors = jnp.linalg.eigh(T)
            vector = jax.tree.map(partial(jnp.tensordot, vectors[:, -1], axes=1), Q)
            return values[-1], vector

        return top

    def solve(self, setting: Any, seed: int, start: Any = None) -> Found:
        if start is None:
            rng = np.random.default_rng(seed)
            start = {
                n: jnp.asarray(rng.standard_normal(p.shape), dtype=p.dtype)
                for n, p in self.case.params.items()
            }
        value, vector = self.run(setting)(self.case.params, start)
        return Found(float(value), jax.block_until_ready(vector), setting)


PROCEDURES = (Ours, OursDefault, Matfree)
