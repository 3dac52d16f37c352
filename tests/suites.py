"""Runs of the suite that take several pytest processes, each with one table and one exit status.

    python -m tests.suites slow      the slow tests, some files at a time
    python -m tests.suites machines  the numeric part under instruction sets and thread counts
    python -m tests.suites seeds     the numeric part with perturbed draws (see perturbation.py)

Folders after that replace the whole, or the numeric part, e.g. ``machines tests/norms``;
``--seeds 1 2 3`` are the seeds, ten unless given.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Compiling takes most of the tests' time, and the compiled code little of it. The older emitters
# compile in half the time of the newer; set XLA_FLAGS yourself to test with what XLA does unasked.
XLA_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
# Folders in which hardly a number is computed, or only by processes with settings of their own.
NOT_NUMERIC = {"bad_input", "experiments", "faults", "fuzz", "isolation", "memory", "plugin_sample"}
NOT_NUMERIC |= {"plugins", "records", "report"}
# Instruction sets: NumPy's OpenBLAS, torch's MKL and own kernels, XLA; and what /proc/cpuinfo has.
SETS: dict[str, tuple[str, Mapping[str, str]]] = {
    "as found": ("", {}),
    "AVX2": (
        "avx2",
        {
            "OPENBLAS_CORETYPE": "Haswell",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "ATEN_CPU_CAPABILITY": "avx2",
            "XLA_FLAGS": f"{XLA_FLAGS} --xla_cpu_max_isa=AVX2",
        },
    ),
    "SSE4.2": (
        "sse4_2",
        {
            "OPENBLAS_CORETYPE": "Nehalem",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "ATEN_CPU_CAPABILITY": "default",
            "XLA_FLAGS": f"{XLA_FLAGS} --xla_cpu_max_isa=SSE4_2",
        },
    ),
}
AT_ONCE = 30  # slow tests in one process: XLA's compiler crashes after some hundred programs


@dataclass
class Verdict:
    """What one pytest process said."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    code: int = 0
    seconds: float = 0.0

    @property
    def green(self) -> bool:
        return self.code == 0 and not self.failed

    def __str__(self) -> str:
        crashed = "" if self.green or self.failed else f"; pytest ended with {self.code}"
        return (
            f"{self.passed:5} passed {len(self.failed):3} failed {len(self.skipped):3} skipped "
            f"{self.seconds:6.0f} s  {'green' if self.green else 'RED'}{crashed}"
        )


def run(arguments: Iterable[str], env: Mapping[str, str], workers: int = 0) -> Verdict:
    """One pytest process, ``workers`` of xdist below it."""
    began = time.monotonic()
    parallel = ["-n", str(workers), "--dist", "worksteal"] if workers else []
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.xml", Path(folder) / "log.txt"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *parallel]
        with log.open("w") as out:
            code = subprocess.run(
                [*command, *arguments],
                cwd=ROOT,
                env={"OMP_NUM_THREADS": "1", **os.environ, **env},
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        verdict = Verdict(code=code, seconds=time.monotonic() - began)
        if report.exists():
            for case in ET.parse(report).iter("testcase"):
                _count(case, verdict)
        if not verdict.green:
            print(log.read_text(errors="replace")[-20_000:])
    return verdict


def _count(case: ET.Element, verdict: Verdict) -> None:
    name = f"{case.get('classname')}::{case.get('name')}"
    if case.find("failure") is not None or case.find("error") is not None:
        verdict.failed.append(name)
    elif (skip := case.find("skipped")) is not None:
        verdict.skipped.append(f"{name}: {skip.get('message')}")
    else:
        verdict.passed += 1


def numeric() -> list[str]:
    """The folders of the numeric part; says which it leaves out."""
    folders = sorted(p.parent.name for p in (ROOT / "tests").glob("*/__init__.py"))
    print(f"not in the numeric part: {', '.join(sorted(NOT_NUMERIC & {*folders}))}; slow tests")
    return [f"tests/{name}" for name in folders if name not in NOT_NUMERIC]


def slow(folders: list[str]) -> Iterator[tuple[str, Verdict]]:
    """The slow tests, file by file, and of a long file some at a time."""
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-m", "slow", *folders],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": "--no-header"},
        capture_output=True,
        text=True,
        check=False,
    )
    files = [line.rpartition(": ")[0] for line in collected.stdout.splitlines() if ": " in line]
    if collected.returncode or not files:
        print(collected.stdout + collected.stderr)
        yield "collection", Verdict(code=collected.returncode or 5)
        return
    for file in files:
        yield from _pieces(file)


def _pieces(file: str) -> Iterator[tuple[str, Verdict]]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "slow", file]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [line for line in listed.stdout.splitlines() if "::" in line]
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        yield f"{file} {start + 1}-{start + len(some)}", run(some, {})


def machines(folders: list[str]) -> Iterator[tuple[str, Verdict]]:
    """Every instruction set with one thread and with two."""
    cpu = Path("/proc/cpuinfo")
    has = set(cpu.read_text().split()) if cpu.exists() else {"avx2", "sse4_2"}
    for name, (flag, env) in SETS.items():
        for threads in (1, 2):
            where = f"{name}, {threads} thread{'s' * (threads > 1)}"
            if flag and flag not in has:
                print(f"{where}: left out, this processor has no {flag}")
                continue
            counts = {f"{of}_NUM_THREADS": str(threads) for of in ("OMP", "MKL", "OPENBLAS")}
            yield where, run(["-m", "not slow", *folders], {**env, **counts}, 2)


def seeds(folders: list[str], chosen: list[int]) -> Iterator[tuple[str, Verdict]]:
    for seed in chosen:
        yield f"seed {seed}", run(["-m", "not slow", "--perturb", str(seed), *folders], {}, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suite", choices=["slow", "machines", "seeds"])
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 11)))
    options = parser.parse_args()
    if options.suite == "slow":
        runs = slow(options.folders or ["tests"])
    elif options.suite == "machines":
        runs = machines(options.folders or numeric())
    else:
        runs = seeds(options.folders or numeric(), options.seeds)
    found = []
    for name, verdict in runs:
        print(f"{name:45} {verdict}", flush=True)
        found.append((name, verdict))
    print(f"\n{options.suite}: {sum(v.passed for _, v in found)} passed")
    for word in ("skipped", "failed"):
        for line in sorted({line for _, verdict in found for line in getattr(verdict, word)}):
            print(f"  {word}: {line}")
    red = [name for name, verdict in found if not verdict.green]
    print(f"red: {', '.join(red)}" if red else "all green")
    return 1 if red or not found else 0


if __name__ == "__main__":
    sys.exit(main())
