"""What a record without S costs a training run, and the losses of the search for the critical step.

Times are of the process, not of the clock, and training with a monitor and without takes turns of
ten steps: the machine is one that others use too.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch

import geodiag_jax
import geodiag_torch
from benchmarks.cases import build_wide
from benchmarks.jax_peers import cross_entropy, perceptron, squared_error
from benchmarks.overhead import EVERY, RUNS
from benchmarks.problems import MODELS, Training, build
from benchmarks.report import spread, table
from geodiag.blocks import axpy, subtract
from geodiag.core.root_bracketing import search
from geodiag.critical_lr import critical_lr
from geodiag.experiments.reproduction.cells import METHODS, TRAININGS
from geodiag.experiments.reproduction.data import IMAGES, task
from geodiag.experiments.reproduction.frameworks import make_trainer
from geodiag.experiments.reproduction.observed import minibatches
from geodiag.experiments.reproduction.training import geometry
from geodiag.realized_edge import realized_edge
from geodiag_torch import NonEuclideanGD

# Methods of the reproduction, at every how many of whose steps both searches run.
EDGES = ("gd", "lion", "muon-momentum", "adamw-clipped", "sgd-batches")
ODD = 7
SEARCHES = ("from 1/ζ: median", "most", "published, from lr: median", "most")
PROBE = 8  # the part of the batch that is measured, where not all of it is
PLANS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("whole batch", {}, 1),
    ("an eighth", {}, PROBE),
    ("whole batch, critical", {"critical": True}, 1),
)


def run(quick: bool) -> None:
    """Print one row per model, norm and plan; ``quick``: the digits MLP in ℓ2 alone."""
    torch.set_num_threads(1)
    chosen = {key: x for key, x in RUNS.items() if not quick or key == ("mlp", "l2")}
    rows = [
        [model, norm, label, *_compare(model, norm, options, part, training, 2 if quick else 3)]
        for (model, norm), training in chosen.items()
        for label, options, part in PLANS
    ]
    heads = ["model", "norm", "probe", "overhead, in steps", "HVPs a record", "same weights"]
    table(f"Training with sharpness=False, every={EVERY}, against training without", heads, rows)
    rows = [
        [model, f"1/{part}", *_compare_in_jax(model, part, RUNS[model, "l2"])]
        for model in (("mlp",) if quick else ("mlp", "wide"))
        for part in (1, PROBE)
    ]
    heads = ["model", "probe", "ms a step", "overhead, in steps", "same weights"]
    table("The same in JAX, compiled steps, in ℓ2", heads, rows)
    heads = ["model", "norm", *SEARCHES]
    table(
        "Losses of the search for the critical step, L(w) not counted",
        heads,
        [
            [model, norm, *_losses(model, norm, training)]
            for (model, norm), training in chosen.items()
        ],
    )
    heads = ["method", "steps", "measured", "ζ: median", *SEARCHES]
    rows = [row for method in (EDGES[:1] if quick else EDGES) for row in _to_the_edge(method)]
    table("The same along runs of the reproduction, to the edge: MLP, float64", heads, rows)


def _to_the_edge(method: str) -> list[list[Any]]:
    """The losses of both searches at every seventh step: in all of the run, and by its ζ."""
    kind, training = METHODS[method], TRAININGS[method, "mlp"]
    trainer = make_trainer("torch", "mlp", task("mlp", None, 0))
    if kind.optimizer:  # its Monitor never measures
        trainer.observe(kind.optimizer, training.lr, kind.options, lambda step: False)
    else:
        norm = geometry(kind.norm, trainer.problem.at().gradient())
        trainer.set_optimizer(norm, training.lr, kind.normalized)
    batches, found = minibatches(IMAGES, kind.batch or IMAGES, seed=0), []
    for step in range(training.steps):
        trainer.set_batch(next(batches))
        before = trainer.point()
        trainer.step()
        if step % ODD:
            continue
        moved, oracle = subtract(trainer.point(), before), trainer.problem.at(before)
        zeta = float(realized_edge(oracle, moved))
        if math.isfinite(zeta):
            ours = critical_lr(oracle, moved).num_losses
            found.append((zeta, ours, _published_along(oracle, before, moved)))
    parts = {
        "all": found,
        "ζ below 0.1": [each for each in found if each[0] < 0.1],
        "ζ from 0.7 to 1.3": [each for each in found if 0.7 <= each[0] <= 1.3],
    }
    return [
        [kind.title, label, len(chosen), f"{statistics.median(z for z, _, _ in chosen):.3f}"]
        + [x for i in (1, 2) for x in _summary([each[i] for each in chosen])]
        for label, chosen in parts.items()
        if chosen
    ]


def _published_along(oracle: Any, before: Any, moved: Any) -> int:
    here = float(oracle.loss())
    return _as_published(lambda a: float(oracle.loss_at(axpy(a, moved, before))), here)


def _compare(
    model: str, norm: str, options: dict[str, Any], part: int, training: Training, rounds: int
) -> list[Any]:
    overheads, same, products = [], True, [0]
    for _ in range(rounds):
        bare, weights, _ = _train(model, norm, None, training)
        watched, others, monitor = _train(model, norm, options, training, part)
        _, overhead = _in_turns(bare, watched, training.steps)
        overheads.append(overhead)
        same &= all(map(torch.equal, weights, others))
        products = [r.num_hvps for r in monitor.records]
    return [spread(overheads), f"{statistics.mean(products):.2f}", "yes" if same else "no"]


def _in_turns(
    bare: Callable[[], None], watched: Callable[[], None], steps: int
) -> tuple[float, float]:
    """Seconds of a bare step, and the overhead; the first turns, which are cold, not counted."""
    spent = {bare: 0.0, watched: 0.0}
    for turn in range(steps // EVERY):
        for step in (bare, watched) if turn % 2 else (watched, bare):
            began = time.process_time()
            for _ in range(EVERY):
                step()
            spent[step] += time.process_time() - began
        if turn == 0:
            spent = dict.fromkeys(spent, 0.0)
    return spent[bare] / (steps // EVERY - 1) / EVERY, spent[watched] / spent[bare] - 1


def _compare_in_jax(model: str, part: int, training: Training) -> list[Any]:
    net, _, (x, y) = build(model) if model in MODELS else build_wide()
    data = tuple(jnp.asarray(a.numpy()) for a in (x, y))
    error = squared_error if model in MODELS else cross_entropy

    def loss(params: Any, x: Any, y: Any) -> Any:
        return error(perceptron(params, x), y)

    @jax.jit
    def update(params: Any) -> Any:
        moved = jax.grad(loss)(params, *data)
        return jax.tree.map(lambda w, g: w - training.lr * g, params, moved)

    start = {name: jnp.asarray(p.detach().numpy()) for name, p in net.named_parameters()}
    points, probe = {"bare": start, "watched": start}, tuple(a[: len(a) // part] for a in data)
    number = itertools.count()

    def bare() -> None:
        points["bare"] = jax.block_until_ready(update(points["bare"]))

    def watched() -> None:
        before = points["watched"]
        points["watched"] = after = jax.block_until_ready(update(before))
        monitor.observe(next(number), before, after)

    options: dict[str, Any] = {"lr": training.lr, "every": EVERY, "sharpness": False}
    with geodiag_jax.Monitor(loss, "l2", data=probe, **options) as monitor:
        seconds, overhead = _in_turns(bare, watched, training.steps)
    same = jax.tree.all(jax.tree.map(jnp.array_equal, *points.values()))
    return [f"{1e3 * seconds:.3g}", f"{overhead:.3g}", "yes" if same else "no"]


def _made(model: str, norm: str, training: Training) -> Any:
    net, criterion, batch = build(model) if model in MODELS else build_wide()
    return net, criterion, batch, NonEuclideanGD(net.named_parameters(), training.lr, norm)


def _train(
    model: str, norm: str, options: dict[str, Any] | None, training: Training, part: int = 1
) -> tuple[Callable[[], None], list[torch.Tensor], Any]:
    """What takes a step, the weights, and the monitor, if any."""
    net, criterion, (x, y), optimizer = _made(model, norm, training)
    monitor = None
    if options is not None:
        probe = x[: len(x) // part], y[: len(x) // part]
        monitor = geodiag_torch.attach(
            optimizer, net, criterion=criterion, data=probe, every=EVERY, sharpness=False, **options
        )

    def step() -> None:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()

    return step, [p.detach() for p in net.parameters()], monitor


def _losses(model: str, norm: str, training: Training) -> list[Any]:
    """Of both searches at every tenth step: ours by the passes of a record, and as published."""
    net, criterion, (x, y), optimizer = _made(model, norm, training)
    monitor = geodiag_torch.attach(
        optimizer,
        net,
        criterion=criterion,
        data=(x, y),
        every=EVERY,
        sharpness=False,
        critical=True,
    )
    ours, published = [], []
    search_of_record = monitor._critical.search

    def counted(*arguments: Any) -> Any:
        found = search_of_record(*arguments)
        ours.append(found.num_losses)
        return found

    monitor._critical.search = counted
    for number in range(training.steps + 1):
        here = [p.detach().clone() for p in net.parameters()]
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
        if number % EVERY or number == 0:
            continue
        there = [p.detach().clone() for p in net.parameters()]
        published.append(_published(net, criterion, (x, y), here, there))
        _put(net, there)
    return [*_summary(ours), *_summary(published)]


def _summary(counts: list[int]) -> list[Any]:
    return [f"{statistics.median(counts):g}", max(counts)]


def _published(net: Any, criterion: Any, batch: Any, here: Any, there: Any) -> int:
    """Doubling or halving from the learning rate, then bisection to 1/16 (arXiv 2601.16979)."""

    def loss(alpha: float) -> float:
        _put(net, [a + alpha * (b - a) for a, b in zip(here, there, strict=True)])
        with torch.no_grad():
            return float(criterion(net(batch[0]), batch[1]))

    return _as_published(loss, loss(0.0))


def _as_published(loss: Callable[[float], float], here: float) -> int:
    return search(lambda alpha: not loss(alpha) <= here, 1.0, 1 / 16, 40).num_losses


def _put(net: Any, weights: Any) -> None:
    with torch.no_grad():
        for p, w in zip(net.parameters(), weights, strict=True):
            p.copy_(w)
