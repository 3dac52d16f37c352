"""A small GPT trained on characters with AdamW, its learning rate warmed up: is it at the edge?

python examples/nanogpt.py --steps 200. Look at the ratio S/threshold, in the norm that Adam's
preconditioner defines: above 1 at the first step, small during the warmup, and rising from there.
1 is the edge of stability. ζ is of the step that was taken: above 1 the probe's loss rose.
"""

import argparse
import inspect

import torch
from torch import nn
from torch.nn import functional

import geodiag_torch

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--log", default=None, help="such as nanogpt.jsonl, for geodiag plot")
options = parser.parse_args()

text = inspect.getsource(nn.Transformer)  # any text: nothing is downloaded
letters = sorted(set(text))
tokens = torch.tensor([letters.index(x) for x in text])
CONTEXT, WIDTH, HEADS = 32, 32, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        heads = self.qkv(self.norm1(x)).view(*x.shape[:2], 3 * HEADS, -1).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(*heads.chunk(3, dim=1), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(len(letters), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(letters), bias=False)

    def forward(self, x):
        x = self.token(x) + self.place.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def batch(size):
    at = torch.randint(len(tokens) - CONTEXT - 1, (size,))
    windows = torch.stack([tokens[i : i + CONTEXT + 1] for i in at])
    return windows[:, :-1], windows[:, 1:]


def loss_fn(model, batch):
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


torch.manual_seed(0)
model = GPT()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=50)
probe = batch(32)  # a batch that the training does not change
monitor = geodiag_torch.attach(
    optimizer, model, loss_fn=loss_fn, data=probe, every=20, log=options.log
)
for _ in range(options.steps):
    optimizer.zero_grad()
    loss_fn(model, batch(32)).backward()
    optimizer.step()
    warmup.step()
print(*monitor.records, sep="\n")
