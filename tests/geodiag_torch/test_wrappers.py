"""Modules and optimizers inside of others: the same numbers, and names without the wrappers' parts.

Truth is the same measurement of the bare module, which the other tests of this package compare with
closed forms; and, of runs, where the parameters are before and after the real step.
"""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict, defaultdict

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    checkpoint_wrapper,
    offload_wrapper,
)
from torch.optim import SGD, Optimizer
from torch.optim.swa_utils import AveragedModel

import geodiag
from geodiag import errors
from geodiag_torch import attach
from tests.geodiag_torch.models import fingerprint, mlp, random_like

mse = nn.functional.mse_loss
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]
LR = 0.1


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "checkpoint": checkpoint_wrapper,
    "offload": offload_wrapper,
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "data parallel of a checkpoint": lambda m: nn.DataParallel(checkpoint_wrapper(m)),
    "checkpoint of data parallel": lambda m: checkpoint_wrapper(nn.DataParallel(m)),
    "compiled checkpoint": lambda m: compiled(checkpoint_wrapper(m)),
    "checkpoint of what is compiled": lambda m: checkpoint_wrapper(compiled(m)),
}


# What torch.compile itself warns of.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_modules(wrap, whole):
    model, data = mlp()
    truth = geodiag.problem(copy.deepcopy(model), criterion=mse, data=data).at()
    d = random_like(truth, 0)
    wrapped = wrap(model) if whole else nn.Sequential(wrap(model[0]), model[1], wrap(model[2]))
    before = fingerprint(wrapped)
    oracle = geodiag.problem(wrapped, criterion=mse, data=data).at()
    assert list(oracle.names) == NAMES
    torch.testing.assert_close(oracle.hvp(d), truth.hvp(d), rtol=1e-10, atol=1e-12)
    assert fingerprint(wrapped) == before
    chosen = geodiag.problem(wrapped, criterion=mse, data=data, where=r"^0\.weight")
    assert list(chosen.space.names) == NAMES[:1]


def test_a_submodule_that_is_called_module_keeps_its_name():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.head = nn.Linear(5, 3).double(), nn.Linear(3, 3).double()

        def forward(self, x):
            return self.head(self.module(x))

    names = geodiag.problem(Holder(), criterion=mse, data=mlp()[1]).space.names
    assert [*names] == ["module.weight", "module.bias", "head.weight", "head.bias"]


@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")
def test_a_frozen_part_may_be_scripted():
    torch.manual_seed(0)
    head, data = mlp()
    bare = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)).double()
    scripted = torch.jit.script(copy.deepcopy(bare))
    for p in (*bare.parameters(), *scripted.parameters()):
        p.requires_grad_(False)
    model = nn.Sequential(scripted, head)
    before = copy.deepcopy(scripted.state_dict())
    result = geodiag.sharpness(model, criterion=mse, data=data)
    want = geodiag.sharpness(nn.Sequential(bare, head), criterion=mse, data=data)
    assert result.value == pytest.approx(want.value, rel=1e-10)
    for name, x in scripted.state_dict().items():
        assert torch.equal(x, before[name]), name
    trainable = torch.jit.script(nn.Linear(5, 5).double())
    with pytest.raises(errors.EngineError, match=r"'0\.weight', in '0'"):
        geodiag.sharpness(nn.Sequential(trainable, head), criterion=mse, data=data)


@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")
def test_a_compiled_step_leaves_the_hooks_alone():
    model, data = mlp()
    optimizer = SGD(model.parameters(), lr=LR)
    monitor = attach(optimizer, model, criterion=mse, data=data, every=1)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    torch._dynamo.reset()
    counters.clear()
    for _ in range(2):
        optimizer.zero_grad()
        mse(model(data[0]), data[1]).backward()
        step()
    assert len(monitor.records) == 2
    assert all(r.sharpness > 0 for r in monitor.records)
    assert counters["frames"]["total"] < 20  # a measurement would be some hundred


class SAM(Optimizer):
    """As in David Samuel's implementation, in short."""

    def __init__(self, params, keep="base_optimizer"):
        super().__init__(params, {"rho": 0.05})
        self.base = SGD(self.param_groups, lr=LR)
        self.param_groups = self.base.param_groups
        setattr(self, keep, self.__dict__.pop("base"))
        self.keep = keep

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.clone()
            p.add_(0.05 * p.grad / p.grad.norm())
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["old"])
        getattr(self, self.keep).step()
        self.zero_grad()

    def step(self, closure):
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class Lookahead(Optimizer):
    """Every second step goes back by half of what two steps have made."""

    def __init__(self, base):
        super().__init__(base.param_groups, {})
        self.keep(base)

    def keep(self, base):
        self.optimizer, self.param_groups = base, base.param_groups
        self.defaults, self.state, self.steps = {}, defaultdict(dict), 0
        self.slow = [p.detach().clone() for p in base.param_groups[0]["params"]]

    @torch.no_grad()
    def move(self):
        self.optimizer.step()
        self.steps += 1
        if self.steps % 2 == 0:
            for slow, p in zip(self.slow, self.param_groups[0]["params"], strict=True):
                p.copy_(slow.lerp_(p, 0.5))

    def step(self, closure=None):
        self.move()


class Unhooked(Lookahead):
    """Built as in timm and pytorch_optimizer: without Optimizer's own __init__."""

    def __init__(self, base):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self.keep(base)

    def step(self, closure=None):
        self.move()


def trained(optimizer, model, data, how="step", steps=4, **arguments):
    """Where the parameters were around each step, and the monitor."""
    monitor = attach(optimizer, model, criterion=mse, data=data, every=1, **arguments)
    places = []

    def backward():
        mse(model(data[0]), data[1]).backward()

    for _ in range(steps):
        places.append([p.detach().clone() for p in model.parameters()])
        optimizer.zero_grad()
        backward()
        if how == "two calls":
            optimizer.first_step()
            backward()
            optimizer.second_step()
        else:
            optimizer.step(*[backward][: how == "closure"])
    places.append([p.detach().clone() for p in model.parameters()])
    return monitor, places


def curvatures(model, data, places):
    """⟨s, Hs⟩/‖s‖² along each of these steps."""
    for here, there in itertools.pairwise(places):
        step = {n: b - a for n, a, b in zip(NAMES, here, there, strict=True)}
        point = dict(zip(NAMES, here, strict=True))
        yield geodiag.directional_smoothness(
            model, step, kind="curvature", params=point, criterion=mse, data=data
        )


@pytest.mark.parametrize("how", ["two calls", "closure"])
def test_the_step_of_sam_is_that_of_its_base(how):
    model, data = mlp()
    monitor, places = trained(SAM(model.parameters()), model, data, how)
    assert [r.step for r in monitor.records] == [0, 1, 2, 3]
    assert [r.curvature for r in monitor.records] == pytest.approx(
        list(curvatures(model, data, places)), rel=1e-9
    )
    assert all("SAM takes SGD's step by the gradient at another" in r.note for r in monitor.records)


def test_steps_that_cannot_be_seen_are_refused():
    model, data = mlp()
    given = {"criterion": mse, "data": data}
    with pytest.raises(errors.ArgumentError, match="run no hooks, so nothing would be recorded"):
        attach(SAM(model.parameters(), keep="kept"), model, **given)
    bare = Unhooked(SGD(model.parameters(), lr=LR))
    bare.optimizer = None
    with pytest.raises(errors.ArgumentError, match="runs no hooks, so nothing would be recorded"):
        attach(bare, model, **given)

    class ScheduleFreeWrapper:
        def __init__(self, base):
            self.base = base

    with pytest.raises(errors.ArgumentError, match="has no step of one piece"):
        attach(ScheduleFreeWrapper(SGD(model.parameters(), lr=LR)), model, **given)

    class SGDScheduleFree(SGD):
        def step(self, closure=None):
            pass

    with pytest.raises(errors.ArgumentError, match="it descends in no single norm"):
        attach(SGDScheduleFree(model.parameters(), lr=LR), model, **given)


def test_the_step_of_lookahead_is_the_whole_one_where_that_can_be_seen():
    model, data = mlp()
    optimizer = Lookahead(SGD(model.parameters(), lr=LR))
    monitor, places = trained(optimizer, model, data)
    assert [r.curvature for r in monitor.records] == pytest.approx(
        list(curvatures(model, data, places)), rel=1e-9
    )
    first, second, *_ = monitor.records
    assert first.threshold == pytest.approx(2 / LR)
    assert "the step differs" in second.note

    model, data = mlp()
    hidden = Unhooked(SGD(model.parameters(), lr=LR))
    monitor, places = trained(hidden, model, data)
    assert "what Unhooked does besides is not seen" in monitor.records[0].note
    assert monitor.records[0].curvature == pytest.approx(
        next(curvatures(model, data, places)), rel=1e-9
    )
