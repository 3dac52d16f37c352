"""Runs with any state around the loss, and events in them: under a monitor training is the same."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from tests.fuzz.case import Case
from tests.geodiag_torch.models import Calls
from tests.geodiag_torch.places import PLACES, run
from tests.geodiag_torch.states import STATES

OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "adam": torch.optim.Adam,
}
EVENTS = (
    *("none", "signal", "thread", "compiled thread", "exception"),
    *("resumed", "replaced", "frozen", "eval"),
)


class Breaking:
    """A loss that fails in one of its calls by measurements."""

    def __init__(self, loss: Any, at: int) -> None:
        self.loss, self.at, self.calls = loss, at, Calls()

    def __call__(self, model: Any, batch: Any) -> Any:
        if self.calls.add() == self.at:
            raise RuntimeError("the loss's own")
        return self.loss(model, batch)


def event(kind: str, at: int) -> Any:
    """What happens before each step of a run."""

    def between(step: int, model: Any, optimizer: Any, loss: Any) -> Any:
        if step != at:
            return None
        if kind == "frozen":
            model.body[0].bias.requires_grad_(False)
        if kind == "eval":
            model.eval()
        if kind in ("resumed", "replaced"):
            other = type(optimizer)(model.parameters(), lr=0.02)
            if kind == "resumed":
                other.load_state_dict(optimizer.state_dict())
            return other
        return None

    return between


def trainer(x: torch.Tensor) -> tuple[Callable[[], None], torch.nn.Module]:
    """A step of training another model, and the model."""
    layer = torch.nn.Linear(3, 3)
    torch.nn.init.eye_(layer.weight), torch.nn.init.ones_(layer.bias)
    model = torch.nn.Sequential(layer, torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()

    return step, model


def steps(step: Callable[[], None], taken: list[int], over: threading.Event) -> None:
    """Steps, counted, until it is over."""
    while not over.wait(0.001):
        step()
        taken.append(1)


@contextlib.contextmanager
def surroundings(kind: str, seen: list[Any]) -> Any:
    """Signals at any moment, or a thread that trains another model, and loses no step."""
    if kind == "signal":
        before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.003)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    elif kind in ("thread", "compiled thread"):
        x = torch.linspace(-1, 1, 12).reshape(4, 3)
        if kind != "thread":  # from then on torch.compile looks into frames
            torch.compile(torch.sin, backend="eager")(x)
        over, taken, step, other = threading.Event(), [], *trainer(x)
        thread = threading.Thread(target=lambda: steps(step, taken, over))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        step, alone = trainer(x)
        for _ in taken:
            step()
        expected = alone.state_dict()
        assert all(torch.equal(y, expected[name]) for name, y in other.state_dict().items())
    else:
        yield


def untouched(case: Case) -> None:
    """The same bits with and without the monitor, and no exception out of a step."""
    draw = case.draw
    state, place = draw(st.sampled_from(list(STATES))), draw(st.sampled_from(list(PLACES)))
    kind, at = draw(st.sampled_from(EVENTS)), draw(st.integers(0, 2))
    options = {
        "optimizer": OPTIMIZERS[draw(st.sampled_from(list(OPTIMIZERS)))],
        "dropout": draw(st.sampled_from((0.0, 0.0, 0.3))),
        "between": event(kind, at),
    }
    watching = {
        "engine": draw(st.sampled_from(("auto", "auto", "recompute", "finite-difference"))),
        "every": draw(st.sampled_from((1, 1, 2))),
    }
    case.said.append(f"{state} in {place}, {kind} at {at}, {watching}, {options['dropout']}")
    breaks = draw(st.integers(4, 14)) if kind == "exception" else 0
    wraps = breaks or draw(st.booleans())  # an object around the loss
    alone, _ = run(state, place, watched=False, **options)
    with surroundings(kind, []):
        watched, records = run(
            state, place, watched=True, wraps=_breaking(breaks, wraps), **options, **watching
        )
    case.answered += 1
    said = " ".join(r.note for r in records)
    assert records
    assert watched == alone or "given back" in said or "guard=" in said, said[:300]
    if kind in ("none", "signal", "resumed", "replaced"):
        assert all(math.isfinite(r.sharpness) for r in records), said[:300]


def _breaking(at: int, wraps: bool) -> Any:
    return (lambda loss: Breaking(loss, at)) if wraps else (lambda loss: loss)


TARGETS = {"untouched (torch)": (untouched, 0.3)}
