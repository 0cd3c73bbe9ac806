"""Pages of documentation that a program writes: `python -m scripts.NAME --out FILE`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from btard.boundary import Parser, output_file


def write_page(about: str | None, text: Callable[[], str], argv: Sequence[str] | None) -> None:
    """Write what `text` returns into the file after --out; the first line of `about` is what --help says."""
    parser = Parser(description=(about or "").split("\n")[0])
    parser.add_argument("--out", type=output_file, required=True)
    parser.parse_args(argv).out.write_text(text(), encoding="utf-8")
