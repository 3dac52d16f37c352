"""Small torch problems with known answers, and a record of all that a measurement may not touch."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import torch
from torch import nn


class Calls:
    """Counts calls of a loss. It holds a lock, so that a measurement leaves it alone."""

    def __init__(self) -> None:
        self.n, self._lock = 0, threading.Lock()

    def add(self) -> int:
        self.n += 1
        return self.n

    def __deepcopy__(self, memo: Any) -> Calls:
        return self


def regression(n: int = 40, inputs: int = 4, outputs: int = 3, seed: int = 0) -> Any:
    """A linear model with MSE: (model, (x, y), dense Hessian over [weight, bias], row-major).

    The loss is the mean over n·outputs squared residuals, so with x̃ = (x, 1) the Hessian is
    2/(n·outputs) · I ⊗ x̃ᵀx̃, reordered to weight (outputs × inputs) first, bias after.
    """
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, inputs)), rng.standard_normal((n, outputs))
    model = nn.Linear(inputs, outputs).double()
    xt = np.hstack([x, np.ones((n, 1))])
    per_output = 2.0 / (n * outputs) * xt.T @ xt
    full = np.kron(np.eye(outputs), per_output)  # order: output 0 (w…, b), output 1 (w…, b), …
    width = inputs + 1
    weights = [o * width + i for o in range(outputs) for i in range(inputs)]
    biases = [o * width + inputs for o in range(outputs)]
    order = weights + biases
    return model, (torch.tensor(x), torch.tensor(y)), full[np.ix_(order, order)]


def mlp(dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A tanh MLP 5-4-3 with data: (model, (x, y))."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=dtype) / 2)
    x = torch.randn(20, 5, generator=generator, dtype=dtype)
    y = torch.randn(20, 3, generator=generator, dtype=dtype)
    return model, (x, y)


def random_like(oracle: Any, seed: int) -> dict[str, torch.Tensor]:
    """Random blocks for an oracle."""
    return oracle.space.random(np.random.default_rng(seed))


def second_difference(loss_at: Any, point: Any, d: Any, h: float) -> float:
    """⟨d, Hd⟩ from three losses: independent of autograd. Error: O(h²) + 4ε|L|/h²."""

    def at(t: float) -> float:
        return float(loss_at({k: x + t * d[k] for k, x in point.items()}))

    return (at(h) - 2 * at(0.0) + at(-h)) / h**2


def gradient_difference(gradient_at: Any, point: Any, d: Any, h: float) -> Any:
    """Hd from a fourth-order difference of first derivatives: independent of double backward."""

    def at(t: float) -> Any:
        return gradient_at({k: x + t * d[k] for k, x in point.items()})

    a, b, c, e = at(-2 * h), at(-h), at(h), at(2 * h)
    return {k: (a[k] - 8 * b[k] + 8 * c[k] - e[k]) / (12 * h) for k in point}


def fingerprint(model: nn.Module, optimizer: Any = None) -> dict[str, Any]:
    """Everything that a measurement must leave bit-identical, as comparable bytes."""

    def raw(t: torch.Tensor | None) -> Any:
        return None if t is None else (t.data_ptr(), t._version, t.detach().numpy().tobytes())

    found: dict[str, Any] = {
        "parameters": {n: raw(p) for n, p in model.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "grads": {n: raw(p.grad) for n, p in model.named_parameters()},
        "buffers": {n: raw(b) for n, b in model.named_buffers()},
        "modes": [m.training for m in model.modules()],
        "torch rng": torch.random.get_rng_state().numpy().tobytes(),
        "python rng": random.getstate(),
        "numpy rng": str(np.random.get_state()),
        "grad mode": torch.is_grad_enabled(),
    }
    if optimizer is not None:
        found["optimizer"] = {
            i: {k: raw(v) if isinstance(v, torch.Tensor) else v for k, v in s.items()}
            for i, s in enumerate(optimizer.state.values())
        }
        found["groups"] = [
            {k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups
        ]
    return found
