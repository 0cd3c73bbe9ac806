"""The paper's claims compared with the runs of a sweep: our number, whether it agrees, and why.

Only the paper's own attacks count, in every step, without healing. What counts as collapsed and as recovered, and what
chance alone can do, is defined here and in `outcomes` and `noise`, before any run is looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from resnet.experiments.grid import Experiment
from resnet.experiments.noise import QuietRuns
from resnet.experiments.outcomes import RECOVERED_WITHIN, RECOVERY_WINDOW, Outcome, Results, Series
from resnet.experiments.survival import collapse
from resnet.experiments.tables import Table, mean, span, spread

CHANCE = 10.0
"""Percent of the test images that a guess gets right: CIFAR-10 and the digits have ten classes."""

COLLAPSED = 5.0
"""A run has collapsed if it ends within this many points of `CHANCE`."""

PAPERS_ATTACKS = frozenset({"sign_flip", "random_direction", "label_flip", "delayed_gradient", "ipm", "alie"})
STANDARD_WIDTH, STANDARD_STEPS, PAPERS_ACCURACY = 64, 25_000, 93.5

COLUMNS = ("claim of the paper", "setting", "runs", "our number", "agrees", "why")

LEGEND = f"""Only the paper's attacks count, in every step and without healing. Collapsed: within {COLLAPSED:g} points
of a guess at the end. Recovered: from some measurement on any {RECOVERY_WINDOW} in a row are on average within
{RECOVERED_WITHIN:g} points of the run without attack, until its end. One dip is larger than another where they differ
by more than dips by chance do among themselves, that is between pairs of runs without attack that differ in their seed.
Runs with one seed and start share the coin, whatever the attack and the radius: they are one independent draw."""


@dataclass(frozen=True)
class Setting:
    """What the runs of one row have in common, except attack, defence and seed."""

    start: int
    byzantine: int
    peers: int
    validators: int
    width: int
    lr: float
    schedule: int

    def label(self, others: Iterable[Setting]) -> str:
        """What distinguishes it from `others`, always with the attackers and their first step."""
        text = f"{self.byzantine} of {self.peers} from step {self.start:,}"
        count = f"{self.validators} validator" + ("" if self.validators == 1 else "s")
        words = {"validators": count, "width": f"width {self.width}"}
        words["lr"] = f"lr {self.lr:g} to step {self.schedule:,}"
        kept = [word for name, word in words.items() if len({getattr(other, name) for other in others}) > 1]
        return ", ".join([text, *kept])


def claims_table(results: Results, experiments: Sequence[Experiment]) -> Table:
    """Return a row per claim and setting in which runs that bear on it are finished; only the heading if none are."""
    series = _papers(results, experiments)
    settings: dict[Setting, list[Series]] = defaultdict(list)
    for entry in series:
        settings[_setting(entry)].append(entry)
    quiet = QuietRuns(results)
    rows = [list(COLUMNS)]
    judges: dict[str, Callable[[Sequence[Series], QuietRuns], _Verdict | None]] = {
        "Without a defence, training collapses": _collapse,
        "Rules without bans do not withstand all attacks": _servers,
        "All attackers are banned soon": _banned,
        "No honest peer is banned": _honest,
        "Stronger clipping dips less than weaker": _radii,
        "After the bans, accuracy is as without attack": _recovered,
    }
    for claim, judge in judges.items():
        for setting, entries in settings.items():
            verdict = judge(entries, quiet)
            if verdict is not None:
                rows.append([claim, setting.label(settings), *verdict.cells])
    rows += _without_attack(results, experiments)
    return rows


@dataclass(frozen=True)
class _Verdict:
    runs: int
    number: str
    agrees: str
    why: str = ""

    @property
    def cells(self) -> list[str]:
        return [str(self.runs), self.number, self.agrees, self.why]


def _papers(results: Results, experiments: Sequence[Experiment]) -> list[Series]:
    """The series that count, each with all its finished seeds once."""
    outcomes: dict[tuple[Any, ...], dict[str, Outcome]] = defaultdict(dict)
    for outcome in results.of(experiments):
        attack, protocol = outcome.cell.config.attack, outcome.cell.config.protocol
        plain = attack.every == 1 and attack.stop is None and attack.scale is None
        plain = plain and not attack.options.keys() - {"per"} and protocol.heal == "off"
        if attack.name in PAPERS_ATTACKS and plain and outcome.cell.config.aggregator.name != "emulated":
            config = replace(outcome.cell.config, seed=0)
            outcomes[outcome.cell.attack, outcome.cell.defence, repr(config)][outcome.cell.name] = outcome
    return [Series(key[0], key[1], "", tuple(found.values())) for key, found in outcomes.items()]


def _setting(entry: Series) -> Setting:
    config = entry.config
    return Setting(
        config.attack.start,
        config.byzantine,
        config.peers,
        config.protocol.validators,
        config.model.width,
        config.optimizer.lr,
        config.schedule_steps,
    )


def _collapse(entries: Sequence[Series], quiet: QuietRuns) -> _Verdict | None:
    found = [entry for entry in entries if entry.config.aggregator.name == "mean"]
    if not found:
        return None
    collapsed = [entry.attack for entry in found if _final(entry) <= CHANCE + COLLAPSED]
    number = _each(found, lambda e: f"{_final(e):.1f} %{_of(e)}")
    others = [entry.attack for entry in found if entry.attack not in collapsed]
    why = f"learns on, more slowly: {', '.join(others)}" if others else ""
    return _Verdict(_runs(found), number, _share(len(collapsed), len(found)), why)


def _servers(entries: Sequence[Series], quiet: QuietRuns) -> _Verdict | None:
    rules: dict[str, list[Series]] = defaultdict(list)
    for entry in entries:
        if not entry.protocol and entry.config.aggregator.name != "mean":
            rules[entry.defence].append(entry)
    if not rules:
        return None
    worst = {rule: min(found, key=_final) for rule, found in rules.items()}
    number = "; ".join(f"{rule} {_final(e):.1f} % under {e.attack}{_of(e)}" for rule, e in worst.items())
    fallen = sum(_below(entry) > RECOVERED_WITHIN for entry in worst.values())
    why = "of each rule the attack that hurts it most"
    return _Verdict(sum(map(_runs, rules.values())), number, _share(fallen, len(rules)), why)


def _banned(entries: Sequence[Series], quiet: QuietRuns) -> _Verdict | None:
    found = [entry for entry in entries if entry.config.btard]
    outcomes = [outcome for entry in found for outcome in entry.outcomes]
    groups, _ = collapse(outcomes)
    if len(groups) != 1:
        return None
    group, banned, attackers = (
        groups[0],
        sum(len(o.attacker_bans) for o in outcomes),
        sum(o.attackers for o in outcomes),
    )
    last = spread([outcome.last_ban for outcome in outcomes if outcome.last_ban is not None], 0) or "-"
    draws = len(group.samples)
    number = f"{banned} of {attackers} banned, the last one after {last} steps; {draws} independent draw"
    number += "" if draws == 1 else "s"
    p = group.p_value()
    why = f"the law of the draw says {group.expected_last_ban():.1f} steps on average (p = {p:.2g})"
    return _Verdict(len(outcomes), number, "yes" if banned == attackers and p >= group.level else "no", why)


def _honest(entries: Sequence[Series], quiet: QuietRuns) -> _Verdict | None:
    outcomes = [outcome for entry in entries if entry.config.btard for outcome in entry.outcomes]
    if not outcomes:
        return None
    banned = sum(sum(outcome.honest_bans.values()) for outcome in outcomes)
    return _Verdict(len(outcomes), f"{banned} banned", "no" if banned else "yes")


def _radii(entries: Sequence[Series], quiet: QuietRuns) -> _Verdict | None:
    found = _by_radius(entries)
    pairs = {attack: (radii[min(radii)], radii[max(radii)]) for attack, radii in found.items() if len(radii) > 1}
    told, less, more, unclear = [], 0, [], 0
    for attack, (strong, weak) in pairs.items():
        dips = [mean(entry.values(lambda o: o.dip)) for entry in (strong, weak)]
        noises = [dip for entry in (strong, weak) if (noise := quiet.noise(entry)) for dip in noise.dips]
        if dips[0] is None or dips[1] is None:
            continue
        told.append(f"{attack} {dips[0]:.1f} and {dips[1]:.1f}")
        apart = max(noises) - min(noises) if noises else None
        if apart is None or abs(dips[1] - dips[0]) <= apart:
            unclear += 1
        elif dips[0] < dips[1]:
            less += 1
        else:
            more.append(attack)
    if not told:
        return None
    noises = [dip for pair in pairs.values() for entry in pair if (noise := quiet.noise(entry)) for dip in noise.dips]
    why = f"dips by chance: {span(noises)}" if noises else "no noise known: one seed without attack"
    why += f"; within it: {unclear} of {len(told)}" if unclear and noises else ""
    why += f"; the other way round: {', '.join(more)}" if more else ""
    entries_used = [entry for pair in pairs.values() for entry in pair]
    agrees = "cannot be told" if unclear == len(told) else _share(less, len(told))
    return _Verdict(_runs(entries_used), "; ".join(told), agrees, why)


def _recovered(entries: Sequence[Series], quiet: QuietRuns) -> _Verdict | None:
    found = [entry for entry in entries if entry.config.btard and entry.values(lambda o: o.dip)]
    if not found:
        return None
    back, compared, told = 0, 0, []
    for defence, mine in _grouped(found, lambda e: e.defence).items():
        steps = [step for entry in mine for step in entry.values(lambda o: o.recovery)]
        total = sum(len(entry.values(lambda o: o.dip)) for entry in mine)
        back, compared = back + len(steps), compared + total
        never = [e.attack for e in mine if len(e.values(lambda o: o.recovery)) < len(e.values(lambda o: o.dip))]
        text = f"{defence}: {len(steps)} of {total}" + (f", after {spread(steps, 0)} steps" if steps else "")
        told.append(text + (f", not under {', '.join(never)}" if never else ""))
    within = spread([float(o.cell.config.steps - o.start) for e in found for o in e.outcomes], 0)
    return _Verdict(compared, "; ".join(told), _share(back, compared), f"observed for {within} steps after the start")


def _without_attack(results: Results, experiments: Sequence[Experiment]) -> Table:
    """The best setting without attack: its mean over the seeds. Only for CIFAR-10."""
    of_cifar = [outcome for outcome in results.of(experiments) if outcome.summary["data"].startswith("CIFAR-10")]
    quiet = [outcome for outcome in of_cifar if not outcome.attacked]
    groups = _grouped(quiet, lambda o: repr(replace(o.cell.config, seed=0)))
    if not groups:
        return []
    best = max(groups.values(), key=lambda found: sum(o.accuracy for o in found) / len(found))
    config = best[0].cell.config
    same = config.model.width == STANDARD_WIDTH and config.schedule_steps == config.steps == STANDARD_STEPS
    number = f"{spread([100 * o.accuracy for o in best], 1)} %"
    setting = f"{best[0].cell.defence}, width {config.model.width}, {config.steps:,} steps"
    why = "" if same else f"the paper's is of width {STANDARD_WIDTH}, after {STANDARD_STEPS:,} steps"
    close = abs(100 * sum(o.accuracy for o in best) / len(best) - PAPERS_ACCURACY) <= 1
    agrees = ("yes" if close else "no") if same else "not comparable"
    return [[f"{PAPERS_ACCURACY:g} % without attack", setting, str(len(best)), number, agrees, why]]


def _by_radius(entries: Sequence[Series]) -> Mapping[str, Mapping[float, Series]]:
    """Attack -> radius -> series, of BTARD with a number as its radius."""
    found: dict[str, dict[float, Series]] = defaultdict(dict)
    for entry in entries:
        tau = entry.config.protocol.tau
        if entry.config.btard and not isinstance(tau, str):
            found[entry.attack][float(tau)] = entry
    return found


def _grouped(items: Iterable[Any], key: Callable[[Any], str]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _each(entries: Sequence[Series], say: Callable[[Series], str]) -> str:
    return "; ".join(f"{entry.attack} {say(entry)}" for entry in entries)


def _final(entry: Series) -> float:
    """Mean accuracy at the end, in percent."""
    return 100 * sum(outcome.accuracy for outcome in entry.outcomes) / len(entry.outcomes)


def _reference(entry: Series) -> float | None:
    found = mean(entry.values(lambda o: o.reference_accuracy))
    return None if found is None else 100 * found


def _of(entry: Series) -> str:
    reference = _reference(entry)
    return "" if reference is None else f" of {reference:.1f}"


def _below(entry: Series) -> float:
    reference = _reference(entry)
    return 0.0 if reference is None else reference - _final(entry)


def _runs(entries: Sequence[Series]) -> int:
    return sum(len(entry.outcomes) for entry in entries)


def _share(some: int, total: int) -> str:
    if some == total:
        return "yes"
    return f"in {some} of {total}" if some else "no"
