"""JAX: losses over garbage, Monitor, geometry, non_euclidean_gd, tracker."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import geodiag
import geodiag_jax
from tests.fuzz.case import Case
from tests.fuzz.objects import guard, recursive_dict
from tests.fuzz.targets.algebra import algebra_norms
from tests.fuzz.targets.measure import NORMS
from tests.fuzz.targets.monitors import constructor, states
from tests.fuzz.values import PATTERNS, arrays, functions, mostly, optional, some_wild, wild

X, Y = jnp.ones((2, 3)), jnp.asarray([1.0, -1.0])
POINT = {"W": jnp.asarray([0.5, -1.0, 2.0]), "b": jnp.asarray(0.0)}


@guard
def loss(params: Any, x: Any = X, y: Any = Y) -> Any:
    return jnp.mean((x @ params["W"] + params["b"] - y) ** 2)


def garbage(params: Any, *batch: Any) -> Any:
    """Of the right kind, and not a scalar."""
    return params["W"]


LOSSES = st.sampled_from((loss, loss, loss, guard(garbage), jax.jit(loss)))
POINTS = st.sampled_from(
    (
        POINT,
        POINT,
        POINT,
        {"W": np.ones(3), "b": np.zeros(())},
        {"W": jnp.full(3, jnp.nan), "b": jnp.asarray(1.0)},
    )
)


def leaves() -> Any:
    """A pytree that may be one of parameters."""
    return (
        POINTS
        | st.dictionaries(st.sampled_from(("W", "b", "c")), arrays() | wild(), max_size=3)
        | st.builds(recursive_dict)
        | wild()
    )


def arguments() -> dict[str, Any]:
    return {
        "params": mostly(POINTS, leaves()),
        "data": st.sampled_from((None, (X, Y), [(X, Y)], (X, Y))),
        "where": mostly(st.sampled_from((None, "W", ".*")), PATTERNS),
        "weight": optional(functions()),
        "reduction": st.sampled_from(("mean", "mean", "sum")),
        "engine": st.sampled_from(("auto", "auto", "linearize", "recompute", "finite-difference")),
        "memory": optional(st.sampled_from((0, 10**9))),
        "norm": st.sampled_from(NORMS[:4]),
    }


def own(given: dict[str, Any]) -> dict[str, Any]:
    """The same, with the user's functions guarded."""
    return {
        k: guard(x) if callable(x) and not isinstance(x, type) and k not in ("params",) else x
        for k, x in given.items()
    }


def measured(case: Case) -> None:
    """sharpness of a JAX loss with two arguments wild."""
    draw = case.draw
    given, _ = some_wild(draw, arguments())
    function = draw(LOSSES | functions())
    result = case.call("sharpness", geodiag.sharpness, function, max_hvps=3, **own(given))
    assert not result or isinstance(result, geodiag.SharpnessResult)


def monitor(case: Case) -> None:
    """geodiag_jax.Monitor and its calls."""
    draw = case.draw
    made_of = constructor() | {k: x for k, x in arguments().items() if k not in ("params", "norm")}
    made_of |= {
        "hyperparams": optional(st.sampled_from(({"b1": 0.9}, {"none": 1}))),
        "norm": st.sampled_from((None, "auto", *NORMS[:4])) | functions(),
    }
    given, _ = some_wild(draw, made_of)
    made = case.call("jax Monitor", geodiag_jax.Monitor, draw(LOSSES | functions()), **own(given))
    if not isinstance(made, geodiag.Monitor):
        return
    steps = st.integers(0, 3) | wild()
    state = st.just(optax.adam(0.1).init(POINT)) | st.none() | wild()
    for _ in range(draw(st.integers(1, 2))):
        case.call("observe", made.observe, draw(steps), draw(leaves()), draw(leaves()), draw(state))
    case.call("before", made.before, draw(steps), draw(leaves()), draw(state))
    case.call("after", made.after, draw(leaves()))
    case.call("load_state_dict", made.load_state_dict, draw(states(made)))
    case.call("close", made.close)


def optimizers(case: Case) -> None:
    """geometry and non_euclidean_gd."""
    draw = case.draw
    optimizer = optax.adam(0.1)
    state = optimizer.init(POINT)
    if draw(st.booleans()):
        state = optimizer.update(POINT, state)[1]
    good = {
        "opt_state": st.just(state) | st.lists(wild(), max_size=2),
        "params": leaves(),
        "lr": optional(st.just(0.1)),
        "where": mostly(st.sampled_from((None, "W", ".*")), PATTERNS),
        "hyperparams": optional(
            st.dictionaries(
                st.sampled_from(("b1", "b2", "eps", "x")), st.just(0.9) | wild(), max_size=2
            )
        ),
    }
    given, _ = some_wild(draw, good)
    case.call("geometry", geodiag_jax.geometry, **own(given))
    good = {
        "lr": st.sampled_from((0.1, lambda count: 0.1)) | functions(),
        "norm": st.sampled_from(NORMS) | algebra_norms(),
        "normalized": st.booleans(),
    }
    given, _ = some_wild(draw, good)
    made = case.call("non_euclidean_gd", geodiag_jax.non_euclidean_gd, **own(given))
    if made:
        state = case.call("init", made.init, draw(leaves()))
        if state:
            case.call("update", made.update, draw(leaves()), state)


def trackers(case: Case) -> None:
    """tracker: its arguments, and the pytrees that its functions get."""
    draw = case.draw
    good = {
        "norm": st.sampled_from(NORMS[:3]),
        "where": mostly(st.sampled_from((None, "W", ".*")), PATTERNS),
        "check": st.sampled_from((1, 20)),
        "seed": st.just(0),
    }
    given, _ = some_wild(draw, good)
    made = case.call(
        "tracker", geodiag_jax.tracker, draw(st.just(loss) | functions()), **own(given)
    )
    if made:
        case.call("init", made.init, draw(leaves()))


TARGETS = {
    "sharpness (jax)": (measured, 1.0),
    "geodiag_jax.Monitor": (monitor, 0.6),
    "geometry, non_euclidean_gd": (optimizers, 1.0),
    "tracker": (trackers, 0.5),
}
