"""JAX cases without a library: nested dicts, custom derivatives, recurrent networks, attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.jax_parts import (
    CLASSES,
    TOKENS,
    WIDTH,
    affine,
    case,
    cast,
    cross_entropy,
    layer,
    rng,
    series,
    two_layers,
    vectors,
)


@case("nested dicts (Haiku's), tanh")
def nested(dtype: Any) -> dict[str, Any]:
    return two_layers(jnp.tanh, dtype)


@case("jax.checkpoint")
def remat(dtype: Any) -> dict[str, Any]:
    return two_layers(jax.checkpoint(lambda x: jnp.tanh(x) * jax.nn.sigmoid(x)), dtype)


@jax.custom_vjp
def guarded(x: Any) -> Any:
    """tanh with a gradient rule that calls it again: forward mode through it is blocked."""
    return jnp.tanh(x)


def _guarded_backward(x: Any, cotangent: Any) -> tuple[Any]:
    return (cotangent * (1 - guarded(x) ** 2),)


guarded.defvjp(lambda x: (guarded(x), x), _guarded_backward)


@case("custom_vjp (forward mode blocked)")
def blocked(dtype: Any) -> dict[str, Any]:
    return two_layers(guarded, dtype)


@jax.custom_jvp
def stated(x: Any) -> Any:
    """softplus with its derivative stated."""
    return jnp.logaddexp(x, 0)


@stated.defjvp
def _stated_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    return stated(x), t * jax.nn.sigmoid(x)


@case("custom_jvp")
def custom_jvp(dtype: Any) -> dict[str, Any]:
    return two_layers(stated, dtype)


@case("dict batches")
def dicts(dtype: Any) -> dict[str, Any]:
    whole = two_layers(jnp.tanh, dtype)
    inner = whole["model"]
    parts = [vectors(seed=seed) for seed in (1, 2)]
    data = cast([{"image": x, "label": y, "train": False} for x, y in parts], dtype)
    return whole | {"model": lambda p, b: inner(p, b["image"], b["label"]), "data": data}


@case("ragged batches")
def ragged(dtype: Any) -> dict[str, Any]:
    x, y = vectors(19)
    parts = [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]
    return two_layers(jnp.tanh, dtype, data=parts)


# Recurrent networks


def recurrent(gates: int, cell: Any, states: int, dtype: Any) -> dict[str, Any]:
    """A classifier of the last state of a network under ``lax.scan``."""
    r = rng()
    params = {
        "cell": layer(r, 2 * WIDTH, gates * WIDTH),
        "head": layer(r, WIDTH, CLASSES),
    }

    def loss(params: Any, x: Any, y: Any) -> Any:
        start = (jnp.zeros((len(x), WIDTH), x.dtype),) * states

        def step(state: Any, x: Any) -> Any:
            return cell(params["cell"], state, x), None

        state, _ = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
        return cross_entropy(affine(params["head"], state[0]), y)

    return {"model": loss, "params": cast(params, dtype), "data": cast(series(), dtype)}


def elman(p: Any, state: Any, x: Any) -> Any:
    return (jnp.tanh(affine(p, jnp.concatenate([state[0], x], -1))),)


def gru_cell(p: Any, state: Any, x: Any) -> Any:
    (h,) = state
    reset, update, _ = jnp.split(affine(p, jnp.concatenate([h, x], -1)), 3, -1)
    reset, update = jax.nn.sigmoid(reset), jax.nn.sigmoid(update)
    new = jnp.split(affine(p, jnp.concatenate([reset * h, x], -1)), 3, -1)[2]
    return (update * h + (1 - update) * jnp.tanh(new),)


def lstm_cell(p: Any, state: Any, x: Any) -> Any:
    h, c = state
    i, f, g, o = jnp.split(affine(p, jnp.concatenate([h, x], -1)), 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


@case("RNN (lax.scan)")
def rnn(dtype: Any) -> dict[str, Any]:
    return recurrent(1, elman, 1, dtype)


@case("GRU (lax.scan)")
def gru(dtype: Any) -> dict[str, Any]:
    return recurrent(3, gru_cell, 1, dtype)


@case("LSTM (lax.scan)")
def lstm(dtype: Any) -> dict[str, Any]:
    return recurrent(4, lstm_cell, 2, dtype)


# Attention


def attention(q: Any, k: Any, v: Any) -> Any:
    """Causal attention, (batch, time, heads, width), in the dtype of its arguments."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def library_attention(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def attending(attend: Any, dtype: Any) -> dict[str, Any]:
    r = rng()
    params = {"qkv": layer(r, WIDTH, 3 * WIDTH), "head": layer(r, WIDTH, CLASSES)}

    def loss(params: Any, x: Any, y: Any) -> Any:
        parts = affine(params["qkv"], x).reshape(*x.shape[:2], 3, 2, WIDTH // 2)
        mixed = attend(*jnp.moveaxis(parts, 2, 0)).reshape(x.shape)
        return cross_entropy(affine(params["head"], jnp.mean(mixed, 1)), y)

    return {"model": loss, "params": cast(params, dtype), "data": cast(series(), dtype)}


@case("attention, written out")
def written_attention(dtype: Any) -> dict[str, Any]:
    return attending(attention, dtype)


@case("jax.nn.dot_product_attention")
def library(dtype: Any) -> dict[str, Any]:
    return attending(library_attention, dtype)


def rms(x: Any, gain: Any) -> Any:
    return gain * x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + jnp.asarray(1e-5, x.dtype))


def swiglu(p: Any, x: Any) -> Any:
    gate, up = jnp.split(x @ p["up"], 2, -1)
    return (jax.nn.silu(gate) * up) @ p["down"]


@case("language model: tied embedding, RMSNorm, SwiGLU, unused parameter")
def language(dtype: Any) -> dict[str, Any]:
    r = rng()
    draw = lambda *shape: r.standard_normal(shape) / np.sqrt(shape[0])  # noqa: E731
    params = {
        "embed": 0.3 * r.standard_normal((TOKENS, WIDTH)),
        "qkv": draw(WIDTH, 3 * WIDTH),
        "norm": 1 + 0.1 * r.standard_normal(WIDTH),
        "mlp": {"up": draw(WIDTH, 2 * WIDTH), "down": draw(WIDTH, WIDTH)},
        "unused": np.ones(3),
    }
    tokens = r.integers(0, TOKENS, (4, 6))

    def loss(params: Any, tokens: Any) -> Any:
        x = params["embed"][tokens[:, :-1]]
        parts = (rms(x, params["norm"]) @ params["qkv"]).reshape(*x.shape[:2], 3, 2, WIDTH // 2)
        x = x + attention(*jnp.moveaxis(parts, 2, 0)).reshape(x.shape)
        x = x + swiglu(params["mlp"], rms(x, params["norm"]))
        return cross_entropy(x @ params["embed"].T, tokens[:, 1:])

    return {"model": loss, "params": cast(params, dtype), "data": jnp.asarray(tokens)}
