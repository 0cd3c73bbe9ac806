"""`python -m scripts.conformance`: compares our rules and attacks with those of other packages: results/conformance.

The packages need other versions of torch than we use, and packages that nothing else here needs. So they go into a
separate folder; this is all that must be installed:

    pip install --target DIR --no-deps byzfl byzpy torchjd flwr qora-fl seaborn cloudpickle pycryptodome iterators
    PYTHONPATH=DIR python -m scripts.conformance

The inputs are drawn from named streams: the same versions give the same table.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btard.boundary import Parser, program
from btard.harness.progress import track
from btard.harness.tables import markdown

if TYPE_CHECKING:
    from scripts.conformance.inputs import Input
    from scripts.conformance.ours import Call
    from scripts.conformance.pairs import Pair

THEIRS = "byzfl byzpy torchjd flwr qora-fl seaborn cloudpickle pycryptodome iterators"
INSTALL = f"pip install --target DIR --no-deps {THEIRS}"
SAME = 1e-6
"""Relative difference up to which two results are the same: they round differently, and some iterate to a tolerance."""
OUT = Path("results/conformance")
PAGE = """\
# Our rules and attacks compared with those of other packages

Made by `python -m scripts.conformance`, which says what to install. The difference is the largest
||a - b|| / max(||a||, ||b||) over {inputs} random inputs in float64; "same" is {same} or less. Where two differ, the
table names the reason. The reason was tested: the last column is the difference that remains when ours is computed in
their way.

{pairs}

## Attackers that search their factor

Harm is the distance of the aggregate from the honest mean. The table has our harm divided by theirs: `alie_search` and
`ipm_search` against byzfl's `Optimal_ALittleIsEnough` and `Optimal_InnerProductManipulation`, with 20 trials each,
under the same rule of ours. Theirs goes up from 0 in steps of 10 and more until harm falls, and then shortens its
steps; ours halves a limit of 16 first, and closes in on the best factor. In ALIE, theirs adds standard deviations to
the mean and ours subtracts them; which of the two does more harm to given honest rows is chance. The mean is not in the
table: theirs has no limit, and goes as far as its trials allow.

{harm}

## Not compared

acfa-flower needs a compiled program in addition. blades needs fllib, which its own installation does not install.
`mimic`, which chooses its victim, is in none of these packages; theirs of that name are `copy`.

Versions: {versions}.
"""


def difference(one: Call, other: Call, given: Sequence[Input]) -> tuple[float, str]:
    """The largest ||a - b|| / max(||a||, ||b||) over all inputs, and the input; 0 for the first if all are equal."""
    import torch

    worst = -1.0, ""
    for item in given:
        a, b = one(item.x.clone(), item.f), other(item.x.clone(), item.f).to(torch.float64)
        scale = max(float(a.norm()), float(b.norm()), 1e-300)
        apart = float((a - b).norm()) / scale
        worst = max(worst, (apart if apart == apart else float("inf"), item.name))
    return worst


def compared(package: str, pair: Pair, given: Sequence[Input]) -> dict[str, Any]:
    """One line of the results."""
    apart, where = difference(pair.compute, pair.other, given)
    left = None if pair.alike is None else difference(pair.alike, pair.other, given)[0]
    return {
        "ours": pair.ours,
        "package": package,
        "theirs": pair.theirs,
        "difference": apart,
        "input": where,
        "why": pair.why,
        "difference_in_their_way": left,
    }


def explained(line: dict[str, Any]) -> bool:
    """Whether the two are the same, or become the same when ours is changed as the reason says."""
    left = line["difference_in_their_way"]
    return bool((line["difference"] if left is None else left) <= SAME)


def table(results: dict[str, Any]) -> str:
    """The results as a page for people."""

    def shown(value: float | None) -> str:
        return "" if value is None else "same" if value <= SAME else f"{value:.2g}"

    columns = ("ours", "package", "theirs", ">largest relative difference", "why: theirs ...", ">ours in their way")
    lines = [
        [
            f"`{line['ours']}`",
            line["package"],
            f"`{line['theirs']}`",
            shown(line["difference"]),
            line["why"],
            shown(line["difference_in_their_way"]),
        ]
        for line in sorted(results["pairs"], key=lambda line: (line["ours"], line["package"], line["theirs"]))
    ]
    searches = [
        [f"`{one['attack']}`", f"`{one['rule']}`", *(f"{one[key]:.2f}" for key in ("least", "median", "most"))]
        for one in results["harm"]
    ]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return PAGE.format(
        inputs=results["inputs"],
        same=f"{SAME:g}",
        pairs=markdown(columns, lines),
        harm=markdown(("ours", "rule", ">least", ">median", ">most"), searches),
        versions=versions,
    )


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m scripts.conformance", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    import torch

    from scripts.conformance.harm import harms
    from scripts.conformance.inputs import inputs
    from scripts.conformance.pairs import PACKAGES

    torch.set_num_threads(1)
    pairs: list[tuple[str, Pair]] = []
    for package, make in PACKAGES.items():
        try:
            pairs += [(package, pair) for pair in make()]
        except ImportError as error:
            print(f"error: {package}: {error}; {INSTALL}, then PYTHONPATH=DIR", file=sys.stderr)
            return 2
    given = list(inputs())
    lines = [compared(package, pair, given) for package, pair in track(pairs, "conformance", unit="pairs")]
    versions = {name: version(name) for name in (*PACKAGES, "torch", "numpy")} | {"python": platform.python_version()}
    results = {"inputs": len(given), "pairs": lines, "harm": harms(given), "versions": versions}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "README.md").write_text(table(results))
    for line in lines:
        if not explained(line):
            print(
                f"error: {line['ours']} and {line['package']}'s {line['theirs']} differ, and nothing says why: {line}"
            )
    print(f"files: {options.out}/README.md, results.json")
    return 0 if all(map(explained, lines)) else 1


if __name__ == "__main__":
    sys.exit(main())
