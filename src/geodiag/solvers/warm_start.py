"""A warm measurement: two steps from the last witness, the second prepared on a surrogate of H."""

from __future__ import annotations

from dataclasses import dataclass

from geodiag.blocks import Array, Blocks, array_namespace
from geodiag.core.batched import cross, join, lengths, rescale
from geodiag.oracles.base import Oracle
from geodiag.solvers import iterate, ravel
from geodiag.solvers.iterate import Population
from geodiag.solvers.line_search import positive, segment, toward
from geodiag.solvers.multistart import Outcome
from geodiag.solvers.nystrom import Products, fit
from geodiag.solvers.program import NormProgram, spent


@dataclass(frozen=True)
class Track(NormProgram):
    """Three products: at the witness, at lmo(Hd), and at the maximum, near there, of the surrogate
    that these two make. The third is asked for only where the second gained ``rtol``."""

    rtol: float
    rehearsal: int = 3  # steps on the surrogate

    def __call__(self, oracle: Oracle, known: Blocks) -> Outcome:
        """``known``: a stack of one, the witness."""
        oracle, norm, view = ravel.view(oracle, self.norm)
        if view:
            known = view.flat_stack(known)
        start = iterate.begin(known, oracle.hvps(known))
        target = norm.lmos(start.image)
        image = oracle.hvps(target)
        first = toward(start, target, image)
        xp = array_namespace(first.value)

        def gained(state: tuple[Population, Array]) -> Array:
            p, steps = state
            rise = first.value[0] - start.value[0]
            more = (rise > self.rtol * xp.abs(first.value[0])) & xp.isfinite(p.value[0])
            return more & (steps < 1)

        def second(state: tuple[Population, Array]) -> tuple[Population, Array]:
            p, steps = state
            surrogate = fit(_products(join(known, target), join(start.image, image)))
            tried = norm.lmos(p.image)
            rehearsed = iterate.run(
                oracle,
                lambda q: segment(norm, surrogate.images, q),
                iterate.begin(tried, surrogate.images(tried)),
                self.rehearsal,
                self.rtol,
            ).population.direction
            return toward(p, rehearsed, oracle.hvps(rehearsed)), steps + 1

        last, steps = oracle.loop(gained, second, (first, spent(known, 0)))
        if view:
            last = last._replace(direction=view.full(last.direction), image=view.full(last.image))
        return Outcome(last, last.value, xp.concat([first.value, last.value]), None, steps + 2)


def _products(directions: Blocks, images: Blocks) -> Products:
    size = 1 / positive(lengths(directions))
    seen = rescale(images, size)
    return Products(seen, cross(rescale(directions, size), seen))
