"""Nothing of a measurement outlives it: no tensor, hook, cache entry or reference to the model."""

from __future__ import annotations

import gc
import sys
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import geodiag
import geodiag_torch
from geodiag.plugins import registry
from geodiag_torch.derivatives.crosscheck import _passed
from tests.geodiag_torch.models import Calls, fingerprint

MANY = pytest.mark.parametrize(
    "count", [100, pytest.param(1000, marks=pytest.mark.slow)], ids=["100", "1000"]
)
NORMS = ("l2", "linf", "spectral", "block")


class Scaled(geodiag.Norm):
    """A norm of the user's own, registered for these tests."""

    def value(self, d):
        return 2 * max(abs(x).max() for x in d.values())

    def lmo(self, g):
        return {
            name: x.sign() / 2 if hasattr(x, "sign") else np.sign(x) / 2 for name, x in g.items()
        }


@pytest.fixture
def registered():
    name = "scaled_for_growth"
    if name not in geodiag.available_norms():
        geodiag.register_norm(name, Scaled)
    return name


@pytest.fixture
def frozen_gc():
    """What is there before does not slow the collector down, nor count."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Held:
    """Something that a graph holds while it exists."""


class Holding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seen):
        ctx.held = Held()
        seen.add(ctx.held)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g * 1, None


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = Calls()
        self.calls.seen = weakref.WeakSet()

    def forward(self, x):
        self.calls.add()
        return Holding.apply(x, self.calls.seen)

    def alive(self):
        return len(self.calls.seen)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Layer(), nn.Tanh(), nn.Linear(5, 2))
    return model, (torch.randn(8, 4), torch.randn(8, 2))


def tensors():
    return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())


def hooks(model):
    module = torch.nn.modules.module
    kinds = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_hooks")
    own = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return own + sum(len(getattr(module, kind)) for kind in kinds)


def resident():
    """The process's resident memory in bytes, where the system tells."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


class TestTorch:
    @MANY
    def test_no_growth_over_many_measurements(self, count, registered, frozen_gc):
        model, data = network()
        given = {"criterion": nn.MSELoss(), "data": data}
        kept = geodiag.problem(model, **given)
        norms = (*NORMS, registered)

        def measure(number):
            norm = norms[number % len(norms)]
            which = kept if number % 2 else model
            keywords = {} if number % 2 else given
            geodiag.sharpness(which, norm, max_hvps=3, **keywords)

        def state():
            gc.collect()
            return tensors(), hooks(model), model[1].alive(), len(_passed), len(gc.get_objects())

        for number in range(2 * len(norms)):
            measure(number)
        before, memory, untouched = state(), resident(), fingerprint(model)
        for number in range(count):
            measure(number)
        after = state()
        assert after[:4] == before[:4]
        assert after[4] - before[4] < 20  # objects of any kind: no list grows by one a measurement
        assert fingerprint(model) == untouched
        # Blocks that the allocator keeps for later; at one vector and one graph a measurement
        # 1,000 would take less than this, so that it is tensors and objects that tell.
        assert resident() - memory < 50e6

    def test_a_monitor_keeps_records_alone(self, frozen_gc):
        model, data = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        monitor = geodiag_torch.attach(
            optimizer, model, criterion=nn.MSELoss(), data=data, every=1, max_hvps=4
        )

        def train(steps):
            for _ in range(steps):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(data[0]), data[1]).backward()
                optimizer.step()
            gc.collect()
            return tensors(), hooks(model)

        before = train(25)  # the first of each kind of measurement, a cold check among them
        assert train(40) == before
        assert len(monitor.records) == 65
        monitor.detach()

    @pytest.mark.parametrize("engine", ["graph", "auto"])
    def test_closing_a_problem_frees_what_its_oracles_keep(self, engine):
        model, data = network()
        batches = [(x, y) for x, y in zip(*(t.split(4) for t in data), strict=True)]
        with geodiag.problem(
            model, criterion=nn.MSELoss(), data=batches, engine=engine, memory=10**8
        ) as problem:
            oracle = problem.at()
            first = oracle.hvp(oracle.point())
            assert model[1].alive() == 2  # a graph for each batch
        assert model[1].alive() == 0  # at once, and not when the collector comes
        again = oracle.hvp(oracle.point())
        assert all(torch.equal(first[name], again[name]) for name in first)

    @pytest.mark.parametrize("engine", ["graph", "recompute", "finite-difference"])
    def test_graphs_die_with_their_measurement(self, engine):
        model, data = network()
        geodiag.sharpness(
            model, criterion=nn.MSELoss(), data=data, engine=engine, max_hvps=4, memory=10**8
        )
        assert model[1].calls.n > 0
        assert model[1].alive() == 0

    def test_a_result_keeps_no_graph_and_no_model(self):
        model, data = network()
        results = [
            geodiag.sharpness(model, norm, criterion=nn.MSELoss(), data=data, max_hvps=12, **more)
            for norm, more in (("l2", {}), ("linf", {"certificate": True}), ("block", {}))
        ]
        died = weakref.ref(model)
        assert model[1].alive() == 0
        del model
        gc.collect()
        assert died() is None
        assert all(float(r) == float(r) for r in results)

    def test_nothing_keeps_a_model_alive(self, registered, tmp_path):
        """Not a cache, a problem's oracles, a monitor, nor the registry of norms."""
        model, data = network()
        optimizer = torch.optim.Adam(model.parameters())
        given = {"criterion": nn.MSELoss(), "data": data}
        for norm in (*NORMS, registered):
            geodiag.sharpness(model, norm, max_hvps=4, **given)
        geodiag.sharpness(model, "spectral", max_hvps=12, certificate=True, **given)
        geodiag.sharpness(model, max_hvps=3, engine="finite-difference", **given)
        step = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        geodiag.directional_smoothness(model, step, "linf", kind="path", **given)
        monitor = geodiag_torch.attach(
            optimizer, model, every=1, log=tmp_path / "run.jsonl", max_hvps=4, **given
        )
        nn.functional.mse_loss(model(data[0]), data[1]).backward()
        optimizer.step()
        dying = [weakref.ref(x) for x in (model, optimizer, monitor, model[0].weight)]
        del model, optimizer, monitor, step
        gc.collect()
        assert [ref() for ref in dying] == [None] * len(dying)

    def test_norms_keep_no_parameters(self):
        """One norm object, bound to one model after another."""
        norm = geodiag.norms.Spectral()
        dying = []
        for _ in range(3):
            model, data = network()
            geodiag.sharpness(model, norm, criterion=nn.MSELoss(), data=data, max_hvps=4)
            dying.append(weakref.ref(model))
            del model
        gc.collect()
        assert not any(ref() for ref in dying)


class TestNumpy:
    def callables(self):
        H = np.diag(np.arange(1.0, 9.0))

        def loss(w):
            return 0.5 * w["x"] @ H @ w["x"]

        def gradient(w):
            return {"x": H @ w["x"]}

        return (loss, gradient), {"x": np.ones(8)}

    @MANY
    def test_no_growth_over_many_measurements(self, count, registered, frozen_gc):
        pair, w = self.callables()
        norms = (*NORMS[:2], registered)

        def measure(number):
            geodiag.sharpness(pair, norms[number % len(norms)], params=w, max_hvps=4)

        for number in range(30):
            measure(number)
        gc.collect()
        before = len(gc.get_objects())
        tracemalloc.start()
        try:
            start = tracemalloc.get_traced_memory()[0]
            for number in range(count):
                measure(number)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - start
        finally:
            tracemalloc.stop()
        assert len(gc.get_objects()) - before < 20
        assert grown < 50_000  # a measurement that kept its state would be more than 1 kB

    def test_nothing_keeps_the_callables_alive(self, registered):
        pair, w = self.callables()
        with geodiag.Monitor(pair, "linf", params=w, lr=0.01, every=1, max_hvps=4) as monitor:
            monitor.observe(0, w, {"x": 0.9 * w["x"]})
        for norm in ("l2", "linf", registered):
            geodiag.sharpness(pair, norm, params=w, max_hvps=4)
        dying = [weakref.ref(f) for f in pair] + [weakref.ref(w["x"])]
        del pair, w, monitor
        gc.collect()
        assert [ref() for ref in dying] == [None] * 3

    def test_the_registry_grows_by_registration_alone(self, registered):
        before = len(geodiag.available_norms()), sys.getsizeof(vars(registry))
        pair, w = self.callables()
        for _ in range(20):
            geodiag.sharpness(pair, registered, params=w, max_hvps=3)
        assert (len(geodiag.available_norms()), sys.getsizeof(vars(registry))) == before
