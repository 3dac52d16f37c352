"""S along a run: mostly one product a measurement, and a search where one is due."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from geodiag.blocks import Blocks, to_numpy
from geodiag.core.validation import is_number, is_whole
from geodiag.errors import ArgumentError, ShapeError
from geodiag.estimators import Ascent, Lanczos, Options, SearchMode, choose
from geodiag.estimators.ascent import SINGLE_START
from geodiag.estimators.base import COLD_EVERY, SharpnessEstimator
from geodiag.estimators.budgets import RESTART_BUDGET
from geodiag.estimators.roundoff import SINGLE
from geodiag.estimators.starts import arrays_of, as_start, holds_arrays
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles import CountingOracle
from geodiag.results import (
    STATE,
    Bound,
    SharpnessResult,
    Status,
    WarmStart,
    as_lists,
    relative,
)
from geodiag.sharpness import measured
from geodiag.solvers.power_step import PowerIterate, PowerStep

# Of the relative residual in a quadratic norm. The relative error of S is of the order of its
# square, if the eigenvalue is isolated.
RTOL = 0.02
# If one power step changes S by more than this, do a second; if S drops by more than this, search.
STEADY, POWER_STEPS = 0.02, 2
# In norms that are not quadratic, S itself has dropped if the second step changes it by at most the
# first of these, and it is lower by at most the second.
CONVERGED, DROP = 0.01, 0.2
# Early on S changes fast, and other maxima overtake. The first exploratory search comes after
# EXPLORE_MIN measurements, the next after EXPLORE_FIRST more; at any time after EXPLORE_MIN
# if S has changed by a factor of DRIFT since the last search.
EXPLORE_MIN, EXPLORE_FIRST, DRIFT = 2, 3, 1.3
# An exploratory or cold search that finds at most this much more than was known doubles the number
# of measurements to the next of its kind, up to COLD_EVERY and COLD_MAX.
IMPROVEMENT, COLD_MAX = 1.05, 4 * COLD_EVERY


class SharpnessTracker:
    """The measurements of a run, each from the last.

    The cheapest measurement is a *power step*: one product at lmo(Hd), with d and Hd of the last
    one (after a search, at its witness). In a quadratic norm it is accepted if its residual meets
    ``rtol``. In others it is accepted if S is at most 2 % below the last value, or at most 20 %
    below it and a second step changes it by at most 1 %. Otherwise the witness is *refreshed*, by
    two or three products more (:class:`~geodiag.estimators.base.SearchMode`).

    Other maxima may overtake the one that is tracked. The first search and every 20th measurement
    are *cold*, with 20 products (in a quadratic norm as many as the residual needs), and every 40th
    or 80th if such searches find nothing new. In norms that are not quadratic there are
    *exploratory* searches of nine or ten products in between: after two measurements, then 3, 6, 12
    and 20 if they find nothing, or two if S has changed by 30 %.

    With an estimator, a budget or a certificate of the user's there are no power steps.
    """

    def __init__(
        self, options: Options, estimator: SharpnessEstimator | str, certificate: bool
    ) -> None:
        self._options = options
        self._call: dict[str, Any] = {"estimator": estimator, "certificate": certificate}
        self._automatic = estimator == "auto" and options.max_hvps is None and not certificate
        self._reset()

    def _reset(self) -> None:
        self._last: SharpnessResult | WarmStart | None = None
        self._value = math.nan  # of the last
        self._carried: Blocks | None = None  # of other parameters' witness, for the next search
        self._ahead: Mapping[str, Any] | None = None  # the next direction; lists from JSON
        # Measurements since the last cold search, and those from it to the next. The same for
        # exploratory searches, which are counted from a cold one too.
        self._age, self._cold_after = 0, COLD_EVERY
        self._since, self._explore_after = 0, EXPLORE_FIRST
        self._found = math.nan  # what the last of these searches found

    def measure(self, oracle: CountingOracle, asked: Norm, norm: Norm) -> SharpnessResult:
        """S and ‖g‖* of ``oracle``, in the norm ``asked`` for; bound to the oracle it is ``norm``.

        Raises:
            GeodiagError: as :func:`geodiag.sharpness` does with ``throw=False``.
        """
        if isinstance(self._last, WarmStart) and _read(self._last.witness, norm, oracle) is None:
            self._reset()
            found = self.measure(oracle, asked, norm)
            note = "the loaded state is of other parameters: the first search was cold"
            return replace(found, notes=(*found.notes, note))
        options = self._options
        if options.rtol is None and isinstance(norm, QuadraticNorm):
            options = replace(options, rtol=RTOL)
        if not self._may_step(oracle, norm):
            if self._last is None and self._shortens_first_search(oracle, norm):
                options = replace(options, max_hvps=RESTART_BUDGET)
            start = self._last if self._carried is None else self._carried
            return self._search(oracle, asked, start, options)
        self._age, self._since = self._age + 1, self._since + 1
        last, value = self._last, self._value
        if self._age >= self._cold_after:
            result = self._search(oracle, asked, last, replace(options, mode=SearchMode.COLD))
            known = _found_nothing(result, value)
            self._cold_after = min(2 * self._cold_after, COLD_MAX) if known else COLD_EVERY
            self._age, self._since, self._found = 0, 0, result.value
            return result
        if self._exploration_due(norm):
            mode = SearchMode.EXPLORATORY
            result = self._search(oracle, asked, last, replace(options, mode=mode))
            if self._since >= self._explore_after:
                known = _found_nothing(result, value)
                longer = min(2 * self._explore_after, COLD_EVERY)
                self._explore_after = longer if known else EXPLORE_FIRST
            self._since, self._found = 0, result.value
            return result
        stepped, accepted = self._power_steps(oracle, norm, options.rtol)
        if stepped is not None and accepted:
            self._last, self._value = stepped, stepped.value
            return stepped
        if stepped is not None and isinstance(norm, QuadraticNorm):
            last = stepped  # a better start than the last witness
        return self._search(oracle, asked, last, replace(options, mode=SearchMode.REFRESH))

    def move(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Go on with other parameters: the next search is cold, and starts from the old witness.

        Of the witness those tensors are kept that are still there, in the same shape.
        """
        last = self._last
        if last is None:
            return
        old = last.direction if isinstance(last, SharpnessResult) else arrays_of(last.witness)
        self._reset()
        kept = {name: to_numpy(x) for name, x in old.items() if tuple(x.shape) == shapes.get(name)}
        if any(x.any() for x in kept.values()):
            self._carried = {name: kept.get(name, np.zeros(s)) for name, s in shapes.items()}

    def update(self, result: SharpnessResult) -> None:
        """Track this witness from now on."""
        self._carried = None
        self._last, self._value, self._ahead = result, result.value, result.direction

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain numbers, texts, lists and dicts."""
        last = self._last
        if isinstance(last, SharpnessResult):
            whole = set(last.state) == STATE  # an estimator from outside may leave it empty
            last = (
                WarmStart.from_dict(last.state)
                if whole
                else WarmStart(last.direction, 0, last.norm)
            )
        return {
            "last": None if last is None else last.to_json(),
            "value": _plain(self._value),
            "ahead": None if self._ahead is None else as_lists(self._ahead),
            "age": self._age,
            "cold_after": self._cold_after,
            "since": self._since,
            "explore_after": self._explore_after,
            "found": _plain(self._found),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`.

        Raises ``KeyError``, ``TypeError`` or ``ValueError`` if it is malformed, before any change.
        """
        last, ahead = state["last"], state["ahead"]
        last = None if last is None else WarmStart.from_dict(last)
        if last is not None and not holds_arrays(last.witness):
            raise ValueError("a malformed witness")
        if (last is None) is not (ahead is None) or not (ahead is None or holds_arrays(ahead)):
            raise ValueError("a malformed direction")
        numbers = [state["value"], state["found"]]
        if not all(x is None or is_number(x) for x in numbers):
            raise ValueError("a value that is no number")
        names = "age", "cold_after", "since", "explore_after"
        counts = [state[name] for name in names]
        if not all(map(is_whole, counts)) or min(counts) < 0 or 0 in counts[1::2]:
            raise ValueError("malformed counts")
        if counts[1] > COLD_MAX or counts[3] > COLD_EVERY:
            raise ValueError("malformed counts")
        self._last, self._ahead = last, ahead
        self._value, self._found = (math.nan if x is None else float(x) for x in numbers)
        self._age, self._cold_after, self._since, self._explore_after = map(int, counts)

    def _may_step(self, oracle: CountingOracle, norm: Norm) -> bool:
        """Whether a power step can answer; in fewer than 32 bits a search estimates round-off."""
        if not self._automatic or self._last is None or oracle.free_hvps:
            return False
        if oracle.precision > SINGLE:
            return False
        last = (
            self._last.state["norm"] if isinstance(self._last, SharpnessResult) else self._last.norm
        )
        if last != repr(norm) or not isinstance(choose(norm, oracle.space), (Ascent, Lanczos)):
            return False
        if isinstance(self._last, WarmStart):
            assert self._ahead is not None
            self._ahead = _read(self._ahead, norm, oracle)
        return self._ahead is not None

    def _shortens_first_search(self, oracle: CountingOracle, norm: Norm) -> bool:
        """Whether the first search takes the products of a restart; later ones find the rest."""
        ascends = isinstance(choose(norm, oracle.space), Ascent)
        costly = not oracle.free_hvps and oracle.space.size <= SINGLE_START
        return self._automatic and ascends and costly

    def _exploration_due(self, norm: Norm) -> bool:
        if isinstance(norm, QuadraticNorm) or self._since < EXPLORE_MIN:
            return False
        found, value = abs(self._found), abs(self._value)
        # Where nothing is positive, searches end far apart, and a change of S says nothing.
        positive = self._found > 0 or self._value > 0
        drifted = positive and not found / DRIFT <= value <= DRIFT * found
        return drifted or self._since >= self._explore_after

    def _search(
        self, oracle: CountingOracle, asked: Norm, start: Any, options: Options
    ) -> SharpnessResult:
        start = start.to_dict() if isinstance(start, WarmStart) else start
        result = measured(oracle, asked, options, start=start, **self._call)
        if not result.status.failed:
            self.update(result)
        return result

    def _power_steps(
        self, oracle: CountingOracle, norm: Norm, rtol: float | None
    ) -> tuple[SharpnessResult | None, bool]:
        """The better of at most two, and whether it is accepted; None if one is not finite."""
        loss = float(oracle.loss())
        if not math.isfinite(loss):
            return None, False
        best: SharpnessResult | None = None
        converged = False
        for _ in range(POWER_STEPS):
            assert self._ahead is not None
            with oracle.surroundings():
                stepped = oracle.run(PowerStep(norm), self._ahead, oracle.gradient())
            result = _result(stepped, oracle, norm, loss, self._age)
            if result is None:
                return None, False
            if best is not None and not isinstance(norm, QuadraticNorm):
                converged = abs(result.value - best.value) <= CONVERGED * best.value
                converged = converged and best.value >= (1 - DROP) * self._value
            if best is None or result.value > best.value:
                best, self._ahead = result, stepped.ahead
            if _steady(best, self._value, norm, rtol):
                break
        assert best is not None
        return best, converged or _accepted(best, self._value, norm, rtol)


def _found_nothing(result: SharpnessResult, known: float) -> bool:
    return not result.status.failed and result.value <= known + (IMPROVEMENT - 1) * abs(known)


def _plain(x: float) -> float | None:
    return None if math.isnan(x) else x


def _read(lists: Mapping[str, Any], norm: Norm, oracle: CountingOracle) -> Blocks | None:
    """Blocks from lists; None if they are no direction in this space."""
    try:
        return as_start(arrays_of(lists), oracle, norm)[0]
    except (ShapeError, ArgumentError):
        return None


def _result(
    stepped: PowerIterate, oracle: CountingOracle, norm: Norm, loss: float, age: int
) -> SharpnessResult | None:
    value, residual, dual_norm = to_numpy(stepped.numbers).tolist()
    # An entry that is not finite makes the sums so, too.
    if not (math.isfinite(value) and math.isfinite(dual_norm)):
        return None
    name = repr(norm)
    return SharpnessResult(
        value=value,
        direction=stepped.direction,
        bound=Bound.LOWER,
        status=Status.COMPLETED,
        norm=name,
        estimator="PowerStep()",
        num_hvps=oracle.num_hvps,
        dual_norm=dual_norm,
        loss=loss,
        residual=None if math.isnan(residual) else relative(residual, value),
        notes=oracle.notes,
        state=WarmStart(stepped.direction, age, name).to_dict(),  # stays on its device
    )


def _steady(result: SharpnessResult, last: float, norm: Norm, rtol: float | None) -> bool:
    if isinstance(norm, QuadraticNorm):
        return _accepted(result, last, norm, rtol)
    return abs(result.value - last) <= STEADY * abs(last)


def _accepted(result: SharpnessResult, last: float, norm: Norm, rtol: float | None) -> bool:
    if result.value <= 0:
        return False
    if isinstance(norm, QuadraticNorm):
        assert result.residual is not None
        assert rtol is not None
        return result.residual <= rtol
    return result.value >= (1 - STEADY) * last
