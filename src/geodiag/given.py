"""Arrays that users hand over: real, of the right shapes, and moved to where the measurement is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from geodiag.blocks import Array, Blocks, array_namespace, check_like, is_array, to_numpy
from geodiag.errors import GeodiagError, ShapeError, shown
from geodiag.spaces import Space


def is_real(x: Any) -> bool:
    """Whether ``x`` is an array of real numbers, with nothing masked out of it."""
    if not is_array(x) or isinstance(x, np.ma.MaskedArray):
        return False
    try:
        return bool(array_namespace(x).isdtype(x.dtype, ("real floating", "integral")))
    except (TypeError, ValueError):  # a dtype that the array API does not know
        return False


def as_blocks(
    given: Any, space: Space, what: str, error: type[GeodiagError] = ShapeError
) -> Blocks:
    """``given`` as blocks of the space, in its namespace, dtype and device.

    Raises:
        ShapeError: (or ``error``) other names or shapes, or not arrays of real numbers.
    """
    check_like(given, space.shapes, what, error)
    return {name: _moved(given[name], name, space, what, error) for name in space.names}


def _moved(x: Any, name: str, space: Space, what: str, error: type[GeodiagError]) -> Array:
    if not is_real(x):
        raise error(
            f"{what} must hold arrays of real numbers; it does not at {name!r}",
            got=f"{type(x).__name__} of dtype {getattr(x, 'dtype', None)}",
        )
    try:
        return space.place(name, x.detach() if hasattr(x, "detach") else x)
    except (TypeError, ValueError, RuntimeError) as e:  # each framework has its own
        raise error(f"{what} cannot be moved to where the parameters are", got=shown(e)) from e


def on_host(x: Any, what: str, error: type[GeodiagError]) -> np.ndarray[Any, Any]:
    """An array of real numbers as float64 in host memory.

    Raises:
        GeodiagError: the class ``error``, where it is none.
    """
    x = np.asarray(x) if isinstance(x, (float, int)) and not isinstance(x, bool) else x
    if not is_real(x):
        got = f"{type(x).__name__} of dtype {getattr(x, 'dtype', None)}"
        raise error(f"{what} must be an array of real numbers", got=got)
    try:
        return to_numpy(x.detach() if hasattr(x, "detach") else x).astype(np.float64)
    except (TypeError, ValueError, RuntimeError, BufferError) as e:
        raise error(f"{what} cannot be read from its framework", got=shown(e)) from e


def is_mapping_of_names(x: Any) -> bool:
    """Whether ``x`` is a mapping whose keys are texts."""
    return isinstance(x, Mapping) and all(isinstance(name, str) for name in x)
