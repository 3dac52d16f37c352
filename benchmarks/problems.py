"""The problems that everything is measured on: three small models, trained to their edge.

Each is trained full batch, in float32, by the method whose geometry is measured, and looked at
four times: at the start, at 5% of the training, in the middle, and at its end, which is the edge
of stability. Checkpoints depend on the seed alone; they are kept in ``.benchmarks/``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import geodiag
from geodiag.experiments.reproduction.data import digits
from geodiag_torch import NonEuclideanGD

CACHE = Path(".benchmarks")
CHECKPOINTS = {"start": 0.0, "5%": 0.05, "middle": 0.5, "edge": 1.0}
CONTEXT = 16


@dataclass(frozen=True)
class Training:
    """A learning rate and a number of steps that lead to the edge of stability."""

    lr: float
    steps: int


TRAININGS = {
    ("mlp", "linf"): Training(3e-4, 900),
    ("mlp", "spectral"): Training(0.0165, 900),
    ("cnn", "linf"): Training(2e-4, 400),
    ("cnn", "spectral"): Training(0.013, 600),
    ("transformer", "linf"): Training(3e-5, 520),
    ("transformer", "spectral"): Training(0.002, 240),
}
MODELS = tuple(dict.fromkeys(model for model, _ in TRAININGS))


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over examples of the squared distance."""
    return ((output - target) ** 2).sum(dim=1).mean()


class CharTransformer(nn.Module):
    """Two pre-norm blocks of causal attention over characters."""

    def __init__(self, vocabulary: int, width: int = 16, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.1 * torch.randn(CONTEXT, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).flatten(0, 1)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = (
            part.view(b, t, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / (w // self.heads) ** 0.5
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(mask, -torch.inf).softmax(dim=-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, w))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


Batch = tuple[Tensor, Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]


def build(model: str, seed: int = 0) -> tuple[nn.Module, Criterion, Batch]:
    """A model at its initialisation, its loss, and its one batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model == "transformer":
            tokens, targets = characters()
            return CharTransformer(int(tokens.max()) + 1), nn.CrossEntropyLoss(), (tokens, targets)
        x, y = (torch.tensor(a, dtype=torch.float32).flatten(1) for a in digits())
        if model == "mlp":
            widths = (64, 24, 24, 10)
            layers: list[nn.Module] = []
            for n, m in pairwise(widths):
                layers += [nn.Linear(n, m), nn.Tanh()]
            return nn.Sequential(*layers[:-1]), squared_error, (x, y)
        net = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip
        return net, squared_error, (x, y)


def characters(sequences: int = 64) -> Batch:
    """Sequences of characters from a module of Python's own library, and the next characters."""
    text = Path(textwrap.__file__).read_text(encoding="utf-8")
    alphabet = {c: i for i, c in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[c] for c in text[: sequences * CONTEXT + 1]])
    return codes[:-1].view(sequences, CONTEXT), codes[1:]


def checkpoints(model: str, norm: str, seed: int = 0) -> Iterator[tuple[str, nn.Module, Any]]:
    """(name, model, problem) for each point of the training that is looked at."""
    for name, weights in _trained(model, norm, seed).items():
        net, criterion, batch = build(model, seed)
        net.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
        yield name, net, geodiag.problem(net, criterion=criterion, data=batch)


def _trained(model: str, norm: str, seed: int) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    training = TRAININGS[model, norm]
    path = CACHE / f"{model}-{norm}-{training.lr:g}-{training.steps}-{seed}.npz"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        np.savez(path, **_train(model, norm, seed, training))
    found: dict[str, dict[str, np.ndarray[Any, Any]]] = {name: {} for name in CHECKPOINTS}
    with np.load(path) as file:
        for key in file.files:
            checkpoint, name = key.split("/", 1)
            found[checkpoint][name] = file[key]
    return found


def _train(model: str, norm: str, seed: int, training: Training) -> dict[str, Any]:
    net, criterion, (x, y) = build(model, seed)
    optimizer = NonEuclideanGD(net.named_parameters(), training.lr, norm)
    out: dict[str, Any] = {}
    at = {round(fraction * training.steps): name for name, fraction in CHECKPOINTS.items()}
    for step in range(training.steps + 1):
        if step in at:
            out |= {f"{at[step]}/{k}": v.numpy().copy() for k, v in net.state_dict().items()}
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
    return out
