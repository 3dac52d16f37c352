"""PyTorch: modules with garbage, NonEuclideanGD, attach."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

import geodiag
import geodiag_torch
from tests.fuzz.case import Case
from tests.fuzz.objects import guard
from tests.fuzz.targets.algebra import algebra_norms
from tests.fuzz.targets.measure import NORMS, options
from tests.fuzz.targets.monitors import constructor, states, updates
from tests.fuzz.values import PATTERNS, arrays, functions, mostly, optional, some_wild, wild

X, Y = torch.ones(2, 2), torch.tensor([[1.0], [-1.0]])


class Guarded(nn.Linear):
    """A user's model: what it raises is the user's own."""

    forward = guard(nn.Linear.forward)


def module() -> nn.Module:
    made = Guarded(2, 1)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[0.5, -1.0]]))
        made.bias.zero_()
    return made


class Odd(nn.Module):
    """Parameters that few models have."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        made = {
            "empty": torch.ones(0, 3),
            "scalar": torch.ones(()),
            "complex": torch.ones(2, dtype=torch.complex64),
            "half": torch.ones(2, dtype=torch.float16),
            "nan": torch.full((2,), float("nan")),
            "meta": torch.ones(2, device="meta"),
            "wide": torch.ones(1, 1, 1, 1),
            "huge": torch.full((2,), 3e38),
        }[kind]
        self.W = nn.Parameter(made)
        self.kind = kind

    @guard
    def forward(self, x: Any) -> Any:
        return self.W.sum().real * torch.ones_like(Y)

    def __repr__(self) -> str:
        return f"Odd({self.kind!r})"


KINDS = ("empty", "scalar", "complex", "half", "nan", "meta", "wide", "huge")


def modules() -> Any:
    odd = (
        st.builds(Odd, st.sampled_from(KINDS))
        | st.builds(lambda: module().requires_grad_(False))
        | st.builds(nn.LazyLinear, st.just(2))
        | st.builds(nn.Sequential)
    )
    return mostly(st.builds(module), odd, 3)


def problem_arguments() -> dict[str, Any]:
    mse = guard(lambda out, y: ((out - y) ** 2).mean())
    return {
        "criterion": mostly(st.just(mse), functions()),
        "loss_fn": optional(functions() | st.just(guard(lambda model, batch: model(X).sum() ** 2))),
        "data": mostly(
            st.sampled_from(((X, Y), [(X, Y)], [(X, Y), (X[:1], Y[:1])])),
            st.tuples(arrays(), arrays()) | st.lists(wild(), max_size=2),
        ),
        "params": optional(st.just({"weight": torch.ones(1, 2), "bias": torch.ones(1)})),
        "where": mostly(st.sampled_from((None, "weight", ".*")), PATTERNS),
        "weight": optional(functions() | st.just(guard(len))),
        "reduction": st.sampled_from(("mean", "mean", "sum")),
        "engine": st.sampled_from(("auto", "auto", "graph", "recompute", "finite-difference")),
        "memory": optional(st.sampled_from((0, 1e9))),
    }


def guarded(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The same, with the user's functions guarded."""
    return {
        k: guard(x) if k in names and callable(x) and not isinstance(x, nn.Module) else x
        for k, x in given.items()
    }


OWN = (
    "criterion",
    "loss_fn",
    "weight",
    "where",
    "norm",
    "update",
    "every",
    "log",
    "lr",
    "progress",
)


def measured(case: Case) -> None:
    """sharpness of a module with two arguments wild; nothing of it may change."""
    draw = case.draw
    made = draw(modules())
    before = {k: x.clone() for k, x in made.state_dict().items()} if _concrete(made) else {}
    given, _ = some_wild(draw, problem_arguments() | {"norm": st.sampled_from(NORMS)} | options())
    result = case.call("sharpness", geodiag.sharpness, made, **guarded(given, OWN))
    assert not result or isinstance(result, geodiag.SharpnessResult)
    for k, x in before.items():
        now = made.state_dict()[k]
        assert torch.equal(torch.nan_to_num(x), torch.nan_to_num(now)), f"{k} changed"
    assert all(p.grad is None for p in made.parameters())


def _concrete(made: nn.Module) -> bool:
    return all(
        not isinstance(p, nn.UninitializedParameter) and not p.is_meta for p in made.parameters()
    )


def steepest(case: Case) -> None:
    """NonEuclideanGD: its constructor, a step, and another group."""
    draw = case.draw
    made = module()
    params = st.sampled_from(("parameters", "named", "groups", "one"))
    forms = {
        "parameters": lambda: made.parameters(),
        "named": lambda: made.named_parameters(),
        "groups": lambda: [{"params": [made.weight], "lr": draw(wild())}, {"params": [made.bias]}],
        "one": lambda: [made.weight],
    }
    good = {
        "params": params.map(lambda name: forms[name]())
        | st.builds(Odd, st.sampled_from(KINDS)).map(lambda m: m.parameters()),
        "lr": st.sampled_from((0.1, 1, 1e-300)),
        "norm": st.sampled_from(NORMS) | algebra_norms(),
        "normalized": st.booleans(),
    }
    given, _ = some_wild(draw, good)
    optimizer = case.call("NonEuclideanGD", geodiag_torch.NonEuclideanGD, **given)
    if isinstance(optimizer, torch.optim.Optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if not p.is_meta:
                    fill = draw(st.sampled_from((1.0, float("nan"), float("inf"), 0.0, 3e4)))
                    p.grad = torch.full_like(p, fill)
        case.call("step", optimizer.step, *draw(st.lists(functions().map(guard), max_size=1)))
        case.call(
            "add_param_group",
            optimizer.add_param_group,
            {"params": [nn.Parameter(torch.ones(2))]} if draw(st.booleans()) else draw(wild()),
        )
        repr(optimizer)


def attached(case: Case) -> None:
    """attach, then steps: training goes on whatever the measurement meets."""
    draw = case.draw
    made = module()
    kinds = (
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.RMSprop,
        geodiag_torch.NonEuclideanGD,
        torch.optim.Adagrad,
    )
    optimizer = draw(st.sampled_from(kinds))(
        made.parameters(), lr=draw(st.sampled_from((0.1, 1e-12)))
    )
    arguments = {k: x for k, x in problem_arguments().items() if k != "params"} | constructor()
    del arguments["lr"]
    arguments |= {
        "optimizer": st.just(optimizer),
        "model": st.just(made) | modules(),
        "update": optional(updates()),
        "norm": st.sampled_from((None, "auto", *NORMS)) | functions(),
    }
    given, _ = some_wild(draw, arguments)
    monitor = case.call("attach", geodiag_torch.attach, **guarded(given, OWN))
    for _ in range(2):
        optimizer.zero_grad()
        made(X).sum().backward()
        case.call("step", optimizer.step)
    if monitor:
        case.call("load_state_dict", monitor.load_state_dict, draw(states(monitor) | wild()))
        case.call("step", optimizer.step)
        case.call("detach", monitor.detach)
    for p in made.parameters():
        assert bool(torch.isfinite(p).all())


TARGETS = {
    "sharpness (torch)": (measured, 2.0),
    "NonEuclideanGD": (steepest, 1.0),
    "attach": (attached, 1.0),
}
