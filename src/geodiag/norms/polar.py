"""Polar factors and operator norms of matrices, without an SVD where that is faster.

The polar factor U Vᵀ of G = U Σ Vᵀ is where ⟨G, X⟩ is largest over ‖X‖ ≤ 1; the maximum is the
nuclear norm of G. Methods, for k = min(rows, cols):

    small or float64   SVD.
    CPU                Eigendecomposition of the Gram matrix of the short side: two large products.
                       float32 resolves it to √ε·σ_max only, so the leading directions are first
                       pressed down to the level of the 32nd; the polar factor stays as it is, for
                       the directions come from subspace iteration and nearly commute with G Gᵀ.
    accelerator        Products alone, on stacks: odd quintics, each the best for the interval that
                       holds the singular values (Polar Express, arXiv 2505.16932; the coefficients
                       are our own, with a margin for rounding), then one of Newton–Schulz.

First, from k = 192 on the CPU and unless traced, a matrix of rank up to k/4 is recognised by the
residual of its projection to the span of k/4 + 8 of its columns, and only the small core is
decomposed (Halko, Martinsson and Tropp, arXiv 0909.4061). The eight columns beyond the rank keep
them well conditioned: the residual is a few ε, and the threshold 64 ε. For ranks between k/4 and
k/4 + 8 either method may run. Other choices depend on shape, dtype and device.

Accuracy in float32. Gram: ‖X‖ ≤ 1.003 and ⟨G, X⟩ ≥ 0.99 of the nuclear norm, for spectra that decay
evenly over up to eight orders or have up to 32 values above the rest; 0.94 at k = 768 where more
than 32 equal values are a hundred times or more above all others. The other methods: rounding, but
for what singular values below 1e-6 of the Frobenius norm are worth. An ascent needs no more, as it
divides its points by their norm, and :func:`operator_norm` is accurate to rounding by every method
(where the framework multiplies float32 in fewer bits, as on some accelerators, to those bits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from geodiag.blocks import Array, array_namespace

SMALL = 64  # up to this k an SVD is as fast
LOW_RANK_FROM = 192  # from this k it pays to look whether the rank is low
OVERSAMPLED = 8  # columns beyond the rank that is recognised
LEADING = 32  # singular directions pressed down before a Gram matrix is formed
FLOOR = 1024  # in ε of the largest: a Gram matrix's eigenvalues below it are not divided by
STACK_BYTES = 2**28

# (a, b, c) of a·x + b·x³ + c·x⁵ on singular values x in [0, 1.01], whose images stay in [0, 1]. The
# first row is the minimax quintic for [0.02, 1.01], scaled to a maximum of 1; eight of it take 1e-6
# to above 0.08 and leave no value below that. Each next row is minimax for [l, 1.01], with l the
# image of the lower end of the row before; the last is Newton–Schulz.
QUINTICS = (
    *[(4.1366482, -11.633514, 8.3805157)] * 8,
    (3.8892265, -9.7720961, 6.7935426),
    (3.0670254, -5.0246385, 2.9297478),
    (2.0606190, -1.6479348, 0.58671527),
    (1.875, -1.25, 0.375),
)
SQUARINGS = 22  # of a k × k matrix: they overestimate σ_max by the factor k^(2^-23)


def polar(m: Array) -> Array:
    """A maximiser of ⟨m, X⟩ over ‖X‖ ≤ 1 for the matrix m, or each of a stack (K, rows, cols).

    The polar factor, or another partial isometry where m lacks rank, to the accuracy stated above.
    """
    xp = array_namespace(m)
    if min(m.shape[-2:]) <= SMALL:
        return _by_svd(m)
    if m.ndim > 2 and on_cpu(m):  # large products gain nothing from stacks there
        return xp.stack([polar(m[i, ...]) for i in range(m.shape[0])])
    if m.shape[-2] > m.shape[-1]:
        return xp.matrix_transpose(polar(xp.matrix_transpose(m)))
    g, _ = _scaled(m)
    found = _low_rank(g)
    if found is not None:
        basis, core, _ = found
        right, small = xp.linalg.qr(xp.matrix_transpose(core))
        return basis @ (_by_svd(xp.matrix_transpose(small)) @ xp.matrix_transpose(right))
    if m.dtype == xp.float64:
        return _by_svd(m)
    return _by_gram(g) if on_cpu(m) else _by_quintics(g)


def operator_norm(m: Array) -> Array:
    """The largest singular value of the matrix m, 0-d, or of each of a stack (K, rows, cols).

    Accurate to rounding: a witness is divided by it, so it is never smaller by more.
    """
    xp = array_namespace(m)
    if min(m.shape[-2:]) <= SMALL:
        return xp.max(xp.linalg.svdvals(m), axis=-1)
    g, peak = _scaled(m if m.shape[-2] <= m.shape[-1] else xp.matrix_transpose(m))
    found = _low_rank(g)
    if found is not None:  # what the projection leaves is orthogonal to it: squares add
        _, core, rest = found
        square = xp.max(xp.linalg.eigvalsh(core @ core.T)) + rest * rest
    else:
        gram = g @ xp.matrix_transpose(g)
        square = xp.max(xp.linalg.eigvalsh(gram), axis=-1) if on_cpu(g) else _by_squaring(gram)
    return xp.sqrt(square) * peak[..., 0, 0]


def nuclear_norm(m: Array) -> Array:
    """The sum of the singular values of the matrix m, 0-d, or of each of a stack.

    Above k = 64 it is ⟨m, polar(m)⟩, to the accuracy of that.
    """
    xp = array_namespace(m)
    if min(m.shape[-2:]) <= SMALL:
        return xp.sum(xp.linalg.svdvals(m), axis=-1)
    return xp.sum(m * polar(m), axis=(-2, -1))


def each(f: Callable[[Array], Array], ms: Sequence[Array]) -> list[Array]:
    """``f`` of each matrix; on an accelerator, in one call for those of equal shape."""
    if len(ms) < 2 or on_cpu(ms[0]):
        return [f(m) for m in ms]
    xp = array_namespace(*ms)
    places: dict[tuple[int, ...], list[int]] = {}
    for i, m in enumerate(ms):
        places.setdefault(tuple(m.shape), []).append(i)
    answers: dict[int, Array] = {}
    for (rows, cols), all_of in places.items():
        width = max(1, STACK_BYTES // (rows * cols * xp.finfo(ms[0].dtype).bits // 8))
        for start in range(0, len(all_of), width):
            some = all_of[start : start + width]
            stacked = f(xp.stack([ms[i] for i in some]))
            answers.update((i, stacked[at, ...]) for at, i in enumerate(some))
    return [answers[i] for i in range(len(ms))]


def on_cpu(x: Array) -> bool:
    """Whether ``x`` is computed with on the host; for a traced array, whether all can be."""
    try:
        return bool(x.__dlpack_device__()[0] == 1)  # kDLCPU
    except Exception:  # traced, or spread over devices: each framework has its own error
        devices = array_namespace(x).__array_namespace_info__().devices()
        return all(d is None or "cpu" in str(d).lower() for d in devices)


def _scaled(m: Array) -> tuple[Array, Array]:
    """m over its largest entry, so that no square under- or overflows, and that entry."""
    xp = array_namespace(m)
    peak = xp.max(xp.abs(m), axis=(-2, -1), keepdims=True)
    usable = (peak > 0) & xp.isfinite(peak)  # NaN and infinity go on to where they are reported
    peak = xp.where(usable, peak, xp.ones_like(peak))
    return m / peak, peak


def _by_svd(m: Array) -> Array:
    u, _, vh = array_namespace(m).linalg.svd(m, full_matrices=False)
    return u @ vh


def _span(g: Array, size: int) -> Array:
    """An orthonormal basis of the span of ``size`` columns of g, evenly chosen."""
    xp = array_namespace(g)
    return xp.linalg.qr(g[:, :: g.shape[1] // size][:, :size])[0]


def _low_rank(g: Array) -> tuple[Array, Array, Array] | None:
    """(Q, B, ‖g − Q B‖_F) with few orthonormal columns Q, if that norm is negligible."""
    k, n = g.shape[-2:]
    # What is traced has no values to look at; the array API gives every concrete array a device.
    if g.ndim > 2 or k < LOW_RANK_FROM or not hasattr(g, "__dlpack_device__") or not on_cpu(g):
        return None
    xp = array_namespace(g)
    negligible = 64 * xp.finfo(g.dtype).eps * _length(g)[0, 0]
    size = k // 4 + OVERSAMPLED
    basis = _span(g, size)
    step = n // size
    for part in (g[:, step // 2 :: 4 * step], g):  # a few columns tell most matrices of high rank
        core = basis.T @ part
        rest = _length(part - basis @ core)[0, 0]
        if not bool(rest <= negligible):
            return None
    return basis, core, rest


def _by_gram(g: Array) -> Array:
    """Q Λ^{-1/2} Qᵀ g with g gᵀ = Q Λ Qᵀ, after the leading singular values are pressed down."""
    xp = array_namespace(g)
    basis = _span(g, LEADING)
    for _ in range(2):
        basis = xp.linalg.qr(g @ (g.T @ basis))[0]
    core = basis.T @ g
    values, left = xp.linalg.eigh(core @ core.T)
    level = _positive(xp.maximum(values, values[-1] * 1e-6))
    kept = xp.sqrt(level[0] / level)
    h = g - ((basis @ left) * (1 - kept)) @ (left.T @ core)
    values, left = xp.linalg.eigh(h @ h.T)
    level = _positive(xp.maximum(values, values[-1] * (FLOOR * xp.finfo(g.dtype).eps)))
    return ((left / xp.sqrt(level)) @ left.T) @ h


def _by_quintics(g: Array) -> Array:
    xp = array_namespace(g)
    x = g / _positive(_length(g))
    for a, b, c in QUINTICS:
        s = x @ xp.matrix_transpose(x)
        x = a * x + (b * s + c * (s @ s)) @ x
    return x


def _by_squaring(a: Array) -> Array:
    """The largest eigenvalue of A ⪰ 0: lim ‖A^p‖_F^(1/p), from above, with p doubled each time."""
    xp = array_namespace(a)
    log = 0.0
    for i in range(SQUARINGS):
        length = _positive(_length(a))
        log = log + xp.log(length) / 2**i
        a = a / length
        a = a @ a
    return xp.exp(log)[..., 0, 0]


def _positive(x: Array) -> Array:
    """x ≥ 0 to divide by: at least the smallest normal number."""
    xp = array_namespace(x)
    return xp.maximum(x, xp.full_like(x, xp.finfo(x.dtype).smallest_normal))


def _length(m: Array) -> Array:
    """The Frobenius norm of each matrix, as (..., 1, 1)."""
    xp = array_namespace(m)
    return xp.sqrt(xp.sum(m * m, axis=(-2, -1), keepdims=True))
