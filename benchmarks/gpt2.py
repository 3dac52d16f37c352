"""Joint spectral S over the 48 block matrices of a model of GPT-2 small's size, random weights.

Beside it, the paper's procedure on the same problem: each iteration recomputes forward, backward
and second backward, and takes the SVD of every matrix in float64. A few iterations are timed and
extrapolated to its 5 restarts of 50, which are 255 products and 250 LMOs.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import geodiag
from benchmarks.memory import resident, restart
from benchmarks.report import missing, table
from benchmarks.timing import seconds, timed
from geodiag.core.spaces import Space
from geodiag.norms import Spectral

MATRICES = r"\.h\.\d+\.(attn|mlp)\.(c_attn|c_proj|c_fc)\.weight$"
PRODUCTS, LMOS = 255, 250


def run(quick: bool) -> None:
    """Print one row per number of tokens; ``quick``: a much smaller model."""
    if missing("transformers", "gpt2"):
        return
    torch.set_num_threads(1 if quick else 2)
    if quick:
        small = {"n_layer": 2, "n_embd": 96, "n_head": 2, "vocab_size": 1000}
        rows = [_row(64, 1, **small, bos_token_id=0, eos_token_id=0)]
    else:
        rows = [_row(64, 3), _row(512, 2)]
    torch.set_num_threads(1)
    heads = ["tokens", "parameters", "value", "HVPs", "s", "gradients", "LMO s", "LMO share"]
    heads += ["peak GiB", "paper: s per HVP", "per LMO", f"s for {PRODUCTS} HVPs, extrapolated"]
    title = "joint spectral S, " + ("a tiny GPT-2" if quick else "GPT-2 small, two threads")
    table(title, [*heads, "ratio"], rows)


class Clocked(Spectral):
    """The spectral norm, and the seconds spent in it."""

    def __init__(self) -> None:
        super().__init__()
        self.spent, self._inside = 0.0, False

    def bind(self, space: Space) -> Any:
        bound = super().bind(space)
        for name in ("value", "values", "lmo", "lmos", "dual", "duals"):
            if hasattr(bound, name):
                setattr(bound, name, self._clock(getattr(bound, name)))
        return bound

    def _clock(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*blocks: Any) -> Any:
            if self._inside:  # dual asks for lmo
                return function(*blocks)
            self._inside = True
            answer, taken = timed(partial(function, *blocks))
            self._inside, self.spent = False, self.spent + taken
            return answer

        return clocked


def _row(tokens: int, iterations: int, **smaller: int) -> list[Any]:
    model, batch = _model(tokens, **smaller)
    weights = [p for name, p in model.named_parameters() if re.search(MATRICES, name)]
    gradient = seconds(lambda: torch.autograd.grad(model(**batch).loss, weights), 3)
    norm = Clocked()
    restart()
    result, taken = timed(lambda: geodiag.sharpness(model, norm, data=batch, where=MATRICES))
    memory = resident("VmHWM")
    products, lmos = zip(*_paper(model, batch, weights, iterations), strict=True)
    product, lmo = statistics.median(products), statistics.median(lmos)
    paper = PRODUCTS * product + LMOS * lmo
    return [
        tokens,
        f"{sum(p.numel() for p in weights):,}",
        f"{result.value:.5g}",
        result.num_hvps,
        f"{taken:.1f}",
        f"{taken / gradient:.0f}",
        f"{norm.spent:.1f}",
        f"{norm.spent / taken:.0%}",
        memory and f"{memory / 1024:.1f}",
        f"{product:.3g}",
        f"{lmo:.3g}",
        f"{paper:.0f}",
        f"{paper / taken:.0f}",
    ]


def _model(tokens: int, **smaller: int) -> tuple[Any, dict[str, torch.Tensor]]:
    # Language models need no torchvision; one built for another torch, which the peers' own
    # requirements can bring in, would keep transformers from importing.
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # The fused attention has no second derivative, which the paper's procedure needs too.
        config = GPT2Config(attn_implementation="eager", **smaller)
        model = GPT2LMHeadModel(config).eval()
        words = torch.randint(config.vocab_size, (1, tokens))
    return model, {"input_ids": words, "labels": words}


def _paper(model: Any, batch: Any, weights: list[Any], iterations: int) -> Any:
    """Seconds of the product and of the LMO, iteration by iteration, in plain PyTorch."""
    d = [torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) for p in weights]
    d = _polar(d)

    def product() -> Any:
        gradient = torch.autograd.grad(model(**batch).loss, weights, create_graph=True)
        return torch.autograd.grad(gradient, weights, d)

    for k in range(iterations):
        image, first = timed(product)
        vertex, second = timed(lambda image=image: _polar(image))
        gamma = 2 / (k + 2)
        d = [(1 - gamma) * x + gamma * v for x, v in zip(d, vertex, strict=True)]
        yield first, second


def _polar(matrices: Any) -> list[Any]:
    out = []
    for m in matrices:
        u, _, vh = torch.linalg.svd(m.double(), full_matrices=False)
        out.append((u @ vh).float())
    return out
