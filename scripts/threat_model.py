"""`python -m scripts.threat_model --out docs/threat-model.md`: writes what each behaviour led to into the threat model.

Runs every row of the acceptance matrix (`tests/protocol/rows/`) over its seeds and stops at the first one that does
not come out as promised. Takes some minutes on 2 CPU cores; the same seeds give the same text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from btard.boundary import Parser, output_file, positive, program
from btard.harness.progress import track

if TYPE_CHECKING:
    from tests.protocol.matrix import Row

OPENS, CLOSES = "<!-- what was observed, by this command -->", "<!-- end of what was observed -->"
"""This command writes the lines between these two. The rest of the page is written by hand."""


def promised(row: Row) -> str:
    """The row's line of the table up to what was observed."""
    return f"| `{row.label}` | {row.who} | {row.expected}"


def observed(row: Row, seeds: int) -> str:
    """The outcome over all seeds. Errors: AssertionError if it is not what was promised."""
    import torch

    from tests.protocol.matrix import observe, summary

    torch.set_num_threads(1)
    return summary(row, [observe(row, seed) for seed in range(seeds)])


def table(rows: Sequence[Row], results: Sequence[str]) -> Iterator[str]:
    """Markdown: one table per section, in the order of the matrix."""
    section = ""
    for row, result in zip(rows, results, strict=True):
        if row.section != section:
            section = row.section
            yield f"\n### {section}\n"
            yield "| behaviour | attackers | what must happen | what did |"
            yield "| --- | --- | --- | --- |"
        yield f"{promised(row)} | {result} |"


def renewed(page: str, rows: Sequence[Row], results: Sequence[str], seeds: int) -> str:
    """`page` with its tables replaced by these results. Errors: ValueError if it has no place for them."""
    before, opens, rest = page.partition(OPENS)
    _, closes, after = rest.partition(CLOSES)
    if not (opens and closes):
        raise ValueError(f"the page needs the lines {OPENS!r} and {CLOSES!r}, between which the tables go")
    counted = f"From {len(rows) * seeds} runs of small cohorts, {seeds} seeds for each row."
    return "\n".join([f"{before}{OPENS}", counted, *table(rows, results), "", f"{CLOSES}{after}"])


@program("the same command begins again")
def main() -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=output_file, required=True, help="the page whose tables are renewed")
    parser.add_argument("--seeds", type=positive, help="runs per row; by default as many as the tests have")
    parser.add_argument("--processes", type=positive, default=2)
    options = parser.parse_args()
    page = options.out.read_text()
    renewed(page, (), (), 0)  # before some minutes of work
    from tests.protocol.matrix import SEEDS
    from tests.protocol.rows import ROWS

    seeds = options.seeds or SEEDS
    with ProcessPoolExecutor(options.processes) as pool:
        pending = [pool.submit(observed, row, seeds) for row in ROWS]
        results = [future.result() for future in track(pending, "threat model", unit="rows")]
    options.out.write_text(renewed(page, ROWS, results, seeds))


if __name__ == "__main__":
    sys.exit(main())
