"""The settings of ``jax.config`` that are about the user's arithmetic, and not about geodiag's.

Checks for NaN, for promotions and for transfers stop a program at what they find. Estimates meet
numbers that are not finite and deal with them, promote on purpose, and move starts to the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax

_OWN: tuple[tuple[str, Any, Any], ...] = (
    ("jax_debug_nans", jax.debug_nans, False),
    ("jax_debug_infs", jax.debug_infs, False),
    ("jax_numpy_rank_promotion", jax.numpy_rank_promotion, "allow"),
    ("jax_numpy_dtype_promotion", jax.numpy_dtype_promotion, "standard"),
)


@contextmanager
def own_flags() -> Iterator[None]:
    """Inside, those checks are off. Also a decorator."""
    with ExitStack() as stack:
        for name, context, value in _OWN:
            if getattr(jax.config, name) != value:
                stack.enter_context(context(value))
        stack.enter_context(jax.transfer_guard("allow"))
        yield
