"""Training runs of small networks with dense Hessians, and the best of 40 long ascents.

All in NumPy and torch's own ``autograd.functional.hessian``, by no code of the library: the ascents
are Frank–Wolfe with exact line search, from the gradient and random directions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from tests.quadratic import Quadratic


class Point(NamedTuple):
    """A point of a run."""

    H: np.ndarray
    gradient: np.ndarray
    loss: float


class Frozen(Quadratic):
    """The problem at a point; products are counted."""

    def __init__(self, point: Point, shapes: Any) -> None:
        super().__init__(point.H, shapes, point.gradient)
        self._loss = point.loss

    def loss(self) -> Any:
        return self.space.asarray(self._loss)


def data(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clusters in 16 dimensions that overlap."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, 16))
    y = rng.integers(0, classes, 150)
    x = centres[y] + 0.8 * rng.standard_normal((150, 16))
    return torch.tensor(x), torch.tensor(y)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(4, 5), nn.Linear(5, 6)
        self.q, self.k, self.v = (nn.Linear(5, 5, bias=False) for _ in range(3))
        self.norm = nn.LayerNorm(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x.reshape(-1, 4, 4))
        a = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2) / 5**0.5, -1)
        return self.out(self.norm(h + a @ self.v(h)).mean(1))


def network(name: str) -> tuple[nn.Module, Any, Any]:
    """(model, loss function of its outputs, optimizer)."""
    torch.manual_seed(1)
    if name == "tanh, SGD":
        model: nn.Module = nn.Sequential(
            nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)
        )
        loss, optimizer = nn.functional.cross_entropy, "sgd"
    elif name == "attention, Adam":
        model, loss, optimizer = Attention(), nn.functional.cross_entropy, "adam"
    else:
        model = nn.Sequential(
            nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3, padding=1), nn.GELU(),
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(16, 6),
        )  # fmt: skip
        loss, optimizer = _squares, "momentum"
    model = model.double()
    made = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.2),
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=0.01),
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    }
    return model, loss, made[optimizer]()


NETWORKS = ("tanh, SGD", "attention, Adam", "convolution, momentum")


def _squares(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((out - nn.functional.one_hot(y, 6)) ** 2).sum(1).mean()


def run(name: str, steps: set[int]) -> tuple[dict[str, tuple[int, ...]], dict[int, Point]]:
    """(shapes, the points of those steps) of a run on all data."""
    model, loss, optimizer = network(name)
    x, y = data(6)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    sizes = [math.prod(shape) for shape in shapes.values()]

    def at(w: torch.Tensor) -> torch.Tensor:
        pieces = zip(shapes.items(), torch.split(w, sizes), strict=True)
        named = {n: piece.reshape(shape) for (n, shape), piece in pieces}
        return loss(functional_call(model, named, (x,)), y)

    points = {}
    for step in range(max(steps) + 1):
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        if step in steps:
            w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
            g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
            H = torch.autograd.functional.hessian(at, w, vectorize=True).numpy()
            points[step] = Point((H + H.T) / 2, g.numpy().copy(), float(value.detach()))
        optimizer.step()
    return shapes, points


def lmos(norm: str, gs: np.ndarray, shapes: Any) -> np.ndarray:
    """argmax of ⟨g, d⟩ over ‖d‖ ≤ 1, row by row."""
    if norm == "linf":
        return np.sign(gs)
    out, at = [], 0
    for shape in shapes.values():
        size = math.prod(shape)
        piece = gs[:, at : at + size]
        at += size
        if norm in ("spectral", "muon") and len(shape) > 1:
            u, _, v = np.linalg.svd(piece.reshape(len(gs), shape[0], -1), full_matrices=False)
            ratio = shape[0] / math.prod(shape[1:])
            radius = math.sqrt(max(1.0, ratio)) if norm == "muon" else 1.0
            out.append(radius * (u @ v).reshape(len(gs), -1))
        else:
            out.append(piece)
    lengths = [np.linalg.norm(piece, axis=1, keepdims=True) for piece in out]
    matrices = [len(shape) > 1 and norm in ("spectral", "muon") for shape in shapes.values()]
    units = [
        p if m else p / np.where(n > 0, n, 1.0)
        for p, n, m in zip(out, lengths, matrices, strict=True)
    ]
    if norm == "block":
        best = np.argmax(np.concatenate(lengths, axis=1), axis=1)
        units = [p * (best == i)[:, None] for i, p in enumerate(units)]
    return np.concatenate(units, axis=1)


def best(norm: str, point: Point, shapes: Any, count: int = 40, steps: int = 300) -> float:
    """The largest ⟨d, Hd⟩ that ``count`` long ascents reach."""
    rng, H = np.random.default_rng(0), point.H
    d = rng.standard_normal((count, len(H)))
    d[0], d[count // 2 :] = point.gradient, d[count // 2 :] @ H
    d = lmos(norm, d, shapes)
    image, top = d @ H, -math.inf
    value, stalled = np.einsum("ki,ki->k", d, image), np.zeros(count, int)
    for _ in range(steps):
        to = lmos(norm, image, shapes)
        change, changed = to - d, to @ H - image
        slope = np.einsum("ki,ki->k", change, image)
        bend = np.einsum("ki,ki->k", change, changed)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(bend < 0, np.clip(-slope / bend, 0.0, 1.0), 1.0)
        d, image = d + t[:, None] * change, image + t[:, None] * changed
        new = np.einsum("ki,ki->k", d, image)
        stalled = np.where(new - value > 1e-6 * np.abs(new), 0, stalled + 1)
        value, top = new, max(top, float(new.max()))
        going = stalled < 3
        if not going.any():
            break
        d, image, value, stalled = d[going], image[going], value[going], stalled[going]
    return top
