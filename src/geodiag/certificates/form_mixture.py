"""A model of H from the products known so far, and a better form P by a small convex problem.

On the span of known directions Z, with HZ known, the top eigenvalue of H against Σ c_j P_j is a
convex function of c once Σ c_j t(P_j) = 1. Multiplicative updates find its minimiser, which raises
the form exactly where H is seen to exceed it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geodiag.blocks import Blocks, epsilon, subtract
from geodiag.certificates.eigenvalue_bound import Hvps, Known
from geodiag.core.stacks import Matrix, count_of, gram, join, members, mix
from geodiag.envelopes import Envelope, Form, Weights
from geodiag.envelopes.base import combine

STEPS = 200
RATE = 0.4
SPAN = 128  # eigenvectors of the present form that are used, the top ones
TOP = 8  # how many eigenvectors share in a step
SOFT = 0.005  # eigenvalues this far (relative) below the top count e times less
KEPT = 0.8  # the share of the present form to begin from
DEPENDENT = 1e3  # machine epsilons: what is this near to linear dependence is left out


def concatenate(*known: Known) -> Known:
    """The pairs (directions, products) one after the other."""
    return join(*(d for d, _ in known)), join(*(g for _, g in known))


def last_pairs(known: Known, count: int) -> Known:
    """The last ``count`` pairs."""
    size = count_of(known[0])
    directions, images = (members(each, max(size - count, 0), size) for each in known)
    return directions, images


def orthonormal(form: Form, directions: Blocks, images: Blocks) -> Known:
    """A P-orthonormal basis of the directions, and H times it by their ``images``."""
    K = gram(directions, form.apply(directions))
    lengths = np.sqrt(np.maximum(np.diag(K), 0.0))
    lengths[lengths == 0] = 1.0
    K = K / lengths / lengths[:, None]
    values, vectors = np.linalg.eigh((K + K.T) / 2)
    kept = values > DEPENDENT * epsilon(directions) * values[-1]
    T = (vectors[:, kept] / np.sqrt(values[kept])).T / lengths
    return mix(T, directions), mix(T, images)


def hessian_model(form: Form, basis: Blocks, images: Blocks) -> Hvps:
    """The symmetric model of H that agrees with its products on a P-orthonormal basis.

    With G = HQ, this is GQᵀP + PQGᵀ − PQ(QᵀG)QᵀP: its product with Q is G, and it is zero on
    what is P-orthogonal to Q and to P⁻¹G.
    """
    metric = form.apply(basis)
    M = gram(basis, images)
    both = join(images, metric)

    def products(ds: Blocks) -> Blocks:
        inside = gram(metric, ds)
        return mix(np.concatenate([inside, gram(images, ds) - M @ inside]).T, both)

    return products


def expansion(form: Form, known: Known, count: int) -> Blocks | None:
    """New directions: H times the top ``count`` Ritz vectors, P-orthogonal to what is known.

    None where nothing is left. Products there tell most about a form that is too small.
    """
    basis, images = orthonormal(form, *known)
    M = gram(basis, images)
    vectors = np.linalg.eigh((M + M.T) / 2)[1][:, -count:]
    new = form.solve(mix(vectors.T, images))
    before = gram(new, form.apply(new)).diagonal()
    for _ in range(2):
        new = subtract(new, mix(gram(basis, form.apply(new)).T, basis))
    after = gram(new, form.apply(new)).diagonal()
    kept = np.flatnonzero(after > epsilon(basis) * before)
    if not len(kept):
        return None
    return mix((np.eye(len(after)) / np.sqrt(np.maximum(after, 1e-300)))[kept], new)


def mix_forms(
    envelope: Envelope, atoms: Sequence[Weights], directions: Blocks, images: Blocks
) -> Weights:
    """The mixture of ``atoms``, the present form first, with the least bound on the span."""
    scales = [envelope.bound(w) for w in atoms]
    atoms = [
        combine([w], [1 / t])
        for w, t in zip(atoms, scales, strict=True)
        if np.isfinite(t) and t > 0
    ]
    if len(atoms) < 2:
        return atoms[0]
    H = gram(directions, images)
    Ps = [gram(directions, envelope.form(w).apply(directions)) for w in atoms]
    values, vectors = np.linalg.eigh((Ps[0] + Ps[0].T) / 2)
    kept = values > 1e-8 * values[-1]
    T = vectors[:, kept] / np.sqrt(values[kept])
    H = T.T @ (H + H.T) @ T / 2
    U = np.linalg.eigh(H)[1][:, -SPAN:]
    T = T @ U
    stack = np.stack([T.T @ P @ T for P in Ps])
    return combine(atoms, list(_mixture(U.T @ H @ U, (stack + stack.transpose(0, 2, 1)) / 2)))


def _mixture(H: Matrix, Ps: Matrix) -> Matrix:
    """The c ≥ 0, Σc = 1, of least λ_max(H, Σ c_j P_j)."""
    H = (H + H.T) / 2
    c = np.full(len(Ps), (1 - KEPT) / (len(Ps) - 1))
    c[0] = KEPT
    best, least = c, np.inf
    for step in range(STEPS):
        P = np.tensordot(c, Ps, 1)
        # P ⪰ c_0·I here, so that its Cholesky factor exists.
        inverse = np.linalg.inv(np.linalg.cholesky(P))
        values, vectors = np.linalg.eigh(inverse @ H @ inverse.T)
        top = float(values[-1])
        if top <= 0:
            return best if least < np.inf else c
        if top < least:
            least, best = top, c
        y = inverse.T @ vectors[:, -TOP:]
        share = np.exp((values[-TOP:] - top) / (SOFT * top))
        share /= share.sum()
        gain = np.sum((Ps @ y) * (y * share), axis=(1, 2))
        c = c * np.exp(np.clip(RATE * (gain - 1) / np.sqrt(1 + step / 20), -1, 1))
        c = np.maximum(c / c.sum(), 1e-6)
        c /= c.sum()
    return best
