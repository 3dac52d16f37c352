"""How far a search is, on stderr: the bar of tqdm where it is installed, else a line.

In a terminal and in a notebook alike; both say how long the rest of the budget would take.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from typing import Any


class ProgressBar:
    """Shows the products spent, the best value, and the time that is left at most.

    Args:
        most: products that the search may take; 0 where there is no limit.
    """

    def __init__(self, most: int) -> None:
        self._most, self._began, self._bar = most, time.monotonic(), None
        try:
            tqdm: Any = import_module("tqdm").tqdm
        except ImportError:
            return
        # Without tqdm's own thread, which would outlive the search.
        quiet = type("Bar", (tqdm,), {"monitor_interval": 0})
        self._bar = quiet(total=most or None, unit="HVP", file=sys.stderr, mininterval=0.0)

    def show(self, num_hvps: int, value: float) -> None:
        """Show where the search is."""
        if self._bar is not None:
            self._bar.set_description(f"S ≥ {value:.6g}", refresh=False)
            self._bar.update(num_hvps - self._bar.n)
            return
        line = f"\rS ≥ {value:.6g} after {num_hvps} HVPs"
        if num_hvps <= self._most:
            each = (time.monotonic() - self._began) / max(num_hvps, 1)
            line += f" of {self._most}, at most {each * (self._most - num_hvps):.0f} s left "
        print(line, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line."""
        if self._bar is None:
            print(file=sys.stderr)
        else:
            self._bar.close()
