"""Who aims exactly at a tolerance cannot split the honest peers, even if their arithmetic differs: a majority decides.

The driver raises if honest peers end a step with different ledgers, parameters or members.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from btard.attacks import make_attack
from btard.protocol import claims, verify
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.messages import FALSE_CLAIM, GUILTY, Claim
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord
from btard.protocol.scalars import Scalars, part_scalars, received_scalars
from tests.protocol.cohort import Run, run_cohort

PEERS = 9
MEMBERS = frozenset({1, 4, 6})


@pytest.fixture
def different_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every peer finds norms that are off by its own share of the tolerance: two differ by at most 0.9 of it."""

    def found(peer: Peer, said: Scalars) -> Scalars:
        off = 1 + 0.9 * peer.config.scalar_tol * (peer.id / (PEERS - 1) - 0.5)
        return Scalars(said.norm * off, tuple(s * off for s in said.products), said.size)

    def of_owner(peer: Peer, record: StepRecord, part: int) -> dict[int, Scalars]:
        return {sender: found(peer, said) for sender, said in received_scalars(peer, record, part).items()}

    def of_judge(
        peer: Peer, record: StepRecord, value: torch.Tensor, bodies: Sequence[torch.Tensor], part: int
    ) -> list[Scalars]:
        return [found(peer, said) for said in part_scalars(peer, record, value, bodies, part)]

    monkeypatch.setattr(verify, "received_scalars", of_owner)
    monkeypatch.setattr(claims, "part_scalars", of_judge)


class Denounced(Behaviour):
    """Plays `attack`, and as an owner accuses its fellows of misreports, so that judges have to vote on the edge."""

    byzantine = True

    def __init__(self, attack: Behaviour) -> None:
        self.attack = attack
        self.report = attack.report  # type: ignore[method-assign]

    def active(self, step: int) -> bool:
        return step >= 1

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        record = ctx.record
        own = [part for part, owner in enumerate(record.owners) if owner == ctx.peer]
        fellows = sorted((MEMBERS & set(record.workers)) - {ctx.peer})
        more = [Claim(record.step, fellow, "misreport", part) for part in own for fellow in fellows]
        return tuple(sorted({*claims, *more}))


def attacked(multiple: float, what: str, seed: int) -> Run:
    collusion = Collusion(MEMBERS, PEERS, seed)
    attackers: dict[int, Behaviour] = {
        i: Denounced(make_attack("misreport", collusion, what=what, tolerances=multiple)) for i in sorted(MEMBERS)
    }
    return run_cohort(attackers, peers=PEERS, steps=4, seed=seed, collusion=collusion)


@pytest.mark.usefixtures("different_arithmetic")
@pytest.mark.parametrize("what", ["norm", "both"])
def test_reports_at_the_tolerance_split_nobody(what: str) -> None:
    divided = 0
    for seed in range(2):
        for multiple in (0.9, 1.0, 1.1, 1.4):
            run = attacked(multiple, what, seed)
            assert set(run.removed) <= MEMBERS, f"seed {seed}, {multiple} tol: {run.entries}"
            honest = [
                {entry.votes[str(i)] for i in range(PEERS) if i not in MEMBERS and str(i) in entry.votes}
                for entry in run.entries
            ]
            divided += sum({GUILTY, FALSE_CLAIM} <= votes for votes in honest)
    assert divided, "honest judges never disagreed: this tests nothing"


@pytest.mark.usefixtures("different_arithmetic")
@pytest.mark.parametrize(("multiple", "banned"), [(0.4, False), (3.0, True)])
def test_far_from_the_tolerance_all_judge_alike(multiple: float, banned: bool) -> None:
    collusion = Collusion(MEMBERS, PEERS, 5)
    attackers: dict[int, Behaviour] = {
        i: make_attack("misreport", collusion, what="norm", tolerances=multiple, start=1) for i in sorted(MEMBERS)
    }
    run = run_cohort(attackers, peers=PEERS, steps=4, seed=5, collusion=collusion)
    assert set(run.removed) == (MEMBERS if banned else set())


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 2.1, 4.0])
def test_aggregates_at_the_tolerance_split_nobody(scale: float) -> None:
    for seed in range(2):
        collusion = Collusion(MEMBERS, PEERS, seed)
        attackers: dict[int, Behaviour] = {
            i: make_attack("wrong_aggregate", collusion, how="edge", scale=scale, start=1) for i in sorted(MEMBERS)
        }
        run = run_cohort(attackers, peers=PEERS, steps=4, seed=seed, collusion=collusion)
        assert set(run.removed) <= MEMBERS, f"seed {seed}: {run.entries}"
