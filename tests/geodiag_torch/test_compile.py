"""Compiled modules: through the original, or by finite differences, which the result says.

The truth is the same module, not compiled.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import geodiag
from geodiag.errors import EngineError
from geodiag_torch.state import module_tensors
from tests.geodiag_torch.models import fingerprint, mlp, random_like


@pytest.fixture(autouse=True)
def no_other_threads(monkeypatch):
    """That earlier tests may have left: beside them nothing compiled is run."""
    monkeypatch.setattr(module_tensors, "other_threads", frozenset)


# What torch.compile itself warns of.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("part", ["model", "submodule"])
def test_a_compiled_module_is_measured_as_the_original(part, backend):
    model, data = mlp()
    truth = geodiag.problem(copy.deepcopy(model), criterion=nn.MSELoss(), data=data).at()
    d = random_like(truth, 0)
    expected = truth.hvp(d)
    if part == "model":
        compiled = torch.compile(model, backend=backend)
    else:
        compiled = nn.Sequential(torch.compile(model[:2], backend=backend), model[2])
    before = fingerprint(model)
    oracle = geodiag.problem(compiled, criterion=nn.MSELoss(), data=data).at()
    names = dict(zip(oracle.names, truth.names, strict=True))
    found = oracle.hvp({name: d[names[name]] for name in oracle.names})
    differences = any("finite differences" in note for note in oracle.notes)
    # Dynamo's own backend runs the module's operations as they are; the others compile a backward.
    assert differences == (part == "submodule" and backend != "eager")
    # By differences to ε^{2/3} = 4e-11 times the curvature's own variation; else to rounding.
    close = 1e-7 if differences else 1e-12
    for name, x in found.items():
        torch.testing.assert_close(x, expected[names[name]], rtol=close, atol=close)
    assert fingerprint(model) == before


@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("part", ["model", "submodule"])
def test_a_scripted_module_is_refused(part):
    model, data = mlp()
    scripted = (
        torch.jit.script(model) if part == "model" else nn.Sequential(torch.jit.script(model))
    )
    with pytest.raises(EngineError, match=r"torch\.jit"):
        geodiag.sharpness(scripted, "l2", criterion=nn.MSELoss(), data=data)
