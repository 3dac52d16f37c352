"""What the benchmarks print: the machine, tables in Markdown, medians with their quartiles."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

VERSIONED = (
    "torch",
    "jax",
    "numpy",
    "scipy",
    "hessian-eigenthings",
    "curvlinops-for-pytorch",
    "pyhessian",
    "matfree",
    "transformers",
)


def machine() -> str:
    """Cores, processor, and the versions of what is compared; no names of hosts or folders."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {v}" for name in VERSIONED if (v := _version(name)))
    return (
        f"{cores} cores of {model or platform.machine()}, {platform.system()}, "
        f"Python {platform.python_version()}; {versions}"
    )


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a Markdown table; texts to the left, the rest to the right."""
    body = [["–" if x is None else str(x) for x in row] for row in rows]
    widths = [max(len(x) for x in column) for column in zip(heads, *body, strict=True)]
    print(f"\n{title}\n")
    for i, row in enumerate([list(heads), *body]):
        print("| " + " | ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|", flush=True)
    print(flush=True)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median and quartiles: ``2.1 (1.9–2.4)``."""
    if len(values) < 2:
        return f"{values[0]:.{digits}g}"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{statistics.median(values):.{digits}g} ({low:.{digits}g}–{high:.{digits}g})"


def missing(module: str, part: str) -> bool:
    """Whether ``module`` is not installed; says so."""
    if importlib.util.find_spec(module) is not None:
        return False
    print(f"\n{part}: left out, {module} is not installed (pip install 'geodiag[bench]')")
    return True


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
