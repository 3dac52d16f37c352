"""``python -m benchmarks [--quick] [part ...]``: all parts, or those named.

    import   what importing geodiag takes, beside NumPy
    hvp      the cost of a Hessian-vector product, per framework and engine
    paper    default S against the paper's Frank–Wolfe
    peers    λ_max against other libraries, cold and after a training step
    warm     S tracked along a training run
    overhead what a monitor costs a training run
    without_s what a record with sharpness=False costs; losses of the critical step
    gpt2     joint spectral S of a model of GPT-2 small's size
    growth   how the cost grows with parameters, layers and data

``--quick``: smaller problems and fewer repeats, to see that everything runs.
"""

from __future__ import annotations

import importlib
import os
import sys

from benchmarks.report import machine

PARTS = {
    "import": "imports",
    "hvp": "hvp_cost",
    "paper": "paper",
    "peers": "peers",
    "warm": "warm",
    "overhead": "overhead",
    "without_s": "without_s",
    "gpt2": "gpt2",
    "growth": "growth",
}


def main(arguments: list[str]) -> int:
    quick = "--quick" in arguments
    chosen = [a for a in arguments if a != "--quick"] or list(PARTS)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    print(f"{machine()}; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    for name in chosen:
        importlib.import_module(f"benchmarks.{PARTS[name]}").run(quick)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
