"""Random draws perturbed in their last bits: what ``pytest --perturb SEED`` does.

A verdict that changes with the seed depends on rounding, on which of several local maxima a search
reaches, or on a tie. Draws of NumPy's generators, of torch and of jax.random are perturbed, for
they make the problems of the tests; the start points of the library's searches are such draws too.

A float64 x becomes x(1 + 1e-14 u), with u in [-1, 1] a function of the seed and of the bits of x
alone: equal draws stay equal, of whatever shape, in whatever order and in whatever process. A
float32 x moves by one unit in its last place, up, down, or not at all. Where a test computes in
float32 from float64 draws, ``single`` makes the first 1e-7, for 1e-14 would be rounded away.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

VARIABLE = "GEODIAG_TESTS_PERTURB"  # the seed, for the processes that tests start
DOUBLE, SINGLE = 1e-14, 1e-7
# splitmix64 and the 32-bit finaliser of MurmurHash3: (multipliers, shifts).
MIX64 = ((0xBF58476D1CE4E5B9, 0x94D049BB133111EB), (30, 27, 31))
MIX32 = ((0x85EBCA6B, 0xC2B2AE35), (16, 13, 16))

single = False  # whether float64 draws are to be rounded to float32


def install(seed: int) -> None:
    """Perturb from now on, in this process, the draws of the frameworks that are loaded."""
    _numpy(seed)
    if "torch" in sys.modules:
        _torch(seed)
    if "jax" in sys.modules:
        _jax(seed)


def install_as_parent() -> None:
    """The same in a process that a perturbed test has started; call it after the imports."""
    if VARIABLE in os.environ:
        install(int(os.environ[VARIABLE]))


def perturbed(x: Any, seed: int, bits: Any = None, xp: Any = np) -> Any:
    """The array x, of float64 or float32, perturbed; ``bits``: its bits, unsigned."""
    wide = x.dtype == np.float64
    (first, second), shifts = MIX64 if wide else MIX32
    number = xp.uint64 if wide else xp.uint32
    h = x.view(number) if bits is None else bits
    h = h ^ number((0x9E3779B97F4A7C15 * (seed + 1)) % (2**64 if wide else 2**32))
    for shift, factor in zip(shifts, (first, second, 1), strict=True):
        h = (h ^ (h >> number(shift))) * number(factor)
    if wide:
        u = (h >> number(11)).astype(xp.float64) * 2.0**-52 - 1.0
        return x * (1.0 + u * (SINGLE if single else DOUBLE))
    u = (h % number(3)).astype(xp.float32) - xp.float32(1.0)
    return x * (xp.float32(1.0) + u * xp.float32(SINGLE))


def _numpy(seed: int) -> None:
    class Generator(np.random.Generator):
        pass

    def replaced(name: str) -> Callable[..., Any]:
        original = getattr(np.random.Generator, name)

        @functools.wraps(original)
        def draw(self: Any, *args: Any, **kwargs: Any) -> Any:
            drawn = original(self, *args, **kwargs)
            if isinstance(drawn, float):
                return float(perturbed(np.full(1, drawn), seed)[0])
            if drawn.dtype in (np.float64, np.float32):
                drawn[...] = perturbed(np.ascontiguousarray(drawn), seed)
            return drawn

        return draw

    for name in ("standard_normal", "normal", "uniform", "random", "exponential"):
        setattr(Generator, name, replaced(name))
    original = np.random.default_rng

    def default_rng(seed: Any = None) -> np.random.Generator:
        if isinstance(seed, np.random.Generator):
            return seed
        return Generator(original(seed).bit_generator)

    np.random.default_rng = default_rng


def _torch(seed: int) -> None:
    import torch

    kinds = (torch.Tensor, torch.nn.Parameter)

    def replaced(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def draw(*args: Any, **kwargs: Any) -> Any:
            drawn = original(*args, **kwargs)
            if torch.compiler.is_compiling() or type(drawn) not in kinds:
                return drawn
            if drawn.dtype in (torch.float64, torch.float32) and drawn.device.type == "cpu":
                # RuntimeError: inside of vmap a tensor has no storage; it stays as drawn.
                with contextlib.suppress(RuntimeError), torch.no_grad():
                    host = np.ascontiguousarray(drawn.detach().numpy())
                    drawn.copy_(torch.from_numpy(perturbed(host, seed)))
            return drawn

        return draw

    for name in ("randn", "rand", "randn_like", "rand_like", "normal"):
        setattr(torch, name, replaced(getattr(torch, name)))
    for name in ("normal_", "uniform_"):
        setattr(torch.Tensor, name, replaced(getattr(torch.Tensor, name)))


def _jax(seed: int) -> None:
    import jax
    from jax._src import random as internal  # where the initialisers of networks find it

    def replaced(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def draw(*args: Any, **kwargs: Any) -> Any:
            drawn = original(*args, **kwargs)
            if drawn.dtype not in (np.float64, np.float32):
                return drawn
            number = "uint64" if drawn.dtype == np.float64 else "uint32"
            bits = jax.lax.bitcast_convert_type(drawn, number)
            return perturbed(drawn, seed, bits, jax.numpy)

        return draw

    for name in ("normal", "uniform", "truncated_normal"):
        new = replaced(getattr(jax.random, name))
        setattr(jax.random, name, new)
        setattr(internal, name, new)
