"""A parameter pytree in parts: what is measured, what is held fixed, and how to rebuild it.

measured   the floating arrays that ``where`` selects, as blocks named by their paths
fixed      the other arrays: traced arguments of the compiled functions, never differentiated
static     whatever is not an array (functions, None, Python scalars): part of the compilation key

A Python float is a parameter, as to ``jax.grad``: an array of shape (). In an Equinox module it is
an option, as to ``equinox.filter_grad``. Integers and bools are never differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from geodiag.blocks import Array, Blocks, check_like
from geodiag.core.selection import Where, select
from geodiag.core.spaces import MatrixView, Space
from geodiag.errors import ParameterError, ShapeError, shown
from geodiag_jax import sharding
from geodiag_jax.sharding import Placement, UserSharding

# The name of the one block when ``params`` is a bare array; the same as a bare matrix's.
ROOT = "x"
_REF: Any = getattr(jax, "Ref", ())  # not in older versions of JAX
Paths: TypeAlias = list[tuple[Any, Any]]  # the leaves of a pytree, each behind its path


class Static:
    """A leaf that is not an array, as part of a compilation key.

    Compared by type as well as by value: 1, 1.0 and True are equal but compile differently.
    """

    def __init__(self, value: Any, what: str) -> None:
        self.value = value
        # repr tells 0.0 from -0.0, and lets NaN equal itself.
        exact = repr(value) if isinstance(value, (float, complex)) else value
        self._key = (type(value), exact)
        try:
            self._hash = hash(self._key)
        except TypeError as e:
            raise ParameterError(
                f"{what} is neither an array nor hashable, so no compiled function can depend "
                "on it",
                got=f"{type(value).__module__}.{type(value).__qualname__}",
                do="make it a JAX or NumPy array of numbers, register its type as a pytree, or "
                "close the loss over it",
            ) from e

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True)
class Tree:
    """A parameter pytree without its arrays; hashable, as a static argument."""

    treedef: Any
    measured: tuple[tuple[int, Any], ...]  # place among the leaves, and the leaf's own dtype
    weak: tuple[int, ...]  # measured ones whose dtype gives way to others, as Python floats' does
    fixed: tuple[int, ...]
    static: tuple[tuple[int, Static], ...]
    dtype: Any  # of the measurement
    placement: Placement
    user_sharding: UserSharding  # of the measured and the fixed arrays

    def build(self, point: Sequence[Array], fixed: Sequence[Array]) -> Any:
        """The pytree with these arrays; measured ones are cast back to their leaves' dtypes."""
        leaves: list[Any] = [None] * self.treedef.num_leaves
        for (place, dtype), x in zip(self.measured, point, strict=True):
            leaves[place] = _weak(x, dtype) if place in self.weak else x.astype(dtype)
        for place, x in zip(self.fixed, fixed, strict=True):
            leaves[place] = x
        for place, leaf in self.static:
            leaves[place] = leaf.value
        return jax.tree_util.tree_unflatten(self.treedef, leaves)


@dataclass(frozen=True)
class Parameters:
    """The parts of a pytree: its :class:`Tree`, the measured arrays and the fixed ones."""

    tree: Tree
    space: Space
    point: tuple[Array, ...]  # the measured arrays, in the measurement dtype
    fixed: tuple[Array, ...]

    def moved(self, params: Any) -> Parameters:
        """The same choice of parameters at another point: a whole pytree, or measured blocks."""
        if is_blocks(params, self.space):
            check_like(params, self.space.shapes, "params")
            given = {n: x if isinstance(x, jax.Array) else np.array(x) for n, x in params.items()}
            point = tuple(self.space.place(name, given[name]) for name in self.space.names)
            return replace(self, point=point)
        paths, treedef = flatten(params)
        leaves = [leaf for _, leaf in paths]
        if treedef != self.tree.treedef:
            raise ShapeError(
                "params does not have the structure that the problem was made with",
                got=str(treedef)[:200],
                do="pass a pytree of the same structure, or blocks (a dict) with the names "
                f"{', '.join(self.space.names[:6])}",
            )
        places = [place for place, _ in self.tree.measured]
        measured = {
            name: to_array(leaves[place])
            for name, place in zip(self.space.names, places, strict=True)
        }
        check_like(measured, self.space.shapes, "params")
        return _assemble(leaves, treedef, places, self.space)

    def placed(self, name: str, x: Any) -> Array:
        """One tensor, or a stack of such, in the measurement dtype where the parameter is."""
        if isinstance(x, jax.Array) and x.dtype == self.tree.dtype:
            return sharding.with_auto_axes(x)
        one = x.shape == self.space.shapes[name]
        return self.space.place(name, x) if one else self.space.asarray(x)

    def in_float32(self) -> Parameters:
        """The same point, with all floating arrays in at least 32 bits."""
        measured = tuple((i, _at_least_32_bits(t)) for i, t in self.tree.measured)
        tree = replace(self.tree, measured=measured)
        return replace(self, tree=tree, fixed=tuple(map(wide, self.fixed)))


def wide(x: Array) -> Array:
    """``x``, in 32 bits where it is in fewer."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(_at_least_32_bits(x.dtype)) if floating else x


def _at_least_32_bits(dtype: Any) -> Any:
    bits = jnp.finfo(dtype).bits  # type: ignore[no-untyped-call]
    return jnp.dtype(jnp.float32) if bits < 32 else dtype


def read(params: Any, where: Where) -> Parameters:
    """The parts of a pytree, measured where ``where`` says and the dtype is a floating one."""
    paths, treedef = flatten(params)
    leaves = [leaf for _, leaf in paths]
    prng_key = jax.dtypes.prng_key
    for path, leaf in paths:
        if is_ref(leaf):
            raise ParameterError(
                f"the parameter {name_of(path)!r} is a mutable array",
                got=type(leaf).__name__,
                do="pass its value, e.g. jax.tree.map(lambda ref: ref[...], params)",
            )
    options = equinox_leaves(params)
    paths = [
        (path, leaf if option else to_array(leaf))
        for (path, leaf), option in zip(paths, options, strict=True)
    ]
    places = places_by_name(paths, lambda x: is_array(x) and not jnp.issubdtype(x.dtype, prng_key))
    if not places:
        raise ParameterError(
            "there is no parameter to measure",
            got=f"params= of {len(leaves)} leaves, none of them a JAX or NumPy array",
            do="pass the parameters as a pytree of floating-point arrays",
        )
    chosen = select({name: paths[place][1] for name, place in places.items()}, where)
    for name, x in chosen.items():
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize > 8:
            raise ParameterError(
                f"the parameter {name!r} is not of a real floating dtype",
                got=f"dtype {x.dtype}",
                do="leave it out with where=, e.g. "
                "where=lambda name, x: jnp.issubdtype(x.dtype, jnp.floating)",
            )
    measured = {name: places[name] for name in chosen}
    return _assemble(leaves, treedef, list(measured.values()), space_of(paths, measured))


def places_by_name(paths: Paths, chosen: Callable[[Any], bool]) -> dict[str, int]:
    """The chosen leaves: the name of each, and its place among all."""
    places: dict[str, int] = {}
    for place, (path, leaf) in enumerate(paths):
        if chosen(leaf):
            name = name_of(path)
            if name in places:
                raise ParameterError(
                    "two parameters have the same name once their paths are joined by dots",
                    got=shown(name),
                    do="rename a key that contains a dot",
                )
            places[name] = place
    return places


def space_of(
    paths: Paths, places: Mapping[str, int], asarray: Callable[[Any], Array] = np.asarray
) -> Space:
    """The shapes and the matrix views of the leaves at these places."""
    shapes = {name: tuple(paths[i][1].shape) for name, i in places.items()}
    views = {n: view_of(paths[i][0], len(shapes[n])) for n, i in places.items() if shapes[n][1:]}
    return Space(shapes, views, asarray)


def flatten(tree: Any, what: str = "params=") -> tuple[Paths, Any]:
    """The leaves of a pytree with their paths, and its structure.

    ParameterError if it is not valid: it contains itself, say, or keys that cannot be sorted.
    """
    try:
        return jax.tree_util.tree_flatten_with_path(tree)
    except (RecursionError, SystemError, TypeError, ValueError) as e:
        raise ParameterError(
            f"{what} is not a valid pytree",
            got=f"{type(tree).__name__}: {type(e).__name__}",
            do="pass finitely nested dicts with strings for keys, lists and tuples of arrays",
        ) from e


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of a pytree."""
    return [leaf for _, leaf in flatten(tree)[0]]


def name_of(path: Sequence[Any]) -> str:
    """Path components (dict keys, attributes, indices) joined by dots."""
    return ".".join(map(_component, path)) if path else ROOT


def view_of(path: Sequence[Any], ndim: int) -> MatrixView:
    """How a tensor reads as a matrix, by the convention of the library that made it.

    An attribute ``weight`` is Equinox's (as PyTorch's): outputs first. All else is read as flax
    kernels, embeddings and ``x @ W`` are: outputs last.
    """
    last = path[-1] if path else None
    if isinstance(last, jax.tree_util.GetAttrKey) and last.name == "weight":
        return MatrixView.first_axis_rows(ndim)
    return MatrixView.last_axis_rows(ndim)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX (tracers included) or of NumPy."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def to_array(leaf: Any) -> Any:
    """A leaf; a Python float as the array that JAX makes of it."""
    return jnp.asarray(leaf) if is_float(leaf) else leaf


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a Python float; NumPy's are arrays of their own dtype."""
    return type(leaf) is float


def is_ref(leaf: Any) -> bool:
    """Whether a leaf is a mutable array (``jax.new_ref``)."""
    return isinstance(leaf, _REF)


def equinox_leaves(tree: Any) -> list[bool]:
    """For each leaf, whether it is in an Equinox module."""
    found: list[bool] = []
    for x in jax.tree_util.tree_leaves(tree, is_leaf=_is_equinox):
        inside = _is_equinox(x)
        found += [inside] * (len(jax.tree_util.tree_leaves(x)) if inside else 1)
    return found


def _is_equinox(x: Any) -> bool:
    bases = type(x).__mro__
    return any(b.__name__ == "Module" and b.__module__.startswith("equinox") for b in bases)


def _weak(x: Array, dtype: Any) -> Array:
    """``x`` in a dtype that gives way to those of other arrays."""
    convert: Any = jax.lax.convert_element_type_p
    weak: Array = convert.bind(x, new_dtype=dtype, weak_type=True, sharding=None)
    return weak


def is_blocks(params: Any, space: Space) -> bool:
    """Whether ``params`` is a dict of arrays with exactly the measured names."""
    return (
        isinstance(params, Mapping)
        and set(params) == set(space.names)
        and all(hasattr(x, "shape") for x in params.values())
    )


def measurement_dtype(arrays: Sequence[Any]) -> Any:
    """float64 if any array is float64 (and JAX computes in it), else float32.

    Python floats do not count beside arrays, as in JAX's promotion.
    """
    counted = [x for x in arrays if not is_float(x)] or [jnp.asarray(x) for x in arrays]
    widest = {jax.dtypes.canonicalize_dtype(x.dtype) for x in counted}
    return jnp.dtype(jnp.float64 if np.dtype(np.float64) in widest else jnp.float32)


def _assemble(leaves: list[Any], treedef: Any, measured: list[int], space: Space) -> Parameters:
    chosen = [leaves[place] for place in measured]
    others = [i for i, x in enumerate(leaves) if is_array(x) and i not in set(measured)]
    fixed = [leaves[i] for i in others]
    dtype, chosen = measurement_dtype(chosen), [to_array(x) for x in chosen]
    placement = sharding.find(chosen, fixed)
    tree = Tree(
        treedef,
        tuple(zip(measured, (jax.dtypes.canonicalize_dtype(x.dtype) for x in chosen), strict=True)),
        tuple(i for i, x in zip(measured, chosen, strict=True) if getattr(x, "weak_type", False)),
        tuple(others),
        tuple(
            (i, Static(x, "a leaf of params="))
            for i, x in enumerate(leaves)
            if not is_array(x) and i not in set(measured)
        ),
        dtype,
        placement,
        UserSharding.of([*chosen, *fixed]),
    )
    return Parameters(
        tree,
        placement.space(space.shapes, space.matrix_view, dtype),
        tuple(_as_given(x, dtype, placement) for x in chosen),
        tuple(_as_given(x, None, placement) for x in fixed),
    )


def _as_given(x: Any, dtype: Any, placement: Placement) -> Array:
    """A JAX array on its own devices (sharded ones stay sharded); NumPy memory is copied."""
    array = x if isinstance(x, jax.Array) else jnp.asarray(np.array(x), dtype=dtype)
    array = placement.place(array)
    return array if dtype is None else array.astype(dtype)


def _component(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def as_blocks(names: Sequence[str], arrays: Sequence[Array]) -> Blocks:
    """Arrays as blocks, in the order of ``names`` (JAX itself would sort a dict's keys)."""
    return dict(zip(names, arrays, strict=True))
