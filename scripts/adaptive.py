"""Does it pay to attack only when a check seems unlikely? Many cohorts on a toy task, one strategy each.

    python -m scripts.adaptive --out results/adaptive

Every peer runs the whole protocol; only the model is a toy. Whatever an attacker knows when it has to commit, the coin
that draws the targets comes later. So for each attacking step the chance p to be caught is that of
`btard.protocol.law.chances_to_be_caught`, and the sum of (caught - p) over attacking steps is a martingale. The test is
its z-score for each strategy, at a level for all of them together (Bonferroni). Writes `results.json`, `table.md` and
`survival.png`/`.svg`: how many attackers are left after so many steps, and after so many attacks of theirs.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from btard.boundary import Mistake, Parser, output_folder, positive, program
from btard.harness.figures import COLOURS, bare, new_figure, save
from btard.harness.progress import track
from btard.harness.tables import markdown
from btard.protocol.law import chances_to_be_caught
from scripts.ban_times import LEVEL, START, toy_cohort

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from btard.drivers.local import LocalDriver
    from btard.protocol.record import StepRecord

BURST = 5
STRATEGIES: dict[str, dict[str, Any]] = {
    "always": {},
    "every 10th": {"every": 10},
    "checked": {"when": "checked"},
    "covered": {"when": "covered"},
    "seldom": {"when": "seldom"},
    f"burst of {BURST}": {"stop": START + BURST},
}
"""Name -> options of the attack."""


@dataclass
class Fate:
    """One attacker."""

    attacks: int = 0
    """Steps in which it attacked, up to and including the one for which it was caught."""
    steps: int = 0
    """From the attack's start until it was banned; the run's limit if it was not."""
    caught: bool = False


@dataclass
class Outcome:
    """One run."""

    fates: dict[int, Fate]
    expected: float = 0.0
    """Sum of the chances of being caught over all attacks."""
    variance: float = 0.0
    """Variance of the number of caught attackers, summed over the steps, each given everything before its coin."""
    honest_banned: int = 0


def attackers_of(driver: LocalDriver, record: StepRecord, members: frozenset[int]) -> list[int]:
    """The remaining peers that attacked in the step of `record`, ascending."""
    there = [driver.peers[i] for i in sorted(members & set(record.workers) & set(driver.peers))]
    return [peer.id for peer in there if peer.behaviour.acts(peer.context(record))]


def run_once(strategy: str, seed: int, *, peers: int, byzantine: int, validators: int, limit: int) -> Outcome:
    """A run until all attackers are banned or none will act any more, of at most `limit` steps from START on."""
    import torch

    options = STRATEGIES[strategy]
    name = f"adaptive {strategy} {seed}"
    driver, members = toy_cohort(name, peers, byzantine, validators, "sign_flip", seed, **options)
    outcome = Outcome({i: Fate(steps=limit) for i in sorted(members)})
    params = torch.ones(driver.task.d)
    attacked: list[int] = []
    for step in range(START + limit + 1):
        result = driver.step(params)
        params = params - 0.1 * result.gradient
        for entry in result.removed:
            outcome.honest_banned += len(set(entry.peers) - members)
            for i in members & set(entry.peers):
                outcome.fates[i].caught, outcome.fates[i].steps = True, step - START
                if i not in attacked or entry.about_step != step - 1:
                    raise RuntimeError(
                        f"{name}: peer {i} was banned in step {step} for {entry.kind}, not for an attack"
                    )
        record = driver.honest[0].last
        assert record is not None
        # An attack of the last step would never be judged.
        attacked = attackers_of(driver, record, members) if step < START + limit else []
        workers, everybody = set(record.workers) & set(result.active), set(result.active)
        p, both = chances_to_be_caught(
            len(workers - members),
            len(workers & members),
            len(everybody - workers - members),
            len((everybody - workers) & members),
            validators,
        )
        x = len(attacked)
        outcome.expected += x * p
        outcome.variance += x * p + x * (x - 1) * both - (x * p) ** 2
        for i in attacked:
            outcome.fates[i].attacks += 1
        if not attacked and over(options, step, len(members & everybody)):
            break
    return outcome


def over(options: dict[str, Any], step: int, left: int) -> bool:
    """Whether none of the attackers that are `left` will ever attack after `step`."""
    alone = left < 2 and options.get("when") == "covered"
    return not left or alone or ("stop" in options and step + 1 >= options["stop"])


def z_score(outcomes: Sequence[Outcome]) -> float:
    """(caught - expected) / standard deviation, over all runs: standard normal whatever the strategy."""
    caught = sum(fate.caught for outcome in outcomes for fate in outcome.fates.values())
    return (caught - sum(o.expected for o in outcomes)) / math.sqrt(sum(o.variance for o in outcomes))


def critical_z(tests: int) -> float:
    """The absolute value that z exceeds by chance in any of this many tests with probability LEVEL."""
    return NormalDist().inv_cdf(1 - LEVEL / (2 * tests))


def survival(times: Sequence[int], caught: Sequence[bool], length: int) -> np.ndarray:
    """Kaplan and Meier's estimate [length] of the share that outlives 0, 1, ... units; uncaught attackers are censored.

    NaN from where nobody is observed any more.
    """
    ends, ended = np.array(times), np.array(caught)
    share, left = 1.0, []
    for t in range(length):
        at_risk = int((ends >= t).sum())
        if at_risk == 0:
            left.append(math.nan)
            continue
        share *= 1 - int(((ends == t) & ended).sum()) / at_risk
        left.append(share)
    return np.array(left)


def summary(strategy: str, outcomes: Sequence[Outcome], limit: int) -> dict[str, Any]:
    """The results in `outcomes`, as JSON values."""
    fates = [fate for outcome in outcomes for fate in outcome.fates.values()]
    attacks, caught = sum(fate.attacks for fate in fates), sum(fate.caught for fate in fates)
    expected = sum(outcome.expected for outcome in outcomes)
    if not expected:
        raise Mistake(
            f"strategy {strategy}: nobody could be caught in {limit} steps: give a larger --limit or more --runs"
        )
    return {
        "strategy": strategy,
        "runs": len(outcomes),
        "limit": limit,
        "honest_banned": sum(outcome.honest_banned for outcome in outcomes),
        "attackers": len(fates),
        "attacks": attacks,
        "caught": caught,
        "expected": expected,
        "z": z_score(outcomes),
        "attacks_per_ban": attacks / caught if caught else None,
        "attacks_per_ban_by_the_law": attacks / expected,
        "steps_to_ban": float(np.mean([fate.steps for fate in fates if fate.caught])) if caught else None,
        "fates": [asdict(fate) for fate in fates],
    }


def draw(axes: Sequence[Axes], cases: Sequence[dict[str, Any]], limit: int) -> None:
    """Left: attackers over steps. Right: the same attackers over their own attacks."""
    for color, case in zip(COLOURS, cases, strict=False):
        caught = [fate["caught"] for fate in case["fates"]]
        for axis, unit, length in zip(axes, ("steps", "attacks"), (limit + 1, 31), strict=True):
            left = survival([fate[unit] for fate in case["fates"]], caught, length)
            axis.plot(left, color=color, label=case["strategy"], drawstyle="steps-post")
    axes[0].set_xlabel("steps since the attack's start")
    axes[1].set_xlabel("attacks of its own")
    axes[0].set_ylabel("share of attackers not banned")
    for axis in axes:
        axis.set_ylim(0, 1.02)
        bare(axis, grid=None)
    axes[1].legend(frameon=False)


def table(cases: Sequence[dict[str, Any]], critical: float) -> str:
    """The cases as Markdown."""
    columns = ("strategy", ">runs", ">honest banned", ">attacks", ">banned for one", ">by the law", ">z")
    rows = []
    for c in cases:
        cells = [c["strategy"], c["runs"], c["honest_banned"], c["attacks"], f"{c['caught']} of {c['attackers']}"]
        cells += [_number(c["expected"]), f"{c['z']:+.2f}", _number(c["attacks_per_ban"])]
        cells += [_number(c["attacks_per_ban_by_the_law"]), _number(c["steps_to_ban"])]
        rows.append([str(cell) for cell in cells])
    worst = max(abs(c["z"]) for c in cases)
    text = markdown((*columns, ">attacks per ban", ">by the law", ">steps to a ban"), rows)
    judged = f"critical at level {LEVEL:.0%} for all rows together: {critical:.2f}"
    return f"{text}\n\nLargest \\|z\\|: {worst:.2f}; {judged}.\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


@program("the same command begins again")
def main() -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=output_folder, required=True)
    parser.add_argument("--runs", type=positive, default=60)
    parser.add_argument("--peers", type=positive, default=6)
    parser.add_argument("--byzantine", type=int, default=2)
    parser.add_argument("--validators", type=positive, default=1)
    parser.add_argument("--limit", type=positive, default=120, help="steps from the attack's start on")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    n, b, m, limit = options.peers, options.byzantine, options.validators, options.limit
    cases = []
    for strategy in STRATEGIES:
        outcomes = [
            run_once(strategy, seed, peers=n, byzantine=b, validators=m, limit=limit)
            for seed in track(range(options.runs), strategy, unit="runs")
        ]
        cases.append(summary(strategy, outcomes, limit))
    figure = new_figure(9.0, 3.6)
    draw(figure.subplots(1, 2, sharey=True), cases, limit)
    save(figure, options.out / "survival")
    head = (
        f"Sign flip by {b} of {n} peers with {m} validator(s) per step, up to {limit} steps from step {START} on. "
        '"By the law": the sum of the chances of all attacks to be caught. `covered` ends for the last attacker, '
        "which has no fellow any more.\n\n"
    )
    text = head + table(cases, critical_z(len(cases)))
    (options.out / "table.md").write_text(text)
    (options.out / "results.json").write_text(json.dumps(cases, indent=2))
    print(text)


if __name__ == "__main__":
    sys.exit(main())
