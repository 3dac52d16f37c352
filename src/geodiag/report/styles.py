"""How figures look: colours, line styles, fonts and sizes.

Readable in grey and by the colour-blind: lightness and line style differ, not only hue. The edge of
stability is the only dashed line, and no run has its colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from geodiag.errors import ArgumentError, import_optional, shown

MARKERS = "osD^vP*"
LINES = ("-", "-.", ":")  # of several runs, where the colours are used up
# Text stays text: to be searched, copied and set in the fonts of a paper.
VECTOR: dict[Any, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42, "ps.fonttype": 42}


@dataclass(frozen=True)
class Style:
    """The look of a figure.

    Attributes:
        width: of the figure, in inches.
        height: of a panel of height 1, in inches.
        lines: the width of lines and the size of markers, relative to the default.
        sharpness: the colour of S.
        smoothness: the colour of D and ζ.
        loss: the colour of the loss.
        edge: the colour of the edge of stability.
        grey: the colour of a legend that holds for several runs.
        colours: of several runs; neighbours differ in lightness.
        rc: settings of matplotlib.
    """

    width: float = 7.2
    height: float = 1.85
    lines: float = 1.0
    sharpness: str = "#0b3c6f"
    smoothness: str = "#e08214"
    loss: str = "#555555"
    edge: str = "#000000"
    grey: str = "#444444"
    # The colours of Okabe and Ito, with wine in place of black.
    colours: tuple[str, ...] = (
        "#0072B2",
        "#E69F00",
        "#882255",
        "#CC79A7",
        "#D55E00",
        "#56B4E9",
        "#009E73",
    )
    rc: Mapping[str, Any] = field(default_factory=dict)

    @property
    def marks(self) -> dict[str, dict[str, Any]]:
        """How each mark of a :class:`geodiag.records.Quantity` is drawn."""
        line = {"color": self.sharpness, "linewidth": 1.8 * self.lines}
        dots = {"color": self.smoothness, "linestyle": "", "marker": ".", "linewidth": 1.0}
        return {
            "line": line,
            "band": line,
            "thin": {"color": self.loss, "linewidth": 1.2 * self.lines},
            "dots": dots | {"markersize": 4 * self.lines},
            "dashes": {"color": self.edge, "linewidth": 1.0 * self.lines, "linestyle": "--"},
        }


_DARK = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "#14171c"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), "#e6e6e6"),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), "#c8c8c8"),
    "grid.color": "#343a42",
}
STYLES = {
    "": Style(),
    "paper": Style(width=5.5, height=1.4, lines=0.75, rc={"font.size": 8, "axes.linewidth": 0.6}),
    "slides": Style(width=10.0, height=2.3, lines=1.7, rc={"font.size": 15, "axes.linewidth": 1.2}),
    "dark": Style(
        sharpness="#6db6ff",
        smoothness="#ffb454",
        loss="#b8b8b8",
        edge="#ffffff",
        grey="#cccccc",
        colours=("#56B4E9", "#F0E442", "#009E73", "#F5B8DC", "#E0662A", "#B8E2FF", "#E69F00"),
        rc=_DARK,
    ),
}
_GENERIC = ("serif", "sans-serif", "monospace", "cursive", "fantasy")


def chosen(style: Any, font: Any) -> tuple[Style, dict[str, Any]]:
    """A style by its name, and the settings of matplotlib that it and the font amount to.

    Raises:
        ArgumentError: there is no such style or font.
    """
    name = "" if style is None else style
    if not isinstance(name, str) or name not in STYLES:
        listed = ", ".join(repr(each) for each in STYLES if each)
        raise ArgumentError("there is no such style", got=shown(style), do=f"use one of {listed}")
    settings = {"grid.color": "#e4e4e4", "grid.linewidth": 0.6, **STYLES[name].rc, **VECTOR}
    if font is not None:
        manager = import_optional(
            "matplotlib.font_manager", "plots need matplotlib", 'pip install "geodiag[plot]"'
        )
        if font not in (*_GENERIC, *manager.get_font_names()):
            what = "there is no such font"
            do = f"install it, or use one of {', '.join(_GENERIC)}"
            raise ArgumentError(what, got=shown(font), do=do)
        settings["font.family"] = font
    return STYLES[name], settings
