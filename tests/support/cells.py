"""One cell of the support matrix: an architecture, an engine and a precision, against the truth."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import geodiag
from tests.support.truths import Truth

# The stated bounds on |λ − λ_max| / λ_max. In fewer than 32 bits, and for finite differences of
# single precision, a result says itself how far rounding moves it: TIMES that is allowed too.
BOUNDS = {"float64": 1e-5, "float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-3}
TIMES = 3
# Products by finite differences, relative: ε^{2/3} for smooth losses, with a margin for others.
DIFFERENCES = {"float64": 1e-4, "float32": 1e-3}

WORKS, BY_DIFFERENCES, ERROR = "works", "works by finite differences", "clear error"


@dataclass(frozen=True)
class Outcome:
    """What a cell came to."""

    kind: str
    top: float = float("nan")  # |λ − λ_max| / λ_max
    signs: float = float("nan")  # |⟨d, Hd⟩ − truth| / Σ|d_i (Hd)_i|, d of unit ℓ∞ norm
    noted: float = 0.0  # the relative uncertainty that the result's notes tell
    said: str = ""  # the error's sentence, or notes that are not of precision

    def fault(self, precision: str) -> str | None:
        """Why the cell is wrong: outside of the bound of a precision, and silent about it."""
        if self.kind == ERROR:
            return None
        bound = (DIFFERENCES if self.kind == BY_DIFFERENCES else BOUNDS)[precision]
        allowed = max(bound, TIMES * self.noted)
        if not max(self.top, self.signs) <= allowed:
            return f"off by {self.top:.1e} and {self.signs:.1e}, {allowed:.1e} allowed"
        return None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    problem: Callable[..., geodiag.Problem],
    engine: str,
    asarray: Callable[[Any], Any],
    truth: Truth,
) -> Outcome:
    """Measure a problem, which may refuse to be made."""
    try:
        with problem(engine=engine) as made:
            oracle = made.at()
            result = geodiag.sharpness(oracle, max_hvps=100)
            d = {n: asarray(x).reshape(oracle.shapes[n]) for n, x in truth.direction.items()}
            along = geodiag.directional_smoothness(oracle, d, "linf", kind="curvature")
    except geodiag.GeodiagError as e:
        return Outcome(ERROR, said=sentence(e))
    different = engine == "finite-difference" or any("difference" in n for n in result.notes)
    plain = [n for n in result.notes if not re.search("moves the value|does not resolve", n)]
    return Outcome(
        BY_DIFFERENCES if different else WORKS,
        top=abs(result.value - truth.top) / abs(truth.top),
        signs=abs(float(along) - truth.signs) / truth.scale,
        noted=max(map(_noted, result.notes), default=0.0),
        said=lasting("; ".join(plain)),
    )


def sentence(e: geodiag.GeodiagError) -> str:
    """What was wrong, and what was got."""
    return lasting(f"{type(e).__name__}: {e.what}" + (f" ({e.got})" if e.got else ""))


def lasting(text: str) -> str:
    """In one line, without the figures of the moment."""
    text = " ".join(text.split())
    text = re.sub(r"relative difference of [\d.e+-]+", "relative difference", text)
    return re.sub(r" by a relative [\d.e+-]+", "", text)


def _noted(note: str) -> float:
    if "does not resolve" in note:
        return float("inf")
    found = re.search(r"moves the value by about (\S+) of it", note)
    return float(found.group(1)) if found else 0.0
