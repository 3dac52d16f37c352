"""How default S grows with parameters, with layers, and with data, in torch.

Time is given in seconds and in gradients of the same problem; the products say how much of the
growth is in their number.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

import geodiag
from benchmarks.problems import CharTransformer, characters
from benchmarks.report import table
from benchmarks.timing import seconds, timed

NORMS = ("l2", "linf", "spectral")
INPUTS, CLASSES, EXAMPLES = 256, 10, 256


def run(quick: bool) -> None:
    """Print three tables; ``quick``: the two smallest of each."""
    torch.set_num_threads(1)
    some = slice(2 if quick else None)
    heads = ["parameters", *(f"{norm}: {x}" for norm in NORMS for x in ("HVPs", "s", "gradients"))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths = (32, 64, 128, 256, 512)[some]
        rows = [[w, *_row(_perceptron(w), _batch(EXAMPLES))] for w in widths]
        table("cost against width, MLP 256-w-w-10", ["w", *heads], rows)
        tokens, targets = characters()
        depths = (1, 2, 4, 8)[some]
        rows = [[k, *_row(_transformer(tokens, k), (tokens, targets))] for k in depths]
        table("cost against depth, transformer of width 32", ["blocks", *heads], rows)
        net = _perceptron(128)
        counts = (1, 2, 4, 8)[some]
        rows = [[k, *_row(net, [_batch(EXAMPLES) for _ in range(k)])] for k in counts]
        table(f"cost against data, w = 128, batches of {EXAMPLES}", ["batches", *heads], rows)


def _row(net: nn.Module, data: Any) -> list[Any]:
    criterion, parameters = nn.CrossEntropyLoss(), [*net.parameters()]
    batches = data if isinstance(data, list) else [data]

    def gradient() -> None:
        for x, y in batches:
            torch.autograd.grad(criterion(net(x), y), parameters)

    unit = seconds(gradient)
    row: list[Any] = [f"{sum(p.numel() for p in parameters):,}"]
    for norm in NORMS:
        problem = geodiag.problem(net, criterion=criterion, data=data)
        result, taken = timed(lambda p=problem, n=norm: geodiag.sharpness(p, n))
        row += [result.num_hvps, f"{taken:.2f}", f"{taken / unit:.0f}"]
    return row


def _batch(examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(examples, INPUTS), torch.randint(0, CLASSES, (examples,))


def _perceptron(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for m, n in pairwise((INPUTS, width, width, CLASSES)):
        layers += [nn.Linear(m, n), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _transformer(tokens: torch.Tensor, blocks: int) -> nn.Module:
    return CharTransformer(int(tokens.max()) + 1, width=32, layers=blocks)
