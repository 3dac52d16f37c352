"""The cost of a Hessian-vector product in gradient evaluations, on an MLP of 200,000 parameters.

The gradient is what training computes: forward and backward, in plain framework code, not ours.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import geodiag
from benchmarks.report import spread, table
from benchmarks.timing import ratios

WIDTHS, EXAMPLES = (784, 200, 200, 10), 512


def run(quick: bool) -> None:
    """Print one row per framework and engine."""
    torch.set_num_threads(1)
    rows = []
    for framework, engines in (
        (_torch, ("graph", "recompute", "finite-difference")),
        (_jax, ("linearize", "recompute", "reverse", "finite-difference")),
    ):
        for engine in engines:
            name, hvp, gradient = framework(engine)
            rows.append([name, engine, spread(ratios(hvp, gradient, 5 if quick else 21))])
    table(
        f"HVP cost, MLP {'-'.join(map(str, WIDTHS))}, batch {EXAMPLES}, float32",
        ["framework", "engine", "gradients"],
        rows,
    )


def _data() -> tuple[dict[str, Any], Any, Any]:
    rng = np.random.default_rng(0)
    weights = {}
    for i, (m, n) in enumerate(pairwise(WIDTHS)):
        weights[f"{i}.weight"] = (rng.standard_normal((n, m)) / np.sqrt(m)).astype(np.float32)
        weights[f"{i}.bias"] = np.zeros(n, dtype=np.float32)
    x = rng.standard_normal((EXAMPLES, WIDTHS[0])).astype(np.float32)
    y = rng.standard_normal((EXAMPLES, WIDTHS[-1])).astype(np.float32)
    return weights, x, y


def _torch(engine: str) -> Any:
    weights, x, y = _data()
    layers: list[nn.Module] = []
    for m, n in pairwise(WIDTHS):
        layers += [nn.Linear(m, n), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights.values(), strict=True):
            p.copy_(torch.from_numpy(w))
    data = torch.from_numpy(x), torch.from_numpy(y)
    oracle = geodiag.problem(model, criterion=nn.MSELoss(), data=data, engine=engine).at()
    d = oracle.space.random(np.random.default_rng(1))
    parameters = list(model.parameters())

    def gradient() -> None:
        torch.autograd.grad(nn.functional.mse_loss(model(data[0]), data[1]), parameters)

    return "torch", lambda: oracle.hvp(d), gradient


def _jax(engine: str) -> Any:
    weights, x, y = _data()
    params = {name: jnp.asarray(w) for name, w in weights.items()}
    batch = jnp.asarray(x), jnp.asarray(y)
    oracle = geodiag.problem(_jax_loss, params=params, data=batch, engine=engine).at()
    d = oracle.space.random(np.random.default_rng(1))
    compiled = jax.jit(jax.grad(_jax_loss))
    return (
        "jax",
        lambda: jax.block_until_ready(oracle.hvp(d)),
        lambda: jax.block_until_ready(compiled(params, *batch)),
    )


def _jax_loss(params: Any, x: Any, y: Any) -> Any:
    for i in range(len(WIDTHS) - 1):
        x = (x if i == 0 else jnp.tanh(x)) @ params[f"{i}.weight"].T + params[f"{i}.bias"]
    return jnp.mean((x - y) ** 2)
