"""`python -m scripts.albert_attacks CONFIG.yaml --out DIR [--seeds N]`: a whole swarm under each attack, one by one.

For each attack, and without one: once with the plain mean and without validators, and with BTARD for each seed. Every
swarm is a folder of DIR, and those that are finished are skipped: the same command goes on. `python -m albert.report
DIR` makes figure and tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from albert.config import AttackConfig, Config
from albert.swarm import COORDINATOR, Swarm
from btard.harness.settings import exit_with
from btard.harness.typed_yaml import ConfigError, build, read_settings, read_words

ATTACKS: dict[str, AttackConfig] = {
    "no attack": AttackConfig(),
    "sign flip": AttackConfig(name="sign_flip"),
    "label flip": AttackConfig(name="label_flip"),
    "constant direction": AttackConfig(name="random_direction"),
    "delayed gradient": AttackConfig(name="delayed_gradient", options={"delay": 20}),
    "IPM 0.6": AttackConfig(name="ipm", options={"epsilon": 0.6}),
    "ALIE": AttackConfig(name="alie", options={"z": 1.5}),
}
"""IPM and ALIE know the attackers' own gradients alone; ALIE's usual z is made for more attackers than there are."""
BTARD, MEAN = "BTARD", "mean"
LATER_START, LATER_STEPS = 5, 75
"""Of all seeds but the first, which only tell who is banned and when."""


@dataclass(frozen=True)
class Run:
    """One swarm of the experiment, and its folder's name."""

    attack: str
    defence: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        return f"{self.defence.lower()}-{self.attack.replace(' ', '-')}-seed-{self.seed}"


def runs(base: Config, attacks: Sequence[str], start: int, seeds: int) -> Iterator[Run]:
    """The swarms in the order in which to run them: first all that the figure needs, then the other seeds."""
    for seed in range(seeds):
        for attack in attacks:
            settings = ATTACKS[attack]
            if seed and settings.name is None:
                continue
            for defence in (MEAN, BTARD) if seed == 0 else (BTARD,):
                protocol = base.protocol
                if defence == MEAN:
                    protocol = replace(protocol, tau=float("inf"))
                config = replace(
                    base,
                    steps=base.steps if seed == 0 else min(base.steps, LATER_STEPS),
                    seed=base.seed + seed,
                    run_id=f"{base.run_id}/{defence}/{attack}/{seed}",
                    validators=0 if defence == MEAN else base.validators,
                    attack=replace(settings, start=start if seed == 0 else min(start, LATER_START)),
                    protocol=protocol,
                )
                yield Run(attack, defence, seed, config)


def train(run: Run, folder: Path) -> bool:
    """Run a swarm to its end; False, with what its processes printed last, if it does not come there."""
    with Swarm(run.config, folder) as swarm:
        swarm.start()
        while COORDINATOR in swarm.alive() and len(swarm.alive()) > 1:
            time.sleep(0.5)
        swarm.wait(60)
    return (folder / COORDINATOR / "summary.json").exists()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.albert_attacks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of the runs with BTARD (5)")
    parser.add_argument("--start", type=int, default=40, metavar="STEP", help="first step of the attacks (40)")
    parser.add_argument("--attacks", nargs="+", choices=tuple(ATTACKS), default=tuple(ATTACKS), help="these alone")
    arguments, words = parser.parse_known_args(argv)
    try:
        base = build(Config, read_settings(arguments.config, Config) | read_words(words, Config), str(arguments.config))
        todo = [
            run
            for run in runs(base, arguments.attacks, arguments.start, arguments.seeds)
            if not (arguments.out / run.name / COORDINATOR / "summary.json").exists()
        ]
    except ConfigError as error:
        exit_with(error)
    failed = []
    for run in (bar := tqdm(todo, unit="swarm")):
        bar.set_postfix_str(run.name)
        started = time.monotonic()
        if not train(run, arguments.out / run.name):
            failed.append(run.name)
            bar.write(f"{run.name}: did not come to its end; see {arguments.out / run.name / 'logs'}")
            continue
        summary = json.loads((arguments.out / run.name / COORDINATOR / "summary.json").read_text(encoding="utf-8"))
        bans = sorted(ban["step"] for ban in summary["bans"])
        bar.write(f"{run.name}: loss {summary['loss']:.3f}, removed at {bans} ({time.monotonic() - started:.0f} s)")
    print(f"figure and tables: python -m albert.report {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
