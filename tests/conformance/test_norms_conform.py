"""Every registered norm and the compositions pass ``check_norm``, in every array namespace."""

from __future__ import annotations

import numpy as np
import pytest

from geodiag import available_norms, norms
from geodiag.core.spaces import MatrixView, Space
from geodiag.plugins import registry
from geodiag.testing import check_norm
from tests import truth

SHAPES = {"W": (2, 3), "b": (2,), "s": ()}
SMALL = {"W": (2, 2), "b": (2,)}  # where each operation is slow
P = {"W": (np.diag([1.0, 2.0]), np.eye(3) + 0.2), "b": np.array([0.5, 3.0]), "s": np.array(2.0)}
NAMES = sorted(set(available_norms()) - {"preconditioned"})

COMPOSED = [
    norms.Preconditioned(P),
    norms.Preconditioned(np.diag(np.linspace(1.0, 3.0, 9)) + 0.1),
    norms.L2Over(norms.L1(), radii=2.0),
    norms.L2Over(norms.L2(), radii={"W": 3.0}),
    norms.SumOver(norms.Linf(), radii={"b": 0.2}),
    norms.ByParameter({"W": norms.Spectral(), ".": norms.L1()}, over=norms.SumOver),
    norms.ByParameter({"W": norms.Nuclear(), ".": norms.Linf()}, radii={"W": 0.5}),
    norms.Scaled(norms.Muon("match_rms_adamw"), 3.0),
]


@pytest.mark.parametrize("name", NAMES)
def test_registered(name, xp):
    check_norm(registry.norm(name), truth.to(xp, truth.blocks(0, SMALL)))


@pytest.mark.parametrize("name", NAMES)
def test_registered_in_float32(name):
    check_norm(registry.norm(name), truth.to(np, truth.blocks(1, SHAPES), "float32"), seed=1)


@pytest.mark.parametrize("norm", COMPOSED, ids=repr)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_composed(norm, dtype):
    check_norm(norm, truth.to(np, truth.blocks(2, SHAPES), dtype))


@pytest.mark.parametrize("name", NAMES)
def test_with_an_empty_tensor(name):
    check_norm(registry.norm(name), truth.blocks(3, SHAPES | {"none": (0, 2)}))


@pytest.mark.parametrize("name", ["spectral", "nuclear", "muon"])
@pytest.mark.parametrize("view", [MatrixView.first_axis_rows(3), MatrixView.last_axis_rows(3)])
def test_kernels_with_a_space(name, view):
    space = Space({"k": (2, 3, 2), "b": (2,)}, {"k": view})
    check_norm(registry.norm(name), truth.blocks(4, dict(space.shapes)), space=space)
