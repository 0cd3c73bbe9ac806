"""Random mixtures of attackers on random cohorts with lossy links, and what must hold after a run of one."""

from __future__ import annotations

import platform
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from btard.attacks import ATTACKS, make_attack
from btard.attacks.registry import options_of
from btard.audit.recorder import Recorder
from btard.drivers.links import Links
from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import stream
from btard.protocol.ledger import Entry
from btard.task import QuadraticTask
from tests.protocol.cohort import FIXED, Run

STEPS, D = 14, 97


@dataclass(frozen=True)
class Mixture:
    """A random cohort and the behaviour of its Byzantine peers."""

    seed: int
    config: ProtocolConfig
    links: Links
    collusion: Collusion
    attackers: dict[int, Behaviour]

    @property
    def described(self) -> dict[str, Any]:
        """The mixture in JSON values."""
        return {
            "peers": self.config.peers,
            "validators": self.config.validators,
            "loss": self.links.loss,
            "slow": self.links.slow,
            "attacks": {str(i): getattr(attacker, "name", "") for i, attacker in self.attackers.items()},
        }


def draw(seed: int, *, largest: int = 32) -> Mixture:
    """The mixture of `seed`: n from 4 to `largest`, m from 1 to 3, any b < (n - m)/2, any attack with any choice."""
    rng: np.random.Generator = stream("mixture", seed)
    peers = int(rng.integers(4, largest + 1))
    validators = int(rng.integers(1, min(3, (peers - 1) // 2) + 1))
    most = (peers - validators - 1) // 2  # the largest b with 2 b < n - m
    count = int(rng.integers(min(1, most), most + 1))
    members = frozenset(int(i) for i in rng.choice(peers, count, replace=False))
    collusion = Collusion(members, peers, seed, tensors=(D // 2, D - D // 2))
    attackers: dict[int, Behaviour] = {}
    for i in sorted(members):
        name = str(rng.choice(sorted(ATTACKS)))
        options: dict[str, Any] = {o.name: str(rng.choice(o.choices)) for o in options_of(ATTACKS[name]) if o.choices}
        if name == "delayed_gradient":
            options["delay"] = 2
        start, every = int(rng.integers(0, 4)), int(rng.integers(1, 3))
        attackers[i] = make_attack(name, collusion, start=start, every=every, **options)
    config = ProtocolConfig(
        peers=peers,
        byzantine=count,
        validators=validators,
        **FIXED,
        run_id=f"soak {seed}",
        relays=None if count else 1,
        max_absences=8,
    )
    links = Links(loss=float(rng.choice([0, 0.1, 0.2])), slow=float(rng.choice([0, 0.03])), attempts=30, seed=seed)
    return Mixture(seed, config, links, collusion, attackers)


def play(mixture: Mixture, steps: int = STEPS, proofs: Path | None = None) -> Run:
    """The run of `steps` steps; its proofs go into the folder `proofs`.

    Errors: AssertionError naming the seed if ledgers differ; RuntimeError if honest peers disagree.
    """
    driver = LocalDriver(
        mixture.config,
        QuadraticTask(D),
        behaviours=mixture.attackers,
        collusion=mixture.collusion,
        links=mixture.links,
        recorder=None if proofs is None else Recorder(proofs, mixture.config),
    )
    params, results = torch.ones(D), []
    for _ in range(steps):
        results.append(driver.step(params))
        params = params - 0.1 * results[-1].gradient
        heads = {peer.ledger.head for peer in driver.honest}
        assert len(heads) == 1, f"seed {mixture.seed}: honest peers have {len(heads)} different ledgers"
    return Run(driver, params, results)


def run(mixture: Mixture, steps: int = STEPS) -> list[Entry]:
    """The ledger after `steps` steps.

    Errors: those of `play`; AssertionError naming the seed if an honest peer was wronged.
    """
    played = play(mixture, steps)
    assert torch.isfinite(played.params).all(), f"seed {mixture.seed}: the parameters are not finite"
    check(mixture, played.entries)
    return played.entries


def check(mixture: Mixture, entries: list[Entry]) -> None:
    """Errors: AssertionError if an honest peer was removed otherwise than in exchange for a Byzantine one."""
    members = mixture.collusion.members
    lost, traded = 0, 0
    for entry in entries:
        honest = set(entry.peers) - members
        if honest:
            assert entry.verdict == "eliminated" and len(honest) == 1 and set(entry.peers) & members, (
                f"seed {mixture.seed}: honest peer {min(honest)} was removed: {entry}"
            )
            lost += 1
        traded += bool(set(entry.peers) & members)
    assert lost <= traded


def outcome(seed: int, largest: int) -> dict[str, Any]:
    """One line of the results."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    mixture = draw(seed, largest=largest)
    line: dict[str, Any] = {"seed": seed, **mixture.described}
    try:
        entries = run(mixture)
    except Exception as error:
        return {**line, "failure": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-2000:]}
    removed = {peer for entry in entries for peer in entry.peers}
    return {
        **line,
        "failure": None,
        "kinds": dict(Counter(entry.kind for entry in entries)),
        "byzantine_removed": len(removed & mixture.collusion.members),
        "honest_eliminated": len(removed - mixture.collusion.members),
        "seconds": round(time.perf_counter() - started, 2),
    }


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    good = [line for line in results if line["failure"] is None]
    kinds: Counter[str] = Counter()
    for line in good:
        kinds.update(line["kinds"])
    return {
        "runs": len(results),
        "failures": [line["seed"] for line in results if line["failure"] is not None],
        "steps_per_run": STEPS,
        "peers": [min(line["peers"] for line in results), max(line["peers"] for line in results)],
        "attackers": sum(len(line["attacks"]) for line in results),
        "attacks": len({name for line in results for name in line["attacks"].values()}),
        "byzantine_removed": sum(line["byzantine_removed"] for line in good),
        "honest_eliminated": sum(line["honest_eliminated"] for line in good),
        "ledger_kinds": dict(kinds.most_common()),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
