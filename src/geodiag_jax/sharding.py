"""Placement of arrays: on one device, or sharded over a mesh.

Committed arrays stay where the user has put them. Arrays of geodiag's own (random starts, batches
from host memory) go where the parameters are, and results keep the parameters' shardings. Within
geodiag the axes of a mesh are Auto, whatever the user's are: solvers in terms of NumPy's functions
cannot state how each result is sharded. A loss for Explicit axes is called with such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from geodiag.blocks import Array, Blocks, join_tensors
from geodiag.core.spaces import Joints, MatrixView, Space
from geodiag.errors import (
    ArgumentError,
    DataError,
    GeodiagError,
    LossError,
    ParameterError,
)

PartitionSpec: Any = jax.sharding.PartitionSpec
_constrain: Any = jax.lax.with_sharding_constraint
_AXIS: Any = getattr(jax.sharding, "AxisType", None)  # not in older versions of JAX
# What JAX's messages about placements and dtypes contain, and the error that explains them.
_EXPLAINED: tuple[tuple[tuple[str, ...], type[GeodiagError], str, str], ...] = (
    (
        ("incompatible devices", "mesh for all inputs", "incompatible shardings"),
        DataError,
        "the arrays of this loss are placed incompatibly",
        "put parameters and batch on one mesh, e.g. jax.device_put(batch, NamedSharding(mesh, "
        "PartitionSpec('data'))), with PartitionSpec() for a copy on each device; or leave the "
        "batch in NumPy arrays",
    ),
    (
        ("divisible", "evenly divide", "divides evenly"),
        DataError,
        "an array cannot be sharded: its size is not a multiple of the mesh axis",
        "pad or cut that axis, or leave it whole (None in the PartitionSpec)",
    ),
    (
        ("is not supported by dot_general",),
        LossError,
        "the loss does not run in this precision on this device",
        "measure it in float32 or bfloat16",
    ),
    (
        ("callbacks do not support jvp", "differentiation does not work", "cannot be differen"),
        LossError,
        "JAX cannot differentiate a part of this loss",
        "give that part a derivative by jax.custom_jvp or jax.custom_vjp, or hold it constant by "
        "jax.lax.stop_gradient",
    ),
)


_joined = jax.jit(join_tensors, static_argnums=(1, 2))


def _join(tensors: Sequence[Array], sizes: Sequence[int], lead: tuple[int, ...]) -> Array:
    """By one call of a compiled function, where an operation for each tensor takes longer."""
    if any(isinstance(x, jax.core.Tracer) for x in tensors):
        return join_tensors(tensors, sizes, lead)
    return _joined(list(tensors), tuple(sizes), lead)


JOINTS = Joints(_join)


@dataclass(frozen=True)
class Placement:
    """Where the parameters are; hashable, since compiled functions depend on it."""

    # A device or sharding for arrays that belong to no parameter; None: JAX's default.
    common: Any = None
    own: tuple[Any, ...] = ()  # each measured array's sharding, if there are several devices
    traced: bool = False  # sharded in the user's trace, where only the compiler knows how

    @property
    def split(self) -> bool:
        """Whether a measured array is sharded, or may be."""
        return self.traced or any(not each.is_fully_replicated for each in self.own)

    def space(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        views: Mapping[str, MatrixView],
        dtype: Any,
        traced: bool = False,
    ) -> Space:
        """The space of the measured arrays, which puts arrays where these are.

        ``traced``: within a trace, where the compiler places them.
        """
        if traced:
            return Space(shapes, views, in_dtype(dtype), split=self.split)
        places = dict(zip(shapes, (in_dtype(dtype, each) for each in self.own), strict=False))
        return Space(shapes, views, in_dtype(dtype, self.common), places, self.split, JOINTS)

    def constrain(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Measured arrays in a trace, constrained to their shardings."""
        if not self.split or not self.own:
            return tuple(arrays)
        held = zip(arrays, self.own, strict=True)
        return tuple(_constrain(x, each) for x, each in held)

    def constrain_blocks(self, shapes: Mapping[str, tuple[int, ...]], blocks: Blocks) -> Blocks:
        """The same for blocks of some of the measured names, or a stack of such."""
        if not self.split or not self.own:
            return blocks
        own = dict(zip(shapes, self.own, strict=True))

        def held(name: str, x: Array) -> Array:
            lead, place = x.ndim - len(shapes[name]), own[name]
            if lead not in (0, 1) or not isinstance(place, NamedSharding):
                return x
            spec = PartitionSpec(*[None] * lead, *place.spec)
            return _constrain(x, NamedSharding(place.mesh, spec))

        return {name: held(name, x) for name, x in blocks.items()}

    def place(self, x: Array) -> Array:
        """An uncommitted array on each of several devices; a committed one with Auto axes.

        Without that, every call would send it to the devices.
        """
        if is_committed(x):
            return with_auto_axes(x)
        loose = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
        return jax.device_put(x, self.common) if self.own and loose else x


@dataclass(frozen=True)
class UserSharding:
    """How the user has sharded some arrays; hashable."""

    specs: tuple[Any, ...]  # the PartitionSpec of each
    mesh: Any = None  # abstract, with Auto axes; None where the user's axes are Auto too
    axes: tuple[str, ...] = ()  # which of the user's axes are Explicit

    @classmethod
    def of(cls, arrays: Sequence[Any]) -> UserSharding:
        specs = tuple(
            x.sharding.spec
            if is_committed(x) and isinstance(x.sharding, NamedSharding)
            else PartitionSpec()
            for x in arrays
        )
        found = [x.sharding for x in arrays if is_committed(x) and is_explicit(x.sharding)]
        if not found:
            return cls(specs)
        mesh = found[0].mesh
        kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
        axes = tuple(name for name, kind in kinds if kind == _AXIS.Explicit)
        return cls(specs, auto(found[0]).mesh.abstract_mesh, axes)


def call_on_user_axes(
    f: Callable[[tuple[Array, ...]], Array], *groups: tuple[tuple[Array, ...], UserSharding]
) -> Array:
    """``f`` of all the arrays together, over Explicit axes where the user's are."""
    arrays = tuple(x for group, _ in groups for x in group)
    explicit = next((outside for _, outside in groups if outside.axes), None)
    if explicit is None:
        return f(arrays)
    specs = tuple(spec for _, outside in groups for spec in outside.specs)
    with jax.sharding.use_abstract_mesh(explicit.mesh):
        called: Callable[..., Array] = jax.sharding.explicit_axes(
            f, axes=explicit.axes, in_sharding=(specs,)
        )
        return called(arrays)


def find(measured: Sequence[Any], fixed: Sequence[Any]) -> Placement:
    """The placement of arrays that are measured and held fixed together."""
    check_context()
    traced = [mesh for mesh in map(_traced_over, measured) if mesh is not None]
    if any(_AXIS.Explicit in mesh.axis_types for mesh in traced):
        raise ParameterError(
            "the parameters are traced over a mesh of Explicit axes, which solvers cannot follow",
            got=f"{traced[0]}",
            do="shard them over Auto axes, jax.sharding.Mesh(mesh.devices, mesh.axis_names), or "
            "measure outside of jit, with geodiag.sharpness",
        )
    if traced:
        return Placement(traced=True)
    committed = [x for x in (*measured, *fixed) if is_committed(x)]
    sets = {frozenset(x.devices()) for x in committed}
    if len(sets) > 1:
        shown = sorted(", ".join(sorted(map(str, devices))) for devices in sets)
        raise ParameterError(
            "the parameters are on mixed devices",
            got=" and ".join(shown),
            do="move them to one device with jax.device_put, or shard them all over one mesh; "
            "NamedSharding(mesh, PartitionSpec()) replicates an array over it",
        )
    (devices,) = sets or {frozenset()}
    if len(devices) <= 1:
        return Placement(next(iter(devices), None))
    everywhere = _everywhere(committed)
    own = (auto(x.sharding) if is_committed(x) else everywhere for x in measured)
    return Placement(everywhere, tuple(own))


def _everywhere(arrays: Sequence[Array]) -> NamedSharding:
    """Replicated on all devices of these arrays."""
    shardings = [auto(x.sharding) for x in arrays]
    meshes = [each.mesh for each in shardings if isinstance(each, NamedSharding)]
    devices = sorted(arrays[0].devices(), key=lambda device: int(device.id))
    mesh = meshes[0] if meshes else Mesh(np.array(devices), ("devices",))
    return NamedSharding(mesh, PartitionSpec())


def _traced_over(x: Any) -> Any:
    """The mesh that a traced array is over; None if there is none."""
    if not isinstance(x, jax.core.Tracer) or not hasattr(jax, "typeof"):
        return None
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    return None if mesh is None or mesh.empty or mesh.size == 1 else mesh


def check_context() -> None:
    """Raise ArgumentError where ``jax.set_mesh`` has made the axes of all arrays Explicit."""
    current = getattr(jax.sharding, "get_abstract_mesh", None)
    mesh = current() if _AXIS is not None and current is not None else None
    if mesh is None or mesh.empty or _AXIS.Explicit not in mesh.axis_types:
        return
    raise ArgumentError(
        "jax.set_mesh has set a mesh of Explicit axes, over which solvers cannot compute",
        got=f"{mesh}",
        do="measure within `with jax.set_mesh(jax.sharding.Mesh(mesh.devices, mesh.axis_names)):`, "
        "whose axes are Auto; a loss for Explicit axes is called with them nevertheless",
    )


def is_committed(x: Any) -> bool:
    """Whether a leaf is a JAX array that is committed to its devices."""
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.committed


def auto(sharding: Any) -> Any:
    """The same sharding over a mesh of Auto axes."""
    if not is_explicit(sharding):
        return sharding
    mesh = sharding.mesh
    axes = (_AXIS.Auto,) * len(mesh.axis_names)
    return NamedSharding(
        Mesh(mesh.devices, mesh.axis_names, axis_types=axes),
        sharding.spec,
        memory_kind=sharding.memory_kind,
    )


def is_explicit(sharding: Any) -> bool:
    """Whether a sharding is over a mesh with an Explicit axis."""
    if _AXIS is None or not isinstance(sharding, NamedSharding):
        return False
    return _AXIS.Explicit in sharding.mesh.axis_types


def with_auto_axes(x: Array) -> Array:
    """The array, with Auto axes where it is committed; its memory is shared, not copied."""
    if is_committed(x) and is_explicit(x.sharding):
        return jax.device_put(x, auto(x.sharding))
    return x


def in_dtype(dtype: Any, place: Any = None) -> Callable[[Any], Array]:
    """The function that turns any array into a JAX array of ``dtype`` at a device or sharding."""

    def asarray(x: Any) -> Array:
        if isinstance(x, jax.Array) and x.dtype == dtype and not x.weak_type:
            # jnp.asarray takes 30 µs to find that out
            if place is None or isinstance(x, jax.core.Tracer):
                return x
            if isinstance(place, NamedSharding) and x.committed and x.sharding == place:
                return x
        return jnp.asarray(x, dtype=dtype, device=place)

    return asarray


@contextmanager
def jax_errors_explained() -> Iterator[None]:
    """Inside, JAX's errors about placements and dtypes are raised as geodiag's."""
    try:
        yield
    except ValueError as e:
        if isinstance(e, GeodiagError):
            raise
        for marks, error, what, do in _EXPLAINED:
            if any(mark in str(e).lower() for mark in marks):
                raise error(what, got=str(e)[:400], do=do) from e
        raise
