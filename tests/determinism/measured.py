"""Measurements as exact bits, for tests to compare: within a process, and between processes.

``python -m tests.determinism.measured short`` (or ``long``, ``wide``) prints them as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

import geodiag
import geodiag_jax
from geodiag.blocks import to_numpy
from tests import perturbation
from tests.conformance.test_parity import PROBLEMS, jax_loss, weights

NORMS = ("l2", "linf", "spectral", "block", "nuclear")
SHAPES = {"W": (2, 3), "b": (2,)}


def bits(result: geodiag.SharpnessResult) -> str:
    """The value, the bound, every entry of the direction and the whole history, to the bit."""
    arrays = {name: to_numpy(x) for name, x in sorted(result.direction.items())}
    direction = hashlib.sha256(b"".join(x.tobytes() for x in arrays.values())).hexdigest()[:16]
    upper = "" if result.upper is None else float(result.upper).hex()
    steps = hashlib.sha256(repr([x.hex() for x in result.history]).encode()).hexdigest()[:8]
    return f"{result.value.hex()} {upper} {result.num_hvps} {direction} {steps}"


def matrix() -> Any:
    M = np.random.default_rng(3).standard_normal((8, 8))
    return M + M.T


def measurements() -> Iterator[tuple[str, Callable[[], geodiag.SharpnessResult]]]:
    """Every framework in every kind of norm: cold, warm and certified."""
    for name in ("auto", "ascent", "frank_wolfe", "enumerate"):
        yield (
            f"matrix, {name}",
            lambda name=name: geodiag.sharpness(
                matrix(), "linf", shapes=SHAPES, estimator=name, max_hvps=40
            ),
        )
    for framework, build in PROBLEMS.items():
        for norm in NORMS:
            yield f"{framework}, {norm}", lambda b=build, n=norm: geodiag.sharpness(b(), n)
    for framework in ("torch", "jax"):
        build = PROBLEMS[framework]
        for norm in ("l2", "linf", "spectral"):
            yield (
                f"{framework}, {norm}, certified",
                lambda b=build, n=norm: geodiag.sharpness(b(), n, certificate=True, max_hvps=60),
            )
        yield (
            f"{framework}, warm",
            lambda b=build: geodiag.sharpness(
                b(), "linf", start=geodiag.sharpness(b(), "linf", max_hvps=10).state
            ),
        )
    yield "torch, float32, dropout", dropout


def dropout() -> geodiag.SharpnessResult:
    """In train mode: the mask comes from torch's random state, which is the user's."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))
    data = (torch.randn(16, 6), torch.randn(16, 2))
    return geodiag.sharpness(model, "spectral", criterion=nn.MSELoss(), data=data)


def wide(norm: str = "l2") -> geodiag.SharpnessResult:
    """Wide enough for several threads to share a product of matrices."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 64)).double()
    data = (torch.randn(512, 256).double(), torch.randn(512, 64).double())
    return geodiag.sharpness(model, norm, criterion=nn.MSELoss(), data=data, max_hvps=12, rtol=1e-9)


def training(resumed: bool = False) -> list[dict[str, Any]]:
    """The records of a JAX run of six steps; ``resumed``: from the third on by another monitor."""
    problem = PROBLEMS["jax"]()
    params = dict(problem.at().point())
    x, y = (jax.numpy.asarray(a) for a in weights()[1:])
    step = jax.jit(lambda p: {k: w - 0.05 * g for (k, w), g in zip(
        p.items(), jax.grad(jax_loss)(p, x, y).values(), strict=True)})  # fmt: skip
    monitor, records = monitored(x, y), []
    for at in range(6):
        new = step(params)
        records.append(monitor.observe(at, params, new))
        params = new
        if resumed and at == 2:
            state = json.loads(json.dumps(monitor.state_dict()))
            monitor.close()
            monitor = monitored(x, y)
            monitor.load_state_dict(state)
    monitor.close()
    return [{k: v for k, v in asdict(r).items() if k not in ("seconds", "run")} for r in records]


def monitored(x: Any, y: Any) -> geodiag.Monitor:
    return geodiag_jax.Monitor(jax_loss, "linf", data=(x, y), lr=0.05, every=1)


MEASUREMENTS = dict(measurements())
# JAX takes 3 to 20 s to compile each of these.
LONG = {
    n
    for n in MEASUREMENTS
    if n in ("jax, spectral", "jax, block", "jax, nuclear", "jax, warm")
    or ("jax" in n and "cert" in n)
}


def found(long: bool) -> dict[str, str]:
    """The bits of all short, or of all long measurements, by name."""
    return {name: bits(run()) for name, run in MEASUREMENTS.items() if (name in LONG) == long}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    perturbation.install_as_parent()
    what = sys.argv[1]
    print(json.dumps({"wide": bits(wide())} if what == "wide" else found(what == "long")))
