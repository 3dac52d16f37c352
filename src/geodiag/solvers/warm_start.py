"""A warm search: two or three products from the last witness."""

from __future__ import annotations

from dataclasses import dataclass

from geodiag.blocks import Array, Blocks, array_namespace
from geodiag.core.stacks import join
from geodiag.oracles.base import Oracle
from geodiag.solvers import iterate, ravel
from geodiag.solvers.iterate import Iterates
from geodiag.solvers.line_search import segment, toward
from geodiag.solvers.multistart import Outcome
from geodiag.solvers.nystrom import fit, normalised
from geodiag.solvers.program import NormProgram, spent


@dataclass(frozen=True)
class Refresh(NormProgram):
    """The witness moved to a better point nearby, by two products or three.

    The history begins with the value at the witness itself.

    The first product is at the witness d, the second at lmo(Hd). If the second improves the value
    by ``rtol``, a third is computed at the maximum, near there, of the Nyström approximation that
    these two make.
    """

    rtol: float
    model_steps: int = 3  # of the ascent on the approximation

    def __call__(self, oracle: Oracle, witness: Blocks) -> Outcome:
        """``witness``: as a stack of one."""
        oracle, norm, view = ravel.view(oracle, self.norm)
        if view:
            witness = view.flat_stack(witness)
        start = iterate.begin(witness, oracle.hvps(witness))
        target = norm.lmos(start.image)
        image = oracle.hvps(target)
        first = toward(start, target, image)
        xp = array_namespace(first.value)

        def improved(state: tuple[Iterates, Array]) -> Array:
            p, steps = state
            rise = first.value[0] - start.value[0]
            more = (rise > self.rtol * xp.abs(first.value[0])) & xp.isfinite(p.value[0])
            return more & (steps < 1)

        def third(state: tuple[Iterates, Array]) -> tuple[Iterates, Array]:
            p, steps = state
            model = fit(normalised(join(witness, target), join(start.image, image))[1])
            tried = norm.lmos(p.image)
            ascended = iterate.run(
                oracle,
                lambda q: segment(norm, model.images, q),
                iterate.begin(tried, model.images(tried)),
                self.model_steps,
                self.rtol,
            ).iterates.direction
            return toward(p, ascended, oracle.hvps(ascended)), steps + 1

        last, steps = oracle.loop(improved, third, (first, spent(witness, 0)))
        if view:
            last = iterate.mapped(last, view.full)
        values = xp.concat([start.value, first.value, last.value])
        return Outcome(last, last.value, values, None, steps + 2)
