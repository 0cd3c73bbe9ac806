"""Tables of a sweep: Markdown for people, CSV for programs. Equal result files give equal bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from btard.harness import tables
from resnet.experiments.grid import Experiment, short
from resnet.experiments.noise import QuietRuns
from resnet.experiments.outcomes import (
    RECOVERED_WITHIN,
    RECOVERY_WINDOW,
    Outcome,
    Results,
    Series,
    settings_by_key,
    varied_keys,
)
from resnet.experiments.survival import AUTHORS, LEVEL, Group

Table = list[list[str]]
"""Rows of cells; the first one has the columns' names."""

VALIDATORS = "protocol.validators"

LEGEND = f"""Accuracies in percent: at the last step, on all test images. Several seeds: mean (lowest to highest). The
deepest dip is the largest distance to the run without attack, in percentage points, at any measurement after the
attack's start; all but the last are on `test_samples` of the test images, and none is smoothed, so that chance deepens
it. Steps count from the attack's start. Recovered: at the first measurement from which on any {RECOVERY_WINDOW} in a
row are on average within {RECOVERED_WITHIN:g} points of the run without attack, until its end; 0 if it never left, "-"
if that did not happen. An empty cell: nothing to compare with, or nobody who could be banned. "(mean)": compared with
the mean without attack, as the defence's own run without attack is not finished. A dip by chance is the same largest
distance between two runs without attack that differ in their seed, from the smallest to the largest of all pairs: a
smaller dip than the largest of these may be chance alone. Empty: fewer than two such runs."""

RESULT_COLUMNS = (
    "attack",
    "defence",
    "variant",
    "seeds",
    "final accuracy",
    "without attack",
    "deepest dip",
    "dip by chance",
    "steps to recovery",
    "attackers banned",
    "steps to last ban",
    "honest banned",
    "diverged",
)
WORDS = frozenset({"experiment", "attack", "defence", "variant", "claim of the paper", "setting", "our number", "why"})
"""Columns to the left; numbers go to the right."""


MAY_BE_EMPTY = ("variant", "dip by chance")


def results_table(series: Sequence[Series], quiet: QuietRuns) -> Table:
    """Return a row per series, for people; without optional columns that are empty in all of them."""
    rows = [list(RESULT_COLUMNS), *(_result(entry, quiet) for entry in series)]
    used = [i for i, name in enumerate(RESULT_COLUMNS) if name not in MAY_BE_EMPTY or any(row[i] for row in rows[1:])]
    return [[row[i] for i in used] for row in rows]


def _result(entry: Series, quiet: QuietRuns) -> list[str]:
    attacked = entry.outcomes[0].attacked
    banning = attacked and entry.protocol
    noise = quiet.noise(entry) if attacked else None
    without = spread([100 * value for value in entry.values(lambda o: o.reference_accuracy)], 1)
    attackers, banned = _total(entry, lambda o: o.attackers), _total(entry, lambda o: len(o.attacker_bans))
    return [
        entry.attack,
        entry.defence,
        entry.variant,
        str(len(entry.outcomes)),
        spread([100 * value for value in entry.values(lambda o: o.accuracy)], 1),
        without + (" (mean)" if without and any(outcome.borrowed for outcome in entry.outcomes) else ""),
        spread(entry.values(lambda o: o.dip), 1),
        span(noise.dips) if noise else "",
        _recovery(entry),
        f"{banned} of {attackers}" if banning else "",
        (spread(entry.values(lambda o: o.last_ban), 0) or "-") if banning else "",
        honest_bans(entry.outcomes) if entry.protocol else "",
        _diverged(entry),
    ]


def spread(values: Sequence[float], digits: int) -> str:
    """Return "46.9 (45.1 to 47.8)", the mean and the range; or the value if all are equal; "" for none."""
    if not values:
        return ""
    mean, low, high = (f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def span(values: Sequence[float]) -> str:
    """Return "3.9 to 9.7", the range; only the value if all are equal."""
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def honest_bans(outcomes: Iterable[Outcome]) -> str:
    """Return how many honest peers were banned in these runs, and for what."""
    kinds = sum((outcome.honest_bans for outcome in outcomes), Counter())
    text = str(sum(kinds.values()))
    return f"{text} ({', '.join(f'{kind} {kinds[kind]}' for kind in sorted(kinds))})" if kinds else text


def _recovery(entry: Series) -> str:
    comparable = [outcome for outcome in entry.outcomes if outcome.dip is not None]
    back = [outcome.recovery for outcome in comparable if outcome.recovery is not None]
    never = len(comparable) - len(back)
    if never and back:
        return f"{spread(back, 0)}, - in {never} of {len(comparable)}"
    return "-" if never else spread(back, 0)


def _diverged(entry: Series) -> str:
    steps = entry.values(lambda outcome: outcome.diverged_at)
    if not steps:
        return "no"
    runs = "" if len(entry.outcomes) == 1 else f"{len(steps)} of {len(entry.outcomes)}, "
    return f"{runs}at step {spread(steps, 0)}"


def _total(entry: Series, count: Any) -> int:
    return sum(count(outcome) for outcome in entry.outcomes)


def results_csv(results: Results, experiments: Sequence[Experiment]) -> Table:
    """Return a row per experiment and series, for programs: accuracies in [0, 1], nothing for a missing value."""
    columns = ["experiment", "attack", "defence", "variant", "seeds"]
    columns += [f"accuracy_{part}" for part in ("mean", "min", "max")] + ["accuracy_without_attack_mean"]
    columns += [f"dip_points_{part}" for part in ("mean", "min", "max")]
    columns += ["recovered_runs", "compared_runs", "recovery_steps_mean", "attackers", "attackers_banned"]
    columns += [f"last_ban_steps_{part}" for part in ("mean", "min", "max")] + ["honest_banned", "diverged_runs"]
    rows = [columns]
    for experiment in experiments:
        for entry in results.series(experiment):
            references = entry.values(lambda o: o.reference_accuracy)
            recoveries, dips = entry.values(lambda o: o.recovery), entry.values(lambda o: o.dip)
            row = [experiment.name, entry.attack, entry.defence, entry.variant, len(entry.outcomes)]
            row += [*_mean_min_max(entry.values(lambda o: o.accuracy)), mean(references), *_mean_min_max(dips)]
            row += [len(recoveries), len(dips), mean(recoveries)]
            row += [_total(entry, lambda o: o.attackers), _total(entry, lambda o: len(o.attacker_bans))]
            row += _mean_min_max(entry.values(lambda o: o.last_ban))
            row += [_total(entry, lambda o: sum(o.honest_bans.values())), len(entry.values(lambda o: o.diverged_at))]
            rows.append([plain(value) for value in row])
    return rows


def runs_csv(results: Results, experiments: Sequence[Experiment]) -> Table:
    """Return a row per finished run: its place, every setting in which runs of the sweep differ, its outcome."""
    keys = list(dict.fromkeys(["seed", *varied_keys(results.grid.cells)]))
    columns = ["run", "experiments", "attack", "defence", *keys, "accuracy", "accuracy_without_attack", "dip_points"]
    columns += ["recovery_steps", "attackers", "attackers_banned", "first_ban_steps", "last_ban_steps"]
    columns += ["honest_banned", "honest_banned_by_kind", "diverged_at"]
    columns += ["data", "parameters", "device", "torch", "python"]
    rows = [columns]
    for outcome in results.of(experiments):
        cell, summary, settings = outcome.cell, outcome.summary, settings_by_key(outcome.cell.config)
        homes = [e.name for e in experiments if any(other.name == cell.name for other in e.cells)]
        row = [cell.name, " ".join(homes), cell.attack, cell.defence, *(settings.get(key) for key in keys)]
        row += [outcome.accuracy, outcome.reference_accuracy, outcome.dip, outcome.recovery, outcome.attackers]
        row += [len(outcome.attacker_bans), outcome.first_ban, outcome.last_ban, sum(outcome.honest_bans.values())]
        row += [" ".join(f"{kind}:{n}" for kind, n in sorted(outcome.honest_bans.items())), outcome.diverged_at]
        versions = summary["versions"]
        row += [summary["data"], summary.get("parameters"), summary["device"]]
        row += [versions.get("torch"), versions.get("python")]
        rows.append([plain(value) for value in row])
    return rows


def curves_csv(outcomes: Iterable[Outcome]) -> Table:
    """Return a row per measurement: run, steps done, test accuracy in [0, 1], training and test loss then."""
    rows = [["run", "step", "accuracy", "loss", "test_loss"]]
    for outcome in outcomes:
        for line in outcome.run.metrics:
            if line.get("test_accuracy") is not None:
                measured = (line["step"] + 1, line["test_accuracy"], line.get("loss"), line.get("test_loss"))
                rows.append([outcome.cell.name, *map(plain, measured)])
    return rows


SURVIVAL_COLUMNS = (
    "peers",
    "Byzantine",
    "validators",
    "runs",
    "draws",
    "last ban, mean",
    "by the law",
    "p",
    "level",
    "agrees",
    "by the authors' law",
    "p by theirs",
    "with attackers left",
    "honest banned",
)


def survival_table(groups: Sequence[Group]) -> Table:
    """Return a row per (n, b, m): steps to the last ban against the protocol's sampling law, and the authors'."""
    rows = [list(SURVIVAL_COLUMNS)]
    for group in groups:
        n, p = len(group.samples), group.p_value()
        runs, honest = sum(len(s.runs) for s in group.samples), sum(s.honest for s in group.samples)
        row = [group.peers, group.byzantine, group.validators, runs, n, f"{sum(group.last_bans) / n:.1f}"]
        row += [f"{group.expected_last_ban():.1f}", f"{p:.3g}", f"{group.level:.3g}"]
        row += ["yes" if p >= group.level else "NO"]
        row += [f"{group.expected_last_ban(AUTHORS):.1f}", f"{group.p_value(AUTHORS):.2g}", group.unfinished, honest]
        rows.append([str(value) for value in row])
    return rows


SURVIVAL_LEGEND = f"""Runs in which the attack goes on at every step and any validator convicts its author. Who
validates whom does not depend on gradients, so runs with the same seed and start are one draw, whatever the attack and
tau. Steps to the last ban count from the attack's start; where attackers were left at the end, all steps count, for the
law too. p: the chance under the law of a mean as far out, on either side, from the exact distribution of the sum. A row
disagrees below its level, {LEVEL:.0%} divided by the number of rows. The authors' code has no validators: each attacker
is banned with a chance of (n - b)/n^2 per attack, independently; what the same draws would mean under that law stands
beside."""


def validators_table(results: Results, experiment: Experiment) -> Table:
    """Return the cost and benefit of more validators, for an experiment that varies their number; else no rows.

    Gradients used: the share (n - m)/n of all peers' gradients that goes into a step, as long as nobody is banned.
    """
    varied = [
        entry for entry in results.series(experiment) if VALIDATORS in dict(entry.outcomes[0].cell.varied)
    ]  # fmt: skip
    if not varied:
        return []
    rows = [["attack", "defence", "variant", "validators", "gradients used", "steps to last ban", "final accuracy"]]
    for entry in varied:
        n, m = entry.config.peers, entry.config.validators
        others = [f"{short(k)} {v}" for k, v in entry.outcomes[0].cell.varied if k != VALIDATORS]
        last = spread(entry.values(lambda o: o.last_ban), 0) or ("-" if entry.outcomes[0].attacked else "")
        accuracy = spread([100 * value for value in entry.values(lambda o: o.accuracy)], 1)
        rows.append([entry.attack, entry.defence, ", ".join(others), str(m), f"{(n - m) / n:.1%}", last, accuracy])
    return rows if any(row[2] for row in rows[1:]) else [row[:2] + row[3:] for row in rows]


def speed_table(results: Results, experiments: Sequence[Experiment]) -> Table:
    """Return steps per second by experiment, defence and variant, over all attacks; only the heading if unknown."""
    rows = [["experiment", "defence", "variant", "runs", "steps/s"]]
    for experiment in experiments:
        groups: dict[tuple[str, str], list[float]] = {}
        for entry in results.series(experiment):
            known = [results.speeds[o.cell.name] for o in entry.outcomes if o.cell.name in results.speeds]
            groups.setdefault((entry.defence, entry.variant), []).extend(known)
        for (defence, variant), speeds in groups.items():
            if speeds:
                rows.append([experiment.name, defence, variant, str(len(speeds)), spread(speeds, 2)])
    return rows


def plain(value: Any) -> str:
    """Return a value as written in a CSV file: numbers to nine digits, nothing for None."""
    if value is None:
        return ""
    return format(value, ".9g") if isinstance(value, float) else str(value)


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of no values."""
    return sum(values) / len(values) if values else None


def _mean_min_max(values: Sequence[float]) -> list[float | None]:
    return [mean(values), min(values, default=None), max(values, default=None)]


def columns(table: Table) -> list[str]:
    """Return the heading of a table in the form that `btard.harness.tables` expects."""
    return [name if name in WORDS else f">{name}" for name in table[0]]


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    return tables.markdown(columns(table), table[1:]) + "\n"
