"""What is known of a run when its first record is written: the header in its log."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from geodiag.errors import one_line, shown
from geodiag.norms.base import Norm
from geodiag.optimizers.thresholds import Update
from geodiag.oracles import Problem
from geodiag.records.header import Header, command, plain

PACKAGES = ("numpy", "torch", "jax", "optax", "transformers", "lightning")


def run_header(
    run: str,
    problem: Problem,
    norm: Norm | None,
    optimizer: Callable[[], Mapping[str, Any]],
    seed: int,
) -> Header:
    """The header of a run. What cannot be described is left out, with the reason."""
    values: dict[str, Any] = {} if norm is None else {"norm": shown(norm)}
    for name, ask in (("optimizer", optimizer), ("model", problem.describe)):
        try:
            found = plain(ask())
        except Exception as e:  # a name or a number that the user's own objects refuse to give
            found = {"name": one_line(e)}
        values |= {name: found} if name == "optimizer" else found
    values |= {"seed": seed, "versions": versions(), "command": command()}
    values["started"] = datetime.now(UTC).isoformat(timespec="seconds")
    return Header(run, plain(values))


def versions() -> dict[str, str]:
    """The versions of Python, of geodiag and of the frameworks in use."""
    found = {"python": platform.python_version()}
    try:
        found["geodiag"] = metadata.version("geodiag")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        found["geodiag"] = "0+unknown"
    for name in PACKAGES:
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            found[name] = version
    return found


def rule_values(lr: Any, update: Any) -> dict[str, Any]:
    """What ``lr=`` and ``update=`` of a Monitor say of the optimizer."""
    if isinstance(update, Update):
        return {k: x for k, x in vars(update).items() if x or k == "lr"}
    given = lr if update is None else update
    if given is None:
        return {}
    return {"lr": "a function of the step" if callable(given) else float(given)}
