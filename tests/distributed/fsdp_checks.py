"""What runs on each rank for test_fsdp.py."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import geodiag
import geodiag_torch
import geodiag_torch.sharding.detection
from geodiag import errors
from geodiag_torch.sharding.fsdp import NOTE
from geodiag_torch.sharding.tensors import Sharded
from tests.distributed import monitor_checks
from tests.distributed.ddp_checks import same_everywhere
from tests.distributed.fault_checks import Empty, Later
from tests.distributed.problems import (
    CLOSE,
    agree,
    alone,
    batches,
    criterion,
    device,
    network,
    relative,
    shard,
    together,
    trained,
)


def sharded(**options: Any) -> nn.Module:
    """The network with its layers, and what is left, sharded: 7 and 3 rows on 2 ranks."""
    model = trained()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def state(model: nn.Module) -> Any:
    """All that a measurement may not touch."""
    found = {}
    for name, p in model.named_parameters():
        assert isinstance(p, DTensor)
        grad = p.grad
        entries = p._local_tensor.detach().numpy().tobytes()
        gradient = None if grad is None else (id(grad), grad.to_local().numpy().tobytes())
        found[name] = (id(p), p._version, entries, gradient, p.requires_grad)
    for name, b in model.named_buffers():
        found[name] = (id(b), b._version, b.numpy().tobytes())
    modes = [m.training for m in model.modules()]
    return found, modes, torch.random.get_rng_state().numpy().tobytes()


def equal_the_union(rank: int, kinds: Sequence[str] = ("l2", "spectral")) -> None:
    """With all as it was afterwards; and what was gathered on the way."""
    truth, model = trained(), sharded()
    x, y = batches((4,))[0]
    criterion("mean")(model(x), y).backward()  # gradients that must stay
    before = state(model)
    for kind in kinds:
        options = {} if kind == "l2" else {"max_hvps": 16}
        expected = alone(truth, kind, **options)
        with gathering() as shapes:
            found = together(model, rank, kind, **options)
        check_gathered(model, kind, shapes)
        same_everywhere(found.value)
        agree(
            found, expected, lambda k=kind, **asked: together(model, rank, k, **asked), truth, kind
        )
        parameters = dict(model.named_parameters())
        for name, d in found.direction.items():
            assert isinstance(d, DTensor), (kind, type(d))
            assert d.placements == parameters[name].placements
            assert d.to_local().shape == parameters[name].to_local().shape
        assert state(model) == before, kind


@contextmanager
def gathering() -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what is gathered inside."""
    whole, seen = Sharded.full, []

    def full(x: Sharded) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return whole(x)

    Sharded.full = full  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Sharded.full = whole  # type: ignore[method-assign]


def check_gathered(model: nn.Module, kind: str, shapes: list[tuple[int, ...]]) -> None:
    """For the result's state each tensor once; before, nothing but matrices for spectral norms."""
    once = [tuple(p.shape) for p in model.parameters()]
    if kind == "spectral":
        assert {shape[-2:] for shape in shapes if len(shape) > 1} == {(7, 5), (3, 7)}
        shapes = [shape for shape in shapes if len(shape) == 1]
        once = [shape for shape in once if len(shape) == 1]
    assert sorted(shapes) == sorted(once), (kind, shapes)


def other_questions(rank: int) -> None:
    """Losses, gradients, products and directional smoothness, also of parts and mixtures."""
    union_model, model = trained(), trained()
    fully_shard(model[0])  # the other layer stays as it is on each rank
    variants = [(sharded(), {}), (model, {}), (sharded(), {"where": "weight"})]
    for found, options in variants:
        options = {"criterion": criterion("mean"), **options}
        union = geodiag.problem(union_model, data=batches(), **options).at()
        problem = geodiag.problem(found, data=shard(rank), **options)
        ours = problem.at()
        torch.manual_seed(3)
        d = {name: torch.randn_like(x) for name, x in union.point().items()}
        there = {name: x + 0.1 * d[name] for name, x in union.point().items()}
        same_blocks(ours.point(), union.point())
        torch.testing.assert_close(ours.loss(), union.loss())
        same_blocks(ours.gradient(), union.gradient())
        same_blocks(ours.hvp(d), union.hvp(d))
        torch.testing.assert_close(ours.loss_at(there), union.loss_at(there))
        same_blocks(ours.gradient_at(there), union.gradient_at(there))
        same_blocks(problem.at(there).gradient(), union.gradient_at(there))
        expected = geodiag.directional_smoothness(union, d, "linf")
        assert relative(geodiag.directional_smoothness(ours, d, "linf"), expected) < CLOSE
        random = ours.space.random(np.random.default_rng(0))
        same_blocks(random, union.space.random(np.random.default_rng(0)))


def same_blocks(ours: Any, expected: Any) -> None:
    assert list(ours) == list(expected)
    for name, x in ours.items():
        whole = x.full_tensor() if isinstance(x, DTensor) else x
        # Products are central differences, good to 4e-11 of their length.
        torch.testing.assert_close(whole, expected[name], rtol=1e-6, atol=1e-8)


def options_of_fsdp(rank: int) -> None:
    """Reductions that add, other axes, other divisors, synchronisation that is off."""
    truth = trained()
    divided, late = sharded(), sharded()
    divided[0].set_gradient_divide_factor(3.0)
    late.set_requires_gradient_sync(False)
    x, y = batches((4,))[0]
    criterion("mean")(late(x), y).backward()  # kept for later, unsynchronised
    variants = {"mean": [sharded(reshard_after_forward=False), divided, late], "sum": [divided]}
    for reduction, models in variants.items():
        expected = alone(truth, "l2", reduction, rtol=1e-2)
        for model in models:
            found = together(model, rank, "l2", reduction, rtol=1e-2)
            assert relative(found.value, expected.value) < CLOSE
    late.set_requires_gradient_sync(True)
    criterion("mean")(late(x), y).backward()
    reference = sharded()
    for _ in range(2):
        criterion("mean")(reference(x), y).backward()
    for p, q in zip(late.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad.full_tensor(), q.grad.full_tensor())


def unsharded_at_first(rank: int) -> None:
    """A model that was just run without a backward pass holds gathered parameters."""
    model = fully_shard(trained())  # in one group: that of the root is kept after a forward pass
    with torch.no_grad():
        model(batches((4,))[0][0])
    assert not any(isinstance(p, DTensor) for p in model.parameters())
    found = together(model, rank, "l2", rtol=1e-3)
    assert relative(found.value, alone(trained(), "l2", rtol=1e-3).value) < CLOSE


def hooks_stay_silent(rank: int) -> None:
    """An optimizer inside of the backward pass does not step while it is measured."""
    model = sharded()
    calls: list[Any] = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(calls.append)
    together(model, rank, "l2", rtol=1e-2)
    assert not calls
    x, y = batches((4,))[0]
    criterion("mean")(model(x), y).backward()
    assert len(calls) == 4


def a_failure(rank: int) -> None:
    """Before, in or after a forward pass of one rank: errors on both, and all as before."""
    model = sharded()
    expected = alone(trained(), "l2", rtol=1e-2).value
    x, y = batches((4,))[0]
    criterion("mean")(model(x), y).backward()
    before = state(model)
    for call in range(1, 9):
        loss = Later(call if rank == 1 else -1, ValueError)
        kind = ValueError if rank == 1 else errors.DistributedError
        with pytest.raises(kind, match="the user's own"):
            geodiag.sharpness(model, "linf", criterion=loss, data=shard(rank))
        assert state(model) == before
    with pytest.raises(errors.DataError if rank == 0 else errors.DistributedError):
        geodiag.sharpness(model, criterion=nn.MSELoss(), data=Empty() if rank == 0 else shard(1))
    with pytest.raises(ValueError, match="everywhere"):
        geodiag.sharpness(model, loss_fn=everywhere, data=shard(rank))
    assert state(model) == before
    assert model._get_fsdp_state()._state_ctx.iter_forward_root is None
    assert relative(together(model, rank, "l2", rtol=1e-2).value, expected) < CLOSE


def everywhere(model: nn.Module, batch: Any) -> torch.Tensor:
    """A module that fails in the middle of its forward pass, with layers left gathered."""
    handle = model[1].register_forward_hook(_fail)
    try:
        return model(batch[0]).sum()
    finally:
        handle.remove()


def _fail(*_: Any) -> None:
    raise ValueError("everywhere")


def killed(rank: int) -> None:
    """A rank that dies in the middle of FSDP's own communication."""
    model = sharded()
    if rank == 1:
        model[1].register_forward_hook(lambda *_: os.kill(os.getpid(), 9))
    with pytest.raises(errors.DistributedError, match="did not answer"):
        together(model, rank, "linf")


def refused(rank: int) -> None:
    """What cannot be measured so says why."""
    model, data = sharded(), {"criterion": criterion("mean"), "data": shard(rank)}
    with pytest.raises(errors.EngineError, match="sharded"):
        geodiag.sharpness(model, engine="graph", **data)
    half = sharded(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.raises(errors.EngineError, match="32 bits"):
        geodiag.sharpness(half, loss_fn=_in_half, data=shard(rank))
    mesh = init_device_mesh(device().type, (2,))
    tensor_parallel = parallelize_module(network(), mesh, {"0": ColwiseParallel()})
    with pytest.raises(errors.ParameterError, match="fully_shard"):
        geodiag.sharpness(tensor_parallel, **data)
    problem = geodiag.problem(model, **data)
    part = geodiag.problem(model, where="^0", **data)
    here = {name: x.full_tensor() for name, x in part.point().items()}
    there = {name: torch.cat([x[:-1], 2 * x[-1:]]) for name, x in here.items()}  # of the last rank
    with torch.no_grad():
        model(batches((4,))[0][0])  # gathers
    assert geodiag.sharpness(part, params=here, max_hvps=2).value > 0  # where the module is itself
    for ask in (
        lambda: geodiag.sharpness(part, params=there),
        lambda: geodiag.sharpness(model, params=there, where="^0", **data),
    ):
        with pytest.raises(errors.ParameterError, match=r"nothing of 2 other.*into the module"):
            ask()
    oracle = problem.at()
    oracle.loss()
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(errors.StaleOracle):
        oracle.loss()


def _in_half(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch[0]).float().square().mean()


def in_float32(rank: int) -> None:
    """To what differences in 32 bits are good for, 2e-5, and Lanczos' tolerance."""
    model = trained().float()
    for layer in (model[0], model[2], model):
        fully_shard(layer)
    data = [(x.float(), y.float()) for x, y in shard(rank)]
    found = geodiag.sharpness(model, criterion=criterion("mean"), data=data, rtol=1e-3)
    assert relative(found.value, alone(trained(), "l2").value) < 1e-3
    same_everywhere(found.value)


def trains_alike(rank: int) -> None:
    """An attached monitor: records as in one process, and training as without one."""
    data = batches((4, 4, 4, 4))
    mine = data[2 * rank : 2 * rank + 2]
    truth = monitor_checks.train(trained(), data)
    model, plain = sharded(), sharded()
    found = monitor_checks.train(model, mine, x=data)
    for ours, expected in zip(found.records, truth.records, strict=True):
        assert not ours.note.replace(NOTE, ""), ours.note
        for field in ("loss", "sharpness", "directional_smoothness", "curvature", "ratio"):
            a, b = getattr(ours, field), getattr(expected, field)
            assert relative(a, b) < CLOSE, (field, a, b)
    monitor_checks.train(plain, mine, x=data, every=10**6)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())


def optimizers(rank: int) -> None:
    """Optimizers with sharded states, and our own, step and are measured as in one process."""
    data = batches((4, 4, 4, 4))
    mine = data[2 * rank : 2 * rank + 2]
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    makers = [
        lambda named: torch.optim.Adam([p for _, p in named], lr=1e-3),
        lambda named: geodiag_torch.NonEuclideanGD(named, lr=1e-3, norm="linf"),
        lambda named: geodiag_torch.NonEuclideanGD(named, lr=1e-3, norm="spectral"),
    ]
    for make in makers:
        records, points = [], []
        for model, shard_of_it in ((trained(), data), (sharded(), mine)):
            optimizer = make(list(model.named_parameters()))
            monitor = geodiag_torch.attach(
                optimizer,
                model,
                criterion=criterion("mean"),
                data=shard_of_it,
                every=lambda step: step == 1,
                estimator=geodiag.estimators.Ascent(starts=1),
                max_hvps=6,
            )
            for _ in range(3):
                optimizer.zero_grad()
                criterion("mean")(model(x), y).backward()
                optimizer.step()
            monitor.detach()
            records += monitor.records
            points.append(
                [
                    geodiag_torch.sharding.detection.as_sharded(p.detach())
                    for p in model.parameters()
                ]
            )
        for p, q in zip(*points, strict=True):
            torch.testing.assert_close(q.full() if isinstance(q, Sharded) else q, p)
        expected, found = records
        assert not found.note.replace(NOTE, ""), found.note
        for field in ("loss", "sharpness", "ratio", "directional_smoothness"):
            a, b = getattr(found, field), getattr(expected, field)
            assert relative(a, b) < CLOSE, (field, a, b)
