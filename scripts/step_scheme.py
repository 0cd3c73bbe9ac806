"""`python -m scripts.step_scheme [--out docs/images]`: draws one step of BTARD, as SVG for light and for dark pages."""

from __future__ import annotations

import sys
from pathlib import Path

from btard.boundary import Parser, output_folder, program

WIDTH, HEIGHT, LEFT, PANEL = 1000, 356, 12, 195
NAMES = ("fg", "soft", "edge", "panel", "bad", "good")
THEMES = {
    "light": dict(zip(NAMES, ("#1b1f24", "#57606a", "#d0d7de", "#f6f8fa", "#c43d00", "#00805c"), strict=True)),
    "dark": dict(zip(NAMES, ("#e6edf3", "#9ea7b3", "#30363d", "#161b22", "#ff7b42", "#2fc795"), strict=True)),
}
PARTS = {"light": ("#0072b2", "#a3437c", "#b86e00"), "dark": ("#56b4e9", "#e59ac4", "#e69f00")}
"""The colour of each part of the gradient, and of the peer that owns it."""
TITLES = ("1  Commit", "2  Exchange", "3  Aggregate", "4  Toss a coin", "5  Check and ban")
CAPTIONS = (
    ("Each peer computes the", "gradient of a public batch", "and broadcasts a hash of", "each of its parts, signed."),
    ("Peer j gets part j from", "everybody, and compares", "it with the hash. No server.", ""),
    (
        "CenteredClip: the pull of each",
        "peer is cut to length tau.",
        "Owners send it to all, and",
        "broadcast its hash.",
    ),
    (
        "Everybody commits to a",
        "random value, then reveals",
        "it. Their hash is the coin:",
        "nobody can prepare for it.",
    ),
    (
        "A validator recomputes one",
        "gradient of the step before.",
        "If it differs it accuses. Then",
        "all recompute and vote.",
    ),
)
FIXED = ("gradients", "", "aggregates", "who is checked, how", "who is out")


class Drawing:
    """SVG elements in the colours of a theme."""

    def __init__(self, theme: str) -> None:
        self.colour, self.parts = THEMES[theme], PARTS[theme]
        self.elements: list[str] = []

    def text(self, x: float, y: float, words: str, colour: str = "fg", size: int = 13, *, bold: bool = False) -> None:
        weight = ' font-weight="600"' if bold else ""
        fill = self.colour[colour]
        self.elements.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}"{weight}>{words}</text>')

    def middle(self, x: float, y: float, words: str, fill: str, size: int = 12) -> None:
        """Words centred at x."""
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="middle" fill="{fill}">{words}</text>'
        )

    def box(self, x: float, y: float, w: float, h: float, fill: str, edge: str = "none", radius: float = 3) -> None:
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" fill="{fill}" stroke="{edge}"/>'
        )

    def line(self, x: float, y: float, to_x: float, to_y: float, colour: str, *, arrow: bool = True) -> None:
        end = ""
        if arrow:
            dx, dy = to_x - x, to_y - y
            length = (dx * dx + dy * dy) ** 0.5
            ux, uy = dx / length, dy / length
            base_x, base_y = to_x - 7 * ux, to_y - 7 * uy
            left, right = (base_x - 3.5 * uy, base_y + 3.5 * ux), (base_x + 3.5 * uy, base_y - 3.5 * ux)
            points = " ".join(f"{px:.1f},{py:.1f}" for px, py in ((to_x, to_y), left, right))
            end = f'<polygon points="{points}" fill="{colour}"/>'
        self.elements.append(
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}" '
            f'stroke-width="1.5"/>{end}'
        )

    def circle(self, x: float, y: float, r: float, fill: str, edge: str = "none", *, dashed: bool = False) -> None:
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.elements.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" fill="{fill}" stroke="{edge}" stroke-width="1.5"{dash}/>'
        )

    def gradient(self, x: float, y: float, *, lie: bool = False) -> None:
        """A gradient in its three parts; a lie is hollow."""
        for part, colour in enumerate(self.parts):
            self.box(x + 24 * part, y, 22, 16, "none" if lie else colour, colour)


def drawn(theme: str) -> str:
    """The SVG of one step."""
    art = Drawing(theme)
    soft, bad, good, fg = (art.colour[name] for name in ("soft", "bad", "good", "fg"))
    for panel, title in enumerate(TITLES):
        x = LEFT + panel * PANEL
        art.box(x, 12, PANEL - 10, 252, art.colour["panel"], art.colour["edge"], 8)
        art.text(x + 12, 36, title, size=15, bold=True)
        for row, words in enumerate(CAPTIONS[panel]):
            art.text(x + 12, 198 + 17 * row, words, "soft", 12)
    x = LEFT + 12  # commit
    for peer in range(3):
        y = 60 + 38 * peer
        art.text(x, y + 13, f"peer {peer + 1}", "soft", 12)
        art.gradient(x + 48, y, lie=peer == 2)
        art.text(x + 126, y + 13, "# # #", "fg", 12)
    x = LEFT + PANEL + 20  # exchange
    for part, colour in enumerate(art.parts):
        to = 68 + 38 * part
        for peer in range(3):
            art.box(x, 56 + 38 * peer + 8 * part, 20, 7, colour, radius=1)
            art.line(x + 22, 60 + 38 * peer + 8 * part, x + 96, to + 3 * (peer - 1), colour)
        art.circle(x + 112, to, 11, "none", colour)
        art.middle(x + 112, to + 4, str(part + 1), fg)
    art.middle(x + 112, 178, "owners", soft)
    x, y = LEFT + 2 * PANEL + 62, 118  # aggregate
    art.circle(x, y, 42, "none", soft, dashed=True)
    art.line(x, y, x - 42, y, soft, arrow=False)
    art.middle(x - 22, y - 6, "tau", soft)
    for dx, dy in ((8, -12), (16, 8), (-6, 16), (2, -26), (22, -6)):
        art.circle(x + dx, y + dy, 4, art.parts[0])
    art.circle(x + 104, y - 44, 5, "none", bad)
    art.line(x + 99, y - 42, x + 41, y - 17, bad)
    art.circle(x, y, 3.5, fg)
    x, y = LEFT + 3 * PANEL + 92, 118  # coin
    for dx, dy in ((-66, -42), (-66, 42), (66, -42), (66, 42)):
        art.circle(x + dx, y + dy, 10, "none", soft)
        art.line(x + 0.82 * dx, y + 0.82 * dy, x + 0.42 * dx, y + 0.42 * dy, soft)
    art.circle(x, y, 24, art.colour["panel"], art.parts[2])
    art.middle(x, y + 6, "coin", fg, 14)
    x = LEFT + 4 * PANEL + 12  # check
    art.text(x, 73, "committed", "soft", 12)
    art.gradient(x + 86, 60, lie=True)
    art.text(x, 105, "recomputed", "soft", 12)
    art.gradient(x + 86, 92)
    art.middle(x + 122, 88, "≠", bad, 18)
    art.text(x, 146, "most vote: guilty", "fg", 12)
    art.circle(x + 144, 142, 11, "none", bad)
    art.middle(x + 144, 146, "3", fg)
    art.line(x + 134, 152, x + 154, 132, bad, arrow=False)
    art.text(x, 170, "an entry of the ledger", "soft", 12)
    art.text(LEFT, 290, "fixed from here on:", "soft", 12)
    for panel, words in enumerate(FIXED):
        x = LEFT + panel * PANEL
        if words:
            art.box(x, 300, PANEL - 10, 26, "none", good, 13)
            art.middle(x + (PANEL - 10) / 2, 318, words, fg, 13)
        if panel + 1 < len(FIXED):
            art.line(x + PANEL - 9, 138, x + PANEL - 1, 138, fg)
    art.text(
        LEFT,
        348,
        "Then the optimizer steps, everywhere alike; the coin has drawn who is checked in the next step.",
        "soft",
        12,
    )
    body = "\n".join(art.elements)
    title = "One step of BTARD: commit, exchange, aggregate, coin, check"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="system-ui, sans-serif">\n<title>{title}</title>\n{body}\n</svg>\n'
    )


@program("the same command begins again")
def main() -> None:
    parser = Parser(prog="python -m scripts.step_scheme", description=__doc__)
    parser.add_argument("--out", type=output_folder, default=Path("docs/images"), metavar="FOLDER")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        file = out / f"step-{theme}.svg"
        file.write_text(drawn(theme), encoding="utf-8")
        print(f"wrote {file}")


if __name__ == "__main__":
    sys.exit(main())
