"""Upper bounds on S, which pair with the witness's lower bound.

If ⟨d, Pd⟩ ≤ t·‖d‖² for every d and P ≻ 0, then S ≤ t·max(0, λ_max(P^{-1/2} H P^{-1/2})). The norm's
envelope says which P there are. A good one comes from the low-rank lift: k stacked copies V in
place of d, and V ← P⁻¹G with G = HV and P the envelope's best form for G (for ℓ∞: the rows of HV
normalised, p their lengths). The copies are ascended with momentum, then on a model of H made of
all products so far, which costs none. Lanczos bounds the eigenvalue and shows where P is too small;
the ascent goes on with its products in the model, P is mended, and bounded again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    device,
    dot,
    epsilon,
    map_blocks,
    namespace,
    norm2,
    scale,
    stack,
    unstack,
)
from geodiag.envelopes import Envelope, Form, Weights, euclidean
from geodiag.envelopes.base import combine
from geodiag.errors import ArgumentError, NonFiniteError, NormError
from geodiag.estimators.eigenbound import Products, TopBound, bound_top
from geodiag.estimators.recombine import modelled, orthonormal, recombine
from geodiag.estimators.stacked import gram, mix
from geodiag.estimators.stacks import join, one
from geodiag.norms.base import Norm
from geodiag.norms.joint import SumJoint
from geodiag.oracles.wrappers import CountingOracle
from geodiag.spaces import Space

BUDGET = 224
RTOL = 2e-3
COPIES = 8
MOMENTUM = 0.9  # less where H is negative: a multiple of P is then added instead
SHIFT = 0.4  # times the most negative curvature met, relative to the largest
FLOOR = 1e-4  # the share of a well-conditioned form in every P ...
COARSE = 30.0  # ... and not below this times √ε: dividing by less would amplify rounding
LIFT, FIRST = 0.45, 0.15  # shares of the budget: the lift, the first Lanczos
REHEARSED, SETTLED = 40, 1e-8  # steps of the lift on the model, or until t(P) changes by less
MENDED = 16  # Ritz vectors at most by which a form is mended
NEAR = 0.85  # ... of those whose value is at least this share of the top one
LEAST = 60  # products that the last Lanczos needs, or there is but one
STARTS = 4


@dataclass(frozen=True)
class Certificate:
    """S ≤ ``upper``, but for the failure probability that ``notes`` state."""

    upper: float  # at least 0, whatever the sign of S
    num_hvps: int
    notes: tuple[str, ...] = ()
    starts: list[Blocks] = field(default_factory=list)  # unit directions worth an ascent


def certify(
    oracle: CountingOracle,
    norm: Norm,
    witness: Blocks,
    *,
    max_hvps: int | None = None,
    delta: float = 1e-6,
    seed: int = 0,
    rtol: float = RTOL,
) -> Certificate:
    """An upper bound on S in ``norm`` (bound to ``oracle.space``).

    Args:
        witness: the best direction known, of unit norm; the bound's truth does not rest on it.
        max_hvps: products to spend at most (default 224); any number from 4 gives a valid bound.
        delta: the probability, over the random numbers of ``seed``, that the bound does not hold.
        rtol: stop where the bound is this near to the witness's value, or no longer improves.

    Raises:
        ArgumentError: ``max_hvps`` below 4, or ``delta`` outside of (0, 1).
        NormError: the norm declares no envelope.
        NonFiniteError: a product is NaN or infinite.
    """
    budget = BUDGET if max_hvps is None else max_hvps
    if budget < 4:
        raise ArgumentError("a certificate takes at least 4 products", got=f"max_hvps={max_hvps}")
    if not 0 < delta < 1:
        raise ArgumentError("delta= must lie between 0 and 1", got=repr(delta))
    note = f"the upper bound holds with probability 1 − {delta:g} over the seed's random vectors"
    envelope = norm.envelope(oracle.space)
    if envelope is None:
        raise NormError(
            f"{norm!r} declares no quadratic envelope, so its sharpness has no certificate",
            do="implement Norm.envelope(space): where ‖d‖₂² ≤ t·‖d‖² for every d, it returns "
            "geodiag.envelopes.euclidean(space, t)",
        )
    before, rng = oracle.num_hvps, np.random.default_rng(seed)
    copies = min(COPIES * max(1, budget // 500), oracle.space.size + 1, budget // 2)
    noise = [oracle.space.random(rng) for _ in range(copies - 1)]
    # The copies share the witness's length, as the unit ball of the lift would have it.
    length = float(norm2(witness)) / math.sqrt(copies)
    first = stack([witness, *(scale(z, length / float(norm2(z))) for z in noise)])
    images = oracle.hvps(first)
    unit = _peak(images)  # so that no square under- or overflows

    def products(ds: Blocks) -> Blocks:
        return scale(oracle.hvps(ds), 1 / unit)

    images = scale(images, 1 / unit)
    value = float(dot(witness, unstack(images)[0]))
    task = _Task(products, oracle.space, envelope, rng, rtol, max(value, 0.0) * (1 + rtol))
    upper, left = math.inf, budget - copies
    if isinstance(norm, SumJoint):
        delta /= 2
        upper = _by_parts(task, norm, delta, left)
        left = budget - (oracle.num_hvps - before)
    if math.isinf(upper) or (upper > task.target and left >= 2):
        bound, images = _lifted(task, first, images, delta, left)
        upper = min(upper, bound)
    starts = _rounded(norm, images, rng)
    return Certificate(upper * unit, oracle.num_hvps - before, (note,), starts)


@dataclass(frozen=True)
class _Task:
    """What is bounded: H by its products, in the geometry of an envelope."""

    products: Products
    space: Space
    envelope: Envelope
    rng: np.random.Generator
    rtol: float
    target: float  # a bound as low as this is not bettered

    def form(self, weights: Weights) -> Form:
        """The form of ``weights``, raised so that it is well conditioned."""
        inside = self.envelope.interior()
        t = self.envelope.bound(weights)
        eps = epsilon({"": inside[0]})
        share = (
            max(FLOOR, COARSE * math.sqrt(eps)) * t / self.envelope.bound(inside) if t > 0 else 1.0
        )
        return self.envelope.form(combine([weights, inside], [1.0, share]))

    def top(self, form: Form, delta: float, limit: int) -> TopBound:
        noise, enough = self.space.random(self.rng), self.target / form.bound
        return bound_top(self.products, form, noise, delta, limit, self.rtol, enough)


def _lifted(
    task: _Task, directions: Blocks, images: Blocks, delta: float, budget: int
) -> tuple[float, Blocks]:
    """A bound on S by the lift, begun at these stacked copies; and the last copies' images."""
    if task.envelope.rigid:
        form = task.form(task.envelope.interior())
        return form.bound * max(task.top(form, delta, budget).upper, 0.0), images
    copies = next(iter(images.values())).shape[0]
    steps = int(LIFT * budget) // copies
    weights, ahead, known = _ascended(
        task, task.products, task.envelope.fit(images), images, [(directions, images)], steps
    )
    left, everything = budget - steps * copies, _together(known)
    weights, ahead, everything = _rehearsed(task, weights, ahead, everything)
    form, limit, upper = task.form(weights), int(FIRST * budget), math.inf
    if left - limit >= LEAST:
        delta /= 2  # either run may fail
        found = task.top(form, delta, limit)
        left, upper = left - len(found.values), form.bound * max(found.upper, 0.0)
        if upper <= task.target:
            return upper, ahead
        count = min(MENDED, int(np.sum(found.values >= NEAR * found.values[-1])))
        fits = [task.envelope.fit(one(g)) for g in unstack(_rows(found.images, -count))]
        everything = _together([everything, (found.ritz, found.images)])
        again, ahead, everything = _rehearsed(task, weights, ahead, everything)
        form = task.form(recombine(task.envelope, [again, weights, *fits], *everything))
    found = task.top(form, delta, left)
    return min(upper, form.bound * max(found.upper, 0.0)), ahead


def _ascended(
    task: _Task,
    products: Products,
    weights: Weights,
    ahead: Blocks,
    known: list[tuple[Blocks, Blocks]],
    steps: int,
) -> tuple[Weights, Blocks, list[tuple[Blocks, Blocks]]]:
    """Steps of the lift; ``known``, what was multiplied, the newest last, grows by them."""
    for _ in range(steps):
        directions = task.form(weights).solve(ahead)
        known = [*known, (directions, products(directions))]
        ahead = _ahead(ahead, known)
        weights = task.envelope.fit(ahead, weights)
    return weights, ahead, known


def _rehearsed(
    task: _Task, weights: Weights, ahead: Blocks, known: tuple[Blocks, Blocks]
) -> tuple[Weights, Blocks, tuple[Blocks, Blocks]]:
    """The lift carried on by a model of H; and what is known, on an orthonormal basis."""
    form = task.form(weights)
    basis = orthonormal(form, *known)
    model = modelled(form, *basis)
    directions = form.solve(ahead)
    first = model(directions)
    fit, pair = task.envelope.fit(first, weights), (directions, first)
    for _ in range(REHEARSED):
        before = task.envelope.bound(fit)
        fit, first, (*_, pair) = _ascended(task, model, fit, first, [pair], 1)
        if abs(task.envelope.bound(fit) - before) <= SETTLED * before:
            break
    return fit, first, basis


def _ahead(ahead: Blocks, known: list[tuple[Blocks, Blocks]]) -> Blocks:
    """The newest images G carried on by momentum, and by PV where H is negative.

    ``ahead`` is PV for the newest copies V. Adding a multiple of P to H changes no maximiser and
    damps what is negative.
    """
    (_, old), (directions, images) = known[-2:]
    # Copies that nearly coincide make it singular: what float32 cannot tell apart is left out.
    pencil = np.linalg.pinv(gram(directions, ahead), rcond=1e-3) @ gram(directions, images)
    values = np.linalg.eigvals(pencil).real
    least, largest = float(values.min()), float(values.max())
    shift = SHIFT * min(-least / largest, 1.0) if least < 0 < largest else 0.0
    ahead_by = MOMENTUM * (1.0 - shift)
    return map_blocks(
        lambda g, g_old, pv: g + ahead_by * (g - g_old) + shift * pv, images, old, ahead
    )


def _by_parts(task: _Task, norm: SumJoint, delta: float, budget: int) -> float:
    """S ≤ max_b r_b²·S_b(H_bb + cI), c ≥ −λ_min(H): a convex form is largest at one part alone."""
    space = task.space
    share = budget // (len(norm.parts) + 2)
    if share < 1:
        return math.inf
    delta /= len(norm.parts) + 1
    plain = euclidean(space)
    form = plain.form(plain.interior())

    def negated(ds: Blocks) -> Blocks:
        return scale(task.products(ds), -1.0)

    lowest = bound_top(negated, form, space.random(task.rng), delta, 2 * share, task.rtol)
    c = max(lowest.upper, 0.0)
    upper = 0.0
    for part in norm.parts:
        own = space.select(part.names)
        envelope = part.norm.envelope(own)
        assert envelope is not None  # or the whole would have none

        def products(ds: Blocks, names: tuple[str, ...] = part.names) -> Blocks:
            images = task.products(_padded(ds, space))
            return {name: images[name] + c * ds[name] for name in names}

        inner = replace(
            task,
            products=products,
            space=own,
            envelope=envelope,
            target=max(task.target, upper) / part.radius**2,
        )
        noise = stack([own.random(task.rng) for _ in range(min(COPIES, share // 4 + 1))])
        images = noise if envelope.rigid else products(noise)
        used = 0 if envelope.rigid else next(iter(noise.values())).shape[0]
        found, _ = _lifted(inner, noise, images, delta, max(1, share - used))
        upper = max(upper, found * part.radius**2)
    return upper


def _padded(ds: Blocks, space: Space) -> Blocks:
    """Zero in the tensors that ``ds`` leaves out."""
    example = next(iter(ds.values()))
    xp = namespace(ds)

    def zeros(name: str) -> Array:
        shape = (example.shape[0], *space.shapes[name])
        return xp.zeros(shape, dtype=example.dtype, device=device(example))

    return {name: ds[name] if name in ds else zeros(name) for name in space.names}


def _rounded(norm: Norm, images: Blocks, rng: np.random.Generator) -> list[Blocks]:
    """Directions of unit norm by the norm's LMO at random mixtures of the copies' images."""
    count = next(iter(images.values())).shape[0]
    mixtures = unstack(mix(rng.standard_normal((STARTS, count)), images))
    found = [norm.lmo(g) for g in mixtures]
    return [scale(d, 1 / norm.value(d)) for d in found if float(norm.value(d)) > 0]


def _together(known: list[tuple[Blocks, Blocks]]) -> tuple[Blocks, Blocks]:
    return join(*(d for d, _ in known)), join(*(g for _, g in known))


def _rows(x: Blocks, start: int) -> Blocks:
    return {name: rows[start:, ...] for name, rows in x.items()}


def _peak(images: Blocks) -> float:
    """The largest absolute entry; 1 if all vanish."""
    xp = namespace(images)
    peaks = [xp.max(xp.abs(x)) for x in images.values() if 0 not in x.shape]
    peak = float(xp.max(xp.stack(peaks)))
    if not math.isfinite(peak):
        raise NonFiniteError(
            "a Hessian-vector product is not finite",
            got="NaN or infinity",
            do="check the parameters and the data; the training may have diverged",
        )
    return peak or 1.0
