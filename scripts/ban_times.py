"""When are attackers banned? Many cohorts on a toy task, against the sampling law of `btard.protocol.law`.

    python -m scripts.ban_times --out results/ban_times
    python -m scripts.ban_times --out results/ban_times --attack sign_flip alie zero

Every peer runs the whole protocol (hashes, signatures, coin, votes); only the model is a toy, for who validates whom
does not depend on it. Writes `results.json`, `table.md` and `survival.png`/`.svg`. The test is Kolmogorov-Smirnov on
the step of the last ban, for each attack and number of validators, at a level for all rows together (Bonferroni); for a
discrete law it is conservative.
"""

from __future__ import annotations

import json
import math
import sys
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from btard.attack_names import GRADIENT
from btard.boundary import Parser, output_folder, positive, program
from btard.harness.figures import BLACK, BLUE, GREEN, VERMILION, bare, new_figure, save
from btard.harness.progress import track
from btard.harness.tables import markdown
from btard.protocol.config import ProtocolConfig
from btard.protocol.law import expected_last_ban, survival_law

if TYPE_CHECKING:
    from btard.drivers.local import LocalDriver
    from btard.protocol.behaviour import Behaviour

START = 2
LEVEL = 0.01
OPTIONS: dict[str, dict[str, Any]] = {"delayed_gradient": {"delay": 1}}
"""Options of attacks whose defaults are for long runs."""


def critical_value(rows: int) -> float:
    """Asymptotic critical value of sqrt(runs) * D, for `rows` tests at `LEVEL` together."""
    return math.sqrt(-math.log(LEVEL / rows / 2) / 2)


def toy_cohort(
    name: str, peers: int, byzantine: int, validators: int, attack: str, seed: int, **options: Any
) -> tuple[LocalDriver, frozenset[int]]:
    """A cohort on a task of 4 parameters per peer, attacked from step START on; and the attackers. `name`: its name."""
    from btard.attacks.registry import make_attack
    from btard.drivers.local import LocalDriver
    from btard.protocol.collusion import Collusion
    from btard.task import QuadraticTask

    members = frozenset(range(1, 1 + byzantine))
    collusion = Collusion(members, peers, seed)
    options = {**OPTIONS.get(attack, {}), **options}
    behaviours: dict[int, Behaviour] = {i: make_attack(attack, collusion, start=START, **options) for i in members}
    config = ProtocolConfig(peers=peers, byzantine=byzantine, validators=validators, run_id=name)
    return LocalDriver(config, QuadraticTask(4 * peers), behaviours=behaviours, collusion=collusion), members


def bans_of_run(peers: int, byzantine: int, validators: int, attack: str, seed: int) -> tuple[list[int], int]:
    """Steps from the attack's start to each ban of an attacker, ascending, and how many honest peers were banned."""
    import torch

    name = f"ban times {attack} {validators} {seed}"
    driver, members = toy_cohort(name, peers, byzantine, validators, attack, seed)
    params, bans, honest = torch.ones(4 * peers), [], 0
    while members & set(driver.peers):
        result = driver.step(params)
        params = params - 0.1 * result.gradient
        for entry in result.removed:
            bans += [entry.step - START] * len(members & set(entry.peers))
            honest += len(set(entry.peers) - members)
    return bans, honest


@program("the same command begins again")
def main() -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=output_folder, required=True)
    parser.add_argument("--runs", type=positive, default=200)
    parser.add_argument("--peers", type=positive, default=16)
    parser.add_argument("--byzantine", type=int, default=7)
    parser.add_argument("--validators", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--attack", nargs="+", default=["sign_flip"], choices=GRADIENT, metavar="NAME")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    n, b, runs, attacks = options.peers, options.byzantine, options.runs, options.attack
    rows, shown = len(options.validators) * len(attacks), 0
    cases = []
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    colors = dict(zip(options.validators, (BLUE, VERMILION, GREEN), strict=False))
    for m, attack in product(options.validators, attacks):
        color, first, last_one = colors.get(m, BLACK), attack == attacks[0], attack == attacks[-1]
        outcomes = [
            bans_of_run(n, b, m, attack, seed)
            for seed in track(range(runs), f"{attack}, {m} validator(s)", unit="runs")
        ]
        last = np.array([bans[-1] for bans, _ in outcomes])
        steps = int(last.max()) + 10
        law = survival_law(n, b, m, steps, start=START)
        empirical = np.array([(last <= s).mean() for s in range(steps)])
        distance = float(np.abs(empirical - law[:, 0]).max())
        alive = np.array([[b - sum(t <= s for t in bans) for s in range(steps)] for bans, _ in outcomes])
        of_all = f"{runs} runs" if len(attacks) == 1 else f"{runs} runs of each attack"
        label = f"{m} per step, mean of {of_all}" if first else None
        axes.plot(alive.mean(0), color=color, label=label, drawstyle="steps-post")
        shown = steps if first else max(shown, steps)
        if last_one:
            left = survival_law(n, b, m, shown, start=START) @ np.arange(b + 1)
            axes.plot(left, color=color, linestyle="--", label=f"{m} per step, sampling law")
        cases.append(
            {
                "attack": attack,
                "validators": m,
                "runs": runs,
                "honest_banned": sum(honest for _, honest in outcomes),
                "mean_last_ban": float(last.mean()),
                "standard_error": float(last.std(ddof=1) / np.sqrt(runs)),
                "expected_last_ban": expected_last_ban(n, b, m),
                "ks_distance": distance,
                "ks_critical": critical_value(rows) / np.sqrt(runs),
                "last_bans": last.tolist(),
            }
        )
    axes.set_xlabel("steps since the attack's start")
    axes.set_ylabel(f"attackers left of {b}, among {n} peers")
    axes.set_ylim(bottom=0)
    bare(axes, grid=None)
    axes.legend(frameon=False, title="validators")
    save(figure, options.out / "survival")
    columns = ("attack", ">validators", ">runs", ">honest banned", ">last ban, mean ± s.e.", ">by the law")
    lines = []
    for c in cases:
        row = [c["attack"], str(c["validators"]), str(runs), str(c["honest_banned"])]
        row += [f"{c['mean_last_ban']:.1f} ± {c['standard_error']:.1f}", f"{c['expected_last_ban']:.1f}"]
        lines.append([*row, f"{c['ks_distance']:.3f}", f"{c['ks_critical']:.3f}"])
    text = (
        f"Attacks by {b} of {n} at every step from step {START} on; test at level {LEVEL:.0%} for all rows together.\n"
        f"\n{markdown((*columns, '>KS distance', '>critical'), lines)}\n"
    )
    (options.out / "table.md").write_text(text)
    (options.out / "results.json").write_text(json.dumps(cases, indent=2))
    print(text)


if __name__ == "__main__":
    sys.exit(main())
