"""Data and first weights of the models: NumPy arrays, the same for every framework.

Images are 8 × 8: scikit-learn's digits, or CIFAR-10 in its binary layout, averaged over 4 × 4
squares. Text is the source of Python's own textwrap module.
"""

from __future__ import annotations

import hashlib
import math
import textwrap
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from geodiag.errors import DataError

Floats: TypeAlias = "np.ndarray[Any, Any]"
IMAGES = 500
SIDE = 8
CLASSES = 10
CONTEXT, SEQUENCES = 32, 32
WIDTH = 24
# Of the first weights. Below 1, training starts at a low sharpness, which then rises further.
GAINS = {"mlp": 0.6, "cnn": 1.0, "transformer": 1.0}
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes


@dataclass(frozen=True)
class Task:
    """Inputs and targets of a full batch, and the weights that training starts from."""

    x: Floats  # images: (n, channels, 8, 8), float64; text: (n, 32), integers
    y: Floats  # images: (n, 10), one-hot; text: (n, 32), the next characters
    weights: dict[str, Floats]  # float64; outputs first, as in torch

    @property
    def digest(self) -> str:
        """Short, and different for other data or other weights."""
        together = b"".join(a.tobytes() for a in (self.x, self.y, *self.weights.values()))
        return hashlib.sha256(together).hexdigest()[:12]

    def astype(self, dtype: Any) -> Task:
        """The same in another floating-point precision; integers stay."""

        def cast(a: Floats) -> Floats:
            return a.astype(dtype) if a.dtype.kind == "f" else a

        weights = {name: cast(w) for name, w in self.weights.items()}
        return replace(self, x=cast(self.x), y=cast(self.y), weights=weights)


def task(model: str, folder: Path | None, seed: int, gain: float | None = None) -> Task:
    """The data and the first weights of a model.

    Args:
        model: "mlp", "cnn" or "transformer".
        folder: of CIFAR-10's binary files, for the image models; None: digits.
        seed: of the weights.
        gain: the first weights are uniform in ±gain/√fan_in; None: the model's own of ``GAINS``.

    Raises:
        DataError: the folder holds no such files.
    """
    draw = _Draw(seed, gain or GAINS[model])
    if model == "transformer":
        x, y = characters()
        return Task(x, y, _transformer_weights(int(x.max()) + 1, draw))
    x, y = digits() if folder is None else cifar10(folder)
    make = _mlp_weights if model == "mlp" else _cnn_weights
    return Task(x, y, make(x.shape[1], draw))


def digits() -> tuple[Floats, Floats]:
    """500 digits as (500, 1, 8, 8), each pixel standardised; one-hot targets (500, 10).

    In float64, but rounded to float32, so that runs in both precisions learn the same numbers.
    """
    found = import_module("sklearn.datasets").load_digits()
    x, labels = found.data[:IMAGES].astype(np.float64), found.target[:IMAGES]
    rounded = _standardised(x).astype(np.float32).astype(np.float64)
    return rounded.reshape(-1, 1, SIDE, SIDE), np.eye(CLASSES)[labels]


def cifar10(folder: Path) -> tuple[Floats, Floats]:
    """The first 500 images of CIFAR-10 as (500, 3, 8, 8), standardised; targets (500, 10).

    Args:
        folder: with ``data_batch_1.bin`` and so on: records of 1 + 3072 bytes, as the binary
            version of the data set has them. Only bytes are read; no code is run.

    Raises:
        DataError: no such files, or ones of another layout.
    """
    files = sorted(folder.glob("data_batch_*.bin"))
    if not files:
        raise DataError(
            "there is no CIFAR-10 in its binary layout",
            got=f"no data_batch_*.bin in {folder}",
            do="unpack cifar-10-binary.tar.gz, and pass the folder cifar-10-batches-bin",
        )
    found, missing = [], IMAGES
    for file in files:
        size = file.stat().st_size
        if size == 0 or size % CIFAR_RECORD:
            raise DataError(
                f"{file.name} is not in CIFAR-10's binary layout",
                got=f"{size} bytes, which are no records of {CIFAR_RECORD}",
            )
        raw = np.fromfile(file, dtype=np.uint8, count=missing * CIFAR_RECORD)
        found.append(raw.reshape(-1, CIFAR_RECORD))
        missing -= len(found[-1])
        if missing <= 0:
            break
    records = np.concatenate(found)
    labels = records[:, 0]
    if labels.max() >= CLASSES:
        raise DataError("a label of CIFAR-10 is a digit", got=int(labels.max()))
    pixels = records[:, 1:].reshape(-1, 3, SIDE, 4, SIDE, 4).mean(axis=(3, 5))
    return _standardised(pixels), np.eye(CLASSES)[labels]


def _standardised(x: Floats) -> Floats:
    """Each pixel with mean zero and standard deviation one over the examples."""
    out: Floats = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-8)
    return out


def characters() -> tuple[Floats, Floats]:
    """Sequences of characters as (32, 32) integers, and the characters that follow each."""
    text = Path(textwrap.__file__).read_text(encoding="utf-8")[: SEQUENCES * CONTEXT + 1]
    alphabet = {c: i for i, c in enumerate(sorted(set(text)))}
    codes = np.array([alphabet[c] for c in text])
    return codes[:-1].reshape(SEQUENCES, CONTEXT), codes[1:].reshape(SEQUENCES, CONTEXT)


class _Draw:
    """Weights and biases drawn one after the other, uniform in ±gain/√fan_in."""

    def __init__(self, seed: int, gain: float) -> None:
        self._rng, self._gain = np.random.default_rng(seed), gain

    def __call__(self, *shape: int, fan_in: int | None = None) -> Floats:
        r = self._gain / math.sqrt(fan_in or math.prod(shape[1:]))
        return self._rng.uniform(-r, r, shape)


def _mlp_weights(channels: int, draw: _Draw) -> dict[str, Floats]:
    """Two hidden layers of 24: 2,410 parameters for digits, 5,482 for CIFAR-10."""
    out, widths = {}, (channels * SIDE * SIDE, 24, 24, CLASSES)
    for i in (1, 2, 3):
        out[f"w{i}"] = draw(widths[i], widths[i - 1])
        out[f"b{i}"] = draw(widths[i], fan_in=widths[i - 1])
    return out


def _cnn_weights(channels: int, draw: _Draw) -> dict[str, Floats]:
    """Two 3 × 3 convolutions, each followed by 2 × 2 averages, and a linear layer."""
    return {
        "conv1": draw(6, channels, 3, 3),
        "b1": draw(6, fan_in=9 * channels),
        "conv2": draw(12, 6, 3, 3),
        "b2": draw(12, fan_in=54),
        "w3": draw(CLASSES, 48),
        "b3": draw(CLASSES, fan_in=48),
    }


def _transformer_weights(vocabulary: int, draw: _Draw) -> dict[str, Floats]:
    """One pre-norm block of causal attention and a perceptron, 24 wide."""
    n, ones, zeros = WIDTH, np.ones(WIDTH), np.zeros(WIDTH)
    return {
        "embed": draw(vocabulary, n, fan_in=1),
        "position": draw(CONTEXT, n, fan_in=16),
        "norm1": ones, "shift1": zeros,
        "qkv": draw(3 * n, n),
        "out": draw(n, n),
        "norm2": ones.copy(), "shift2": zeros.copy(),
        "up": draw(2 * n, n), "up_bias": draw(2 * n, fan_in=n),
        "down": draw(n, 2 * n), "down_bias": draw(n, fan_in=2 * n),
        "norm3": ones.copy(), "shift3": zeros.copy(),
        "head": draw(vocabulary, n),
    }  # fmt: skip
