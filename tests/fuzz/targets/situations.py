"""Networks with parts as real ones have them: every value against the dense Hessian."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import geodiag
from tests import truth
from tests.fuzz.case import Case, Refused
from tests.networks import jax_networks, runs, torch_networks
from tests.networks.lengths import NORMS, Length
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
    # What is wrong in a product by less than the error of differences is not found out by them.
    differences = "differences" in said or "wrong second derivative" in network.parts
    tolerance = (DIFFERENCES if differences else PRODUCTS)[network.dtype]
    scale = float(np.abs(x) @ np.abs(at.H) @ np.abs(x)) + abs(at.loss) * (1e-2 * differences)
    attained = float(x @ at.H @ x)
    slack = tolerance * max(scale, 1e-3 * float(np.abs(at.H).max()))
    assert abs(result.value - attained) <= slack, f"{result.value} where d attains {attained}"
    best = norm.lower(at.H, shapes)
    if result.upper is not None:
        assert result.upper >= best - slack, f"upper {result.upper} below {best}"
    if result.bound is geodiag.Bound.EXACT and not left:
        off = (result.residual or 0.0) * abs(result.value) + slack
        assert result.value >= best - off, f"EXACT {result.value} below {best}"


def refused(network: Network, answer: Any, engine: str = "auto") -> bool:
    """Whether there is no answer; only some parts may be refused, and in a sentence.

    Engines that were named cannot tell a constant gradient from a custom function's.
    """
    if not isinstance(answer, Refused):
        return False
    may = MAY_REFUSE if engine == "auto" else MAY_REFUSE | {"custom function"}
    assert network.parts & may, f"refused: {answer.error}"
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
    if refused(network, result, engine):
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
    """attach, every step, with an event in mid-run: S and D of the whole, or it is said."""
    norm = Length(case.draw(st.sampled_from(("l2", *NORMS))))
    _run(case, norm, runs.torch_run, runs.TORCH_PARTS, runs.TORCH_EVENTS, runs.TORCH_OPTIMIZERS)


def jax_run(case: Case) -> None:
    """A JAX Monitor: the same."""
    norm = Length(case.draw(st.sampled_from(("l2", *NORMS))), transposed=True)
    _run(case, norm, runs.jax_run, runs.JAX_PARTS, runs.JAX_EVENTS, runs.JAX_OPTIMIZERS)


def _run(case: Case, norm: Length, run: Any, parts: Any, events: Any, optimizers: Any) -> None:
    network = case.draw(networks(parts))
    event = case.draw(st.sampled_from(events))
    kind = case.draw(st.sampled_from(tuple(optimizers)))
    steps = case.call("run", run, network, event, kind, norm.name)
    assert steps, f"refused: {steps.error}"
    assert [step.record.step for step in steps] == list(range(runs.STEPS))
    for step in steps:
        assert (fault := step.fault(network, norm)) is None, fault


TARGETS = {
    "networks (torch)": (torch_network, 2.0),
    "networks (jax)": (jax_network, 0.3),
    "runs (torch)": (torch_run, 1.0),
    "runs (jax)": (jax_run, 0.1),
}
