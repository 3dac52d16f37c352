"""Strategies for arguments: nearly right ones, and whatever else Python can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import strategies as st

from tests.fuzz.objects import FRESH, INF, NAMES, NAN, NUMBERS, OBJECTS, TEXTS, raises

DTYPES = (
    "float64", "float32", "float16", "int64", "int8", "uint8", "bool", "complex128", "object",
    "U3", "S2", "datetime64[s]", "timedelta64[s]",
)  # fmt: skip
SHAPES = (
    (), (0,), (1,), (2,), (3,), (0, 0), (1, 1), (2, 2), (3, 3), (2, 3), (3, 0), (0, 3), (2, 2, 2),
    (1, 1, 1, 1),
)  # fmt: skip
FILLS = (
    "normal", "zero", "nan", "inf", "huge", "tiny", "one nan", "large", "small",
)  # fmt: skip


def fill(shape: tuple[int, ...], kind: str, seed: int) -> Any:
    """A float64 array of one kind of entries."""
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.standard_normal(shape))
    constant = {"zero": 0.0, "nan": NAN, "inf": INF}
    factor = {"huge": 1e308, "tiny": 1e-320, "large": 1e155, "small": 1e-155}
    if kind in constant:
        return np.full(shape, constant[kind])
    if kind in factor:
        with np.errstate(all="ignore"):
            return np.clip(x * factor[kind], -1.7e308, 1.7e308)
    if kind == "one nan" and x.size:
        x.reshape(-1)[0] = NAN
    return x


def as_dtype(x: Any, dtype: str) -> Any:
    """An array in another dtype, as far as there is a way."""
    with np.errstate(all="ignore"):
        if dtype in ("U3", "S2", "object"):
            return np.full(x.shape, "a" if dtype != "object" else None, dtype=dtype)
        if dtype.startswith(("datetime", "timedelta")):
            return np.zeros(x.shape, dtype="int64").astype(dtype)
        return (
            np.nan_to_num(x, posinf=3, neginf=-3).clip(-3, 3).astype(dtype)
            if dtype[0] in "iub"
            else x.astype(dtype)
        )


def in_framework(x: Any, framework: str) -> Any:
    """The array of a framework, or NumPy's where the framework has no such dtype."""
    try:
        if framework == "torch":
            return torch.from_numpy(np.array(x))
        if framework == "jax":
            return jnp.asarray(x)
    except (TypeError, ValueError):
        pass
    return x


FRAMEWORKS = st.sampled_from(("numpy", "numpy", "numpy", "torch", "jax"))
SEEDS = st.integers(0, 999)


@st.composite
def arrays(
    draw: Any, shapes: Any = SHAPES, dtypes: Any = DTYPES, frameworks: Any = FRAMEWORKS
) -> Any:
    """Any array: of any shape, dtype, entries and framework."""
    dtype = draw(st.sampled_from(dtypes) | st.just("float64"))
    x = fill(draw(st.sampled_from(shapes)), draw(st.sampled_from(FILLS)), draw(SEEDS))
    return in_framework(as_dtype(x, dtype), draw(frameworks))


def fresh(make: Callable[[], Any]) -> Any:
    """A strategy of a new object each time: of those that are used up or changed."""
    return st.builds(make)


def functions() -> Any:
    """Callables that raise, or answer garbage whatever they are asked."""
    answers = st.sampled_from((*NUMBERS, *OBJECTS)) | arrays()
    return st.just(raises) | st.builds(answering, answers)


def answering(answer: Any) -> Callable[..., Any]:
    """A function that takes anything, and returns ``answer``."""

    def answers(*args: Any, **keywords: Any) -> Any:
        return answer

    answers.__qualname__ = f"answers({type(answer).__name__})"
    return answers


def wild() -> Any:
    """Anything at all."""
    return st.one_of(
        st.sampled_from(NUMBERS),
        st.sampled_from(TEXTS),
        st.sampled_from(OBJECTS),
        st.sampled_from(FRESH).map(lambda make: make()),
        arrays(),
        functions(),
    )


def some_wild(
    draw: Any, good: Mapping[str, Any], *, most: int = 2
) -> tuple[dict[str, Any], list[str]]:
    """A value of each argument, at most ``most`` of them wild; and the names of these."""
    bad = draw(st.lists(st.sampled_from(sorted(good)), max_size=most, unique=True))
    return {k: draw(wild() if k in bad else strategy) for k, strategy in good.items()}, bad


@st.composite
def mostly(draw: Any, usual: Any, odd: Any, one_in: int = 6) -> Any:
    """``usual``, and one time in so many ``odd``."""
    return draw(odd if draw(st.integers(1, one_in)) == 1 else usual)


def optional(strategy: Any) -> Any:
    """Mostly None."""
    return mostly(st.none(), strategy, 4)


@st.composite
def symmetric(draw: Any, n: Any = None) -> Any:
    """A symmetric matrix of any scale, mostly of a usual one; float64 or float32."""
    n = draw(st.integers(1, 5)) if n is None else n
    kind = draw(st.sampled_from(("normal",) * 5 + ("zero", "small", "large", "tiny", "huge")))
    x = fill((n, n), kind, draw(SEEDS))
    with np.errstate(all="ignore"):
        x = x / 2 + x.T / 2
        if draw(st.integers(0, 4)) == 0:
            x = np.float32(np.clip(x, -3e38, 3e38))
    return x


@st.composite
def splits(draw: Any, n: int) -> Any:
    """Shapes that have ``n`` entries in all, under odd names."""
    names = list(draw(st.permutations(NAMES)))
    found: dict[str, tuple[int, ...]] = {}
    left = n
    while left:
        k = draw(st.integers(1, left))
        forms = [(k,), (k, 1), (1, k), (1, k, 1), (k // 2, 2) if k % 2 == 0 else (k,)]
        found[names.pop()] = (
            draw(st.sampled_from([*forms, ()])) if k == 1 else draw(st.sampled_from(forms))
        )
        left -= k
        if draw(st.integers(0, 5)) == 0:
            found[names.pop()] = (0,)
    return found


PATTERNS = st.sampled_from(
    (".*", "W", "x", "b$", "", "a.b", "^x$", "(", "*", "[", "nothing like it", "\\")
)
