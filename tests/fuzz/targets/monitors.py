"""Monitor: its constructor, its calls in any order, and its state."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
from hypothesis import strategies as st

import geodiag
from tests.fuzz.case import Case
from tests.fuzz.objects import NUMBERS, guard
from tests.fuzz.targets.measure import NORMS
from tests.fuzz.values import PATTERNS, fill, functions, mostly, optional, some_wild, wild

H = np.diag([4.0, 1.0, 0.5])
PAIR = (guard(lambda w: 0.5 * w["x"] @ H @ w["x"]), guard(lambda w: {"x": H @ w["x"]}))


def updates() -> Any:
    fields = st.fixed_dictionaries(
        {"lr": st.sampled_from((0.1, *NUMBERS))},
        optional={
            "momentum": st.sampled_from((0.9, *NUMBERS)),
            "normalized": st.booleans(),
            "weight_decay": wild(),
        },
    )
    return fields.map(lambda given: geodiag.Update(**given))


def constructor() -> dict[str, Any]:
    return {
        "norm": st.sampled_from(NORMS) | functions(),
        "lr": optional(
            st.sampled_from((0.1, 1e-3, np.float32(0.1), lambda step: 0.1)) | functions()
        ),
        "update": optional(updates() | functions()),
        "every": st.sampled_from((1, 1, 2, np.int64(1), lambda step: True)) | functions(),
        "budget": optional(st.sampled_from((0.5, 0.01))),
        "log": optional(functions()),
        "estimator": st.sampled_from(("auto", "auto", "ascent", "lanczos")),
        "max_hvps": st.sampled_from((3, 8)),
        "rtol": optional(st.just(0.1)),
        "certificate": st.sampled_from((False, False, True)),
        "seed": st.sampled_from((0, 3)),
    }


def points() -> Any:
    """The point of a call: usable, damaged, or anything."""
    near = st.builds(
        lambda kind, seed: {"x": fill((3,), kind, seed)},
        st.sampled_from(("normal", "normal", "nan", "huge", "zero", "tiny")),
        st.integers(0, 5),
    )
    return near | near | st.just({"x": np.ones(4)}) | wild()


def monitor(case: Case) -> None:
    """A matrix or callables, any arguments, then calls in any order."""
    draw = case.draw
    given, _ = some_wild(draw, constructor())
    for name in ("norm", "lr", "every", "update", "log"):
        if callable(given[name]) and not isinstance(given[name], type):
            given[name] = guard(given[name])
    extra = {"where": draw(PATTERNS)} if draw(st.integers(0, 5)) == 0 else {}
    if draw(st.integers(0, 3)):
        made = case.call(
            "Monitor", geodiag.Monitor, PAIR, params={"x": np.ones(3)}, **given, **extra
        )
    else:
        made = case.call("Monitor", geodiag.Monitor, draw(st.just(H) | wild()), **given)
    if not isinstance(made, geodiag.Monitor):
        return
    steps = st.integers(0, 5) | wild()
    calls = {
        "due": lambda: case.call("due", made.due, draw(steps)),
        "before": lambda: case.call("before", made.before, draw(steps), draw(points())),
        "after": lambda: case.call("after", made.after, draw(points())),
        "observe": lambda: case.call(
            "observe", made.observe, draw(steps), draw(points()), draw(points())
        ),
        "abandon": lambda: case.call("abandon", made.abandon),
        "state": lambda: json.dumps(case.call("state_dict", made.state_dict)),
        "load": lambda: case.call("load_state_dict", made.load_state_dict, draw(states(made))),
        "close": lambda: case.call("close", made.close),
    }
    for name in draw(st.lists(st.sampled_from(sorted(calls)), min_size=1, max_size=4)):
        calls[name]()
    case.call("observe", made.observe, 0, {"x": np.ones(3)}, {"x": 0.9 * np.ones(3)})
    case.call("close", made.close)
    for record in made.records:
        assert isinstance(record, geodiag.Record)
        assert isinstance(record.step, int)


def states(made: geodiag.Monitor) -> Any:
    """The monitor's own state, damaged in one place, or anything."""

    def places(node: Any) -> list[tuple[str, ...]]:
        if not isinstance(node, dict):
            return [()]
        return [(), *((k, *rest) for k in node for rest in places(node[k]))]

    whole = made.state_dict()

    def damaged(path: tuple[str, ...], value: Any) -> Any:
        if not path:
            return value
        node = state = copy.deepcopy(whole)
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        return state

    last = st.fixed_dictionaries({"witness": witnesses(), "age": AGES, "norm": st.just("L2()")})
    following = st.fixed_dictionaries(
        {
            "last": last,
            "ahead": witnesses(),
            "age": AGES,
            "cold_after": AGES,
            "value": st.sampled_from((1.0, None)),
            "found": st.sampled_from((1.0, None)),
        }
    )
    loaded = following.map(lambda f: damaged(("tracker",), f)) if "tracker" in whole else wild()
    paths = st.sampled_from([path for path in places(whole) if path])
    return loaded | st.builds(damaged, paths, wild() | st.sampled_from(NUMBERS)) | wild()


AGES = st.sampled_from((0, 1, 4, 19, 30, 10**30))


def witnesses() -> Any:
    """Directions of this model, of another one, or none."""
    near = st.sampled_from(
        ([1.0, 0.0, 2.0], [0.0] * 3, [1.0], [[1.0], [2.0, 3.0]], [float("nan")] * 3)
    )
    return st.fixed_dictionaries({"x": mostly(near, wild())})


def records(case: Case) -> None:
    """Record and Update of anything, written by the sinks and by a monitor."""
    draw = case.draw
    names = ("step", "loss", "lr", "sharpness", "bound", "note", "num_hvps")
    given = {
        k: draw(wild()) for k in draw(st.lists(st.sampled_from(names), unique=True, max_size=2))
    }
    record = case.call("Record", geodiag.Record, **{"step": 1} | given)
    if record and not given:
        case.call("metrics", geodiag.sinks.metrics, record)
    case.call("as_sinks", geodiag.sinks.as_sinks, draw(wild() | st.lists(wild(), max_size=2)))


TARGETS = {"Monitor": (monitor, 3.0), "Record, sinks": (records, 0.5)}
