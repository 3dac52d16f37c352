"""The low-rank lift: a good form P of an envelope, from k stacked copies in place of one direction.

The copies V go to P⁻¹G, with G = HV and P the envelope's best form for G (for ℓ∞: the rows of HV
normalised, p their lengths). They ascend with momentum, by products first and then, at no cost, on
a model of H made of all products so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from geodiag.blocks import Blocks, epsilon, map_blocks
from geodiag.certificates.eigenvalue_bound import Known, Products, TopBound, bound_top
from geodiag.certificates.form_mixture import count_of, modelled, orthonormal
from geodiag.core.batched import gram
from geodiag.core.spaces import Space
from geodiag.envelopes import Envelope, Form, Weights
from geodiag.envelopes.base import combine

MOMENTUM = 0.9  # less where H is negative: a multiple of P is then added instead
SHIFT = 0.4  # times the most negative curvature met, relative to the largest
FLOOR = 1e-4  # the share of a well-conditioned form in every P ...
COARSE = 10.0  # ... and not below this times √ε: dividing by less would amplify rounding
SETTLED = 1e-6  # steps on the model end when t(P) changes by less


@dataclass(frozen=True)
class Task:
    """What is bounded: H by its products, in the geometry of an envelope."""

    products: Products
    space: Space
    envelope: Envelope
    rng: np.random.Generator
    rtol: float
    target: float  # a bound as low as this is not bettered
    kept: int  # how many products may be remembered

    def form(self, weights: Weights) -> Form:
        """The form of ``weights``, raised so that it is well conditioned."""
        inside = self.envelope.interior()
        t = self.envelope.bound(weights)
        eps = epsilon({"": inside[0]})
        share = (
            max(FLOOR, COARSE * math.sqrt(eps)) * t / self.envelope.bound(inside) if t > 0 else 1.0
        )
        return self.envelope.form(combine([weights, inside], [1.0, share]))

    def bounded(self, form: Form, delta: float, limit: int, spoilt: float = math.inf) -> TopBound:
        """The bound on the top eigenvalue against ``form``; not a good one from ``spoilt`` on."""
        noise, enough = self.space.random(self.rng), self.target / form.bound
        limit = min(limit, 2 * self.kept)  # it keeps three vectors per product
        return bound_top(self.products, form, noise, delta, limit, self.rtol, enough, spoilt)


@dataclass(frozen=True)
class Lift:
    """The state of the copies V."""

    weights: Weights  # P
    ahead: Blocks  # PV
    known: tuple[Known, ...]  # what was multiplied, the newest last


def begun(task: Task, directions: Blocks, images: Blocks) -> Lift:
    """The lift at these stacked copies."""
    return Lift(task.envelope.fit(images), images, ((directions, images),))


def ascended(task: Task, products: Products, lift: Lift, steps: int) -> Lift:
    """So many steps; one product per copy each."""
    copies = count_of(lift.ahead)
    for _ in range(steps):
        directions = task.form(lift.weights).solve(lift.ahead)
        known = (*lift.known, (directions, products(directions)))
        ahead = _ahead(lift.ahead, *known[-2:])
        known = known[-max(2, task.kept // copies) :]
        lift = Lift(task.envelope.fit(ahead, lift.weights), ahead, known)
    return lift


def rehearsed(task: Task, lift: Lift, known: Known, steps: int) -> Lift:
    """The lift carried on by the model of H that ``known`` makes, at most so many steps."""
    form = task.form(lift.weights)
    model = modelled(form, *orthonormal(form, *known))
    directions = form.solve(lift.ahead)
    first = model(directions)
    one_by_one = replace(task, kept=0)
    inner = Lift(task.envelope.fit(first, lift.weights), first, ((directions, first),))
    for _ in range(steps):
        before = task.envelope.bound(inner.weights)
        inner = ascended(one_by_one, model, inner, 1)
        if abs(task.envelope.bound(inner.weights) - before) <= SETTLED * before:
            break
    return inner


def _ahead(ahead: Blocks, before: Known, newest: Known) -> Blocks:
    """The newest images G carried on by momentum, and by PV where H is negative.

    ``ahead`` is PV for the newest copies V. Adding a multiple of P to H changes no maximiser and
    damps what is negative.
    """
    directions, images = newest
    # Copies that nearly coincide make it singular: what float32 cannot tell apart is left out.
    pencil = np.linalg.pinv(gram(directions, ahead), rcond=1e-3) @ gram(directions, images)
    values = np.linalg.eigvals(pencil).real
    least, largest = float(values.min()), float(values.max())
    shift = SHIFT * min(-least / largest, 1.0) if least < 0 < largest else 0.0
    ahead_by = MOMENTUM * (1.0 - shift)
    return map_blocks(
        lambda g, g_old, pv: g + ahead_by * (g - g_old) + shift * pv, images, before[1], ahead
    )
