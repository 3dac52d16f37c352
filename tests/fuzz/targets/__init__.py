"""One function for each public function: it draws arguments and calls.

``TARGETS`` has each with its share of the cases: what takes long has a small one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.fuzz.targets import (
    algebra,
    command,
    files,
    flax,
    measure,
    monitors,
    situations,
    torches,
    untouched,
    untouched_jax,
)

Target = Callable[[Any], None]

TARGETS: dict[str, tuple[Target, float]] = {
    **measure.TARGETS,
    **algebra.TARGETS,
    **monitors.TARGETS,
    **files.TARGETS,
    **torches.TARGETS,
    **flax.TARGETS,
    **situations.TARGETS,
    **untouched.TARGETS,
    **untouched_jax.TARGETS,
    **command.TARGETS,
}
