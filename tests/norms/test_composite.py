"""The composition algebra: radii, patterns, nesting, collapse and every error of construction.

Truth: the composed formula, written out per case from the parts' formulas in :mod:`tests.truth`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from geodiag import norms
from geodiag.core.spaces import Space
from geodiag.errors import ArgumentError, NormError, ParameterError
from geodiag.norms import (
    L1,
    L2,
    ByParameter,
    L2Over,
    Linf,
    MaxOver,
    Muon,
    Nuclear,
    Scaled,
    Spectral,
    SumOver,
)
from tests import truth


def one(x):
    return float(np.abs(x).sum())


def top(x):
    return float(np.abs(x).max())


RADII = {"W$": 2.0, "b": 0.5}
R = {"a.W": 2.0, "z": 1.0, "a.b": 0.5, "c.W": 2.0}

# label: (norm, value of {name: array}, dual of {name: array}).
CASES = {
    "max over l1, one radius": (
        MaxOver(L1(), radii=3.0),
        lambda d: max(one(x) for x in d.values()) / 3,
        lambda g: 3 * sum(top(x) for x in g.values()),
    ),
    "max over spectral parts, radii by pattern": (
        Spectral(radii=RADII),
        lambda d: max(truth.operator(x) / R[n] for n, x in d.items()),
        lambda g: sum(truth.nuclear(x) * R[n] for n, x in g.items()),
    ),
    "sum over linf, radii by pattern": (
        SumOver(Linf(), radii=RADII),
        lambda d: sum(top(x) / R[n] for n, x in d.items()),
        lambda g: max(one(x) * R[n] for n, x in g.items()),
    ),
    "nuclear, radii by function": (
        Nuclear(radii=lambda name, shape: 0.5 if shape is None else float(shape[1])),
        lambda d: sum(truth.nuclear(x) / (x.shape[1] if x.ndim == 2 else 0.5) for x in d.values()),
        lambda g: max(truth.operator(x) * (x.shape[1] if x.ndim == 2 else 0.5) for x in g.values()),
    ),
    "l2 over linf, radii by pattern": (
        L2Over(Linf(), radii=RADII),
        lambda d: math.sqrt(sum((top(x) / R[n]) ** 2 for n, x in d.items())),
        lambda g: math.sqrt(sum((one(x) * R[n]) ** 2 for n, x in g.items())),
    ),
    "l2 over l2 is a weighted l2": (
        L2Over(L2(), radii=RADII),
        lambda d: math.sqrt(sum((truth.l2(x) / R[n]) ** 2 for n, x in d.items())),
        lambda g: math.sqrt(sum((truth.l2(x) * R[n]) ** 2 for n, x in g.items())),
    ),
    "muon, original": (
        Muon(),
        truth.over_max(truth.operator, truth.muon_radius),
        truth.over_max_dual(truth.nuclear, truth.muon_radius),
    ),
    "muon, match_rms_adamw": (
        Muon("match_rms_adamw"),
        truth.over_max(truth.operator, truth.muon_rms_radius),
        truth.over_max_dual(truth.nuclear, truth.muon_rms_radius),
    ),
    "by parameter, first match, groups joint": (
        ByParameter({r"^a\.": L2(), "W": Spectral(), "": L1()}),
        lambda d: max(
            math.hypot(truth.l2(d["a.W"]), truth.l2(d["a.b"])),
            truth.operator(d["c.W"]),
            one(d["z"]),
        ),
        lambda g: (
            math.hypot(truth.l2(g["a.W"]), truth.l2(g["a.b"]))
            + truth.nuclear(g["c.W"])
            + top(g["z"])
        ),
    ),
    "by parameter, summed, with radii": (
        ByParameter({"W$": Linf(), ".": L1()}, over=SumOver, radii={"W$": 4.0}),
        lambda d: max(top(d["a.W"]), top(d["c.W"])) / 4 + one(d["z"]) + one(d["a.b"]),
        lambda g: max(4 * (one(g["a.W"]) + one(g["c.W"])), max(top(g["z"]), top(g["a.b"]))),
    ),
    "by parameter in l2, of a max and a sum": (
        ByParameter({"W$": Spectral(), ".": SumOver(L2())}, over=L2Over, radii={".": 2.0}),
        lambda d: math.hypot(
            max(truth.operator(d["a.W"]), truth.operator(d["c.W"])),
            (truth.l2(d["z"]) + truth.l2(d["a.b"])) / 2,
        ),
        lambda g: math.hypot(
            truth.nuclear(g["a.W"]) + truth.nuclear(g["c.W"]),
            max(truth.l2(g["z"]), truth.l2(g["a.b"])) * 2,
        ),
    ),
    "scaled twice around a nest": (
        Scaled(Scaled(SumOver(MaxOver(Linf(), radii=2.0)), 3.0), 0.5),
        lambda d: 1.5 * sum(top(x) for x in d.values()) / 2,
        lambda g: max(one(x) for x in g.values()) * 2 / 1.5,
    ),
}


@pytest.mark.parametrize("label", CASES)
def test_value_dual_and_lmo(label, xp, dtype):
    norm, value, dual = CASES[label]
    tol = truth.tolerance(dtype, 20)
    host = truth.back(truth.to(np, truth.blocks(11), dtype))
    g = truth.to(xp, host, dtype)
    # Unbound, the norm binds itself to the blocks it meets.
    for bound in (norm, norm.bind(Space.of(g))):
        assert float(bound.value(g)) == pytest.approx(value(host), rel=tol)
        assert float(bound.dual(g)) == pytest.approx(dual(host), rel=tol)
        best = truth.back(bound.lmo(g))
        assert value(best) <= 1 + tol
        assert truth.inner(host, best) == pytest.approx(dual(host), rel=tol)


@pytest.mark.parametrize("label", CASES)
def test_order_of_the_dict_does_not_matter(label):
    norm, value, _ = CASES[label]
    d = truth.blocks(12)
    bound = norm.bind(Space.of(d))
    turned = {n: d[n] for n in reversed(list(d))}
    assert float(bound.value(turned)) == pytest.approx(value(d), rel=1e-13)
    for n, x in bound.lmo(turned).items():
        np.testing.assert_allclose(x, bound.lmo(d)[n], rtol=0, atol=1e-14)


def test_radius_functions_see_matrix_shapes_and_no_empty_tensors():
    seen = {}

    def radius(name, shape):
        seen[name] = shape
        return 1.0

    MaxOver(L2(), radii=radius).bind(
        Space.of({"W": np.ones((2, 3)), "b": np.ones(4), "none": np.ones((0, 3))})
    )
    assert seen == {"W": (2, 3), "b": None}


def test_collapse_keeps_quadratic_norms_quadratic():
    space = Space.of(truth.blocks(0))
    diagonal = norms.Preconditioned({n: np.full(s, 2.0) for n, s in truth.SHAPES.items()})
    quadratic = [
        L2Over(L2(), radii=RADII),
        Scaled(L2(), 2.0),
        Scaled(diagonal, 2.0),
        ByParameter({"W$": L2(), ".": L2()}, over=L2Over),
        L2Over(Scaled(L2(), 3.0)),
    ]
    for norm in quadratic:
        bound = norm.bind(space)
        assert isinstance(bound, norms.QuadraticNorm), norm
        d = truth.blocks(13)
        assert truth.inner(d, bound.metric(d)) == pytest.approx(
            float(norm.value(d)) ** 2, rel=1e-13
        )
        again = bound.inverse_metric(bound.metric(d))
        np.testing.assert_allclose(truth.flat(again), truth.flat(d), rtol=1e-14)
    for norm in (MaxOver(L2()), SumOver(L2()), L2Over(Linf()), Scaled(Linf(), 2.0)):
        assert not isinstance(norm.bind(space), norms.QuadraticNorm), norm


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        (lambda: MaxOver(L2), ArgumentError, r"the class L2. Do: pass an instance: L2\(\)"),
        (lambda: SumOver("l2"), ArgumentError, "SumOver takes a Norm object. Got: 'l2'"),
        (lambda: Scaled(Linf(), 0.0), ArgumentError, "factor of Scaled must be positive. Got: 0.0"),
        (lambda: Scaled(Linf(), math.inf), ArgumentError, "must be positive. Got: inf"),
        (lambda: Scaled(Linf(), -1), ArgumentError, "must be positive. Got: -1"),
        (lambda: Spectral(radii=0.0), ArgumentError, "radii must be positive numbers. Got: 0.0"),
        (lambda: Spectral(radii={"W": -2.0}), ArgumentError, "radii must be positive.*-2.0"),
        (lambda: MaxOver(L2(), radii="2"), ArgumentError, "radii must be positive.*'2'"),
        (lambda: Muon("other"), ArgumentError, "'other'. Do: use one of .'original', 'match_rms"),
        (lambda: ByParameter({}), ArgumentError, "dict of name pattern → norm"),
        (lambda: ByParameter(L2()), ArgumentError, "dict of name pattern → norm"),
        (lambda: ByParameter({"W": L2}), ArgumentError, r"ByParameter\['W'\].*the class L2"),
        (lambda: ByParameter({"W": L2()}, over=max), ArgumentError, "over= must be MaxOver"),
        (
            lambda: ByParameter({"W": L2()}, radii={"b": 2.0}),
            ArgumentError,
            "must use the patterns of its norms. Got: 'b'. Do: use 'W'",
        ),
    ],
)
def test_construction_errors(build, error, said):
    with pytest.raises(error, match=said):
        build()


@pytest.mark.parametrize(
    ("norm", "error", "said"),
    [
        (ByParameter({"W": L2()}), NormError, "without a norm. Got: 'z', 'a.b'"),
        (ByParameter({"W": L2(), "q": L2()}), ParameterError, "'q' matches no parameter.*a.W, z"),
        (ByParameter({"(": L2()}), ArgumentError, "not a regular expression"),
        (Spectral(radii={"q": 2.0}), ParameterError, "'q' matches no parameter"),
        (MaxOver(L2(), radii=lambda name, shape: -1.0), ArgumentError, "must be positive.*-1.0"),
    ],
)
def test_binding_errors(norm, error, said):
    with pytest.raises(error, match=said):
        norm.bind(Space.of(truth.blocks(0)))


def test_muon_needs_a_matrix():
    with pytest.raises(NormError, match=r"at least one matrix.*Got: b: \(3,\)") as caught:
        Muon().bind(Space({"b": (3,)}))
    assert "'l2' or 'linf' for vectors" in caught.value.do


def test_reprs_can_be_read_back():
    assert repr(Scaled(Linf(), 2.0)) == "Scaled(Linf(), 2)"
    assert repr(SumOver(L2(), radii=RADII)) == "SumOver(L2(), radii={'W$': 2.0, 'b': 0.5})"
    assert repr(Spectral()) == "Spectral()"
    assert repr(Muon()) == "Muon('original')"
    assert repr(ByParameter({"W": L2()}, over=SumOver)) == "ByParameter({'W': L2()}, SumOver)"


def test_a_name_where_only_an_object_is_taken():
    with pytest.raises(ArgumentError) as raised:
        Scaled("l2", 2.0)
    assert "registered name" not in str(raised.value)
