"""The figures and tables of a sweep, and the report that combines them. Equal files give equal bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from itertools import compress
from pathlib import Path

from btard.harness.figures import save
from btard.harness.progress import Bar
from btard.harness.run_folder import RunFolderError
from btard.harness.tables import csv_text, show
from resnet.experiments import tables
from resnet.experiments.claims import LEGEND as CLAIMS
from resnet.experiments.claims import claims_table
from resnet.experiments.grid import Experiment
from resnet.experiments.headline import NAME as HEADLINE
from resnet.experiments.headline import headline_figure
from resnet.experiments.healing import DEFAULT, default_table, healing_figure, healing_table
from resnet.experiments.healing import LEGEND as HEALING
from resnet.experiments.noise import QuietRuns
from resnet.experiments.outcomes import Outcome, Results
from resnet.experiments.plots import accuracy_figure, overview_experiments, survival_figure
from resnet.experiments.survival import collapse

PATIENCE = 2.0
"""Seconds after which a progress bar appears."""

OVERVIEW = "overview"
"""Figure for a README."""


def write_report(results: Results, experiments: Sequence[Experiment], out: Path) -> list[str]:
    """Write the figures and tables of `experiments` and a report.md that combines them, to the folder `out`.

    Returns what somebody should look at: one line each. Raises RunFolderError if none of their runs is finished.
    """
    outcomes = results.of(experiments)
    total = len({cell.name for experiment in experiments for cell in experiment.cells})
    if not outcomes:
        raise RunFolderError(f"nothing to report yet: none of {total} runs is finished; run the sweep, or wait")
    out.mkdir(parents=True, exist_ok=True)
    csv_files = {
        "results.csv": tables.results_csv(results, experiments),
        "runs.csv": tables.runs_csv(results, experiments),
        "curves.csv": tables.curves_csv(outcomes),
    }
    quiet = QuietRuns(results)
    groups, warnings = collapse(outcomes)
    warnings = [f"equal coins, different bans: {line}" for line in warnings]
    shown = [experiment for experiment in experiments if results.series(experiment)]
    text = [f"# {results.grid.title}", status(outcomes, total)]
    overview = overview_experiments(shown)
    with patient_bar(len(shown) + 3, "figures") as drawn:
        if figure := headline_figure(results, shown):
            save(figure, out / HEADLINE, small=True)
            text.append(
                f"![Test accuracy without a defence, with BTARD, and without attack]({HEADLINE}.png)\n\n{SHOWN}"
            )
        drawn.advance()
        if len(overview) > 1 and (figure := accuracy_figure(results, overview)):
            save(figure, out / OVERVIEW, small=True)
            titles = "; ".join(experiment.title for experiment in overview)
            text.append(f"![Test accuracy under each attack]({OVERVIEW}.png)\n\n{titles}.")
        drawn.advance()
        if groups:
            save(survival_figure(groups), out / "survival", small=True)
            table = tables.survival_table(groups)
            csv_files["survival.csv"] = table
            bad = [row for row in table[1:] if row[table[0].index("agrees")] == "NO"]
            warnings += [
                f"the sampling law is rejected for n, b, m = {', '.join(row[:3])}: p = {row[7]}" for row in bad
            ]
            survival = [*(f"**{line}**" for line in warnings), tables.markdown(table), tables.SURVIVAL_LEGEND]
            _write(out / "survival.md", "\n\n".join(map(str.strip, survival)) + "\n")
            figure_line = "![Byzantine peers left, against the sampling law](survival.png)"
            text += ["## How long attackers survive", figure_line, *survival]
        drawn.advance()
        sections = ["# Results", tables.LEGEND]
        for experiment in shown:
            about = [experiment.about] if experiment.about else []
            table_text = tables.markdown(tables.results_table(results.series(experiment), quiet))
            sections += [f"## {experiment.title}", *about, table_text]
            text += [f"## {experiment.title}", *about]
            if figure := accuracy_figure(results, [experiment]):
                name = f"accuracy-{experiment.name}"
                for file in save(figure, out / name, small=True):
                    if overview == [experiment]:  # nothing to lay over it, and nothing to draw twice
                        shutil.copyfile(file, out / f"{OVERVIEW}{file.suffix}")
                text.append(f"![Test accuracy: {experiment.title}]({name}.png)")
            if drawing := healing_figure(results.series(experiment)):
                name = f"healing-{experiment.name}"
                save(drawing, out / name, small=True)
                text.append(f"![With and without healing: {experiment.title}]({name}.png)")
                csv_files[f"{name}.csv"] = healing_table(results.series(experiment))
                text += [tables.markdown(csv_files[f"{name}.csv"]), HEALING]
            if len(default := default_table(results.series(experiment))) > 1:
                csv_files[f"default-{experiment.name}.csv"] = default
                text += [tables.markdown(default), DEFAULT]
            text.append(table_text)
            if validators := tables.validators_table(results, experiment):
                text.append(tables.markdown(validators))
                sections.append(tables.markdown(validators))
            drawn.advance()
    _write(out / "results.md", "\n\n".join(map(str.strip, sections)) + "\n")
    claims = claims_table(results, experiments)
    if len(claims) > 1:
        csv_files["claims.csv"] = claims
        of_claims = [CLAIMS, tables.markdown(claims)]
        _write(out / "claims.md", "\n\n".join(map(str.strip, ["# The paper's claims", *of_claims])) + "\n")
        text += ["## The paper's claims", *of_claims]
    speeds = tables.speed_table(results, experiments)
    if len(speeds) > 1:
        known = sum(outcome.cell.name in results.speeds for outcome in outcomes)
        some = f"\nMeasured in {known} of {len(outcomes)} runs." if known < len(outcomes) else ""
        _write(out / "speed.md", f"{SPEED}{some}\n\n{tables.markdown(speeds)}")
    for name, table in csv_files.items():
        _write(out / name, csv_text(table))
    text += ["## How to read the tables", tables.LEGEND, "## How it was made", *_made(outcomes, sorted(csv_files))]
    text += ["Steps per second: [speed.md](speed.md)."] if len(speeds) > 1 else []
    _write(out / "report.md", "\n\n".join(map(str.strip, text)) + "\n")
    return warnings


SHOWN = "Lines are means over the seeds that are finished, bands their range; ticks are bans, in the colour of the run."

SPEED = """Steps per second, measurements of the accuracy not counted: mean (lowest to highest) over runs and attacks.
Runs side by side slow each other down, and a step is faster once peers are banned."""


def status(outcomes: Sequence[Outcome], total: int) -> str:
    """Return which data the runs were trained on, and how many of `total` are finished, as Markdown."""
    data = sorted({outcome.summary["data"] for outcome in outcomes})
    finished = "All" if len(outcomes) == total else f"**Unfinished sweep:** {len(outcomes)} of"
    return f"Data: {', '.join(data)}. {finished} {total} runs are finished."


def _made(outcomes: Sequence[Outcome], csv_files: Sequence[str]) -> list[str]:
    def distinct(value: Callable[[Outcome], object]) -> str:
        return ", ".join(sorted({str(value(outcome)) for outcome in outcomes}))

    machine = (
        f"Runs: torch {distinct(lambda o: o.summary['versions'].get('torch'))}, "
        f"Python {distinct(lambda o: o.summary['versions'].get('python'))}, "
        f"device {distinct(lambda o: o.summary['device'])}."
    )
    again = (
        "The runs by `python -m resnet.sweep sweep.yaml --out DIR`, with `--data.path` for where the data lies; this "
        "report by `python -m resnet.report DIR`."
    )
    links = ", ".join(f"[{name}]({name})" for name in csv_files)
    return [machine, again, f"The numbers for programs: {links}. Every figure is there as SVG, too."]


def patient_bar(total: int, what: str) -> Bar:
    """A progress bar that appears only if the work takes long."""
    return Bar(what, total, unit="done", patience=PATIENCE)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", newline="\n")


def print_results(results: Results, experiments: Sequence[Experiment]) -> None:
    """Print a table of each experiment's outcome, without columns that are the same everywhere."""
    quiet = QuietRuns(results)
    for experiment in experiments:
        series = results.series(experiment)
        if not series:
            continue
        rows = tables.results_table(series, quiet)
        always = {*tables.WORDS, "final accuracy"}
        said = [name in always or len(set(column)) > 1 for name, *column in zip(*rows, strict=True)]
        chosen = [list(compress(row, said)) for row in rows]
        show(experiment.title, tables.columns(chosen), chosen[1:])
