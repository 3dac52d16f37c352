"""The Nyström approximation of H by the products so far, on which a search costs no product.

From directions D and images Y = HD, H is about Y (DᵀY)⁻¹ Yᵀ: exact on the span of D and, for
H ⪰ 0, nowhere above H (Martinsson and Tropp, Acta Numerica 29, 2020, section 14). Its local maxima
are found without a product, and the best of them are far better starts for H than random ones.
"""

from __future__ import annotations

from typing import NamedTuple

from geodiag.blocks import Array, Blocks, array_namespace, device, positive
from geodiag.core.stacks import combine, cross, join, lengths, one, pick, rescale
from geodiag.norms.base import Norm
from geodiag.norms.quadratic import L2
from geodiag.oracles.base import Oracle
from geodiag.solvers import iterate
from geodiag.solvers.iterate import Iterates
from geodiag.solvers.lanczos.recurrence import State, begin, lanczos_step
from geodiag.solvers.line_search import segment

# Directions of DᵀY below this fraction of its largest eigenvalue are left out: inverted, they would
# be noise. Far above single precision's rounding, so that both precisions see the same problem.
RANK = 1e-3
# Two directions of larger cosine are the same local maximum.
ALIKE = 0.6


class Products(NamedTuple):
    """R pairs (d, Hd) with ‖d‖₂ = 1; rows of zeros are empty."""

    images: Blocks  # (R, …)
    inner: Array  # (R, R): ⟨d_i, H d_j⟩


class Approximation(NamedTuple):
    """H ≈ Σ_r weights[r]·b_r b_rᵀ."""

    basis: Blocks  # (R, …), b_r
    weights: Array  # (R,); zero where the rank is lower. The last is the top direction's.

    def images(self, ds: Blocks) -> Blocks:
        """The approximation applied to a stack."""
        return combine(cross(ds, self.basis) * self.weights, self.basis)


def krylov(oracle: Oracle, first: Blocks, count: int) -> Products:
    """The products of a Lanczos recurrence from ``first``, without reorthogonalisation.

    Rounding may turn the directions; what they say of H stays true.
    """
    l2 = L2()

    def step(state: State) -> tuple[State, tuple[Blocks, Blocks]]:
        after, image, _ = lanczos_step(oracle.hvp, l2, state, l2.value)
        return after, (state.next, image)

    _, (directions, images) = oracle.scan(step, begin(l2, first, None, 0.0), count)
    return Products(images, cross(directions, images))


def normalised(directions: Blocks, images: Blocks) -> tuple[Blocks, Products]:
    """Directions of unit length, stacked, and their products."""
    size = 1 / positive(lengths(directions))
    units, seen = rescale(directions, size), rescale(images, size)
    return units, Products(seen, cross(units, seen))


def add(products: Products, directions: Blocks, images: Blocks, keep: int = 0) -> Products:
    """The products with further ones.

    ``keep``: as many rows as before, the first ``keep`` among them; the oldest others are dropped.
    """
    units, new = normalised(directions, images)
    side = cross(units, products.images)
    xp = array_namespace(side)
    upper = xp.concat([products.inner, side.T], axis=1)
    inner = xp.concat([upper, xp.concat([side, new.inner], axis=1)], axis=0)
    grown = Products(join(products.images, new.images), inner)
    if not keep:
        return grown
    index = xp.arange(inner.shape[0], device=device(inner))
    index = xp.concat([index[:keep], index[keep + side.shape[0] :]])
    return Products(
        pick(grown.images, index), xp.take(xp.take(inner, index, axis=0), index, axis=1)
    )


def spare(products: Products, rows: int) -> Products:
    """The products with empty rows for later ones."""
    inner = products.inner
    xp = array_namespace(inner)
    old = inner.shape[0]
    places = xp.eye(old + rows, old, dtype=inner.dtype, device=device(inner))
    return Products(combine(places, products.images), places @ inner @ places.T)


def fit(products: Products) -> Approximation:
    """The Nyström approximation from ``products``."""
    inner = (products.inner + products.inner.T) / 2
    xp = array_namespace(inner)
    # LAPACK's float32 solver can answer NaN to a matrix with many zero rows. Empty rows have no
    # images either, so that any eigenvalue will do for them.
    sizes = xp.abs(inner)
    places = xp.arange(inner.shape[0], dtype=inner.dtype, device=device(inner))
    filling = xp.max(sizes) * (0.5 + 0.01 * places)
    empty = xp.max(sizes, axis=1) == 0
    fill = xp.where(empty, filling, xp.zeros_like(filling))
    inner = inner + xp.eye(inner.shape[0], dtype=inner.dtype, device=device(inner)) * fill
    values, vectors = xp.linalg.eigh(inner)
    size = xp.abs(values)
    used = (size > RANK * xp.max(size)) & (size > 0)
    weights = xp.where(
        used, 1 / xp.where(used, values, xp.ones_like(values)), xp.zeros_like(values)
    )
    return Approximation(combine(vectors.T, products.images), weights)


def propose(
    oracle: Oracle,
    norm: Norm,
    approximation: Approximation,
    mixtures: Array,
    gradient: Blocks,
    *,
    steps: int,
    count: int,
    known: Blocks | None = None,
) -> Blocks:
    """The ``count`` best local maxima of the approximation that differ from each other and known.

    Starts: lmo of the gradient, of the top Ritz vector, and of rounded random vectors of the
    approximation's range (``mixtures``: (N, R) standard normal numbers).
    """
    xp = array_namespace(mixtures)
    rounded = mixtures * xp.sqrt(xp.abs(approximation.weights))
    top = xp.zeros_like(mixtures[:1, :])
    top = xp.where(xp.arange(top.shape[1], device=device(top)) == top.shape[1] - 1, 1 + top, top)
    starts = join(one(gradient), combine(xp.concat([top, rounded], axis=0), approximation.basis))
    directions = norm.lmos(starts)
    iterates = iterate.begin(directions, approximation.images(directions))

    def step(p: Iterates) -> Iterates:
        return segment(norm, approximation.images, p)

    found = iterate.run(oracle, step, iterates, steps, 1e-4).iterates
    return _distinct(found, count, known)


def _distinct(found: Iterates, count: int, known: Blocks | None) -> Blocks:
    values = found.value
    xp = array_namespace(values)
    units = _units(found.direction)
    lowest = xp.full(values.shape, -xp.inf, dtype=values.dtype, device=device(values))
    if known is not None:
        near = xp.abs(cross(units, _units(known)))
        values = xp.where(xp.max(near, axis=1) > ALIKE, lowest, values)
    chosen = []
    for _ in range(count):
        index = xp.argmax(values)[None]
        chosen.append(index)
        near = xp.abs(cross(units, pick(units, index)))[:, 0]
        values = xp.where(near > ALIKE, lowest, values)
    return pick(found.direction, xp.concat(chosen))


def _units(directions: Blocks) -> Blocks:
    return rescale(directions, 1 / positive(lengths(directions)))
