"""Upper bounds on S, to pair with the lower bound of a witness.

If ⟨d, Pd⟩ ≤ t·‖d‖² for every d and P ≻ 0, then S ≤ t·max(0, λ_max(P^{-1/2} H P^{-1/2})). The norm's
envelope says which P there are. A good one comes from a Burer–Monteiro factorisation, whose copies
ascend by products with H. Further products are spent on H times the top eigenvectors of what is
known, where P is most likely too small; after each such block the factorisation goes on with a
model of H made of all products, at no cost. P is then raised where the model exceeds it, and
Lanczos bounds the eigenvalue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from geodiag.blocks import (
    Array,
    Blocks,
    all_finite,
    device,
    dot,
    largest,
    namespace,
    norm2,
    scale,
    stack,
    unstack,
)
from geodiag.certificates.burer_monteiro import Task, ascend, ascend_on_model, begin
from geodiag.certificates.eigenvalue_bound import Known, bound_top
from geodiag.certificates.form_mixture import (
    concatenate,
    expansion,
    hessian_model,
    last_pairs,
    mix_forms,
    orthonormal,
)
from geodiag.core.spaces import Space
from geodiag.core.stacks import count_of, gram, join, mix, one
from geodiag.envelopes import Envelope, Form, Weights, euclidean
from geodiag.errors import ArgumentError, NormError, product_not_finite, shown
from geodiag.norms.base import Norm
from geodiag.norms.composite import Scaled
from geodiag.norms.joint import SumJoint
from geodiag.norms.stacked import SlicedNorm
from geodiag.oracles.wrappers import CountingOracle, SlicedOracle
from geodiag.solvers import iterate
from geodiag.solvers.line_search import segment

BUDGET = 224
RTOL = 2e-3
COPIES = 8
ASCENT, EXPANSION = 0.4, 0.24  # shares of the budget: the ascent, then expansion directions
MODEL_STEPS, LAST_MODEL_STEPS = 20, 40  # on the model of H: between products, and after the last
# The Lanczos runs that bound the eigenvalue, each with its share of the failure probability. The
# first ends where it sees that P is too small by this factor; P is then raised for the second.
RUNS = (0.8, 1.015), (0.2, math.inf)
RITZ_VECTORS = 16  # by which a form is raised, at most
NEAR_TOP = 0.85  # ... those whose value is at least this share of the top one
LEAST = 20  # products for a Lanczos run; with fewer there is only one run
LEAST_SHARE = 10  # products for each part of a sum, to bound the parts one by one
ROUNDED, ROUNDS, STARTS = 16, 20, 2  # ascents on the model of H, their steps, those handed on
MEMORY, LEAST_KEPT = 2**31, 48  # entries of everything kept at a time; vectors, whatever their size


@dataclass(frozen=True)
class Certificate:
    """S ≤ ``upper``, but for the failure probability that ``notes`` state."""

    upper: float  # at least 0, whatever the sign of S
    num_hvps: int
    notes: tuple[str, ...] = ()
    starts: list[Blocks] = field(default_factory=list)  # unit directions to ascend from


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
        oracle: the point.
        norm: a norm that declares an envelope.
        witness: the best direction known, of unit norm; the bound is valid for any direction.
        max_hvps: products to spend at most (default 224); any number from 4 gives a valid bound.
        delta: the probability, over the random numbers of ``seed``, that the bound does not hold.
        seed: of the random vectors.
        rtol: stop where the bound is this near to the witness's value, or no longer improves.

    Raises:
        ArgumentError: ``max_hvps`` below 4, or ``delta`` outside of (0, 1).
        NormError: the norm declares no envelope.
        NonFiniteError: a product is NaN or infinite.
    """
    if isinstance(norm, SlicedNorm) and isinstance(norm.norm, SumJoint):
        inner = CountingOracle(SlicedOracle(oracle, norm.slices))
        found = certify(
            inner,
            norm.norm,
            norm.slices.split(witness),
            max_hvps=max_hvps,
            delta=delta,
            seed=seed,
            rtol=rtol,
        )
        return replace(found, starts=[norm.slices.join(d) for d in found.starts])
    budget = BUDGET if max_hvps is None else max_hvps
    if budget < 4:
        raise ArgumentError("a certificate takes at least 4 products", got=f"max_hvps={max_hvps}")
    if not 0 < delta < 1:
        raise ArgumentError("delta= must lie between 0 and 1", got=shown(delta))
    note = f"the upper bound holds with probability 1 − {delta:g} over the seed's random vectors"
    envelope = require_envelope(norm, oracle.space)
    if isinstance(norm, Scaled) and isinstance(norm.norm, SumJoint):  # bounded part by part
        c, unscaled = norm.c, norm.norm
        found = certify(
            oracle,
            unscaled,
            scale(witness, c),
            max_hvps=max_hvps,
            delta=delta,
            seed=seed,
            rtol=rtol,
        )
        starts = [scale(d, 1 / c) for d in found.starts]
        return replace(found, upper=found.upper / (c * c), starts=starts)
    before, rng = oracle.num_hvps, np.random.default_rng(seed)
    kept = max(LEAST_KEPT, MEMORY // max(1, oracle.space.size)) // 6
    wanted = COPIES * max(1, budget // 500)
    copies = min(wanted, oracle.space.size + 1, budget // 2, kept // 2)
    noise = [oracle.space.random(rng) for _ in range(copies - 1)]
    # The copies share the witness's length, as in the unit ball of the factorisation.
    length = float(norm2(witness)) / math.sqrt(copies)
    first = stack([witness, *(scale(z, length / float(norm2(z))) for z in noise)])
    images = oracle.hvps(first)
    unit = _peak(images)  # so that no square under- or overflows

    def products(ds: Blocks) -> Blocks:
        return scale(_finite(oracle.hvps(ds)), 1 / unit)

    images = scale(images, 1 / unit)
    value = float(dot(witness, unstack(images)[0]))
    target = max(value, 0.0) * (1 + rtol)
    task = Task(products, oracle.space, envelope, rng, rtol, target, kept)
    upper, left = math.inf, budget - copies
    starts = []
    if isinstance(norm, SumJoint):
        delta /= 2
        upper, starts = _by_parts(task, norm, delta, left)
        left = budget - (oracle.num_hvps - before)
    if math.isinf(upper) or (upper > task.target and left >= 2):
        bound, more = _by_factorisation(task, norm, first, images, delta, left)
        upper, starts = min(upper, bound), starts + more
    return Certificate(upper * unit, oracle.num_hvps - before, (note,), starts)


def require_envelope(norm: Norm, space: Space) -> Envelope:
    """The envelope of a norm that is bound to ``space``.

    Raises:
        NormError: it declares none.
    """
    envelope = norm.envelope(space)
    if envelope is None:
        raise NormError(
            f"{norm!r} declares no quadratic envelope, so its sharpness has no certificate",
            do="implement Norm.envelope(space): where ‖d‖₂² ≤ t·‖d‖² for every d, it returns "
            "geodiag.envelopes.euclidean(space, t)",
        )
    return envelope


def _by_factorisation(
    task: Task, norm: Norm | None, directions: Blocks, images: Blocks, delta: float, budget: int
) -> tuple[float, list[Blocks]]:
    """A bound on S by the factorisation from these copies; and starts for an ascent in ``norm``."""
    if task.envelope.rigid:
        form = task.form(task.envelope.interior())
        found = task.bounded(form, delta, budget)
        top = unstack(found.ritz)[-1:]
        return form.bound * max(found.upper, 0.0), top if norm is None else _units(norm, top)
    copies = count_of(images)
    steps, rounds = int(ASCENT * budget) // copies, int(EXPANSION * budget) // copies
    factor = ascend(task, task.products, begin(task, directions, images), steps)
    known, left = concatenate(*factor.known), budget - steps * copies
    for _ in range(rounds):
        factor = ascend_on_model(task, factor, known, MODEL_STEPS)
        new = expansion(task.form(factor.weights), known, copies)
        if new is None or left - count_of(new) < LEAST:
            break
        left -= count_of(new)
        known = last_pairs(concatenate(known, (new, task.products(new))), task.kept)
    upper = math.inf
    for share, rise in RUNS:
        factor = ascend_on_model(task, factor, known, LAST_MODEL_STEPS)
        form = task.form(_raised(task, factor.weights, known))
        # A second run must have products enough, and the first must leave memory for what is kept.
        ample = left >= 2 * LEAST and count_of(known[0]) + left <= task.kept
        above = rise if ample else math.inf
        stop_above = above * task.envelope.bound(factor.weights) / form.bound
        last = task.bounded(form, share * delta, left, stop_above)
        upper = min(upper, form.bound * max(last.upper, 0.0))
        known = last_pairs(concatenate(known, (last.ritz, last.images)), task.kept)
        left -= len(last.values)
        if upper <= task.target or left < LEAST or last.values[-1] <= stop_above:
            break
    if norm is None:
        return upper, unstack(last.ritz)[-1:]
    return upper, _starts(task, norm, form, factor.image, known)


def _raised(task: Task, weights: Weights, known: Known) -> Weights:
    """``weights`` raised where the known products show the form to be too small."""
    basis, images = orthonormal(task.form(weights), *known)
    values, vectors = np.linalg.eigh(gram(basis, images))
    if values[-1] <= 0:
        return weights
    count = min(RITZ_VECTORS, int(np.sum(values >= NEAR_TOP * values[-1])))
    fits = [task.envelope.fit(one(g)) for g in unstack(mix(vectors[:, -count:].T, images))]
    return mix_forms(task.envelope, [weights, *fits], basis, images)


def _starts(task: Task, norm: Norm, form: Form, copies: Blocks, known: Known) -> list[Blocks]:
    """Ends of ascents on the model of H from the norm's LMO of random mixtures of the copies."""
    model = hessian_model(form, *orthonormal(form, *known))
    mixtures = mix(task.rng.standard_normal((ROUNDED, count_of(copies))), copies)
    directions = norm.lmos(mixtures)
    if isinstance(norm, SumJoint):  # these are in the part that is steepest there; others too
        alone = [_padded(part.of(mixtures), task.space) for part in norm.parts[:ROUNDED]]
        firsts = [one(unstack(each)[i]) for i, each in enumerate(alone)]
        directions = join(directions, norm.lmos(join(*firsts)))
    p = iterate.begin(directions, model(directions))
    for _ in range(ROUNDS):
        p = segment(norm, model, p)
    found = unstack(iterate.best(p, STARTS).direction)
    return _units(norm, found)


def _units(norm: Norm, directions: list[Blocks]) -> list[Blocks]:
    return [scale(d, 1 / norm.value(d)) for d in directions if float(norm.value(d)) > 0]


def _by_parts(task: Task, norm: SumJoint, delta: float, budget: int) -> tuple[float, list[Blocks]]:
    """S ≤ max_b r_b²·S_b(H_bb + cI), c ≥ −λ_min(H): a convex form is largest at one part alone.

    With few products for each part, or a c that alone exceeds S, there is none: the factorisation
    of the whole then gives a tighter bound. The directions are the top ones of the best parts.
    """
    space = task.space
    share = budget // (len(norm.parts) + 2)
    if share < LEAST_SHARE:
        return math.inf, []
    delta /= len(norm.parts) + 1
    plain = euclidean(space)
    form = plain.form(plain.interior())

    def negated(ds: Blocks) -> Blocks:
        return scale(task.products(ds), -1.0)

    lowest = bound_top(negated, form, space.random(task.rng), delta, 2 * share, task.rtol)
    c = max(lowest.upper, 0.0)
    radius = max(part.radius for part in norm.parts)
    if c * radius**2 > task.target > 0 and space.size > len(norm.parts):
        return math.inf, []
    upper = 0.0
    tops: list[tuple[float, Blocks]] = []
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
        used = 0 if envelope.rigid else count_of(noise)
        found, top = _by_factorisation(inner, None, noise, images, delta, max(1, share - used))
        upper = max(upper, found * part.radius**2)
        tops += [(found * part.radius**2, _padded(stack([d]), space)) for d in top]
    tops.sort(key=lambda each: -each[0])
    return upper, _units(norm, [unstack(each)[0] for _, each in tops[:STARTS]])


def _padded(ds: Blocks, space: Space) -> Blocks:
    """Zero in the tensors that ``ds`` leaves out."""
    example = next(iter(ds.values()))
    xp = namespace(ds)

    def zeros(name: str) -> Array:
        shape = (example.shape[0], *space.shapes[name])
        return xp.zeros(shape, dtype=example.dtype, device=device(example))

    return {name: ds[name] if name in ds else zeros(name) for name in space.names}


def _peak(images: Blocks) -> float:
    """The largest absolute entry; 1 if all vanish."""
    return float(largest(_finite(images))) or 1.0


def _finite(images: Blocks) -> Blocks:
    if not bool(all_finite(images)):
        raise product_not_finite()
    return images
