"""The figure of :func:`geodiag.plot`; only loaded where matplotlib is installed."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from geodiag.report.styles import VECTOR


class RunFigure(Figure):
    """A figure that shows itself in a notebook without pyplot, and saves text as text."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        FigureCanvasAgg(self)

    def savefig(self, *args: Any, **keywords: Any) -> None:
        """As of matplotlib's figure; letters in SVG and PDF stay letters."""
        with matplotlib.rc_context(VECTOR):
            super().savefig(*args, **keywords)

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=110)
        return png.getvalue()
