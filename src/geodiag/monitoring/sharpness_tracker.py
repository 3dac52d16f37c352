"""S along a run: mostly one product a measurement, and a search where one is due."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from geodiag.blocks import Blocks, to_numpy
from geodiag.core.validation import is_number, is_whole
from geodiag.errors import ArgumentError, ShapeError
from geodiag.estimators import Ascent, Lanczos, choose
from geodiag.estimators.ascent import CHECK, CHECK_BUDGET, GLANCE, HUGE
from geodiag.estimators.roundoff import SINGLE
from geodiag.estimators.starts import arrays_of, as_start, holds_arrays, is_state
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles import CountingOracle
from geodiag.results import Bound, SharpnessResult, Status
from geodiag.sharpness import sharpness
from geodiag.solvers.power_step import PowerIterate, PowerStep

# Of the residual in a quadratic norm. The value's error is of the order of its square, where the
# eigenvalue stands apart from the others.
RTOL = 0.02
# Where a look changes S by more than this, another follows; where it lowers S by so much, a search.
STEADY = 0.02
LOOKS = 2
# In other than quadratic norms: where the second changes this little, and S has fallen by no more
# than this, S itself falls.
STILL, FALLING = 0.01, 0.2
# Early on S moves fast, and other maxima overtake. The first glance is taken so soon, further ones
# after so many measurements, or as soon where S has changed by this factor since the last.
SOONEST, EARLY, DRIFT = 2, 3, 1.3
# A glance or check that finds at most this much more than was known doubles the time to the next of
# its kind, up to CHECK for glances, and to this for checks.
SURPRISE, RAREST = 1.05, 4 * CHECK


class Follower:
    """The measurements of a run, each from the last.

    A *look* is one product at lmo(Hd), with d and Hd those of the last measurement, or at the last
    witness itself after a search. In a quadratic norm it holds where its residual meets ``rtol``,
    in others where it is at most 2 % below the last value, or at most 20 % below it where a second
    look changes it by no more than 1 %. Where it does not, the measurement is a warm one of
    :func:`geodiag.sharpness`: two or three products more.

    Other maxima may overtake the one that is followed. The first search and every 20th measurement
    spend 20 products on a search from nothing (in a quadratic norm, what the residual asks for),
    every 40th or 80th where such checks found nothing new. In between, but for quadratic norms,
    glances try one start found anew, at nine or ten products: after two measurements, then 3, 6, 12
    and 20 where they find nothing, or two where S has changed by 30 %.

    Args:
        options: those of :func:`geodiag.sharpness`. With an estimator of its own, a budget or a
            certificate, no measurement is a look.

    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        plain = options["estimator"] == "auto" and options["max_hvps"] is None
        self._looks = plain and not options["certificate"]
        self._begin()

    def _begin(self) -> None:
        self._last: Any = None  # a result, or the state of one
        self._value = math.nan  # its value
        self._ahead: Mapping[str, Any] | None = None  # where to look next; lists, where read
        self._age, self._check = 0, CHECK  # measurements since the last check, and up to the next
        self._since, self._glance = 0, EARLY  # since a glance or check, and up to the next glance
        self._found = math.nan  # what the last glance or check found; NaN before the first

    def measure(self, oracle: CountingOracle, asked: Norm, norm: Norm) -> SharpnessResult:
        """S and ‖g‖* of ``oracle``, in the norm ``asked`` for; bound to the oracle it is ``norm``.

        Raises:
            GeodiagError: as :func:`geodiag.sharpness` does with ``throw=False``.
        """
        if isinstance(self._last, Mapping) and _read(self._last["witness"], norm, oracle) is None:
            self._begin()
            found = self.measure(oracle, asked, norm)
            note = "the loaded state is of other parameters: the search began from nothing"
            return replace(found, notes=(*found.notes, note))
        options = dict(self._options)
        if options["rtol"] is None and isinstance(norm, QuadraticNorm):
            options["rtol"] = RTOL
        if not self._may_look(oracle, norm):
            if self._last is None and self._brief(oracle, norm):
                options["max_hvps"] = CHECK_BUDGET
            return self._search(oracle, asked, self._last, options)
        self._age, self._since = self._age + 1, self._since + 1
        last, value = self._last, self._value
        if self._age >= self._check:
            result = self._search(oracle, asked, _aged(last, CHECK - 1), options)
            self._check = min(2 * self._check, RAREST) if _calm(result, value) else CHECK
            self._age, self._since, self._found = 0, 0, result.value
        elif self._glance_due(norm):
            result = self._search(oracle, asked, _aged(last, GLANCE - 1), options)
            if self._since >= self._glance:
                self._glance = min(2 * self._glance, CHECK) if _calm(result, value) else EARLY
            self._since, self._found = 0, result.value
        else:
            looked, holds = self._look(oracle, norm, options["rtol"])
            if looked is not None and holds:
                self._last, self._value = looked, looked.value
                return looked
            if looked is not None and isinstance(norm, QuadraticNorm):
                last = looked  # the power method has come nearer
            result = self._search(oracle, asked, _aged(last, 0), options)
        return result

    def follow(self, result: SharpnessResult) -> None:
        """Go on from this witness."""
        self._last, self._value, self._ahead = result, result.value, result.direction

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on later needs: plain numbers, texts, lists and dicts."""
        last = self._last.state if isinstance(self._last, SharpnessResult) else self._last
        if last is not None:
            last = {
                "witness": _lists(last["witness"]),
                "age": int(last["age"]),
                "norm": str(last["norm"]),
            }
        return {
            "last": last,
            "value": _plain(self._value),
            "ahead": None if self._ahead is None else _lists(self._ahead),
            "age": self._age,
            "check": self._check,
            "since": self._since,
            "glance": self._glance,
            "found": _plain(self._found),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises ``KeyError``, ``TypeError`` or ``ValueError`` where it is something else, before any
        change.
        """
        last, ahead = state["last"], state["ahead"]
        if last is not None and not (is_state(last) and holds_arrays(last["witness"])):
            raise ValueError("a witness of another form")
        if (last is None) is not (ahead is None) or not (ahead is None or holds_arrays(ahead)):
            raise ValueError("a direction of another form")
        numbers = [state["value"], state["found"]]
        if not all(x is None or is_number(x) for x in numbers):
            raise ValueError("a value that is no number")
        counts = state["age"], state["check"], state["since"], state["glance"]
        if not all(map(is_whole, counts)) or min(counts) < 0 or 0 in counts[1::2]:
            raise ValueError("counts of another form")
        if counts[1] > RAREST or counts[3] > CHECK:
            raise ValueError("counts of another form")
        self._last, self._ahead = last, ahead
        self._value, self._found = (math.nan if x is None else float(x) for x in numbers)
        self._age, self._check, self._since, self._glance = map(int, counts)

    def _may_look(self, oracle: CountingOracle, norm: Norm) -> bool:
        if not self._looks or self._ahead is None or oracle.free_hvps:
            return False
        if oracle.precision > SINGLE:  # what rounding leaves of a value, a search finds out
            return False
        last = self._last.state if isinstance(self._last, SharpnessResult) else self._last
        if last["norm"] != repr(norm) or not isinstance(
            choose(norm, oracle.space), (Ascent, Lanczos)
        ):
            return False
        if not isinstance(self._last, SharpnessResult):
            self._ahead = _read(self._ahead, norm, oracle)
        return self._ahead is not None

    def _brief(self, oracle: CountingOracle, norm: Norm) -> bool:
        """Whether the first search spends as much as a check: what it misses, they find."""
        ascends = isinstance(choose(norm, oracle.space), Ascent)
        return self._looks and ascends and not oracle.free_hvps and oracle.space.size <= HUGE

    def _glance_due(self, norm: Norm) -> bool:
        if isinstance(norm, QuadraticNorm) or self._since < SOONEST:
            return False
        found, value = abs(self._found), abs(self._value)
        drifted = not found / DRIFT <= value <= DRIFT * found
        return drifted or self._since >= self._glance

    def _search(
        self, oracle: CountingOracle, asked: Norm, start: Any, options: dict[str, Any]
    ) -> SharpnessResult:
        result = sharpness(oracle, asked, start=start, throw=False, **options)
        if not result.status.failed:
            self.follow(result)
        return result

    def _look(
        self, oracle: CountingOracle, norm: Norm, rtol: float | None
    ) -> tuple[SharpnessResult | None, bool]:
        """The better of at most two looks, and whether it holds; None if one is not finite."""
        if not math.isfinite(float(oracle.loss())):
            return None, False
        best: SharpnessResult | None = None
        still = False
        for _ in range(LOOKS):
            assert self._ahead is not None
            with oracle.surroundings():
                looked = oracle.run(PowerStep(norm), self._ahead, oracle.gradient())
            result = _result(looked, oracle, norm, self._age)
            if result is None:
                return None, False
            if best is not None and not isinstance(norm, QuadraticNorm):
                still = abs(result.value - best.value) <= STILL * best.value
                still = still and best.value >= (1 - FALLING) * self._value
            if best is None or result.value > best.value:
                best, self._ahead = result, looked.ahead
            if _steady(best, self._value, norm, rtol):
                break
        assert best is not None
        return best, still or _holds(best, self._value, norm, rtol)


def _calm(result: SharpnessResult, known: float) -> bool:
    return not result.status.failed and result.value <= known + (SURPRISE - 1) * abs(known)


def _aged(last: Any, age: int) -> Any:
    """A result, or its state, as that of a measurement so many after a cold one."""
    if isinstance(last, SharpnessResult):
        return replace(last, state=last.state | {"age": age})
    return last | {"age": age}


def _lists(blocks: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x if isinstance(x, list) else to_numpy(x).tolist() for name, x in blocks.items()}


def _plain(x: float) -> float | None:
    return None if math.isnan(x) else x


def _read(lists: Mapping[str, Any], norm: Norm, oracle: CountingOracle) -> Blocks | None:
    """Blocks from lists; None where they are no direction in this space."""
    try:
        return as_start(arrays_of(lists), oracle, norm)[0]
    except (ShapeError, ArgumentError):
        return None


def _result(looked: PowerIterate, oracle: CountingOracle, norm: Norm, age: int) -> SharpnessResult | None:
    value, residual, dual_norm = to_numpy(looked.numbers).tolist()
    # An entry that is not finite makes the sums so, too.
    if not (math.isfinite(value) and math.isfinite(dual_norm)):
        return None
    name = repr(norm)
    return SharpnessResult(
        value=value,
        direction=looked.direction,
        bound=Bound.LOWER,
        status=Status.COMPLETED,
        norm=name,
        estimator="Look()",
        num_hvps=oracle.num_hvps,
        dual_norm=dual_norm,
        residual=None if math.isnan(residual) else residual / abs(value) if value else math.inf,
        notes=oracle.notes,
        state={
            "witness": looked.direction,  # on its device: what a search starts from
            "age": age,
            "norm": name,
        },
    )


def _steady(result: SharpnessResult, last: float, norm: Norm, rtol: float | None) -> bool:
    if isinstance(norm, QuadraticNorm):
        return _holds(result, last, norm, rtol)
    return abs(result.value - last) <= STEADY * abs(last)


def _holds(result: SharpnessResult, last: float, norm: Norm, rtol: float | None) -> bool:
    if result.value <= 0:
        return False
    if isinstance(norm, QuadraticNorm):
        assert result.residual is not None
        assert rtol is not None
        return result.residual <= rtol
    return result.value >= (1 - STEADY) * last
