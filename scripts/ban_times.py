"""When are attackers banned? Many cohorts on a toy task, against the sampling law of `btard.protocol.law`.

    python -m scripts.ban_times --out results/ban_times

Every peer runs the whole protocol (hashes, signatures, coin, votes); only the model is a toy, for who validates whom
does not depend on it. Writes `results.json`, `table.md` and `survival.png`/`.svg`. The test is Kolmogorov-Smirnov on
the step of the last ban; for a discrete law it is conservative.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.drivers.task import QuadraticTask
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.law import expected_last_ban, survival_law

START = 2
LEVEL = 0.01
CRITICAL = 1.628
"""Asymptotic critical value of sqrt(runs) * D at level 1 %."""


def bans_of_run(peers: int, byzantine: int, validators: int, attack: str, seed: int) -> tuple[list[int], int]:
    """Steps from the attack's start to each ban of an attacker, ascending, and how many honest peers were banned."""
    members = frozenset(range(1, 1 + byzantine))
    collusion = Collusion(members, peers, seed)
    behaviours: dict[int, Behaviour] = {i: make_attack(attack, collusion, start=START) for i in members}
    config = ProtocolConfig(
        peers=peers, byzantine=byzantine, validators=validators, run_id=f"ban times {attack} {validators} {seed}"
    )
    driver = LocalDriver(config, QuadraticTask(4 * peers), behaviours=behaviours, collusion=collusion)
    params, bans, honest = torch.ones(4 * peers), [], 0
    while members & set(driver.peers):
        result = driver.step(params)
        params = params - 0.1 * result.gradient
        for entry in result.removed:
            bans += [entry.step - START] * len(members & set(entry.peers))
            honest += len(set(entry.peers) - members)
    return bans, honest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--peers", type=int, default=16)
    parser.add_argument("--byzantine", type=int, default=7)
    parser.add_argument("--validators", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--attack", default="sign_flip")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, b, runs = options.peers, options.byzantine, options.runs
    cases = []
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for color, m in zip(("#0072b2", "#d55e00", "#009e73"), options.validators, strict=False):
        outcomes = [
            bans_of_run(n, b, m, options.attack, seed)
            for seed in tqdm(range(runs), desc=f"{m} validator(s)", unit="run")
        ]
        last = np.array([bans[-1] for bans, _ in outcomes])
        steps = int(last.max()) + 10
        law = survival_law(n, b, m, steps, start=START)
        empirical = np.array([(last <= s).mean() for s in range(steps)])
        distance = float(np.abs(empirical - law[:, 0]).max())
        alive = np.array([[b - sum(t <= s for t in bans) for s in range(steps)] for bans, _ in outcomes])
        axes.plot(alive.mean(0), color=color, label=f"{m} per step, mean of {runs} runs", drawstyle="steps-post")
        axes.plot(law @ np.arange(b + 1), color=color, linestyle="--", label=f"{m} per step, sampling law")
        cases.append(
            {
                "validators": m,
                "runs": runs,
                "honest_banned": sum(honest for _, honest in outcomes),
                "mean_last_ban": float(last.mean()),
                "standard_error": float(last.std(ddof=1) / np.sqrt(runs)),
                "expected_last_ban": expected_last_ban(n, b, m),
                "ks_distance": distance,
                "ks_critical": CRITICAL / np.sqrt(runs),
                "last_bans": last.tolist(),
            }
        )
    axes.set_xlabel("steps since the attack's start")
    axes.set_ylabel(f"attackers left of {b}, among {n} peers")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="validators")
    figure.tight_layout()
    options.out.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        figure.savefig(options.out / f"survival.{suffix}", dpi=150)
    lines = [
        f"{options.attack} by {b} of {n} at every step from step {START} on; test at level {LEVEL:.0%}.\n",
        "| validators | runs | honest banned | last ban, mean ± s.e. | by the law | KS distance | critical |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {c['validators']} | {runs} | {c['honest_banned']} | {c['mean_last_ban']:.1f} ± {c['standard_error']:.1f} "
        f"| {c['expected_last_ban']:.1f} | {c['ks_distance']:.3f} | {c['ks_critical']:.3f} |"
        for c in cases
    ]
    text = "\n".join(lines) + "\n"
    (options.out / "table.md").write_text(text)
    (options.out / "results.json").write_text(json.dumps(cases, indent=2))
    print(text)


if __name__ == "__main__":
    main()
