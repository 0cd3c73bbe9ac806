"""The acceptance matrix: what Byzantine peers do, what must come of it (`rows/`), and a runner that says what did.

`tests/protocol/test_acceptance.py` checks every row over many seeds, `scripts/threat_model.py` writes down what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from btard.attacks import make_attack
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.ledger import Entry
from tests.protocol.cohort import Run, run_cohort

START = 1
"""First step of every attack: an honest step comes before it."""
SEEDS = 20
D = 31


class Cycle(tuple[Any, ...]):
    """Values of an option, one for each seed in turn."""


When = Literal["same step", "later", "maybe", "never"]


@dataclass(frozen=True)
class Row:
    """One behaviour of `attackers` of `peers` peers. With a `companion` the last attacker runs that one instead."""

    section: str
    attack: str
    kinds: str = ""
    """Ledger kinds that an attacker may be removed for, separated by blanks."""
    when: When = "same step"
    """same step: in the first step in which it can act; later: sooner or later; maybe: or not at all; never."""
    options: Mapping[str, Any] = field(default_factory=dict)
    attackers: int = 1
    peers: int = 5
    trade: bool = False
    """Whether an honest peer may be eliminated together with an attacker."""
    companion: tuple[str, Mapping[str, Any]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 3
    """How long it runs where attackers are not removed in the same step."""

    @property
    def label(self) -> str:
        """The behaviour in words of the registry."""

        def value(chosen: Any) -> str:
            return "/".join(map(str, chosen)) if isinstance(chosen, Cycle) else f"{chosen}"

        def told(attack: str, options: Mapping[str, Any]) -> str:
            said = ", ".join(f"{name}={value(chosen)}" for name, chosen in options.items())
            return f"{attack}({said})" if said else attack

        text = told(self.attack, self.options)
        if self.companion is not None:
            text += " with " + told(*self.companion)
        if self.settings:
            text += " under " + ", ".join(f"{name}={chosen}" for name, chosen in self.settings.items())
        return text

    @property
    def who(self) -> str:
        return f"{self.attackers} of {self.peers}"

    @property
    def expected(self) -> str:
        """What must happen, in words."""
        trade = "; one honest peer may go along" if self.trade else ""
        if self.when == "never":
            return "nobody removed"
        how = {"same step": "removed in the same step", "later": "removed sooner or later", "maybe": "removed or not"}
        return f"{how[self.when]}: {', '.join(self.kinds.split())}{trade}"

    def __str__(self) -> str:
        return f"{self.label} {self.who}"


@dataclass(frozen=True)
class Observation:
    """What one run came to: attackers that could act, who of them was removed after how many steps, and who else."""

    attackers: int
    bans: tuple[int, ...]
    """Steps from the first one in which the attack was on, one for each attacker that was removed."""
    kinds: frozenset[str]
    honest: int


def cohort_of(row: Row, seed: int) -> tuple[dict[int, Behaviour], Collusion]:
    """Who attacks differs by seed; peer 0 never does."""
    members = frozenset(1 + (seed + 2 * i) % (row.peers - 1) for i in range(row.attackers))
    assert len(members) == row.attackers, f"{row}: too many attackers for so few peers"
    collusion = Collusion(members, row.peers, seed)

    def make(attack: str, options: Mapping[str, Any]) -> Behaviour:
        chosen = {
            name: value[seed % len(value)] if isinstance(value, Cycle) else value for name, value in options.items()
        }
        return make_attack(attack, collusion, start=START, **chosen)

    attackers = {i: make(row.attack, row.options) for i in sorted(members)}
    if row.companion is not None:
        attackers[max(members)] = make(*row.companion)
    return attackers, collusion


def play(row: Row, seed: int, proofs: Path | None = None) -> tuple[Run, frozenset[int]]:
    """The row's run: until all attackers are gone where they have to go; its proofs go into the folder `proofs`.

    Errors: what the driver raises on a split.
    """
    attackers, collusion = cohort_of(row, seed)
    steps = {"same step": START + 4, "later": 150}.get(row.when, START + row.steps)
    run = run_cohort(
        attackers,
        peers=row.peers,
        d=D,
        steps=steps,
        seed=seed,
        collusion=collusion,
        until_banned=collusion.members,
        proofs=proofs,
        **row.settings,
    )
    return run, collusion.members


def observe(row: Row, seed: int) -> Observation:
    """Run and check. Errors: AssertionError naming row and seed if anything but the expected happened."""
    where = f"{row}, seed {seed}"
    try:
        run, members = play(row, seed)
    except Exception as error:
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
    removed = {peer: entry for peer, entry in run.removed.items() if peer in members}
    check_honest(where, run, members, trade=row.trade)
    kinds = frozenset(entry.kind for entry in removed.values())
    assert kinds <= set(row.kinds.split()), f"{where}: removed for {sorted(kinds)}"
    assert all(entry.step >= START for entry in run.entries), f"{where}: {run.entries}"
    if row.when in ("same step", "later"):
        assert set(removed) == members, f"{where}: {sorted(members - set(removed))} got away; {run.entries}"
    if row.when == "never":
        assert not run.entries, f"{where}: {run.entries}"
    if row.when == "same step":
        for peer, entry in removed.items():
            # A validator of the first step does not work in it, so it deviates later.
            worked = [result.step for result in run.results if result.step >= START and peer in result.workers]
            assert entry.step <= min(worked, default=entry.step), f"{where}: {peer} worked in {worked}: {entry}"
            assert entry.about_step == entry.step, f"{where}: {entry}"
    honest = len(set(run.removed) - members)
    return Observation(len(members), tuple(entry.step - START for entry in removed.values()), kinds, honest)


def check_honest(where: str, run: Run, members: frozenset[int], *, trade: bool) -> None:
    """What must hold whatever the attackers do: no honest peer removed but by ELIMINATE, one ledger, bounded steps."""
    for entry in run.entries:
        honest = set(entry.peers) - members
        assert not honest or (trade and is_trade(entry, members)), f"{where}: honest {sorted(honest)} removed: {entry}"
    heads = {peer.ledger.head for peer in run.driver.honest}
    assert len(heads) == 1, f"{where}: {len(heads)} different ledgers"
    # Clipping bounds what any attack does to the parameters: an aggregate that does not count would go far beyond.
    assert torch.isfinite(run.params).all(), f"{where}: the parameters are not finite"
    assert float(run.params.norm()) < 5 * float(torch.ones(D).norm()), f"{where}: |x| = {float(run.params.norm()):g}"


def is_trade(entry: Entry, members: frozenset[int]) -> bool:
    """Whether an honest peer left together with an attacker, by ELIMINATE."""
    return entry.verdict == "eliminated" and len(entry.peers) == 2 and len(set(entry.peers) & members) == 1


def summary(row: Row, observations: list[Observation]) -> str:
    """What was seen over all seeds, in words."""
    attackers = sum(seen.attackers for seen in observations)
    bans = [step for seen in observations for step in seen.bans]
    honest = sum(seen.honest for seen in observations)
    if not bans:
        text = f"none of {attackers} attackers removed"
    else:
        text = f"{len(bans)} of {attackers} attackers removed"
        if row.when == "same step":
            text += ", each in the first step in which it could act"
        else:
            text += f", after {median(bans):g} steps in the median, {max(bans)} at most"
        text += f" ({', '.join(sorted(set().union(*(seen.kinds for seen in observations))))})"
    return text + (f"; {honest} honest peers eliminated along" if honest else "; no honest peer removed")


G, A, R, F, S, B, C, H = (
    "Gradients",
    "Aggregates",
    "Reports",
    "Accusations, votes and evidence",
    "Parts and aggregates on their way",
    "Broadcasts",
    "Silence and the coin",
    "Healing",
)
