"""The contract of an estimator, and what all of them share.

An estimator chooses directions. A :class:`Measurement` counts the products, knows what is left of
the budget, and certifies the answer by a fresh Hessian-vector product at the final direction.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from geodiag.blocks import Array, Blocks, all_finite, array_namespace, map_blocks, scale, to_numpy
from geodiag.core.validation import as_number, is_number, is_whole, require_flag
from geodiag.errors import (
    ArgumentError,
    NonFiniteError,
    NormError,
    ParameterError,
    not_finite,
    product_not_finite,
    shown,
)
from geodiag.estimators.budgets import COLD_BUDGET, LANCZOS_BUDGET
from geodiag.estimators.progress import ProgressBar
from geodiag.norms.base import Norm, QuadraticNorm
from geodiag.oracles.base import Oracle
from geodiag.oracles.wrappers import CountingOracle
from geodiag.results import UNKNOWN, Bound, Searched, SharpnessResult, Status, WarmStart, relative
from geodiag.solvers.rayleigh import Certify, Steepest, SteepestDirection

UNLIMITED = 2**30
PRODUCT = "Hessian-vector product"
# A run of warm measurements, each from the last: how often one is exploratory, and one cold.
EXPLORE_EVERY, COLD_EVERY = 5, 20
Progress = Callable[[dict[str, Any]], None] | bool


class SearchMode(Enum):
    """How a search uses the witness of an earlier measurement; each member's value explains it.

    Examples:
        >>> geodiag.estimators.SearchMode.at_age(0).value
        'update the witness by a few products'
    """

    REFRESH = "update the witness by a few products"
    EXPLORATORY = "compare the witness with one new start"
    COLD = "search from many starts, of which the witness is one"
    DISTANT = "the same with more products, where the witness is from a distant point"

    @classmethod
    def at_age(cls, age: int | None) -> SearchMode:
        """The mode by default, where the last cold search was ``age`` measurements ago."""
        if age is None or age + 1 >= COLD_EVERY:
            return cls.COLD
        return cls.REFRESH if (age + 1) % EXPLORE_EVERY else cls.EXPLORATORY

    @property
    def cold(self) -> bool:
        """Whether it starts from nothing, with the witness among other starts."""
        return self in (SearchMode.COLD, SearchMode.DISTANT)


@dataclass(frozen=True)
class Options:
    """How far to go. ``None`` means the estimator's own default.

    Attributes:
        rtol: the relative tolerance: of the residual in quadratic norms, else of the improvements.
        max_hvps: the budget of Hessian-vector products, the certifying one included.
        seed: of the random starts.
        progress: see :func:`geodiag.sharpness`.
        age: if ``start`` is the witness of an earlier measurement, how many measurements ago the
            last cold search was; None if it is only a direction.
        mode: how to use that witness; by default its age decides, and whether its point is far.
        searched: what the last search found; see :mod:`geodiag.estimators.distance`.

    Examples:
        >>> oracle = geodiag.problem(np.diag([2.0, 1.0])).at()
        >>> norm = geodiag.norms.L2().bind(oracle.space)
        >>> options = geodiag.estimators.Options(max_hvps=5)
        >>> geodiag.estimators.Lanczos().estimate(oracle, norm, None, options).num_hvps <= 5
        True
    """

    rtol: float | None = None
    max_hvps: int | None = None
    seed: int = 0
    progress: Progress = False
    age: int | None = None
    mode: SearchMode | None = None
    searched: Searched = UNKNOWN

    def __post_init__(self) -> None:
        if self.rtol is not None and not (is_number(self.rtol) and 0 < self.rtol < 1):
            raise ArgumentError("rtol= must lie between 0 and 1", got=shown(self.rtol))
        if not is_whole(self.seed) or self.seed < 0:
            raise ArgumentError("seed= must be an integer of at least 0", got=shown(self.seed))
        if self.max_hvps is not None and not (is_whole(self.max_hvps) and self.max_hvps >= 2):
            raise ArgumentError(
                "max_hvps= must be an integer of at least 2",
                got=shown(self.max_hvps),
                do="one product searches, one certifies the answer",
            )
        if not callable(self.progress) or isinstance(self.progress, type):
            require_flag(self.progress, "progress=")
        # NumPy's small integers overflow; more products than UNLIMITED nobody waits for.
        budget = None if self.max_hvps is None else min(int(self.max_hvps), UNLIMITED)
        object.__setattr__(self, "max_hvps", budget)
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "rtol", None if self.rtol is None else float(self.rtol))

    @property
    def search_mode(self) -> SearchMode:
        """The mode that was asked for, or the one by age."""
        return self.mode or SearchMode.at_age(self.age)

    @property
    def next_age(self) -> int:
        """The age of a witness that is found without a cold search."""
        return 0 if self.age is None else self.age + 1


class SharpnessEstimator(ABC):
    """Estimates S = max over ‖d‖ = 1 of ⟨d, Hd⟩. It keeps no state between measurements.

    Examples:
        >>> class AtOnes(geodiag.SharpnessEstimator):
        ...     def estimate(self, oracle, norm, start=None, options=geodiag.estimators.Options()):
        ...         m = geodiag.estimators.Measurement(oracle, norm, self, options)
        ...         d = m.unit({name: x * 0 + 1 for name, x in oracle.point().items()})
        ...         return m.finish(d, geodiag.Status.COMPLETED)
        >>> float(geodiag.sharpness(np.diag([1.0, 2.0]), "linf", estimator=AtOnes()))
        3.0
    """

    @abstractmethod
    def estimate(
        self,
        oracle: Oracle,
        norm: Norm,
        start: Blocks | None = None,
        options: Options = Options(),
    ) -> SharpnessResult:
        """Measure ``oracle`` in ``norm`` (already bound to ``oracle.space``).

        Args:
            oracle: the problem at one point.
            norm: the norm, bound to that space.
            start: a direction to start from, e.g. the last witness.
            options: tolerance, budget, seed, and how to use ``start``.

        Raises:
            NonFiniteError: the loss, the gradient or a product is NaN or infinite.
            NormError: the norm breaks its contract, or the estimator does not support it.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Measurement:
    """One estimate in progress: it counts, checks and certifies.

    ``most``: products that it takes at most, for the progress bar, where it is not the usual.

    Attributes:
        oracle: the oracle, with its products counted.
        norm: the norm.
        estimator: the estimator, as it prints.
        options: how far to go.
        rng: the generator of random starts.
        loss: L(w).
        gradient: ∇L(w).
        steepest: lmo(∇L).

    Examples:
        >>> from geodiag.estimators import Lanczos, Measurement, Options
        >>> oracle = geodiag.problem(np.diag([2.0, 1.0])).at()
        >>> norm = geodiag.norms.L2().bind(oracle.space)
        >>> m = Measurement(oracle, norm, Lanczos(), Options(seed=1))
        >>> m.estimator, m.loss, m.oracle.num_hvps
        ('Lanczos()', 0.0, 0)
    """

    def __init__(
        self,
        oracle: Oracle,
        norm: Norm,
        estimator: SharpnessEstimator,
        options: Options,
        most: int | None = None,
    ) -> None:
        if oracle.space.size == 0:
            raise ParameterError(
                "there is no entry to measure", got=f"shapes {dict(oracle.shapes)}"
            )
        self.oracle = CountingOracle(oracle)
        self.norm, self.estimator, self.options = norm, repr(estimator), options
        self.rng = np.random.default_rng(options.seed)
        usual = LANCZOS_BUDGET if isinstance(norm, QuadraticNorm) else COLD_BUDGET
        most = options.max_hvps or most or (0 if oracle.free_hvps else usual)
        shown_here = options.progress and not callable(options.progress)
        self._bar = ProgressBar(most) if shown_here else None
        loss = oracle.loss()
        self.loss, self.gradient = float(loss), oracle.gradient()
        if not math.isfinite(self.loss):
            _check_finite("loss", {"loss": loss})
        steepest = self.oracle.run(SteepestDirection(norm), self.gradient)
        if not bool(steepest.finite):
            _check_finite("gradient", self.gradient)
        self.steepest = steepest.steepest
        _check_inside(norm, steepest)

    def random(self) -> Blocks:
        """A random direction of unit norm."""
        return self.unit(self.oracle.space.random(self.rng))

    def unit(self, d: Blocks) -> Blocks:
        """d/‖d‖."""
        return scale(d, 1 / self.norm.value(d))

    def hvp(self, d: Blocks) -> Blocks:
        """H d, checked to be finite.

        Raises:
            NonFiniteError: it is not.
        """
        image = self.oracle.hvp(d)
        _check_finite(PRODUCT, image)
        return image

    def hvps(self, ds: Blocks) -> Blocks:
        """H d for stacked directions, checked as in :meth:`hvp`."""
        images = self.oracle.hvps(ds)
        _check_finite(PRODUCT, images)
        return images

    @property
    def unlimited(self) -> bool:
        """Whether products cost nothing and the user set no budget."""
        return self.oracle.free_hvps and self.options.max_hvps is None

    def left(self, budget: int) -> int:
        """Products that may still be spent, less the one that certifies the answer."""
        return budget - self.oracle.num_hvps - 1

    def report(self, value: float) -> None:
        """Call the user's ``progress``."""
        progress = self.options.progress
        if not progress:
            return
        state = {"num_hvps": self.oracle.num_hvps, "value": value}
        if callable(progress):
            progress(state)
        elif self._bar is not None:
            self._bar.show(self.oracle.num_hvps, value)

    def finish(
        self,
        direction: Blocks,
        status: Status,
        *,
        exact: bool = False,
        image: Blocks | None = None,
        history: tuple[float, ...] = (),
        spread: float | None = None,
        notes: tuple[str, ...] = (),
        age: int = 0,
        searched: Searched | None = None,
    ) -> SharpnessResult:
        """Certify ``direction`` by a fresh product and return the result.

        Args:
            direction: of any length.
            status: how the search ended.
            exact: whether the value is S itself.
            image: the product at ``direction``, if it was computed there and not combined.
            history: values on the way.
            spread: over starts.
            notes: what was done differently from what was asked.
            age: measurements since the last cold search.
            searched: what the last search found, if this was none.

        Raises:
            NonFiniteError: the product or the value is NaN or infinite.
        """
        found = self.oracle.run(Certify(self.norm), direction, image, self.gradient, self.steepest)
        _check_finite(PRODUCT, found.image, found.finite)
        value, direction = float(found.value), found.direction
        if not math.isfinite(value):
            raise NonFiniteError(
                "⟨d, Hd⟩ is not finite", got=value, do="rescale the loss, or measure in float64"
            )
        residual = None if found.residual is None else relative(float(found.residual), value)
        cold_loss = self.options.searched.cold_loss if age else self.loss
        if self._bar is not None:
            self._bar.close()
        return SharpnessResult(
            value=value,
            direction=direction,
            bound=Bound.EXACT if exact else Bound.LOWER,
            status=status,
            norm=repr(self.norm),
            estimator=self.estimator,
            num_hvps=self.oracle.num_hvps,
            dual_norm=float(found.dual_norm),
            loss=self.loss,
            residual=residual,
            spread=spread,
            history=history,
            notes=self.oracle.notes + notes,
            state=WarmStart(
                map_blocks(to_numpy, direction),
                age,
                repr(self.norm),
                searched or Searched(value, self.loss, cold_loss),
            ).to_dict(),
        )


def _check_inside(norm: Norm, steepest: Steepest) -> None:
    length = as_number(steepest.length)
    if length is None or not 0 <= length < float("inf") or not bool(steepest.sound):
        raise NormError(
            f"lmo(g) of {norm!r} must be finite and inside the unit ball",
            got=f"a point of norm {length}",
            do="check it with geodiag.testing.check_norm(norm, example)",
        )


def _check_finite(what: str, blocks: Mapping[str, Array], known: Array | None = None) -> None:
    if bool(all_finite(dict(blocks)) if known is None else known):
        return
    for name, x in blocks.items():
        xp = array_namespace(x)
        bad = int(xp.sum(xp.astype(~xp.isfinite(x), xp.int32)))
        if bad:
            size = math.prod(x.shape)
            where = "" if what == "loss" else f" at {name!r} ({bad} of {size} entries)"
            got = f"NaN or infinity{where}"
            raise product_not_finite(got) if what == PRODUCT else not_finite(f"the {what}", got)
