"""``python -m benchmarks [hvp] [paper]``: all, or those named."""

from __future__ import annotations

import platform
import sys

from benchmarks import hvp_cost, paper

BENCHMARKS = {"hvp": hvp_cost.run, "paper": paper.run}


def main() -> int:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in chosen if name not in BENCHMARKS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    print(f"{platform.machine()}, Python {platform.python_version()}")
    for name in chosen:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
