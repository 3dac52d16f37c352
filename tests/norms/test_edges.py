"""Zero blocks, empty tensors, scalars, kernels in both layouts, and arrays on another device."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from geodiag import norms
from geodiag.core.spaces import MatrixView, Space
from geodiag.errors import NormError
from geodiag.oracles import MatrixProblem
from geodiag.plugins import registry
from geodiag.solvers import iterate
from tests import truth

NAMES = sorted(truth.NORMS)


@pytest.mark.parametrize("name", NAMES)
def test_zero_blocks(name, xp):
    zero = truth.to(xp, {n: 0 * x for n, x in truth.blocks(0).items()})
    norm = registry.norm(name).bind(Space.of(zero))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(norm.value(zero)) == float(norm.dual(zero)) == 0.0
        answer = truth.back(norm.lmo(zero))
    assert all(np.isfinite(x).all() for x in answer.values())
    assert truth.NORMS[name][0](answer) <= 1 + 1e-14


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 0)], ids=str)
def test_an_empty_tensor_changes_nothing(name, shape, xp):
    full = truth.blocks(3)
    g = truth.to(xp, {"first": np.zeros(shape)} | full)
    norm = registry.norm(name).bind(Space.of(g))
    value, dual = truth.NORMS[name]
    assert float(norm.value(g)) == pytest.approx(value(full), rel=1e-13)
    assert float(norm.dual(g)) == pytest.approx(dual(full), rel=1e-13)
    answer = norm.lmo(g)
    assert tuple(answer["first"].shape) == shape
    assert {n: tuple(x.shape) for n, x in answer.items()} == {
        n: tuple(x.shape) for n, x in g.items()
    }


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"l1", "l2", "linf", "muon"}))
def test_only_empty_tensors_is_an_error(name):
    with pytest.raises(NormError, match="no tensor to measure"):
        registry.norm(name).bind(Space({"a": (0,), "b": (2, 0)}))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"muon"}))
def test_scalars_are_measured_by_their_absolute_value(name, xp):
    """Every norm of one number c is |c|, and its LMO the sign."""
    g = {"s": xp.asarray(-3.0, dtype=xp.float64)}
    norm = registry.norm(name).bind(Space.of(g))
    assert float(norm.value(g)) == float(norm.dual(g)) == 3.0
    assert float(norm.lmo(g)["s"]) == -1.0


@pytest.mark.parametrize("name", ["l2", "l1", "linf", "block", "frobenius", "rms"])
def test_not_a_number_is_not_hidden(name, xp):
    """A root that clips at zero must not turn NaN into 0."""
    d = truth.to(xp, truth.blocks(0) | {"a.b": np.array([1.0, np.nan, 2.0])})
    norm = registry.norm(name).bind(Space.of(d))
    assert np.isnan(float(norm.value(d)))
    assert np.isnan(float(norm.dual(d)))


KERNELS = {
    "outputs first": (MatrixView.first_axis_rows(4), (5, 3, 2, 2)),
    "outputs last": (MatrixView.last_axis_rows(4), (2, 2, 3, 5)),
}


def as_matrix(x: np.ndarray, layout: str) -> np.ndarray:
    """out × (everything else), independently of MatrixView: the order of columns is immaterial."""
    return x.reshape(5, 12) if layout == "outputs first" else np.moveaxis(x, -1, 0).reshape(5, 12)


@pytest.mark.parametrize("layout", KERNELS)
@pytest.mark.parametrize(
    ("norm", "value", "dual"),
    [
        (norms.Spectral(), truth.operator, truth.nuclear),
        (norms.Nuclear(), truth.nuclear, truth.operator),
        (
            norms.Muon("match_rms_adamw"),
            lambda m: truth.operator(m) / (0.2 * np.sqrt(12.0)),
            lambda m: truth.nuclear(m) * (0.2 * np.sqrt(12.0)),
        ),
    ],
    ids=["spectral", "nuclear", "muon"],
)
def test_kernels_are_matrices_of_outputs_by_the_rest(layout, norm, value, dual, xp):
    view, shape = KERNELS[layout]
    x = np.random.default_rng(4).standard_normal(shape)
    g = {"k": xp.asarray(x)}
    bound = norm.bind(Space({"k": shape}, {"k": view}))
    m = as_matrix(x, layout)
    assert float(bound.value(g)) == pytest.approx(value(m), rel=1e-13)
    assert float(bound.dual(g)) == pytest.approx(dual(m), rel=1e-13)
    answer = np.asarray(bound.lmo(g)["k"])
    assert answer.shape == shape
    assert value(as_matrix(answer, layout)) <= 1 + 1e-13
    assert float(np.vdot(x, answer)) == pytest.approx(dual(m), rel=1e-13)


@pytest.mark.parametrize("norm", [norms.Spectral(), norms.Nuclear()], ids=repr)
def test_a_kernel_without_a_view_is_an_error_not_a_guess(norm):
    with pytest.raises(NormError, match="'k' has 3 axes, and nothing says which"):
        norm.bind(Space({"k": (2, 3, 4)}))


@pytest.mark.parametrize("name", ["l2", "l1", "linf", "block", "frobenius", "rms"])
def test_norms_without_matrices_take_kernels_without_views(name):
    x = np.random.default_rng(5).standard_normal((2, 3, 4))
    bound = registry.norm(name).bind(Space({"k": x.shape}))
    assert float(bound.value({"k": x})) == pytest.approx(truth.NORMS[name][0]({"k": x}), rel=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_stay_on_their_device(name):
    """The strict namespace has devices that refuse to mix, as accelerators do."""
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    host = truth.blocks(6)
    g = {n: strict.asarray(x, device=device) for n, x in host.items()}
    norm = registry.norm(name).bind(Space.of(g))
    assert norm.value(g).device == norm.dual(g).device == device
    assert all(x.device == device for x in norm.lmo(g).values())
    assert float(norm.dual(g)) == pytest.approx(truth.NORMS[name][1](host), rel=1e-13)


def test_the_driver_stays_on_the_device():
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    d = {"x": strict.asarray([[0.6, 0.8]], device=device)}
    population = iterate.begin(d, d)
    oracle = MatrixProblem(np.eye(2)).at()
    run = iterate.run(oracle, lambda p: p._replace(value=p.value + 1.0), population, 3, 1e-3)
    assert run.history.device == run.iterates.stalled.device == device
    np.testing.assert_allclose([float(v) for v in run.history], [2.0, 3.0, 4.0], rtol=1e-15)
