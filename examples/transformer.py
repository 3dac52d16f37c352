"""A character transformer trained by Muon and AdamW together, with one monitor on both.

Run it with ``python examples/transformer.py``; ``--steps 300`` trains longer. Muon has momentum,
and moves the matrices, AdamW the embeddings, norms and the head; the learning rates are warmed up,
gradients are summed over four batches and clipped. No norm joins these two rules, so a record has ζ
and the critical learning rate of the whole step, and S and ratio of each rule by its name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import geodiag
import geodiag_torch

TEXT = (
    "On a quadratic the step of a linear rule is stable where the sharpness is below a threshold. "
    "Along a real run the sharpness rises until it is there, and the loss still falls. "
) * 40
LENGTH, WIDTH, HEADS, LAYERS = 32, 72, 4, 3
ACCUMULATED, CLIP, WARMUP = 4, 1.0, 10


class Block(nn.Module):
    """Causal attention and a perceptron, each behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        q, k, v = (
            part.view(count, length, HEADS, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Of about 190,000 parameters."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, WIDTH)
        self.place = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


def next_character(scores: Tensor, ids: Tensor) -> Tensor:
    """The mean cross-entropy."""
    return nn.functional.cross_entropy(scores.flatten(0, 1), ids.flatten())


def batches(text: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random pieces of the text, and the same one character later."""
    known = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([known[c] for c in text])
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(len(ids) - LENGTH - 1, (size,), generator=generator)
        pieces = torch.stack([ids[s : s + LENGTH + 1] for s in starts.tolist()])
        yield pieces[:, :-1], pieces[:, 1:]


def train(steps: int = 60, every: int = 10, size: int = 8, **options: Any) -> list[geodiag.Record]:
    """Train, and return the records; ``options`` are those of :func:`geodiag_torch.attach`."""
    torch.manual_seed(0)
    model = Transformer(len(set(TEXT)))
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    chosen = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, nesterov=True, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.01),
    ]
    warmups = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda t: min(1.0, (t + 1) / WARMUP))
        for each in optimizers
    ]
    pieces = batches(TEXT, size)
    monitor = geodiag_torch.attach(
        optimizers,
        model,
        criterion=next_character,
        clip_norm=CLIP,
        data=next(pieces),
        every=every,
        critical=True,
        **options,
    )
    for _ in range(steps):
        model.zero_grad()
        for _ in range(ACCUMULATED):
            x, y = next(pieces)
            (next_character(model(x), y) / ACCUMULATED).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for each in optimizers:
            each.step()
        for each in warmups:
            each.step()
    monitor.close()
    return monitor.records


def main() -> None:
    """Print a line for each record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--log", help="a .jsonl file to write the records to")
    given = parser.parse_args()
    for r in train(given.steps, given.every, log=given.log):
        print(
            f"step {r.step}: loss {r.loss:.3f}, ζ {r.realized_edge:.3f}, critical learning rate "
            f"{r.critical_lr:.4f} at {r.lr:.4f}; AdamW: S/threshold {r.ratio_adam:.3f}; {r.note}"
        )


if __name__ == "__main__":
    main()
