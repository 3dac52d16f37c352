"""Burer–Monteiro factorisation: a good form P of an envelope, from k copies of one direction.

The copies V move to P⁻¹G, with G = HV and P the envelope's best form for G (for ℓ∞: the rows of HV
normalised, p their lengths). They ascend with momentum, first by products with H, then without any
on a model of H made of all products so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from geodiag.blocks import Blocks, epsilon, map_blocks
from geodiag.certificates.eigenvalue_bound import Hvps, Known, TopBound, bound_top
from geodiag.certificates.form_mixture import hessian_model, orthonormal
from geodiag.core.spaces import Space
from geodiag.core.stacks import count_of, gram
from geodiag.envelopes import Envelope, Form, Weights
from geodiag.envelopes.base import combine

MOMENTUM = 0.9  # less where H is negative: a multiple of P is then added instead
SHIFT = 0.4  # times the most negative curvature met, relative to the largest
FLOOR = 1e-4  # the share of a well-conditioned form in every P ...
COARSE = 10.0  # ... and not below this times √ε: dividing by less would amplify rounding
SETTLED = 1e-6  # steps on the model end when t(P) changes by less, relatively


@dataclass(frozen=True)
class Task:
    """What is bounded: H by its products, in the geometry of an envelope."""

    products: Hvps
    space: Space
    envelope: Envelope
    rng: np.random.Generator
    rtol: float
    target: float  # stop where the bound is as low as this
    kept: int  # how many products are kept at most

    def form(self, weights: Weights) -> Form:
        """The form of ``weights``, raised so that it is well conditioned."""
        inside = self.envelope.interior()
        t = self.envelope.bound(weights)
        eps = epsilon({"": inside[0]})
        share = (
            max(FLOOR, COARSE * math.sqrt(eps)) * t / self.envelope.bound(inside) if t > 0 else 1.0
        )
        return self.envelope.form(combine([weights, inside], [1.0, share]))

    def bounded(
        self, form: Form, delta: float, limit: int, stop_above: float = math.inf
    ) -> TopBound:
        """The bound on the top eigenvalue against ``form``; ends early above ``stop_above``."""
        noise, target = self.space.random(self.rng), self.target / form.bound
        limit = min(limit, 2 * self.kept)  # it keeps three vectors per product
        return bound_top(self.products, form, noise, delta, limit, self.rtol, target, stop_above)


@dataclass(frozen=True)
class Factor:
    """The state of the copies V."""

    weights: Weights  # P
    image: Blocks  # the images HV, extrapolated by momentum: the copies are P⁻¹ of it
    known: tuple[Known, ...]  # directions and their products with H, the last ones last


def begin(task: Task, directions: Blocks, images: Blocks) -> Factor:
    """The factorisation with these stacked copies."""
    return Factor(task.envelope.fit(images), images, ((directions, images),))


def ascend(task: Task, products: Hvps, factor: Factor, steps: int) -> Factor:
    """``steps`` steps of the ascent, each with one product per copy."""
    copies = count_of(factor.image)
    for _ in range(steps):
        directions = task.form(factor.weights).solve(factor.image)
        known = (*factor.known, (directions, products(directions)))
        image = _extrapolated(factor.image, *known[-2:])
        known = known[-max(2, task.kept // copies) :]
        factor = Factor(task.envelope.fit(image, factor.weights), image, known)
    return factor


def ascend_on_model(task: Task, factor: Factor, known: Known, steps: int) -> Factor:
    """At most ``steps`` steps of the ascent on the model of H from ``known``: no products."""
    form = task.form(factor.weights)
    model = hessian_model(form, *orthonormal(form, *known))
    directions = form.solve(factor.image)
    first = model(directions)
    no_history = replace(task, kept=0)
    inner = Factor(task.envelope.fit(first, factor.weights), first, ((directions, first),))
    for _ in range(steps):
        before = task.envelope.bound(inner.weights)
        inner = ascend(no_history, model, inner, 1)
        if abs(task.envelope.bound(inner.weights) - before) <= SETTLED * before:
            break
    return inner


def _extrapolated(image: Blocks, before: Known, last: Known) -> Blocks:
    """The last images G = HV plus momentum, and a multiple of PV where H is negative.

    ``image`` is PV for the last copies V. Adding a multiple of P to H changes no maximiser and
    damps negative eigenvalues.
    """
    directions, images = last
    # Nearly equal copies make it singular: directions that float32 cannot tell apart are left out.
    pencil = np.linalg.pinv(gram(directions, image), rcond=1e-3) @ gram(directions, images)
    values = np.linalg.eigvals(pencil).real
    least, largest = float(values.min()), float(values.max())
    shift = SHIFT * min(-least / largest, 1.0) if least < 0 < largest else 0.0
    momentum = MOMENTUM * (1.0 - shift)
    return map_blocks(
        lambda g, g_old, pv: g + momentum * (g - g_old) + shift * pv, images, before[1], image
    )
