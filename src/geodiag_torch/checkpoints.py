"""Checkpoints of torch models: a file's state_dict, of which nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geodiag.errors import CheckpointError, first_line, import_optional, printable

SAVED = (".pt", ".pth", ".bin", ".ckpt")
KNOWN = "a file of torch.save (.pt, .pth, .bin, .ckpt) or safetensors, or a Hugging Face directory"
# Where training scripts keep the model's state_dict among other things.
KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")
WHOLE = ("model.safetensors", "pytorch_model.bin")


def read(path: Path) -> Mapping[str, Tensor]:
    """The state_dict in a file or a directory.

    Raises:
        CheckpointError: there is none.
        MissingDependency: safetensors is not installed, and needed.
    """
    if path.is_dir():
        return _directory(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix not in SAVED:
        raise CheckpointError(
            "the file is no checkpoint", got=printable(str(path)), do=f"pass {KNOWN}"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # pickle's, zipfile's and torch's own
        raise CheckpointError(
            f"the checkpoint {printable(str(path))} cannot be read as tensors alone",
            got=first_line(e),
            do="save model.state_dict(), which needs no code to be read",
        ) from e
    return _state_in(found, path)


def _state_in(found: Any, path: Path) -> Mapping[str, Tensor]:
    """The state_dict itself, or the one among the things that a training script saves."""
    candidates = [found]
    if isinstance(found, Mapping):
        candidates += [found[key] for key in KEYS if isinstance(found.get(key), Mapping)]
    for each in candidates:
        if isinstance(each, Mapping) and each and all(isinstance(x, Tensor) for x in each.values()):
            return each
    keys = ", ".join(map(str, list(found)[:6])) if isinstance(found, Mapping) else ""
    raise CheckpointError(
        f"the checkpoint {printable(str(path))} holds no state_dict",
        got=printable(f"a dict with {keys}" if keys else type(found).__name__),
        do=f"save model.state_dict(), alone or under one of {', '.join(KEYS)}",
    )


def _directory(path: Path) -> Mapping[str, Tensor]:
    for name in WHOLE:
        index = path / f"{name}.index.json"
        if (path / name).is_file():
            return read(path / name)
        if index.is_file():
            state: dict[str, Tensor] = {}
            for part in _parts(index):
                state |= read(path / part)
            return state
    raise CheckpointError(
        f"the directory {printable(str(path))} is no checkpoint",
        got=f"none of {', '.join(WHOLE)}",
        do=f"pass {KNOWN}",
    )


def _parts(index: Path) -> list[str]:
    """The files of a checkpoint in several parts; each lies beside the index."""
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        if all(isinstance(name, str) and name == Path(name).name for name in names):
            return sorted(names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise CheckpointError("the index of a checkpoint names no files", got=printable(str(index)))


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    reader = import_optional(
        "safetensors.torch", what="the file needs safetensors", do="pip install safetensors"
    )
    try:
        found: Mapping[str, Tensor] = reader.load_file(path)
    except Exception as e:
        raise CheckpointError(
            f"the checkpoint {printable(str(path))} cannot be read", got=first_line(e)
        ) from e
    return found
