"""Byzantine newcomers, members that attack newcomers, and what Sybils can and cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from btard.attacks import make_attack
from btard.drivers.links import Links
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.identity import Identity
from btard.protocol.messages import Claim, CoinCommit, Commit, JoinRequest
from btard.protocol.peer import Peer
from btard.protocol.signed import Relayed, Signed, relay_digest
from scripts.sybil import sybil_price
from tests.protocol.newcomers import PEERS, T_JOIN, Cohort, Sponsor, cohort, key, sign_flip

# Byzantine newcomers.


@pytest.mark.parametrize("seed", range(5))
def test_an_attack_on_probation_gets_nowhere(seed: int) -> None:
    """Banned by its first validator; until then the aggregate is the mean of the honest workers, to the bit."""
    driver, alone = (cohort(tau=float("inf"), run_id=f"attack {seed}") for _ in range(2))
    driver.enter(key("attacker"), sign_flip())
    driver.advance(1)
    alone.advance(1)
    driver.advance(4)
    assert driver.removed == {PEERS: "wrong_gradient"}
    [entry] = [entry for result in driver.results for entry in result.removed if entry.peers]
    assert entry.step <= 3, "one newcomer alone is checked at every step"
    for result in driver.results:
        assert float(result.gradient.abs().max()) < 10, "a thousandfold gradient would show in the mean"


class Equivocator(Behaviour):
    """A newcomer with two commitments, one for some members."""

    byzantine = True

    def __init__(self, second_for: Sequence[int], start: int) -> None:
        self.second_for, self.start = second_for, start

    def active(self, step: int) -> bool:
        return step >= self.start

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "commit" or payload is None:
            return message, {}
        return message, dict.fromkeys(self.second_for, sign(Commit(payload.digests[::-1], payload.after)))


class LastRound(Behaviour):
    """A member that keeps the second commitment of a newcomer for one victim and the last round."""

    byzantine = True

    def __init__(self, victim: int) -> None:
        self.victim, self.kept = victim, ()

    def active(self, step: int) -> bool:
        return True

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        if phase != "commit" or round == 0:
            return outgoing
        if round == 1:
            self.kept = next(iter(outgoing.values()), ())
        return {self.victim: self.kept}


@pytest.mark.parametrize("second_for", [(0,), (0, 2), (1,), (1, PEERS)])
@pytest.mark.parametrize("members", [{}, {1: LastRound(2)}])
def test_two_commitments_of_a_newcomer_are_proof_or_nothing(members: dict[int, Behaviour], second_for: Any) -> None:
    driver = cohort(members)
    driver.enter(key("honest"))
    driver.advance(1)
    driver.enter(key("two faces"), Equivocator(second_for, start=3))
    driver.advance(8)  # raises if honest peers, the honest newcomer among them, come to differ
    assert driver.removed in ({PEERS + 1: "equivocation"}, {}) and PEERS in driver.results[-1].active
    if not members:
        assert driver.removed


class ManyFaced(Behaviour):
    """A member that tells each other one, and the newcomers, something else."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step == 3

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "coin_commit/0":
            return message, {}
        others = (peer for peer in range(PEERS + 1) if peer != ctx.peer)
        return message, {peer: sign(CoinCommit(bytes([peer]) * 32)) for peer in others}


def test_a_member_of_many_faces_has_one_fate() -> None:
    """Members keep two of its faces, and not all the same ones; a newcomer has to hear of it none the less."""
    driver = cohort({1: ManyFaced()})
    driver.enter(key("honest"))
    driver.advance(6)  # raises if the newcomer comes to another ledger than the members
    assert driver.removed == {1: "equivocation"} and PEERS in driver.peers


class ForgedChain(Behaviour):
    """A member that gets one victim the second commitment in the last round, with a newcomer as the second relayer."""

    byzantine = True

    def __init__(self, victim: int, relayers: Mapping[int, Identity]) -> None:
        self.victim, self.relayers = victim, relayers
        self.sent = 0

    def active(self, step: int) -> bool:
        return True

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        if phase != "commit" or round == 0 or len(ctx.record.newcomers) < 2:
            return outgoing
        if round == 1:
            self.held = [item.message for items in outgoing.values() for item in items]
            return {}
        chains = []
        for message in self.held:
            signed = relay_digest(message.digest(ctx.record.context))
            chains.append(Relayed(message, tuple((i, who.sign(signed)) for i, who in self.relayers.items())))
        self.sent += len(chains)
        return {self.victim: chains}


def test_newcomers_do_not_count_as_relayers() -> None:
    """With b = 1 a commitment that comes in round 2 has to have passed an honest member; newcomers could be anybody."""
    fellow = key("fellow")
    chain = ForgedChain(2, {1: Identity.from_seed("btard", 1), PEERS: fellow})
    driver = cohort({1: chain})
    driver.enter(fellow)
    driver.advance(1)
    driver.enter(key("two faces"), Equivocator((1,), start=2))  # the second one for its accomplice alone
    driver.advance(6)  # raises if the victim comes to another result than the others
    assert chain.sent and set(driver.removed) <= {1}, "it shut itself out: it alone has seen both"


class Whisperer(Behaviour):
    """A member that says something else, or nothing, to the newcomers."""

    byzantine = True

    def __init__(self, newcomers: Sequence[int], phase: str, silent: bool) -> None:
        self.newcomers, self.phase, self.silent = newcomers, phase, silent

    def active(self, step: int) -> bool:
        return True

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase.partition("/")[0] != self.phase or not ctx.record.probation:
            return message, {}
        other = None if self.silent else sign(Commit((bytes(32),)))
        return message, dict.fromkeys(self.newcomers, other)

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        """Tells the newcomers that nothing at all was said."""
        return dict.fromkeys(self.newcomers, ()) if round == 0 else outgoing

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        if recipient not in ctx.record.probation:
            return value
        return None if self.silent else value * 2

    def forward(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return self.aggregate_for(ctx, recipient, part, value)


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("phase", ["join", "commit", "announce", "coin_commit", "coin_reveal", "report", "accuse"])
def test_members_cannot_lead_a_newcomer_astray(phase: str, silent: bool) -> None:
    """It hears what the honest members agree on, and gets every aggregate, whoever keeps its own from it."""
    liars: dict[int, Behaviour] = {i: Whisperer((PEERS,), phase, silent) for i in (1, 2)}
    driver = cohort(liars)
    driver.enter(key("honest"))
    driver.advance(9)
    assert PEERS in driver.results[-1].active or silent
    assert PEERS not in driver.removed
    assert set(driver.removed.values()) <= {"equivocation"}


class Stalling(Behaviour):
    """A newcomer that skips a commitment now and then."""

    byzantine = True

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps

    def active(self, step: int) -> bool:
        return step in self.steps

    def commit(self, ctx: Context, digests: tuple[bytes, ...]) -> None:
        return None


def test_a_missed_commitment_starts_the_probation_again_and_several_end_it() -> None:
    driver = cohort()
    driver.enter(key("lazy"), Stalling([3]))
    driver.advance(3 + T_JOIN)
    assert PEERS not in driver.results[-1].active and not driver.removed
    driver.advance(1)
    assert PEERS in driver.results[-1].active
    gone = cohort(max_absences=2)
    gone.enter(key("lazier"), Stalling([2, 3]))
    gone.advance(5)
    assert gone.removed == {PEERS: "gone"}


def test_colluding_validators_cannot_let_a_free_rider_through() -> None:
    """It needs clean checks by more than b members. A newcomer that computes nothing never becomes one."""
    banned = 0
    for seed in range(10):
        collusion = Collusion(frozenset({1, 3, PEERS}), PEERS + 1)
        helpers: dict[int, Behaviour] = {i: make_attack("never_accuse", collusion) for i in (1, 3)}
        driver = cohort(helpers, run_id=f"free rider {seed}", collusion=collusion, probation=1)
        driver.enter(key("free rider"), make_attack("zero", collusion))
        driver.advance_until_removal(10)
        assert all(PEERS not in result.active for result in driver.results)
        banned += driver.removed == {PEERS: "wrong_gradient"}
    assert banned == 10


class LateChecks(Links):
    """Whoever is to check a newcomer is late with its gradient, for as long as `lasts`."""

    peers: Mapping[int, Peer]

    def __init__(self, lasts: int) -> None:
        super().__init__()
        self.lasts = lasts

    def late(self, step: int, peer: int) -> bool:
        return step < self.lasts and peer in self.peers and self.peers[peer].assignments.get(peer, 0) >= PEERS


def late_checks(lasts: int, **settings: Any) -> Cohort:
    links = LateChecks(lasts)
    driver = cohort(links=links, probation=1, **settings)
    links.peers = driver.peers
    return driver


class ComputesNothing(Behaviour):
    """A newcomer that commits to zeros."""

    byzantine = True

    def active(self, step: int) -> bool:
        return True

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradient)


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_a_validator_that_is_late_clears_nobody(validation: str) -> None:
    """It finds nothing, as one that finds the gradient right does: so it says that it has not checked it."""
    driver = late_checks(8, byzantine=1, validation=validation)
    driver.enter(key("free rider"), ComputesNothing())
    driver.advance(8)
    standing = driver.peers[0].probation[PEERS]
    assert standing.served >= 6 and not standing.cleared and not driver.removed
    driver.advance(2)
    assert driver.removed == {PEERS: "wrong_gradient"}, "the first that is in time finds it"


def test_a_late_check_costs_a_newcomer_its_time_alone() -> None:
    driver = late_checks(6, byzantine=1)
    driver.enter(key("honest"))
    driver.advance(6)
    assert driver.peers[0].probation[PEERS].served == 5
    driver.advance(5)
    assert not driver.removed and PEERS in driver.results[-1].active


class Denies(Behaviour):
    """A member that says of every newcomer that it could not check it, or was not shown its gradient."""

    byzantine = True

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def active(self, step: int) -> bool:
        return True

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        target = ctx.assignments.get(ctx.peer, 0)
        first = "accuse/0" not in ctx.record.heard
        return (Claim(ctx.step - 1, target, self.kind),) if target >= PEERS and first else claims


@pytest.mark.parametrize(("kind", "validation"), [("unchecked", "exact"), ("undisclosed", "tolerant")])
def test_members_that_never_clear_anybody_keep_nobody_out(kind: str, validation: str) -> None:
    """More than b honest members are there, each clears it when it is drawn, and who has not yet is drawn first."""
    for seed in range(2):
        liars: dict[int, Behaviour] = {i: Denies(kind) for i in (1, 3)}
        driver = cohort(liars, probation=1, validation=validation, run_id=f"denied {seed}")
        driver.enter(key("honest", seed))
        cleared: set[int] = set()
        while PEERS not in driver.peers[0].active and driver.peers[0].t < 60:
            driver.advance()
            cleared |= driver.peers[0].probation[PEERS].cleared if PEERS in driver.peers[0].probation else set()
        assert PEERS in driver.peers[0].active and not driver.removed
        assert cleared <= {0, 2, 4}, "what denies it clears nobody, whatever became of it"


class DeniesWorkers(Denies):
    """The same of a worker."""

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        target = ctx.assignments.get(ctx.peer)
        return claims if target is None else (Claim(ctx.step - 1, target, self.kind),)


def test_who_says_of_a_worker_that_it_did_not_check_it_is_out() -> None:
    driver = cohort({1: DeniesWorkers("unchecked")})
    driver.advance(12)
    assert driver.removed == {1: "malformed_claims"}


def test_a_newcomer_has_no_vote_and_no_accusation() -> None:
    """Newcomers outnumber the members and accuse and vote as they like: nothing of it is heard."""
    collusion = Collusion(frozenset(range(4, 2 * PEERS)), 2 * PEERS)
    driver = cohort({4: make_attack("silent", collusion, phase="part")}, max_newcomers=4, probation=30)
    for i in range(PEERS):
        driver.enter(key("shouting", i), make_attack("false_accusation", collusion, kind="wrong_gradient"))
    driver.advance(12)
    assert driver.removed == {4: "silent"} and driver.results[-1].active == tuple(range(4))
    assert len(driver.peers[0].probation) == PEERS


def test_who_waits_for_the_end_of_probation_is_caught_like_any_member() -> None:
    driver = cohort(run_id="patient")
    driver.enter(key("patient"), sign_flip(start=1 + T_JOIN))
    driver.advance_until_removal(80)
    assert driver.removed == {PEERS: "wrong_gradient"}
    assert any(PEERS in result.workers for result in driver.results), "it got in"


def test_a_banned_key_cannot_return() -> None:
    old = Identity.from_seed("btard", 2)
    driver = cohort({2: sign_flip(), 1: Sponsor([JoinRequest.create(old, "btard")])})
    driver.advance_until_removal(40)
    assert driver.removed == {2: "wrong_gradient"}
    returning = driver.enter(old)
    fresh = driver.enter(key("new"))
    driver.advance(3)
    assert returning.peer is None and fresh.peer == PEERS, "its old key is refused, another one is not"


def test_a_false_accusation_of_a_newcomer_costs_the_accuser_its_place() -> None:
    class Accuser(Behaviour):
        byzantine = True

        def active(self, step: int) -> bool:
            return True

        def accuse(self, ctx: Context, claims: Any) -> Any:
            from btard.protocol.messages import Claim

            checks = ctx.record.assignments.get(ctx.peer) == PEERS and "accuse/0" not in ctx.record.heard
            served = ctx.last is not None and PEERS in ctx.last.commits and PEERS in ctx.record.probation
            return (Claim(ctx.step - 1, PEERS, "wrong_gradient"),) if served and checks else claims

    driver = cohort({3: Accuser()}, probation=30)
    driver.enter(key("innocent"))
    driver.advance(40)
    assert driver.removed == {3: "false_accusation"}
    assert PEERS in driver.results[-1].active


# What Sybils can do.


def test_every_life_of_a_sybil_costs_a_probation() -> None:
    """Honest gradients per attack: T_join / a, among a members of whom one attacks, with m = 1.

    Each of the a - 1 workers of a step is its target with the same chance, so that it takes a - 1 attacks on average
    until one of them is checked, and there is one more in the step in which that one is judged.
    """
    lives, probation = 4, 3
    prices = [sybil_price(PEERS, probation, lives, seed) for seed in range(10)]
    honest, attacks = (np.array(column, dtype=float) for column in zip(*prices, strict=True))
    assert (honest == lives * probation).all(), "no life is cheaper than a probation"
    members = PEERS + 1
    expected = probation / members
    measured = honest.sum() / attacks.sum()
    # 40 lives, whose lengths scatter about as much as they are long: three standard deviations.
    assert measured == pytest.approx(expected, rel=3 / np.sqrt(10 * lives)), f"{measured:.2f} per step, {expected:.2f}"


@pytest.mark.parametrize("sybils", [2, 3])
def test_nothing_but_their_compute_keeps_well_behaved_sybils_out(sybils: int) -> None:
    """The limit of the heuristic: who pays T_join gradients for each of n identities has n members, then a majority."""
    for seed in range(3):
        driver = cohort(run_id=f"flood {sybils} {seed}", max_newcomers=2)
        for i in range(sybils):
            driver.enter(key("flood", seed, i))
        driver.advance(8 + 3 * sybils)
        numbers = range(PEERS, PEERS + sybils)
        assert set(numbers) <= set(driver.results[-1].active) and not driver.removed
        admission = {e.accused: e.step for e in driver.peers[0].ledger.entries if e.kind == "member"}
        joined = {e.accused: e.step for e in driver.peers[0].ledger.entries if e.kind == "join"}
        assert all(admission[i] - joined[i] >= T_JOIN for i in numbers)
