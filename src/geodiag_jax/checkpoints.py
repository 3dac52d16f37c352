"""Checkpoints of JAX programs: msgpack of flax, safetensors, directories of orbax.

A file holds nested dicts and lists of arrays; which of them is which is told by names, the parts of
a path joined by dots. Nothing in a file is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from geodiag.errors import CheckpointError, first_line, import_optional, printable
from geodiag_jax.problem import JaxProblem
from geodiag_jax.pytree import flatten, name_of

KNOWN = "a .msgpack file of flax, a .safetensors file, or a directory of orbax"
# What training states keep beside the parameters.
BESIDE = ("step", "opt_state", "optimizer", "tx", "rng", "epoch", "metrics", "apply_fn")
WITHIN = ("params", "model", "state", "default")


def read(problem: JaxProblem, path: Path) -> Any:
    """A checkpoint as a pytree like the problem's parameters.

    Raises:
        CheckpointError: it cannot be read, or does not fit: the names are told.
        MissingDependency: what reads such files is not installed.
    """
    reader: Callable[[Path], Any]
    if path.is_dir():
        reader = _orbax
    elif path.suffix == ".msgpack":
        reader = _msgpack
    elif path.suffix == ".safetensors":
        reader = _safetensors
    else:
        raise CheckpointError(
            "the file is no checkpoint", got=printable(str(path)), do=f"pass {KNOWN}"
        )
    try:
        found = reader(path)
    except Exception as e:
        if isinstance(e, ImportError):
            raise
        raise CheckpointError(
            f"the checkpoint {printable(str(path))} cannot be read",
            got=first_line(e),
            do=f"pass {KNOWN}",
        ) from e
    return _filled(problem, found, path)


def _filled(problem: JaxProblem, found: Any, path: Path) -> Any:
    """The problem's pytree with the arrays of the checkpoint."""
    paths, treedef = flatten(problem.template())
    leaves = [leaf for _, leaf in paths]
    names = {name_of(at): i for i, (at, leaf) in enumerate(paths) if hasattr(leaf, "shape")}
    held = min(_candidates(found), key=lambda held: len(set(names) ^ set(held)))
    missing, unknown = [n for n in names if n not in held], [n for n in held if n not in names]
    if missing or unknown:
        raise CheckpointError(
            f"the checkpoint {printable(str(path))} does not fit the parameters",
            got=printable(f"missing {_few(missing)}; unexpected {_few(unknown)}"),
            do="pass params= a pytree of the same names",
        )
    for name, i in names.items():
        if tuple(held[name].shape) != tuple(leaves[i].shape):
            raise CheckpointError(
                f"the checkpoint {printable(str(path))} has a wrong shape at {name!r}: expected "
                f"{tuple(leaves[i].shape)}",
                got=tuple(held[name].shape),
            )
        leaves[i] = held[name]
    return treedef.unflatten(leaves)


def _candidates(found: Any) -> Iterator[dict[str, Any]]:
    """The arrays by name: of the whole, without what is no parameter, and of its parts."""
    yield dict(_named(found))
    if isinstance(found, Mapping):
        yield dict(_named({k: x for k, x in found.items() if k not in BESIDE}))
        for key in WITHIN:
            if isinstance(found.get(key), Mapping):
                yield from _candidates(found[key])


def _named(x: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(x, Mapping):
        for key, each in x.items():
            yield from _named(each, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(x, (list, tuple)):
        for i, each in enumerate(x):
            yield from _named(each, f"{prefix}.{i}" if prefix else str(i))
    elif x is not None:
        array = x if hasattr(x, "shape") else np.asarray(x)
        if array.dtype != object:
            yield prefix, array


def _msgpack(path: Path) -> Any:
    flax = import_optional(
        "flax.serialization", what="a .msgpack file needs flax", do="pip install flax"
    )
    return flax.msgpack_restore(path.read_bytes())


def _safetensors(path: Path) -> Any:
    reader = import_optional(
        "safetensors.flax", what="the file needs safetensors", do="pip install safetensors"
    )
    return reader.load_file(path)


def _orbax(path: Path) -> Any:
    orbax = import_optional(
        "orbax.checkpoint",
        what="a directory needs orbax-checkpoint",
        do="pip install orbax-checkpoint",
    )
    inside = [p for p in sorted(path.iterdir()) if (p / "_METADATA").is_file()]
    if not (path / "_METADATA").is_file() and inside:  # a step of a CheckpointManager
        return {p.name: _orbax(p) for p in inside}
    with orbax.PyTreeCheckpointer() as reader:
        known = reader.metadata(path.absolute())
        tree = getattr(getattr(known, "item_metadata", known), "tree", known)
        as_numpy = orbax.RestoreArgs(restore_type=np.ndarray)
        arguments = jax.tree_util.tree_map(lambda _: as_numpy, tree)
        return reader.restore(path.absolute(), restore_args=arguments)


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:4])) + (" …" if len(names) > 4 else "") if names else "none"
