"""A small ResNet with BatchNorm trained on images by SGD with momentum.

python examples/resnet.py --steps 200. Look at S (λ_max, for SGD steps in ℓ2) beside the threshold
(2 + 2β)/lr: it falls with a cross-entropy that is fitted, so a larger lr would do. BatchNorm is
measured as it trains, on the probe's statistics, and its running averages are left as they are.
"""

import argparse

import torch
from torch import nn

import geodiag_torch

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--log", default=None, help="such as resnet.jsonl, for geodiag plot")
options = parser.parse_args()


class Block(nn.Module):
    def __init__(self, width, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.short = nn.Conv2d(width, out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.short(x) + self.norm2(self.conv2(inner)))


torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, bias=False),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    Block(8, 8, 1),
    Block(8, 16, 2),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(16, 4),
)
# Four kinds of images: stripes of two directions and two widths, with noise.
labels = torch.arange(128) % 4
line = torch.arange(16.0)
waves = torch.sin(line * torch.tensor([0.8, 2.0])[:, None])
kinds = torch.stack(
    [w.expand(16, 16) if d else w[:, None].expand(16, 16) for w in waves for d in (0, 1)]
)
images = kinds[labels][:, None] + torch.randn(128, 3, 16, 16)

criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
monitor = geodiag_torch.attach(
    optimizer, model, criterion=criterion, data=(images, labels), every=20, log=options.log
)
for _ in range(options.steps):
    optimizer.zero_grad()
    criterion(model(images), labels).backward()
    optimizer.step()
print(*monitor.records, sep="\n")
