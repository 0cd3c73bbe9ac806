"""The one style of all figures: colours, dashes, bare axes, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from btard.extras import need

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

need("experiments", "matplotlib", "PIL")

# Okabe and Ito's colours, which people with any colour vision can tell apart; lines differ in their dashes as well,
# for print in black and white. Yellow is left out: it vanishes on paper.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLACK, VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY = COLOURS
BROWN = "#8C6D31"
DASHES = ("-", (0, (6, 2)), "-", (0, (1, 1.2)), (0, (6, 2, 1, 2)), "-", (0, (3, 1.5)))


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches: no pyplot, so nothing is global and needs a window system."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def bare(axes: Axes, *, grid: str | None = "y") -> None:
    """Keep only the left and the lower line of the axes; `grid`: light lines across "x", "y" or "both"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if grid is not None:
        axes.grid(axis=grid, color="0.9", lw=0.6)  # type: ignore[arg-type]


def save(figure: Figure, out: Path, *, small: bool = False) -> tuple[Path, Path]:
    """Write the figure as PNG and SVG, named like `out` with these endings. The same figure gives the same bytes.

    `small`: the PNG gets 256 colours, which lines do not need more than.
    """
    from matplotlib import rc_context

    png, svg = out.with_suffix(".png"), out.with_suffix(".svg")
    out.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "btard", "svg.fonttype": "none"}):
        figure.savefig(png, dpi=200, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    if small:
        from PIL import Image

        with Image.open(png) as image:
            reduced = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        reduced.save(png, optimize=True)
    return png, svg
