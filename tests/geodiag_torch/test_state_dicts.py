"""``params=`` a whole state_dict: as if it were loaded, with the model left alone.

The truth is the dense float64 Hessian of a copy of the model into which the state_dict is loaded.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import geodiag
from geodiag.errors import GeodiagError, NonFiniteError, ParameterError, ShapeError

X = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sin().sum(1, keepdim=True)
MSE = nn.MSELoss()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.b.weight = self.a.weight
        self.double()

    def forward(self, x):
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 2), nn.Linear(2, 1)
        self.double()

    def forward(self, x):
        return self.out(self.lstm(x[None])[0][0])


def frozen() -> nn.Module:
    model = net()
    model[0].requires_grad_(False)
    return model


def trained(make) -> tuple[nn.Module, dict, nn.Module]:
    """A model, the state_dict of another that was trained, and the model with it loaded."""
    torch.manual_seed(0)
    model = make()
    other = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.1)
    for p in other.parameters():  # also those that are frozen
        p.data += 0.3 * torch.randn_like(p)
    for _ in range(20):
        optimizer.zero_grad()
        MSE(other(3 * X + 1), Y).backward()
        optimizer.step()
    loaded = copy.deepcopy(model)
    loaded.load_state_dict(other.state_dict())
    return model, {k: x.clone() for k, x in other.state_dict().items()}, loaded


def top_eigenvalue(model: nn.Module, chosen=lambda name: True) -> float:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad and chosen(n)}
    sizes = [p.numel() for p in named.values()]

    def loss(vector):
        parts = zip(named.items(), vector.split(sizes), strict=True)
        point = {n: v.view(p.shape) for (n, p), v in parts}
        return MSE(functional_call(copy.deepcopy(model), point, X), Y)

    vector = torch.cat([p.detach().reshape(-1) for p in named.values()])
    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, vector))[-1])


CASES = {
    "buffers": (net, None, lambda s: s),
    "frozen": (frozen, None, lambda s: s),
    "where": (net, r"3\.", lambda s: s),
    "a wrapper's prefix": (net, None, lambda s: {f"module._orig_mod.{k}": x for k, x in s.items()}),
    "tied": (Tied, None, lambda s: s),
    "tied, one name": (Tied, "out", lambda s: {k: x for k, x in s.items() if k != "b.weight"}),
    "tied, the other": (Tied, "out", lambda s: {k: x for k, x in s.items() if k != "a.weight"}),
    "numpy": (net, None, lambda s: {k: x.numpy() for k, x in s.items()}),
    "lstm": (Recurrent, "out", lambda s: s),
}


@pytest.mark.parametrize(("case", "train"), [*((case, False) for case in CASES), ("buffers", True)])
def test_measures_as_if_it_were_loaded(case, train):
    make, where, changed = CASES[case]
    model, state, loaded = trained(make)
    model.train(train), loaded.train(train)
    chosen = (lambda n: True) if where is None else (lambda n: n.startswith(where.strip("\\.")))
    expected = top_eigenvalue(loaded, chosen)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    given = changed(state)
    options = {"criterion": MSE, "data": (X, Y), "where": where, "rtol": 1e-7}
    result = geodiag.sharpness(model, params=given, **options)
    assert result.value == pytest.approx(expected, rel=1e-6)
    assert not [note for note in result.notes if "params=" in note]
    assert [m.training for m in model.modules()] == modes
    for k, x in model.state_dict().items():
        assert torch.equal(x, before[k]), k
    for k, x in changed(trained(make)[1]).items():  # what was given is not written to either
        assert (torch.as_tensor(given[k]) == torch.as_tensor(x)).all(), k
    if case != "lstm":  # another point of the same problem, and other engines
        for engine in ("recompute", "finite-difference"):
            with geodiag.problem(
                model, criterion=MSE, data=(X, Y), where=where, engine=engine
            ) as p:
                found = geodiag.sharpness(p, params=given, rtol=1e-5)
                assert found.value == pytest.approx(expected, rel=1e-4)


def test_the_rest_of_a_model_may_move_on_under_an_oracle_at_a_state_dict():
    model, state, _ = trained(net)
    oracle = geodiag.problem(model.eval(), criterion=MSE, data=(X, Y), where=r"3\.").at(state)
    before = float(oracle.loss())
    with torch.no_grad():
        for t in (*model.parameters(), *model.buffers()):
            t.add_(1)
    assert float(oracle.loss_at(oracle.point())) == before


def test_unmeasured_parameters_are_those_of_the_state_dict():
    model, state, _ = trained(net)
    problem = geodiag.problem(model.eval(), criterion=MSE, data=(X, Y), where=r"3\.")
    rest = problem.unmeasured(state)
    assert set(rest) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert all(torch.equal(x, state[name]) for name, x in rest.items())


@pytest.mark.parametrize("where", [r"3\.", None])  # other parameters; buffers alone
def test_a_part_of_another_point_is_refused(where):
    model, state, loaded = trained(net)
    model.eval(), loaded.eval()
    names = [n for n, _ in model.named_parameters() if where is None or n.startswith("3.")]
    alone = {n: state[n] for n in names}
    options = {"criterion": MSE, "data": (X, Y), "where": where, "rtol": 1e-7}
    problem = geodiag.problem(model, criterion=MSE, data=(X, Y), where=where)
    for measure in (
        lambda: geodiag.sharpness(model, params=alone, **options),
        lambda: geodiag.sharpness(problem, params=alone),
        lambda: geodiag.along(problem, {5: alone}),
    ):
        with pytest.raises(GeodiagError, match=rf"nothing of {8 - len(names)} other tensors"):
            measure()
    # As the error says: the others as they are, or the point that the model is at itself.
    mixed = {**model.state_dict(), **alone}
    expected = copy.deepcopy(model)
    expected.load_state_dict(mixed)
    chosen = lambda n: n in names  # noqa: E731
    found = geodiag.sharpness(model, params=mixed, **options)
    assert found.value == pytest.approx(top_eigenvalue(expected, chosen), rel=1e-6)
    fixed = geodiag.problem(loaded, criterion=MSE, data=(X, Y), where=where, params=alone)
    found = geodiag.sharpness(fixed, rtol=1e-7)
    assert found.value == pytest.approx(top_eigenvalue(loaded, chosen), rel=1e-6)
    with torch.no_grad():
        loaded[3].weight.mul_(2)
    with pytest.raises(ParameterError, match="of another point"):
        fixed.at()


def test_a_point_that_is_no_number_is_the_models_own():
    model = net().eval()
    with torch.no_grad():
        model[3].weight.fill_(torch.nan)
    alone = dict(model.named_parameters())
    with pytest.raises(NonFiniteError):
        geodiag.sharpness(model, params=alone, criterion=MSE, data=(X, Y))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s.pop("1.running_mean"), ParameterError, "missing '1.running_mean'"),
        (lambda s: s.pop("0.weight"), ParameterError, "missing '0.weight'"),
        (lambda s: s.update(head=torch.ones(1)), ParameterError, "unexpected 'head'"),
        (lambda s: s.update({"1.running_var": torch.ones(5)}), ShapeError, "'1.running_var'"),
        (lambda s: s.update({"0.bias": "text"}), ShapeError, "'0.bias'"),
        (lambda s: s.update({"module.0.bias": s["0.bias"]}), ParameterError, "unexpected 'module."),
        (lambda s: s.update({"_orig_mod.0.bias": s["0.bias"]}), ParameterError, "the same name"),
        (lambda s: s.update({7: torch.ones(1)}), ParameterError, "not a text"),
    ],
)
def test_what_does_not_fit_is_named(change, error, words):
    model, state, _ = trained(net)
    change(state)
    with pytest.raises(error) as e:
        geodiag.sharpness(model, params=state, criterion=MSE, data=(X, Y))
    assert words in str(e.value)


def test_tied_tensors_that_differ_are_named():
    model, state, _ = trained(Tied)
    state["b.weight"] = state["b.weight"] + 1
    with pytest.raises(ParameterError) as e:
        geodiag.sharpness(model, params=state, criterion=MSE, data=(X, Y))
    assert "'a.weight'" in str(e.value)
    assert "'b.weight'" in str(e.value)


def test_a_model_whose_state_dict_has_more_than_tensors_is_refused_by_name():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return 3

    model = Counting(3, 1).double()
    with pytest.raises(GeodiagError) as e:
        geodiag.sharpness(model, params=model.state_dict(), criterion=MSE, data=(X, Y))
    assert "_extra_state" in str(e.value)
