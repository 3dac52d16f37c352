"""Norms and estimators: how they are built, registered and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

import geodiag
from geodiag import estimators, norms, testing
from geodiag.plugins.manager import Registry
from tests.fuzz.answers import check_sharpness
from tests.fuzz.case import Case
from tests.fuzz.objects import NAMES, guard
from tests.fuzz.targets.measure import NORMS, algebra_norms
from tests.fuzz.values import (
    PATTERNS,
    SHAPES,
    answering,
    arrays,
    fill,
    functions,
    optional,
    some_wild,
    symmetric,
    wild,
)

LEAVES = (norms.L2(), norms.L1(), norms.Linf(), norms.Spectral(), norms.Nuclear(), norms.RMS())
OVER = (norms.MaxOver, norms.SumOver, norms.L2Over)
BLOCKS = {"W": (2, 2), "b": (1,)}
RADII = optional(
    st.sampled_from(
        (0.5, 2, 1e-300, 1e300, {"W": 2.0}, {"nothing": 1.0}, {}, {"(": 1.0}, {"W": "a"}, {1: 1.0})
    )
    | functions().map(guard)
)


def norm_algebra(case: Case) -> None:
    """MaxOver, SumOver, L2Over, ByParameter and Scaled, then a measurement with what they build."""
    draw = case.draw
    kind = draw(st.sampled_from(("over", "by", "scaled", "muon", "functions", "preconditioned")))
    leaf = st.sampled_from(LEAVES) | algebra_norms()
    if kind == "over":
        given, _ = some_wild(draw, {"norm": leaf, "radii": RADII})
        norm = case.call("Over", draw(st.sampled_from(OVER)), **given)
    elif kind == "by":
        table = st.dictionaries(PATTERNS | st.just("."), leaf | leaf | wild(), max_size=3)
        good = {
            "norms": table,
            "over": st.sampled_from(OVER),
            "radii": optional(
                st.dictionaries(PATTERNS, st.sampled_from((1.0, -1, "a")), max_size=2)
            ),
        }
        given, _ = some_wild(draw, good, most=1)
        norm = case.call("ByParameter", norms.ByParameter, **given)
    elif kind == "scaled":
        given, _ = some_wild(
            draw, {"norm": leaf, "c": st.sampled_from((2, 0.5, 1e-160, 1e308, 1e-320))}
        )
        norm = case.call("Scaled", norms.Scaled, **given)
    elif kind == "functions":
        good = {
            "value": st.just(guard(lambda d: np.max(np.abs(d["W"])))) | functions().map(guard),
            "lmo": st.just(guard(lambda g: {k: np.sign(x) for k, x in g.items()}))
            | functions().map(guard),
            "dual": optional(functions().map(guard)),
        }
        given, _ = some_wild(draw, good, most=1)
        norm = case.call(
            "FromFunctions",
            norms.FromFunctions,
            **{k: guard(f) if callable(f) else f for k, f in given.items()},
        )
        if norm:
            case.call("sharpness", geodiag.sharpness, np.eye(5), norm, shapes=BLOCKS, max_hvps=4)
            case.call(
                "dual",
                geodiag.directional_smoothness,
                np.eye(5),
                {"W": np.ones((2, 2)), "b": np.ones(1)},
                norm,
                kind="pointwise",
            )
        return
    elif kind == "preconditioned":
        preconditioned(case)
        return
    else:
        plain = (norms.RMS, norms.L2, norms.L1, norms.Linf)
        taking = (norms.Spectral, norms.Nuclear, norms.Frobenius, norms.Muon)
        maker = draw(st.sampled_from(plain + taking))
        given = draw(st.lists(RADII | wild(), max_size=int(maker in taking)))
        norm = case.call(maker.__name__, maker, *(guard(x) if callable(x) else x for x in given))
    if isinstance(norm, geodiag.Norm):
        H = draw(symmetric(5))
        result = case.call(
            "sharpness",
            geodiag.sharpness,
            H,
            norm,
            shapes=BLOCKS,
            max_hvps=draw(st.sampled_from((2, 4, 9))),
        )
        if result:
            check_sharpness(H, norm, result, BLOCKS)


def preconditioned(case: Case) -> None:
    """Preconditioned(P) of every form."""
    draw = case.draw
    good = np.array([[2.0, 0.5], [0.5, 1.0]])
    entry = (
        st.just(np.full((2, 2), 2.0))
        | arrays(((2, 2), (2,), (), (0,)))
        | st.tuples(st.just(good) | arrays(((2, 2),)), st.just(good) | wild())
        | wild()
    )
    P = draw(
        st.fixed_dictionaries({"W": entry, "b": st.just(np.ones(1)) | wild()})
        | arrays(((5, 5), (2, 2), (5,), ()))
        | st.just(np.eye(5))
        | st.tuples(functions().map(guard), functions().map(guard))
        | wild()
    )
    norm = case.call("Preconditioned", norms.Preconditioned, P)
    if norm:
        H = draw(symmetric(5))
        result = case.call("sharpness", geodiag.sharpness, H, norm, shapes=BLOCKS, max_hvps=6)
        if result and not isinstance(P, tuple):
            check_sharpness(H, norm, result, BLOCKS)


class Faulty(geodiag.Norm):
    """A norm whose methods answer garbage."""

    def __init__(self, value: Any, lmo: Any) -> None:
        self._value, self._lmo = value, lmo

    def value(self, d: Any) -> Any:
        return self._value(d)

    def lmo(self, g: Any) -> Any:
        return self._lmo(g)


def registering(case: Case) -> None:
    """register_norm and register, on a registry of their own; then the names are used."""
    draw = case.draw
    registry = Registry(lambda: ())
    names = st.sampled_from(NAMES) | wild()
    factory = (
        st.sampled_from((norms.L2, norms.L2(), lambda: norms.L1(), Faulty)) | functions() | wild()
    )
    for _ in range(draw(st.integers(1, 2))):
        name = draw(names)
        case.call(
            "register_norm",
            registry.register_norm,
            name,
            guard(f) if callable(f := draw(factory)) else f,
        )
        if isinstance(name, str):
            case.call("norm", registry.norm, name)
    case.call(
        "register",
        registry.register,
        draw(
            st.sampled_from((_Plugin(answering({"a": norms.L2})),))
            | functions().map(_Plugin)
            | wild()
        ),
        *draw(st.lists(names, max_size=1)),
    )
    case.call("norms", registry.norms)
    case.call("norm", registry.norm, draw(names))
    case.call("estimator", registry.estimator, draw(names))
    case.call("available_norms", geodiag.available_norms)
    wrong = draw(wild())
    if not (isinstance(wrong, str) and wrong):  # the one registry of the process stays as it is
        case.call("register_norm", geodiag.register_norm, wrong, norms.L2)


class _Plugin:
    def __init__(self, answer: Any) -> None:
        self.answer = guard(answer) if callable(answer) else answer

    @geodiag.hookimpl
    def geodiag_norms(self) -> Any:
        return self.answer()


def estimator_arguments(case: Case) -> None:
    """Constructors of estimators, and measurements with what they build."""
    draw = case.draw
    kinds = {
        estimators.Ascent: ("starts",),
        estimators.FrankWolfe: ("iterations", "restarts"),
        estimators.Lanczos: ("basis",),
        estimators.Blockwise: (),
        estimators.Enumerate: (),
    }
    kind = draw(st.sampled_from(tuple(kinds)))
    usual = st.sampled_from((1, 2, 3, 8))
    given = {k: draw(usual | wild()) for k in kinds[kind] if draw(st.booleans())}
    made = case.call(kind.__name__, kind, **given)
    if made:
        H = draw(symmetric())
        norm = draw(st.sampled_from(NORMS))
        budget = 12 if kind is estimators.FrankWolfe else draw(st.sampled_from((2, 9)))
        result = case.call("sharpness", geodiag.sharpness, H, norm, estimator=made, max_hvps=budget)
        if result:
            check_sharpness(H, norm, result)


class Answers(geodiag.SharpnessEstimator):
    """An estimator that answers something else."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def estimate(self, oracle: Any, norm: Any, start: Any = None, options: Any = None) -> Any:
        return self.answer


def checks(case: Case) -> None:
    """geodiag.testing.check_*: of garbage, and of faulty things."""
    draw = case.draw
    what = draw(st.sampled_from(("norm", "oracle", "estimator")))
    if what == "estimator":
        estimator = draw(wild() | wild().map(Answers))
        if not isinstance(estimator, geodiag.estimators.Lanczos):
            case.call("check_estimator", testing.check_estimator, estimator, **_seed(draw))
    elif what == "oracle":
        model = draw(st.just(geodiag.problem(np.diag([1.0, -2.0])).at()) | wild())
        case.call("check_oracle", testing.check_oracle, model, **_seed(draw))
    else:
        answers = functions().map(guard)
        faulty = st.builds(Faulty, answers, answers)
        norm = draw(st.sampled_from(LEAVES) | faulty | wild())
        shapes = st.lists(st.sampled_from(SHAPES), max_size=2)
        example = st.builds(
            lambda s: {f"x{i}": fill(shape, "normal", i) for i, shape in enumerate(s)}, shapes
        )
        mixed = st.dictionaries(st.sampled_from(("W", "b")), arrays(), max_size=2)
        case.call(
            "check_norm", testing.check_norm, norm, draw(example | mixed | wild()), **_seed(draw)
        )


def _seed(draw: Any) -> dict[str, Any]:
    return {"seed": draw(wild())} if draw(st.integers(0, 3)) == 0 else {}


TARGETS = {
    "norms": (norm_algebra, 3.0),
    "register, register_norm": (registering, 1.0),
    "estimators": (estimator_arguments, 1.0),
    "testing.check_*": (checks, 1.0),
}
