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
from geodiag.estimators.budgets import DISTANT_BUDGET
from geodiag.estimators.distance import search_for
from geodiag.estimators.roundoff import SINGLE
from geodiag.estimators.starts import arrays_of, as_start, holds_arrays
from geodiag.monitoring.power_steps import (
    CONVERGED,
    DROP,
    POWER_STEPS,
    is_accepted,
    is_steady,
    step_result,
)
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles import CountingOracle
from geodiag.results import (
    Searched,
    SharpnessResult,
    WarmStart,
    as_lists,
    is_state,
)
from geodiag.sharpness import measured
from geodiag.solvers.power_step import PowerStep

# Of the relative residual in a quadratic norm. The relative error of S is of the order of its
# square, if the eigenvalue is isolated.
RTOL = 0.02
# Early on S changes fast, and other maxima overtake. The first exploratory search comes after
# EXPLORE_MIN measurements, the next after EXPLORE_FIRST more.
EXPLORE_MIN, EXPLORE_FIRST = 2, 3
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

    Other maxima may overtake the one that is tracked. The first search, with 30 products, and every
    20th measurement, with 20, are *cold* (in a quadratic norm as the residual needs), or every 40th
    or 80th if such searches find nothing new. In norms that are not quadratic there are
    *exploratory* searches of nine or ten products in between: after two measurements, then 3, 6, 12
    and 20 if they find nothing.

    If S at the witness has changed by 44 % since the last search, whichever way, a cold search of
    up to 30 products follows at once. In norms that are not quadratic, so it does if the loss has
    changed by 21 % since the last cold search; an exploratory one does from 10 % of S or 7 % of the
    loss since the last search on. Once three searches have found nothing new, the loss must change
    by more than it had then.

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
        self._ordinary = 1.0  # a change of the loss after which a search found nothing

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
                options = replace(options, max_hvps=DISTANT_BUDGET)
            start = self._last if self._carried is None else self._carried
            return self._search(oracle, asked, start, options)
        self._age, self._since = self._age + 1, self._since + 1
        last, value, searched = self._last, self._value, self._searched
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
                self._pace(_found_nothing(result, value))
            self._since, self._found = 0, result.value
            # That it finds more is no distance.
            values: tuple[float, ...] = (min(result.value, searched.value),)
        else:
            mode = SearchMode.REFRESH
            result, values = self._refresh(oracle, asked, norm, options)
        further = self._further(norm, searched, values, result.loss)
        if result.status.failed or further in (None, mode):
            return result
        return self._search_further(oracle, asked, result, replace(options, mode=further))

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
            whole = is_state(last.state)  # an estimator from outside may leave it empty
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
            "ordinary": self._ordinary,
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
        ordinary = state.get("ordinary", 1.0)  # older states have none
        if not is_number(ordinary) or not 1 <= ordinary < math.inf:
            raise ValueError("a change that is no factor")
        self._last, self._ahead, self._ordinary = last, ahead, float(ordinary)
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
        """Whether the first search takes fewer products than a single one; later ones find more."""
        ascends = isinstance(choose(norm, oracle.space), Ascent)
        costly = not oracle.free_hvps and oracle.space.size <= SINGLE_START
        return self._automatic and ascends and costly

    def _exploration_due(self, norm: Norm) -> bool:
        if isinstance(norm, QuadraticNorm) or self._since < EXPLORE_MIN:
            return False
        first = math.isnan(self._found) and self._value > 0
        return first or self._since >= self._explore_after

    @property
    def _searched(self) -> Searched:
        """What the last search found."""
        last = self._last
        if isinstance(last, SharpnessResult):
            return WarmStart.from_dict(last.state).searched if is_state(last.state) else Searched()
        return Searched() if last is None else last.searched

    def _further(
        self, norm: Norm, searched: Searched, values: tuple[float, ...], loss: float
    ) -> SearchMode | None:
        """The search that is due after a refresh."""
        if isinstance(norm, QuadraticNorm):  # smaller changes show in the residual
            mode = search_for(searched, values, math.nan)
            return mode if mode is SearchMode.DISTANT else None
        fruitless = self._explore_after >= COLD_EVERY
        return search_for(searched, values, loss, self._ordinary if fruitless else 1.0)

    def _pace(self, known: bool) -> None:
        """The next exploratory searches: further away after one that found nothing new."""
        longer = min(2 * self._explore_after, COLD_EVERY)
        self._explore_after = longer if known else EXPLORE_FIRST

    def _refresh(
        self, oracle: CountingOracle, asked: Norm, norm: Norm, options: Options
    ) -> tuple[SharpnessResult, tuple[float, ...]]:
        """The witness refreshed, by power steps if these are accepted; and the values met.

        It is not, if the power steps show that a search is due.
        """
        stepped, accepted, values = self._power_steps(oracle, norm, options.rtol)
        start = self._last
        if stepped is not None:
            if accepted or self._further(norm, self._searched, values, stepped.loss):
                self._last, self._value = stepped, stepped.value
                return stepped, values
            if isinstance(norm, QuadraticNorm):
                start = stepped  # a better start than the last witness
        result = self._search(oracle, asked, start, replace(options, mode=SearchMode.REFRESH))
        return result, (*values, result.value)

    def _search_further(
        self, oracle: CountingOracle, asked: Norm, known: SharpnessResult, options: Options
    ) -> SharpnessResult:
        """Search from a refreshed witness that is far from the point of the last search."""
        assert options.mode is not None
        changed = self._searched.loss_change(known.loss)
        result = self._search(oracle, asked, known, options)
        if not result.status.failed:
            nothing = _found_nothing(result, known.value)
            self._pace(nothing)
            # A loss of ever other data changes without meaning.
            self._ordinary = max(self._ordinary, changed) if nothing else 1.0
            self._since, self._found = 0, result.value
            if options.mode.cold:
                self._age = 0
        return result

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
    ) -> tuple[SharpnessResult | None, bool, tuple[float, ...]]:
        """The better of at most two, whether it is accepted, and the values of both.

        None if one is not finite.
        """
        loss = float(oracle.loss())
        if not math.isfinite(loss):
            return None, False, ()
        best: SharpnessResult | None = None
        values: tuple[float, ...] = ()
        converged = False
        for _ in range(POWER_STEPS):
            assert self._ahead is not None
            with oracle.surroundings():
                stepped = oracle.run(PowerStep(norm), self._ahead, oracle.gradient())
            result = step_result(stepped, oracle, norm, loss, self._age, self._searched)
            if result is None:
                return None, False, ()
            values += (result.value,)
            if best is not None and not isinstance(norm, QuadraticNorm):
                converged = abs(result.value - best.value) <= CONVERGED * best.value
                converged = converged and best.value >= (1 - DROP) * self._value
            if best is None or result.value > best.value:
                best, self._ahead = result, stepped.ahead
            if is_steady(best, self._value, norm, rtol):
                break
        assert best is not None
        return best, converged or is_accepted(best, self._value, norm, rtol), values


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
