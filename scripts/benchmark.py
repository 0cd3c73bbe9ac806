"""Measures aggregation, a step by phase, the simulator, and growth with peers and parameters; writes one page.

    python -m scripts.benchmark                                    # all sections into results/benchmark
    python -m scripts.benchmark --only step scale                  # these again; the others stay on the page
    python -m scripts.benchmark --report                           # the page again from the JSON files

Each section writes `<section>.json` with all single times, and `README.md` is made from the existing files.
Run it on a quiet machine: the load average is on the page.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btard.boundary import Parser, output_folder, program
from btard.harness.progress import Bar
from scripts.benchmarks.page import Aim, Table, page, section

if TYPE_CHECKING:
    from scripts.benchmarks.measure import Settings

SECTIONS = ("aggregation", "step", "simulator", "scale")


def measure(name: str, settings: Settings, command: str) -> dict[str, Any]:
    """The content of `<name>.json`: what it was measured on, and a result per case."""
    from scripts.benchmarks.measure import load, machine

    started, before = time.perf_counter(), load()
    found = import_module(f"scripts.benchmarks.{name}").cases(settings)
    results = {}
    with Bar(name, len(found), unit="cases") as bar:
        for case, run in found.items():
            bar.advance(0, case)
            results[case] = run()
            bar.advance()
    about = {"command": command, **machine(settings.device), "load": [before, load()], "quick": settings.quick}
    return {"about": {**about, "seconds": round(time.perf_counter() - started, 1)}, "results": results}


def tables_of(name: str, content: dict[str, Any]) -> list[Table]:
    """The section's tables, from what its JSON file holds."""
    return import_module(f"scripts.benchmarks.{name}").tables(content["results"])


def write_page(out: Path) -> str:
    """Draw `README.md` from the sections' files in `out`; returns its text.

    Errors: FileNotFoundError if there is none.
    """
    parts: list[str] = []
    aims: list[Aim] = []
    for name in SECTIONS:
        path = out / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text())
            parts.append(section(name, content["about"], tables_of(name, content)))
            if not content["about"]["quick"]:
                aims += import_module(f"scripts.benchmarks.{name}").aims(content["results"])
    if not parts:
        raise FileNotFoundError(f"no measurements in {out}: run `python -m scripts.benchmark --out {out}` first")
    text = page(aims, parts)
    (out / "README.md").write_text(text)
    return text


@program("the same command begins again")
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to measure")
    parser.add_argument("--out", type=output_folder, default=Path("results/benchmark"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--report", action="store_true", help="measure nothing, draw the page from the JSON files")
    options = parser.parse_args(argv)
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no CUDA device here")
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        from scripts.benchmarks.measure import Settings

        warnings.simplefilter("ignore")
        command = shlex.join(["python", "-m", "scripts.benchmark", *(sys.argv[1:] if argv is None else argv)])
        settings = Settings(options.device, options.quick)
        for name in options.only:
            content = measure(name, settings, command)
            (options.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
            for table in tables_of(name, content):
                table.show()
    try:
        write_page(options.out)
    except FileNotFoundError as error:
        parser.error(str(error))
    print(f"wrote {options.out / 'README.md'}")


if __name__ == "__main__":
    sys.exit(main())
