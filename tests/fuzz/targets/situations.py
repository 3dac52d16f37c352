"""Networks with parts as real ones have them: every value against the dense Hessian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import geodiag
from tests import truth
from tests.fuzz.case import Case, Refused
from tests.networks import jax_networks, runs, torch_networks
from tests.networks.network import (
    JAX_PARTS,
    MAY_REFUSE,
    TORCH_PARTS,
    Derivatives,
    Network,
    Truth,
    networks,
)

# Of Σ|d_i||H_ij||d_j|: rounding of the products; by differences, what docs/support.md states.
PRODUCTS = {"float64": 1e-8, "float32": 2e-4}
DIFFERENCES = {"float64": 1e-4, "float32": 5e-3}
NORMS = tuple(truth.NORMS)


@dataclass(frozen=True)
class Length:
    """A norm by its formula; a JAX kernel has its outputs on the last axis."""

    name: str
    transposed: bool = False

    def __call__(self, d: dict[str, np.ndarray]) -> float:
        return truth.NORMS[self.name][0]({k: x.T if self.transposed else x for k, x in d.items()})


def check(network: Network, norm: Length, result: Any, at: Derivatives, shapes: Any) -> None:
    """Raise AssertionError where the result is not what it says it is.

    A direction of unit norm that attains the value proves that the value is not above S.
    """
    d = truth.back(result.direction)
    left = set(shapes) - set(d)
    said = " ".join(result.notes)
    assert all(name in said for name in left), f"left out without a word: {sorted(left)}"
    whole = {k: d.get(k, np.zeros(shape)) for k, shape in shapes.items()}
    x = truth.flat(whole)
    assert abs(norm(d) - 1) <= PRODUCTS[network.dtype], "‖d‖ is not 1"
    differences = "differences" in said
    tolerance = (DIFFERENCES if differences else PRODUCTS)[network.dtype]
    scale = float(np.abs(x) @ np.abs(at.H) @ np.abs(x)) + abs(at.loss) * (1e-2 * differences)
    attained = float(x @ at.H @ x)
    slack = tolerance * max(scale, 1e-3 * float(np.abs(at.H).max()))
    assert abs(result.value - attained) <= slack, f"{result.value} where d attains {attained}"
    best = better(at.H, norm, shapes)
    if result.upper is not None:
        assert result.upper >= best - slack, f"upper {result.upper} below {best}"
    if result.bound is geodiag.Bound.EXACT and not left:
        off = (result.residual or 0.0) * abs(result.value) + slack
        assert result.value >= best - off, f"EXACT {result.value} below {best}"


def better(H: np.ndarray, norm: Length, shapes: Any) -> float:
    """A lower bound of S, without a search; S itself in ℓ2, and in small ℓ∞ and ℓ1."""
    if norm.name == "l2":
        return float(np.linalg.eigvalsh(H)[-1])
    n = len(H)
    if norm.name in ("linf", "l1") and n <= 5:
        return truth.cube_faces(H) if norm.name == "linf" else truth.cross_faces(H)
    directions = [*np.eye(n), *np.linalg.eigh(H)[1].T]
    directions += [np.sign(v) for v in directions[n:]]
    start = 0
    for shape in shapes.values():  # eigenvectors of each tensor's own part
        part = slice(start, start + math.prod(shape))
        start = part.stop
        for v in np.linalg.eigh(H[part, part])[1].T:
            directions.append(np.zeros(n))
            directions[-1][part] = v
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
    found = -math.inf
    for x in directions:
        pieces = zip(shapes.items(), np.split(x, ends), strict=True)
        length = norm({k: part.reshape(s) for (k, s), part in pieces})
        found = max(found, float(x @ H @ x) / length**2)
    return found


def refused(network: Network, answer: Any) -> bool:
    """Whether there is no answer; only some parts may be refused, and in a sentence."""
    if not isinstance(answer, Refused):
        return False
    assert network.parts & MAY_REFUSE, f"refused: {answer.error}"
    return True


def torch_network(case: Case) -> None:
    """sharpness of a module with any parts, in any norm, by any engine."""
    network = case.draw(networks(TORCH_PARTS))
    norm = case.draw(st.sampled_from(NORMS))
    engine = case.draw(st.sampled_from(("auto", "auto", "auto", "graph", "recompute")))
    case.said.append(f"{network} in {norm}")
    model = torch_networks.Module(network)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    result = case.call(
        "sharpness",
        geodiag.sharpness,
        model,
        norm,
        loss_fn=torch_networks.loss,
        data=torch_networks.batch(network),
        engine=engine,
        certificate=case.draw(st.sampled_from((False, False, False, True))),
        seed=case.draw(st.integers(0, 3)),
    )
    for k, p in model.named_parameters():
        assert torch.equal(p, before[k])
        assert p.grad is None
    if refused(network, result):
        return
    names = [k for k, p in model.named_parameters() if p.requires_grad]
    point = network.parameters()
    check(
        network,
        Length(norm),
        result,
        Truth(network).at(point, names),
        {k: point[k].shape for k in names},
    )


def jax_network(case: Case) -> None:
    """The same of a JAX loss."""
    network = case.draw(networks(JAX_PARTS))
    norm = case.draw(st.sampled_from(NORMS))
    case.said.append(f"{network} in {norm}")
    result = case.call(
        "sharpness",
        geodiag.sharpness,
        jax_networks.loss(network),
        norm,
        params=jax_networks.params(network),
        data=jax_networks.batch(network),
        seed=case.draw(st.integers(0, 3)),
    )
    if refused(network, result):
        return
    point = network.parameters()
    names = [k for k in point if k != "outside"]
    check(
        network,
        Length(norm, transposed=True),
        result,
        Truth(network).at(point, names),
        {k: point[k].shape for k in names},
    )


def torch_run(case: Case) -> None:
    """attach in ℓ2, every step, with an event in mid-run: S and D of the whole, or it is said."""
    _run(case, runs.torch_run, runs.TORCH_PARTS, runs.TORCH_EVENTS, runs.TORCH_OPTIMIZERS)


def jax_run(case: Case) -> None:
    """A JAX Monitor: the same."""
    _run(case, runs.jax_run, runs.JAX_PARTS, runs.JAX_EVENTS, runs.JAX_OPTIMIZERS)


def _run(case: Case, run: Any, parts: Any, events: Any, optimizers: Any) -> None:
    network = case.draw(networks(parts))
    event = case.draw(st.sampled_from(events))
    kind = case.draw(st.sampled_from(tuple(optimizers)))
    steps = case.call("run", run, network, event, kind)
    assert steps, f"refused: {steps.error}"
    assert [step.record.step for step in steps] == list(range(runs.STEPS))
    for step in steps:
        assert (fault := step.fault(network)) is None, fault


TARGETS = {
    "networks (torch)": (torch_network, 2.0),
    "networks (jax)": (jax_network, 0.3),
    "runs (torch)": (torch_run, 1.0),
    "runs (jax)": (jax_run, 0.1),
}
