"""Custom derivative rules that are a small part of a loss: a few per mille of its products.

Truth: the same loss with the plain function, by a dense Hessian.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import geodiag

RNG = np.random.default_rng(0)
X, Y, W = RNG.standard_normal((6, 4)), RNG.standard_normal(6), RNG.standard_normal(4)
SHARE = 0.004


class Constant(torch.autograd.Function):
    """sin, whose derivative is a constant to autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = torch.cos(x.detach())
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


@jax.custom_vjp
def constant(x):
    return jnp.sin(x)


constant.defvjp(
    lambda x: (jnp.sin(x), jax.lax.stop_gradient(jnp.cos(x))), lambda slope, g: (g * slope,)
)


class Net(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(W, dtype=dtype))

    def forward(self, x):
        z = x @ self.w
        return z + SHARE * Constant.apply(z)


def true_hessian():
    def loss(w):
        z = torch.tensor(X) @ w
        return ((z + SHARE * torch.sin(z) - torch.tensor(Y)) ** 2).mean()

    return torch.autograd.functional.hessian(loss, torch.tensor(W)).numpy()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_rule_that_is_wrong_by_a_little_is_found(framework, dtype):
    if framework == "torch":
        kind = getattr(torch, dtype)
        data = tuple(torch.tensor(a, dtype=kind) for a in (X, Y))
        result = geodiag.sharpness(Net(kind), criterion=torch.nn.MSELoss(), data=data)
    else:

        def loss(params, x, y):
            z = x @ params["w"]
            return jnp.mean((z + SHARE * constant(z) - y) ** 2)

        data = tuple(jnp.asarray(a, dtype=dtype) for a in (X, Y))
        params = {"w": jnp.asarray(W, dtype=dtype)}
        result = geodiag.sharpness(loss, params=params, data=data)
    assert any("difference" in note for note in result.notes)
    top = float(np.linalg.eigvalsh(true_hessian())[-1])
    assert result.value == pytest.approx(top, rel=1e-7 if dtype == "float64" else 2e-4)
