"""``python -m tests.fuzz --cases 20000``: counts by target, and every finding.

Exit status: 1 where there is a finding.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import chdir
from tempfile import TemporaryDirectory

from tests import conftest
from tests.fuzz.runner import Count, Finding, explore
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--cases", type=int, default=20_000, help="over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="TEXT", help="targets with this in their names"
    )
    arguments = parser.parse_args()
    chosen = {
        k: t
        for k, t in TARGETS.items()
        if not arguments.only or any(o in k for o in arguments.only)
    }
    whole = sum(share for _, share in chosen.values())
    counts: dict[str, Count] = {}
    findings: dict[tuple[str, str, str], Finding] = {}
    for name, (target, share) in chosen.items():
        cases = -(-round(arguments.cases * share * 1000) // round(whole * 1000))
        counts[name] = explore(name, target, cases, arguments.seed, findings)
        c = counts[name]
        print(
            f"{name:<30} {c.cases:>6} cases, {c.answered:>6} with an answer, {c.seconds:7.1f} s",
            flush=True,
        )
    for (name, _, _), f in sorted(findings.items()):
        print(f"\nFINDING in {name}, {f.times} times\n  {f.what}\n  at {f.where}\n  {f.example}")
    total = sum(c.cases for c in counts.values())
    times = sum(f.times for f in findings.values())
    print(f"\n{total} cases, {times} findings at {len(findings)} places")
    return 1 if findings else 0


if __name__ == "__main__":
    assert conftest  # sets JAX to float64, as the tests do
    with TemporaryDirectory() as folder, chdir(folder):  # some cases write relative paths
        status = main()
    sys.exit(status)
