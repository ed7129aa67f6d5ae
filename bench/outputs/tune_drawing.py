"""A figure of a tune's report: the same one as SVG for the page and as PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's colours: told apart with any kind of colour vision; shapes and words differ too.
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
GREY, INK = "#8793a0", "#1c2733"
SMALL = 9                           # points: the smallest text


@dataclass(frozen=True)
class Drawing:
    """A finished figure: a file name without its ending, a title, and what it shows in words."""

    name: str
    title: str
    alt: str
    figure: Any

    def png(self) -> bytes:
        """As PNG, 120 dots an inch."""
        return self._saved("png")

    def svg(self) -> bytes:
        """As SVG, letters as outlines: no font of the reader's can cut or move them."""
        return self._saved("svg", metadata={"Date": None})

    def _saved(self, form: str, **options: Any) -> bytes:
        import matplotlib as mpl

        out = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(out, format=form, **options)
        return out.getvalue()


def legend(figure: Any, columns: int) -> None:
    """Below the plot, where it covers nothing."""
    figure.legend(fontsize=SMALL, loc="outside lower left", ncols=columns, frameon=False)


def axes_of(figure: Any) -> Any:
    """The axes of a plot: two spines, small letters."""
    axes = figure.add_subplot(1, 1, 1)
    axes.tick_params(labelsize=SMALL, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)
    return axes
