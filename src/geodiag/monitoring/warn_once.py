"""Warnings of a Monitor: one per cause."""

from __future__ import annotations

import sys
import warnings


class WarnOnce:
    """Warns of each cause once; on stderr if warnings are errors."""

    def __init__(self) -> None:
        self._warned: set[object] = set()

    def __call__(self, about: object, text: str) -> None:
        """Warn with ``text``, unless there was a warning ``about`` the same."""
        if about in self._warned:
            return
        self._warned.add(about)
        try:
            warnings.warn(f"geodiag.Monitor: {text}", RuntimeWarning, stacklevel=3)
        except RuntimeWarning:
            print(f"geodiag.Monitor: {text}", file=sys.stderr)
