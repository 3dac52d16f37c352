"""Tensors that stack others, against the same parameters with every slice a tensor of its own.

With the stack axis first, both have the same coordinates in the same order, so one matrix H is the
Hessian of both, random starts are the same, and all answers must be: values, bounds and products.
"""

from __future__ import annotations

import numpy as np
import pytest

import geodiag
from geodiag import errors, norms
from geodiag.blocks import unstack
from geodiag.core.spaces import MatrixView, Space
from geodiag.testing import check_norm
from tests import truth

L, ROWS, COLS = 3, 4, 2
WHOLE = {"head": (2, 3), "layers.b": (L, 2), "layers.w": (L, ROWS, COLS)}
APART = {"head": (2, 3)} | {f"layers.{n}.{i}": s for n, s in (("b", (2,)), ("w", (ROWS, COLS)))
                            for i in range(L)}  # fmt: skip
N = 6 + 2 * L + ROWS * COLS * L
NORMS = {
    "spectral": norms.Spectral(),
    "nuclear": norms.Nuclear(),
    "frobenius": norms.Frobenius(),
    "rms": norms.RMS(),
    "muon": norms.Muon(),
    "block": norms.SumOver(norms.L2()),
    "radii": norms.Spectral(radii={"layers": 3.0, "head": 0.5}),
    "by parameter": norms.ByParameter({"w": norms.Spectral(), ".*": norms.Linf()}),
    "sum of kinds": norms.ByParameter({"w": norms.Nuclear(), ".*": norms.L2()}, over=norms.SumOver),
    "l2 over": norms.L2Over(norms.Spectral()),
    "linf": norms.Linf(),
    "l2": norms.L2(),
    "scaled": norms.Scaled(norms.Spectral(), 2.0),
}


def apart(blocks, lead=()):
    """The same numbers, slice by slice."""
    found = {"head": blocks["head"]}
    for name in ("layers.b", "layers.w"):
        for i in range(L):
            found[f"{name}.{i}"] = blocks[name][(*(slice(None),) * len(lead), i)]
    return found


def stacked(norm):
    return norms.Stacked(norm, {r"^layers\.": 1})


def bound(norm, shapes, xp=np):
    g = truth.to(xp, truth.blocks(5, shapes)) if xp is not np else truth.blocks(5, shapes)
    return norm.bind(Space.rows_first(shapes, lambda x: x)), g


@pytest.mark.parametrize("xp", ["numpy", "torch", "strict", "jax"], indirect=True)
@pytest.mark.parametrize("name", NORMS)
def test_every_answer_is_that_of_the_slices(name, xp):
    space = Space.rows_first(WHOLE, lambda x: truth.to(xp, {"x": x})["x"])
    norm = stacked(NORMS[name]).bind(space)
    own = NORMS[name].bind(Space.rows_first(APART, lambda x: x))
    for seed in range(3):
        on_host = truth.blocks(seed, WHOLE)
        g = truth.to(xp, on_host)
        parts = apart(on_host)
        assert float(norm.value(g)) == pytest.approx(float(own.value(parts)), rel=1e-10)
        assert float(norm.dual(g)) == pytest.approx(float(own.dual(parts)), rel=1e-10)
        found = apart(truth.back(norm.lmo(g)))
        for n, x in own.lmo(parts).items():
            np.testing.assert_allclose(found[n], x, atol=1e-10)
    xp_ = geodiag.blocks.namespace(g)
    gs = {n: xp_.stack([x, -2 * x]) for n, x in g.items()}
    for row, factor in zip(unstack(norm.lmos(gs)), (1, -1), strict=True):
        for n, x in truth.back(norm.lmo(g)).items():
            np.testing.assert_allclose(truth.back(row)[n], factor * x, atol=1e-10)


@pytest.fixture(scope="module")
def hessian():
    a = np.random.default_rng(1).standard_normal((N, N))
    return {"indefinite": a + a.T, "positive": a @ a.T}


@pytest.mark.parametrize("kind", [pytest.param("indefinite", marks=pytest.mark.slow), "positive"])
@pytest.mark.parametrize("name", NORMS)
def test_sharpness_is_that_of_the_slices(name, kind, hessian):
    found = geodiag.sharpness(hessian[kind], stacked(NORMS[name]), shapes=WHOLE)
    own = geodiag.sharpness(hessian[kind], NORMS[name], shapes=APART)
    assert found.value == pytest.approx(own.value, rel=1e-9)
    assert (found.num_hvps, found.bound, found.status) == (own.num_hvps, own.bound, own.status)
    d = np.concatenate([np.ravel(x) for x in found.direction.values()])
    assert d @ hessian[kind] @ d == pytest.approx(found.value, rel=1e-9)
    warm = geodiag.sharpness(hessian[kind], stacked(NORMS[name]), shapes=WHOLE, start=found)
    assert warm.value >= found.value * (1 - 1e-9) - 1e-9


@pytest.mark.parametrize("name", ["spectral", "nuclear", "block", "frobenius", "by parameter"])
def test_certificates_are_those_of_the_slices(name, hessian):
    H, options = hessian["positive"], {"certificate": True, "max_hvps": 120}
    found = geodiag.sharpness(H, stacked(NORMS[name]), shapes=WHOLE, **options)
    own = geodiag.sharpness(H, NORMS[name], shapes=APART, **options)
    assert found.upper == pytest.approx(own.upper, rel=1e-6)
    assert found.num_hvps == own.num_hvps
    assert found.value <= found.upper


def test_polyhedral_ones_are_enumerated():
    """max over slices of ℓ1 on 2 × (2,): for H = diag the best entry of each slice counts."""
    H = np.diag([1.0, 3.0, 5.0, 2.0])
    norm = norms.Stacked(norms.MaxOver(norms.L1()), {"x": 1})
    found = geodiag.sharpness(H, norm, shapes={"x": (2, 2)})
    assert (found.value, found.status.name) == (pytest.approx(8.0), "ENUMERATED")
    # By the second axis the slices are (x_0, x_2) and (x_1, x_3).
    norm = norms.Stacked(norms.MaxOver(norms.L1()), {"x": (-1,)})
    found = geodiag.sharpness(H, norm, shapes={"x": (2, 2)})
    assert found.value == pytest.approx(5.0 + 3.0)


@pytest.mark.parametrize("name", ["spectral", "nuclear", "muon", "by parameter"])
def test_the_contract(name):
    check_norm(stacked(NORMS[name]), truth.blocks(0, WHOLE))


@pytest.mark.parametrize(
    ("axes", "matrices"),
    [
        (1, lambda x: [x[i] for i in range(2)]),
        ((-1,), lambda x: [x[..., i] for i in range(4)]),
        ((1,), lambda x: [x[:, i] for i in range(3)]),
        (MatrixView((2,), (0,)), lambda x: [x[:, i].T for i in range(3)]),
        (MatrixView((2, 1), (0,)), lambda x: [x.reshape(2, 12)]),  # attention: heads side by side
    ],
)
def test_axes(axes, matrices):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    norm = norms.Stacked(norms.Spectral(), {"x": axes}).bind(
        Space.rows_first({"x": x.shape}, np.asarray)
    )
    nuclear = sum(np.linalg.svd(m, compute_uv=False).sum() for m in matrices(x))
    assert float(norm.dual({"x": x})) == pytest.approx(nuclear)


def test_rows_stay_rows():
    """Muon's radius is √(out/in) of each slice, by either framework's convention."""
    x = np.random.default_rng(0).standard_normal((3, 8, 2))
    for view, radius in ((MatrixView.first_axis_rows(3), 2.0), (MatrixView.last_axis_rows(3), 1.0)):
        space = Space({"x": x.shape}, {"x": view})
        norm = norms.Stacked(norms.Muon(), {"x": 1}).bind(space)
        assert float(norm.value(norm.lmo({"x": x}))) == pytest.approx(1.0)
        top = max(np.linalg.norm(m, 2) for m in norm.lmo({"x": x})["x"])
        assert top == pytest.approx(radius)


class TestBadInput:
    @pytest.mark.parametrize(
        "axes", [{}, 1, {"w": 0}, {"w": -1}, {"w": "0"}, {"w": ()}, {"w": True}]
    )
    def test_axes(self, axes):
        with pytest.raises(errors.ArgumentError, match="axes= of Stacked must be a dict"):
            norms.Stacked(norms.Spectral(), axes)

    def test_norm(self):
        with pytest.raises(errors.ArgumentError, match="Stacked takes a Norm object"):
            norms.Stacked("spectral", {"w": 1})

    @pytest.mark.parametrize("axes", [4, (5,), (0, 0), (0, -3), MatrixView((3,), (0,))])
    def test_no_such_axes(self, axes):
        with pytest.raises(errors.NormError, match="has no such"):
            norms.Stacked(norms.Spectral(), {"w": axes}).bind(Space.rows_first(WHOLE, np.asarray))

    def test_a_pattern_without_a_match(self):
        with pytest.raises(errors.ParameterError, match="matches no parameter"):
            norms.Stacked(norms.Spectral(), {"blocks": 1}).bind(Space.rows_first(WHOLE, np.asarray))

    def test_names_that_collide(self):
        shapes = {"w": (2, 3), "w.0": (3,)}
        with pytest.raises(errors.NormError, match="have the names of others"):
            norms.Stacked(norms.Spectral(), {"w$": 1}).bind(Space.rows_first(shapes, np.asarray))
