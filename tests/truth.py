"""Ground truth in plain NumPy and SciPy, written from the formulas and not from the library.

A norm's truth is its value and its dual on dicts of NumPy arrays. The truth of a sharpness is a
search over the faces of a polytope, an eigenvalue, or a local solver with many restarts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import linalg, optimize

Host = dict[str, np.ndarray]
Function = Callable[[Mapping[str, np.ndarray]], float]

# A matrix, a wide matrix, a vector, a scalar: every kind of tensor without a layout.
SHAPES: dict[str, tuple[int, ...]] = {"a.W": (3, 4), "z": (), "a.b": (3,), "c.W": (2, 2)}


def blocks(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Host:
    """Seeded normal entries."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def to(xp: Any, host: Mapping[str, np.ndarray], dtype: str = "float64") -> dict[str, Any]:
    """Host arrays as blocks of a namespace."""
    return {name: xp.asarray(x, dtype=getattr(xp, dtype)) for name, x in host.items()}


def back(blocks: Mapping[str, Any]) -> Host:
    """Blocks as float64 on the host."""
    return {name: np.asarray(x).astype(np.float64) for name, x in blocks.items()}


def inner(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    return float(sum(np.vdot(a[name], b[name]) for name in a))


def flat(d: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in d.values()])


def tolerance(dtype: str, n: int) -> float:
    """Relative. A sum of n terms is off by at most n·ε (Higham, §4.2), a singular value by a few
    √n·ε (LAPACK's bound with a modest constant); 64 covers the constants."""
    return 64 * n * float(np.finfo(dtype).eps)


def l2(x: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(x))))


def operator(x: np.ndarray) -> float:
    """The largest singular value; ℓ2 for vectors and scalars."""
    return l2(x) if x.ndim < 2 else float(_singular(x).max())


def nuclear(x: np.ndarray) -> float:
    """The sum of singular values; ℓ2 for vectors and scalars."""
    return l2(x) if x.ndim < 2 else float(_singular(x).sum())


def _singular(x: np.ndarray) -> np.ndarray:
    """By QR iteration; the array namespaces use divide and conquer."""
    return np.asarray(linalg.svd(x, compute_uv=False, lapack_driver="gesvd"))


def rms_radius(x: np.ndarray) -> float:
    return float(np.sqrt(x.size))


def muon_radius(x: np.ndarray) -> float:
    return float(np.sqrt(max(1.0, x.shape[0] / x.shape[1]))) if x.ndim == 2 else 1.0


def muon_rms_radius(x: np.ndarray) -> float:
    return 0.2 * float(np.sqrt(max(x.shape))) if x.ndim == 2 else 1.0


def over_max(value: Any, radius: Any = lambda x: 1.0) -> Function:
    return lambda d: max(value(x) / radius(x) for x in d.values())


def over_sum(value: Any, radius: Any = lambda x: 1.0) -> Function:
    return lambda d: sum(value(x) / radius(x) for x in d.values())


def over_max_dual(dual: Any, radius: Any = lambda x: 1.0) -> Function:
    return lambda g: sum(dual(x) * radius(x) for x in g.values())


def over_sum_dual(dual: Any, radius: Any = lambda x: 1.0) -> Function:
    return lambda g: max(dual(x) * radius(x) for x in g.values())


# name: (value, dual), from the table of norms.
NORMS: dict[str, tuple[Function, Function]] = {
    "l2": (lambda d: l2(flat(d)), lambda g: l2(flat(g))),
    "l1": (lambda d: float(np.abs(flat(d)).sum()), lambda g: float(np.abs(flat(g)).max())),
    "linf": (lambda d: float(np.abs(flat(d)).max()), lambda g: float(np.abs(flat(g)).sum())),
    "block": (over_sum(l2), over_sum_dual(l2)),
    "frobenius": (over_max(l2), over_max_dual(l2)),
    "spectral": (over_max(operator), over_max_dual(nuclear)),
    "nuclear": (over_sum(nuclear), over_sum_dual(operator)),
    "rms": (over_max(l2, rms_radius), over_max_dual(l2, rms_radius)),
    "muon": (over_max(operator, muon_radius), over_max_dual(nuclear, muon_radius)),
}


def cube_faces(H: np.ndarray) -> float:
    """max of ⟨d, Hd⟩ over max|d_i| = 1, by all 3ⁿ − 1 faces and not the vertices alone.

    Inside a face the free coordinates are stationary. On a face whose own Hessian is singular the
    form is flat along a line, so a smaller face attains its maximum as well.
    """
    best = -np.inf
    for pattern in itertools.product((0, 1, -1), repeat=len(H)):
        d = np.array(pattern, dtype=float)
        F, X = np.flatnonzero(d == 0), np.flatnonzero(d)
        if X.size == 0:
            continue
        if F.size:
            sub = H[F][:, F]
            if np.linalg.matrix_rank(sub) < F.size:
                continue
            d[F] = -np.linalg.inv(sub) @ (H[F][:, X] @ d[X])
        if np.max(np.abs(d)) <= 1.0:
            best = max(best, float(d @ H @ d))
    return best


def cross_faces(H: np.ndarray) -> float:
    """max of ⟨d, Hd⟩ over Σ|d_i| = 1: each support and sign pattern spans a simplex.

    Inside, S H S y = μ1 with Σy = 1: y = A⁻¹1/(1ᵀA⁻¹1); where A is singular, an eigenvector of a
    projected problem decides, which a smaller simplex attains as well.
    """
    best = -np.inf
    for pattern in itertools.product((0, 1, -1), repeat=len(H)):
        s = np.array(pattern, dtype=float)
        on = np.flatnonzero(s)
        if on.size == 0:
            continue
        A = (s[on][:, None] * H[on][:, on]) * s[on]
        # Tangent basis of the simplex: differences to the first vertex.
        T = np.vstack([-np.ones(on.size - 1), np.eye(on.size - 1)])
        first = np.eye(on.size)[0]
        curved = T.T @ A @ T
        if on.size > 1 and np.linalg.matrix_rank(curved) < on.size - 1:
            continue
        y = first - T @ (np.linalg.inv(curved) @ (T.T @ A @ first)) if on.size > 1 else first
        if y.min() >= 0:
            best = max(best, float(y @ A @ y))
    return best


def sampled(H: np.ndarray, norm: Callable[[np.ndarray], np.ndarray], count: int = 20_000) -> float:
    """The largest ⟨d, Hd⟩/‖d‖² over random directions of several kinds: never above S."""
    rng = np.random.default_rng(0)
    n = len(H)
    dense = rng.standard_normal((count, n))
    D = np.vstack([dense, np.sign(dense), dense * (rng.random((count, n)) < 0.5), np.eye(n)])
    lengths = norm(D)
    D, lengths = D[lengths > 0], lengths[lengths > 0]
    return float(np.max(np.einsum("ki,ij,kj->k", D, H, D) / lengths**2))


def local_maxima(H: np.ndarray, norm: Callable[[np.ndarray], float], restarts: int = 20) -> float:
    """The best of many local solves of ⟨d, Hd⟩/‖d‖², derivative-free where the norm has kinks."""
    rng = np.random.default_rng(1)
    best = -np.inf
    for _ in range(restarts):
        x = rng.standard_normal(len(H))
        for method in ("Nelder-Mead", "Powell", "Nelder-Mead"):
            options = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-10, "fatol": 1e-12}
            if method == "Powell":
                options = {"maxiter": 200, "xtol": 1e-10, "ftol": 1e-12}
            found = optimize.minimize(
                lambda d: -float(d @ H @ d) / norm(d) ** 2, x, method=method, options=options
            )
            x = found.x / norm(found.x)
        best = max(best, -float(found.fun))
    return best


def symmetric(n: int, seed: int, spectrum: Sequence[float] | None = None) -> np.ndarray:
    """A dense symmetric matrix, optionally with this spectrum."""
    M = np.random.default_rng(seed).standard_normal((n, n))
    if spectrum is None:
        return (M + M.T) / 2
    Q, _ = np.linalg.qr(M)
    H = (Q * np.asarray(spectrum)) @ Q.T
    return (H + H.T) / 2
