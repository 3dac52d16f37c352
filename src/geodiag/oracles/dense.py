"""Oracles of given Hessians: a symmetric matrix, a SciPy LinearOperator.

The loss is the quadratic ½⟨w, H w⟩ at w = 0, so the gradient there is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from geodiag.blocks import Array, Blocks, array_namespace, device, dot, is_array
from geodiag.core.spaces import Space, arrays_like
from geodiag.core.stacks import count_of
from geodiag.core.validation import (
    as_blocks,
    is_mapping_of_names,
    is_real,
    is_whole,
    on_host,
    own_arithmetic,
)
from geodiag.errors import MatrixError, ShapeError, shown
from geodiag.oracles.base import Oracle, Problem

SINGLE = float(np.finfo(np.float32).eps)
SPARSE = "scipy.sparse.linalg.aslinearoperator(H) for a matrix of SciPy, or a dense matrix"


class MatrixOracle(Oracle):
    """½⟨w, H w⟩ at ``params`` (default 0), for the product ``apply`` = H· on vectors.

    ``applies``: the products of the rows of a matrix, if one call is cheaper than many.
    ``precision``: the machine epsilon of the products, 0 for that of the vectors.
    """

    def __init__(
        self,
        apply: Callable[[Array], Array],
        space: Space,
        params: Blocks | None = None,
        *,
        free_hvps: bool = True,
        applies: Callable[[Array], Array] | None = None,
        precision: float = 0.0,
    ) -> None:
        self._apply, self.space, self.free_hvps = apply, space, free_hvps
        self._applies, self._precision = applies, precision
        zeros = {n: space.asarray(np.zeros(s)) for n, s in space.shapes.items()}
        self._point = zeros if params is None else params
        self._moved = params is not None  # at w = 0 the loss and the gradient need no product

    @property
    def precision(self) -> float:
        return self._precision

    @property
    def notes(self) -> tuple[str, ...]:
        if self._precision <= SINGLE:
            return ()
        return (f"products of the operator have a relative error of about {self._precision:.1g}",)

    def point(self) -> Blocks:
        return self._point

    def loss(self) -> Array:
        return self.loss_at(self._point) if self._moved else dot(self._point, self._point)

    def gradient(self) -> Blocks:
        return self.hvp(self._point) if self._moved else self._point

    def hvp(self, d: Blocks) -> Blocks:
        return self.space.unravel(self._apply(self.space.ravel(d)))

    def hvps(self, ds: Blocks) -> Blocks:
        if self._applies is None:
            return super().hvps(ds)
        return self.space.unravel(self._applies(self.space.ravel(ds, (count_of(ds),))))

    def loss_at(self, params: Blocks) -> Array:
        return dot(params, self.hvp(params)) / 2

    def gradient_at(self, params: Blocks) -> Blocks:
        return self.hvp(params)


class MatrixProblem(Problem):
    """A symmetric matrix (any array framework) or a SciPy LinearOperator as a problem.

    ``shapes`` views the n coordinates as named blocks, row-major, in dict order; without it they
    are one block ``x``. Two-axis blocks are matrices, rows first; with more axes the first is rows.

    Raises:
        MatrixError: not square, not symmetric, not finite, or not real.
        ShapeError: ``shapes`` does not have n entries in all.
    """

    def __init__(self, matrix: Any, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        dims: Any = getattr(matrix, "shape", ())
        whole = isinstance(dims, tuple) and all(map(is_whole, dims))
        if not whole or len(dims) != 2 or dims[0] != dims[1] or dims[0] == 0:
            raise MatrixError(
                "the Hessian must be a square matrix",
                got=f"shape {shown(dims)}",
                do="pass shape (n, n)",
            )
        self._explicit = is_array(matrix)
        if is_sparse(matrix):
            raise MatrixError(
                "the Hessian is a sparse matrix", got=type(matrix).__name__, do=f"pass {SPARSE}"
            )
        if self._explicit:
            matrix = _as_real(matrix)
        self.space = _space(dims[0], shapes, matrix)
        self._applies: Callable[[Array], Array] | None = None
        self._precision = 0.0
        if self._explicit:
            symmetric = _checked(matrix)
            self.apply = lambda x: symmetric @ x
            self._applies = lambda rows: rows @ symmetric
        else:
            self.apply, self._precision = _check_operator(matrix)

    def at(self, params: Any = None) -> MatrixOracle:
        point = None if params is None else as_blocks(params, self.space, "params")
        return MatrixOracle(
            self.apply,
            self.space,
            point,
            free_hvps=self._explicit,
            applies=self._applies,
            precision=self._precision,
        )


def is_sparse(matrix: Any) -> bool:
    """Whether ``matrix`` is a sparse one, of SciPy or of another package."""
    dense = is_array(matrix) or hasattr(matrix, "matvec")
    return not dense and (hasattr(matrix, "tocsr") or hasattr(matrix, "todense"))


def _space(n: int, shapes: Mapping[str, tuple[int, ...]] | None, matrix: Any) -> Space:
    named = {"x": (n,)} if shapes is None else _checked_shapes(shapes)
    total = sum(math.prod(s) for s in named.values())
    if total != n:
        raise ShapeError(
            f"shapes= has {total} entries in all, the matrix acts on {n}",
            got=str(named),
            do="make the shapes add up to the matrix's size",
        )
    if not is_array(matrix):
        return Space.rows_first(named, lambda x: np.asarray(x, dtype=np.float64))
    return Space.rows_first(named, arrays_like(matrix, matrix.dtype))


def _checked_shapes(shapes: Any) -> dict[str, tuple[int, ...]]:
    if not is_mapping_of_names(shapes) or not all(map(_is_shape, shapes.values())):
        raise ShapeError(
            "shapes= must be a dict of name → shape, a tuple of sizes",
            got=shown(shapes),
            do='pass e.g. {"W": (3, 4), "b": (3,)}',
        )
    return {name: tuple(map(int, s)) for name, s in shapes.items()}


def _is_shape(x: Any) -> bool:
    return isinstance(x, (tuple, list)) and all(is_whole(k) and k >= 0 for k in x)


def _as_real(matrix: Any) -> Array:
    """The matrix in a real floating dtype of at least 32 bits."""
    if not is_real(matrix):
        got = f"{type(matrix).__name__} of dtype {matrix.dtype}"
        raise MatrixError("the Hessian must be real", got=got)
    matrix = matrix.detach() if hasattr(matrix, "detach") else matrix
    xp = array_namespace(matrix)
    if not xp.isdtype(matrix.dtype, "real floating"):
        default = xp.ones((), device=device(matrix)).dtype
        return xp.astype(matrix, default)
    return xp.astype(matrix, xp.float32) if xp.finfo(matrix.dtype).bits < 32 else matrix


def _checked(matrix: Any) -> Array:
    """A copy, exactly symmetric if ``matrix`` is symmetric up to rounding."""
    xp = array_namespace(matrix)
    try:
        largest = float(xp.max(xp.abs(matrix)))
    except (TypeError, RuntimeError) as e:  # no values in memory, or a sparse layout
        raise MatrixError(
            "the Hessian must be a dense matrix of values",
            got=shown(e),
            do=f"of a sparse one pass {SPARSE}",
        ) from e
    if not math.isfinite(largest):
        raise MatrixError("the Hessian holds NaN or infinity", got=f"largest entry {largest}")
    with own_arithmetic():
        skew = float(xp.max(xp.abs(matrix - xp.matrix_transpose(matrix))))
    if skew > 1e3 * float(xp.finfo(matrix.dtype).eps) * largest:
        raise MatrixError(
            "the Hessian must be symmetric",
            got=f"largest |H − Hᵀ| = {skew:.3g}, largest |H| = {largest:.3g}",
            do="pass (H + Hᵀ)/2 if the difference is rounding",
        )
    # A copy in any case; halved first, large entries do not overflow.
    return matrix / 2 + xp.matrix_transpose(matrix) / 2 if skew else matrix + 0


def _check_operator(operator: Any) -> tuple[Callable[[Array], Array], float]:
    """The product with a LinearOperator, and its machine epsilon if that is above float64's.

    Its symmetry is checked by one bilinear probe, with a fixed seed, to the precision of the
    products: computed in fewer bits they are often handed over as float64.
    """
    n = operator.shape[0]
    try:
        dtype = np.dtype(np.float64 if operator.dtype is None else operator.dtype)
    except TypeError as e:
        raise MatrixError("the operator's dtype is none", got=shown(operator.dtype)) from e
    if dtype.kind not in "fiu":
        raise MatrixError("the Hessian must be real", got=f"dtype {dtype}")

    def apply(x: Array) -> Array:
        answer = on_host(operator.matvec(np.array(x)), "what the operator returns", MatrixError)
        if answer.size != n:
            raise MatrixError("the operator returns another shape", got=answer.shape)
        return answer.reshape(n)

    u, v = np.random.default_rng(0).standard_normal((2, n))
    hu, hv = apply(u), apply(v)
    with own_arithmetic():
        ends = np.linalg.norm(hu) * np.linalg.norm(v) + np.linalg.norm(hv) * np.linalg.norm(u)
        scale, skew = float(ends), abs(float(np.dot(hu, v) - np.dot(hv, u)))
    if not math.isfinite(scale):
        raise MatrixError("the operator returns NaN or infinity")
    eps = _epsilon_of(np.concatenate([hu, hv]))
    tolerance = max(1e-4 if dtype.itemsize < 8 else 1e-8, _skew_of_rounding(eps, n))
    if skew > tolerance * scale:
        eps = max(eps, _nonlinearity(apply, u, v, hu, hv))
        tolerance = max(tolerance, _skew_of_rounding(eps, n))
    if skew > tolerance * scale:
        raise MatrixError(
            "the operator must be symmetric",
            got=f"|⟨Hu, v⟩ − ⟨u, Hv⟩| = {skew:.3g} at random u, v, "
            f"{skew / scale:.2g} of ‖Hu‖‖v‖ + ‖Hv‖‖u‖",
            do="pass a symmetric LinearOperator; one of a matrix in single precision with "
            "dtype=numpy.float32",
        )
    return apply, eps


def _epsilon_of(products: Array) -> float:
    """The machine epsilon of the fewest bits, of 8, 11 and 24, that hold all entries; else 0."""
    mantissas, _ = np.frexp(products.astype(np.float64))
    for bits in (8, 11, 24):
        scaled = np.ldexp(mantissas, bits)
        if mantissas.any() and np.array_equal(scaled, np.rint(scaled)):
            return 2.0 ** (1 - bits)
    return 0.0


def _nonlinearity(
    apply: Callable[[Array], Array], u: Array, v: Array, hu: Array, hv: Array
) -> float:
    """How far H(u + v) is from Hu + Hv as a machine epsilon, by one product; 0 in double precision.

    It shows the precision of products that are computed in fewer bits and then scaled or damped.
    0 too where it is so large that the operator is not linear.
    """
    with own_arithmetic():
        rest = np.linalg.norm(apply(u + v) - hu - hv)
        share = float(rest / (np.linalg.norm(hu) + np.linalg.norm(hv)))
    if not 1e-10 < share < 1e-2:
        return 0.0
    return SINGLE if share < 1e-5 else share


def _skew_of_rounding(eps: float, n: int) -> float:
    """The largest share of ‖Hu‖‖v‖ + ‖Hv‖‖u‖ that rounding may take at random u and v.

    Independent errors of single entries add up to eps/√n of it. An asymmetric H takes 1/√n.
    """
    return max(1e-4, 10 * eps / math.sqrt(n)) if eps else 0.0
