"""Checks what a GPU does with this project: bits, speed, verdicts, kernels, ALBERT's gradient, tests.

    python -m scripts.gpu_check                          # all sections, in at most about 8 minutes
    python -m scripts.gpu_check --only bits speed        # these
    python -m scripts.gpu_check --cpu --tiny             # without a GPU: only whether everything runs

Findings go to `gpu_check.json`, with times and versions, and as a table to `gpu_check.md`; both grow with each finding.
A section that fails says why, and the others go on. The code is 1 if anything is not as it must be.
"""

from __future__ import annotations

import os

# Before torch is imported: cuBLAS reads its workspace only once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import argparse
import json
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btard.boundary import FAILED, Parser, line_of, one_line, output_folder, positive, program
from btard.harness import tables
from btard.harness.progress import Bar

if TYPE_CHECKING:
    from scripts.gpu_checks.rows import Row, Setting

SECTIONS = ("machine", "bits", "speed", "ledgers", "parts", "albert", "tests")
OWN = frozenset({"machine", "bits"})
"""The sections that look at torch's own kernels; in the others they are those that a run chooses."""
BUDGET, TINY_BUDGET = 450, 24
"""Seconds."""
COLUMNS = ("section", "what", "found", "")


class Report:
    """The findings so far, in two files that are always complete."""

    def __init__(self, out: Path, about: dict[str, Any]) -> None:
        self.out, self.about = out, about
        self.found: list[tuple[str, Row]] = []

    def add(self, section: str, row: Row) -> None:
        self.found.append((section, row))
        rows = [{"section": section, **vars(row)} for section, row in self.found]
        (self.out / "gpu_check.json").write_text(json.dumps({"about": self.about, "rows": rows}, indent=1) + "\n")
        (self.out / "gpu_check.md").write_text(tables.markdown(COLUMNS, self.cells()) + "\n")

    def cells(self) -> list[list[str]]:
        return [[section, row.what, row.found, row.mark] for section, row in self.found]

    @property
    def bad(self) -> int:
        """How many findings are not as they must be."""
        return sum(row.good is False for _, row in self.found)


def rows_of(section: str, setting: Setting) -> Iterator[Row]:
    """The section's findings; if it fails, the last one says why."""
    import torch

    from btard.training.kernels import choose_exact_kernels
    from scripts.gpu_checks.rows import NO_TIME, Row

    if setting.left <= 0:
        yield Row("all", NO_TIME)
        return
    try:
        if section not in OWN:
            choose_exact_kernels(torch.device(setting.device))
        yield from import_module(f"scripts.gpu_checks.{section}").rows(setting)
    except ModuleNotFoundError as error:
        known = line_of(error)
        yield Row("not run", one_line(known[1] if known else str(error)), None if known else False)
    except Exception as error:
        traceback.print_exc()
        yield Row("failed", one_line(f"{type(error).__name__}: {error}")[:300], False)


def about(device: str, words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """The command, the machine and the versions."""
    import torch

    from scripts.benchmarks.measure import machine

    found = {"command": shlex.join(["python", "-m", "scripts.gpu_check", *words]), **machine(device)}
    if device != "cpu":
        found["versions"] |= {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    return {**found, "tiny": options.tiny}


@program("the same command begins again")
def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="on the CPU, to try the program where there is no GPU")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=output_folder, default=Path("runs/gpu_check"))
    parser.add_argument(
        "--budget",
        type=positive,
        metavar="SECONDS",
        help=f"after them nothing more begins (default: {BUDGET}, or {TINY_BUDGET})",
    )
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS)
    )
    options = parser.parse_args(argv)
    started = time.perf_counter()
    import torch

    from scripts.gpu_checks.rows import Setting

    if not options.cpu and not torch.cuda.is_available():
        parser.error("torch finds no GPU; see to its driver, or give --cpu to try the program without one")
    warnings.simplefilter("ignore")
    device = "cpu" if options.cpu else "cuda"
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out, about(device, sys.argv[1:] if argv is None else argv, options))
    sections = [name for name in SECTIONS if name in options.only]
    budget = options.budget or (TINY_BUDGET if options.tiny else BUDGET)
    whole = Setting(device, options.tiny, started + budget)
    with Bar("gpu check", len(sections), unit="sections") as bar:
        for section, share in whole.shares(sections):
            bar.advance(0, section)
            for row in rows_of(section, share):
                report.add(section, row)
            bar.advance()
    tables.show(report.about["hardware"], COLUMNS, report.cells())
    print(f"wrote {options.out / 'gpu_check.json'} and gpu_check.md")
    if report.bad:
        print(f"error: {report.bad} of {len(report.found)} findings are not as they must be", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
