"""sharpness, problem, directional_smoothness and threshold."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator

import geodiag
from geodiag import norms
from tests.fuzz.answers import check_sharpness
from tests.fuzz.case import Case
from tests.fuzz.objects import INF, guard
from tests.fuzz.values import (
    PATTERNS,
    answering,
    arrays,
    fill,
    functions,
    in_framework,
    optional,
    some_wild,
    splits,
    symmetric,
    wild,
)

NORMS = ("l2", "linf", "l1", "block", "spectral", "frobenius", "nuclear", "rms", "muon")
ESTIMATORS = ("auto", "ascent", "lanczos", "blockwise", "enumerate", "frank_wolfe")
SMALL = {
    "max_hvps": st.sampled_from((2, 3, 5, 12, np.int64(4))),
    "seed": st.sampled_from((0, 1, 7, np.int8(3))),
}


def options() -> dict[str, Any]:
    """Usable options of a measurement."""
    return {
        "estimator": st.sampled_from(("auto",) * 6 + ESTIMATORS),
        "rtol": optional(st.sampled_from((1e-4, 0.3, 1e-12, np.float32(0.01)))),
        "max_hvps": SMALL["max_hvps"],
        "seed": SMALL["seed"],
        "certificate": st.sampled_from((False, False, False, True)),
        "progress": st.sampled_from((False, False, True, answering(None))),
        "throw": st.booleans(),
    }


@st.composite
def starts(draw: Any, H: Any, shapes: Any) -> Any:
    """Directions, results and states: of this matrix, of another one, or damaged."""
    kind = draw(
        st.sampled_from(("blocks", "result", "state", "json", "other", "damaged", "half", "nan"))
    )
    sizes = shapes or {"x": (len(H),)}
    blocks = {name: fill(shape, "normal", 5) for name, shape in sizes.items()}
    if kind == "blocks":
        return blocks
    if kind == "nan":
        return {
            name: fill(shape, draw(st.sampled_from(("nan", "zero", "inf", "huge", "tiny"))), 0)
            for name, shape in sizes.items()
        }
    if kind == "half":
        return dict(list(blocks.items())[:-1])
    usual = np.diag(np.arange(1.0, len(H) + 1))
    asked, where = (
        ("l2", {"y": (len(H),)}) if kind == "other" else (draw(st.sampled_from(NORMS[:3])), sizes)
    )
    result = geodiag.sharpness(usual, asked, shapes=where, max_hvps=4)
    if kind in ("result", "other"):
        return result
    state = result.state
    lists = {
        "witness": {k: np.asarray(x).tolist() for k, x in state["witness"].items()},
        "age": state["age"],
        "norm": state["norm"],
    }
    state = json.loads(json.dumps(lists)) if kind == "json" or draw(st.booleans()) else dict(state)
    if kind == "damaged":
        state[draw(st.sampled_from(("witness", "age", "norm", "more")))] = draw(wild())
    return state


def sharpness_of_a_matrix(case: Case) -> None:
    """Near-valid: a symmetric matrix in any framework, two arguments wild."""
    draw = case.draw
    H = draw(symmetric())
    shapes = draw(st.none() | splits(len(H)))
    framework = draw(st.sampled_from(("numpy",) * 6 + ("torch", "jax")))
    good = {
        "norm": st.sampled_from(NORMS) | algebra_norms(),
        "shapes": st.just(shapes),
        "start": optional(starts(H, shapes)),
        **options(),
    }
    given, _ = some_wild(draw, good)
    model = in_framework(H, framework)
    result = case.call("sharpness", geodiag.sharpness, model, **given)
    if result:
        check_sharpness(model, given["norm"], result, given["shapes"])


def algebra_norms() -> Any:
    """Compositions that any parameters have."""
    leaves = st.sampled_from((norms.L2(), norms.Linf(), norms.L1()))
    radii = st.sampled_from((None, 2.0, 0.1, 1e-150, 1e150, np.float32(3), lambda name, shape: 1.5))
    over = st.sampled_from((norms.MaxOver, norms.SumOver, norms.L2Over))
    whole = st.builds(
        lambda kind, norm, r: kind(norm, r), over, leaves | st.just(norms.Spectral()), radii
    )
    pattern = st.builds(lambda norm, kind: norms.ByParameter({".*": norm}, kind), leaves, over)
    scaled = st.builds(norms.Scaled, leaves | whole, st.sampled_from((0.5, 3, 1e100, 1e-200)))
    return whole | pattern | scaled | leaves


def sharpness_of_anything(case: Case) -> None:
    """Wild models and arguments."""
    names = (
        "loss_fn",
        "criterion",
        "data",
        "params",
        "where",
        "weight",
        "reduction",
        "shapes",
        "start",
        "engine",
        "memory",
        "process_group",
        "norm",
        "estimator",
        "seed",
        "rtol",
        "max_hvps",
    )
    chosen = case.draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    arguments = {name: case.draw(wild()) for name in chosen}
    result = case.call("sharpness", geodiag.sharpness, case.draw(wild() | arrays()), **arguments)
    assert not result or isinstance(result, geodiag.SharpnessResult)


def problem_of_anything(case: Case) -> None:
    """The same for ``problem``, and what it builds."""
    names = (
        "loss_fn",
        "criterion",
        "data",
        "params",
        "where",
        "weight",
        "reduction",
        "shapes",
        "engine",
        "memory",
        "process_group",
    )
    chosen = case.draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    built = case.call(
        "problem",
        geodiag.problem,
        case.draw(wild()),
        **{name: case.draw(wild()) for name in chosen},
    )
    if built:
        oracle = case.call(
            "at", built.at, *([case.draw(wild())] if case.draw(st.booleans()) else [])
        )
        if oracle:
            case.call(
                "sharpness",
                geodiag.sharpness,
                oracle,
                case.draw(st.sampled_from(NORMS)),
                max_hvps=3,
            )


def operators(case: Case) -> None:
    """SciPy operators, and what looks like one, whose products are garbage."""
    n = case.draw(st.integers(1, 4))
    H = case.draw(symmetric(n)).astype(float)
    answer = case.draw(
        functions()
        | st.sampled_from(
            (guard(lambda x: H @ x), guard(lambda x: (H @ x)[:, None]), guard(lambda x: -x * INF))
        )
    )
    dtype = case.draw(
        st.sampled_from((np.float64, np.float32, None, np.int64, np.complex128, object, "U3"))
    )
    form = case.draw(st.sampled_from(("scipy", "looks")))
    if form == "scipy":
        try:
            made = LinearOperator((n, n), matvec=answer, dtype=dtype)
            model: Any = _Looks(made.shape, made.dtype, guard(made.matvec))
        except Exception:  # SciPy's own checks
            return
    else:
        model = _Looks(
            (n, n) if case.draw(st.booleans()) else case.draw(wild()), dtype, guard(answer)
        )
    case.call("sharpness", geodiag.sharpness, model, case.draw(st.sampled_from(NORMS)), max_hvps=4)


class _Looks:
    def __init__(self, shape: Any, dtype: Any, matvec: Any) -> None:
        self.shape, self.dtype, self.matvec = shape, dtype, matvec

    def __repr__(self) -> str:
        return f"Looks(shape={self.shape!r}, dtype={self.dtype!r}, matvec={self.matvec!r})"


def callables(case: Case) -> None:
    """(loss, gradient) of which one, or the point, is garbage."""
    draw = case.draw
    shape = draw(st.sampled_from(((), (1,), (3,), (2, 2), (0,))))
    good = {
        "loss": st.just(guard(lambda w: sum(np.sum(np.asarray(x) ** 2) for x in w.values()) / 2)),
        "gradient": st.just(guard(lambda w: {k: x * 1.0 for k, x in w.items()})),
        "params": st.just({"x": fill(shape, "normal", 1)})
        | st.just({"x": np.ones(2, "float32"), "b": np.float64(2) * np.ones(())}),
        "where": optional(PATTERNS),
        "norm": st.sampled_from(NORMS),
        "start": st.none(),
        "throw": st.booleans(),
    }
    given, bad = some_wild(draw, good)
    loss, gradient = given.pop("loss"), given.pop("gradient")
    if callable(loss) and callable(gradient):
        loss, gradient = guard(loss), guard(gradient)
    result = case.call("sharpness", geodiag.sharpness, (loss, gradient), max_hvps=4, **given)
    if result and not bad and not result.status.failed and given["norm"] == "l2":
        # The Hessian is 1, by differences: off by ε^{2/3}, in float32 2e-5, times a constant of 50.
        assert abs(result.value - 1) < 1e-3, result


def smoothness(case: Case) -> None:
    """directional_smoothness along steps near and far from usable ones."""
    draw = case.draw
    H = draw(symmetric())
    n = len(H)
    good = {
        "step": st.builds(
            lambda kind, seed: {"x": fill((n,), kind, seed)},
            st.sampled_from(("normal", "zero", "nan", "inf", "huge", "tiny", "small", "large")),
            st.integers(0, 9),
        ),
        "norm": st.sampled_from(NORMS),
        "kind": st.sampled_from(("remainder", "pointwise", "path", "optimal", "curvature")),
    }
    given, _ = some_wild(draw, good)
    step = given.pop("step")
    value = case.call("directional_smoothness", geodiag.directional_smoothness, H, step, **given)
    if isinstance(value, geodiag.DirectionalSmoothness):
        assert math.isfinite(value)
        s = np.asarray(step["x"], dtype=float)
        usual = all(1e-30 < float(np.abs(x).max()) < 1e30 for x in (H, s))
        if given["norm"] == "l2" and given["kind"] == "curvature" and usual:
            size = float(np.abs(s) @ np.abs(H) @ np.abs(s) / (s @ s))
            tolerance = 1e-5 if H.dtype != np.float64 else 1e-12
            assert abs(value - s @ H.astype(float) @ s / (s @ s)) <= tolerance * size


def thresholds(case: Case) -> None:
    """threshold, against its formula."""
    numbers = st.sampled_from((0.1, 1, 1e-300, 1e300, 0.9, np.float32(0.5), np.asarray(0.25)))
    small = st.sampled_from((0.0, 0.9, 0.5, 1e-9))
    good = {
        "lr": numbers,
        "normalized": st.booleans(),
        "dual_norm": optional(numbers),
        "momentum": small,
        "ema": st.booleans(),
        "nesterov": st.sampled_from((False, False, True)),
        "weight_decay": small,
        "decoupled": st.booleans(),
    }
    given, bad = some_wild(case.draw, good)
    lr = given.pop("lr")
    value = case.call("threshold", geodiag.threshold, lr, **given)
    if not isinstance(value, geodiag.Threshold):
        assert not value
        return
    if not bad and not given["normalized"]:
        b, g = given["momentum"], given["weight_decay"]
        k = (
            1.0
            if not b
            else (1 + b) / (1 + 2 * b if given["nesterov"] else 1) / (1 - b if given["ema"] else 1)
        )
        expected = k * (2 / float(lr) - (g if given["decoupled"] else 0)) - (
            0 if given["decoupled"] else g
        )
        assert math.isclose(value, expected, rel_tol=1e-12, abs_tol=1e-12), (value, expected)
    assert not math.isinf(value), value


TARGETS = {
    "sharpness (matrix)": (sharpness_of_a_matrix, 4.0),
    "sharpness (anything)": (sharpness_of_anything, 2.5),
    "problem": (problem_of_anything, 2.0),
    "sharpness (operator)": (operators, 1.0),
    "sharpness (loss, gradient)": (callables, 1.0),
    "directional_smoothness": (smoothness, 1.0),
    "threshold": (thresholds, 1.5),
}
