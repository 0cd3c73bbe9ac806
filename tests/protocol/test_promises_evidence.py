"""Promises that were broken once, by evidence: shown to some judges alone, or of a former life (`test_promises.py`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context, View
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Together
from btard.protocol.messages import Claim, CoinReveal, Report
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord
from btard.protocol.signed import Packet, Relayed, Signed, relay_digest
from btard.protocol.split import Split
from btard.task import QuadraticTask
from tests.protocol.promises import Attacker, D, check_honest, play

# What a judge was shown and the others were not.


class OneWitness(Attacker):
    """Mode tolerant: two colluders make the median distance zero, and show their work to some of the judges alone.

    The clipped rows of the colluders let CenteredClip of their own part be exactly one honest peer's part. Both report
    the distance zero, which turned V2 off, and one lies about its product. Then one is the other's validator.
    """

    def __init__(self, collusion: Collusion, shown: frozenset[int]) -> None:
        self.collusion, self.shown, self.fellows = collusion, shown, collusion.members

    def _sides(self, record: StepRecord) -> tuple[list[int], list[int], list[int]]:
        planned = [peer for peer in record.active if peer not in record.assignments]
        hostile = [peer for peer in planned if peer in self.fellows]
        return planned, hostile, [peer for peer in planned if peer not in self.fellows]

    def _half(self, record: StepRecord) -> bool:
        planned, hostile, _ = self._sides(record)
        return len(hostile) >= 2 and len(hostile) == len(planned) // 2

    def _seen(self) -> dict[int, torch.Tensor]:
        return dict(zip(self.collusion.honest_peers, self.collusion.rows, strict=True))

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        planned, hostile, honest = self._sides(ctx.record)
        if not self._half(ctx.record):
            return gradient
        rows, cut, tau = self._seen(), Split(gradient.numel(), len(planned)), ctx.record.tau
        gradient = gradient.clone()
        for part, owner in enumerate(planned):
            if owner in self.fellows:
                target = cut.view(rows[honest[0]], part)
                pull = sum(clipped((cut.view(rows[peer], part) - target).double(), tau) for peer in honest[1:])
                cut.view(gradient, part).copy_((target.double() - pull / len(hostile)).float())
        return gradient

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if not self._half(ctx.record):
            return value
        return ctx.record.cut.view(self._seen()[self._sides(ctx.record)[2][0]], part).clone()

    def report(self, ctx: Context, report: Report) -> Report:
        record = ctx.record
        if not self._half(record):
            return report
        norms, products = list(report.norms), list(report.products)
        for part in record.announced:
            if record.owner(part) in self.fellows:
                norms[part] = 0.0
                if ctx.peer == record.owner(part):
                    products[part] = tuple(product + 0.5 for product in products[part])
        return replace(report, norms=tuple(norms), products=tuple(products))

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        claims = super().accuse(ctx, claims)
        watched, first = (
            ctx.record.assignments.get(ctx.peer),
            ctx.record.phase in ("report", "accuse/0", "coin_reveal/0"),
        )
        if first and watched in self.fellows and ctx.last is not None and watched in ctx.last.workers:
            claims = (*claims, Claim(ctx.step - 1, watched, "undisclosed"))
        return tuple(sorted(set(claims)))

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return "false" if claim.kind == "wrong_aggregate" and claim.accused in self.fellows else verdict

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        if phase == "disclose":
            return {}
        if phase == "evidence/0":
            return {to: shown for to, shown in packets.items() if to in self.shown or to in self.fellows}
        return packets


def clipped(x: torch.Tensor, tau: float) -> torch.Tensor:
    norm = float(x.norm())
    return x * (tau / norm) if norm > tau else x


@pytest.mark.parametrize(("peers", "byzantine", "shown"), [(6, 2, 1), (8, 3, 2), (16, 7, 7)])
def test_evidence_shown_to_some_judges_bans_none_of_them(peers: int, byzantine: int, shown: int, seed: int) -> None:
    members = frozenset(1 + (seed + 2 * i) % (peers - 1) for i in range(byzantine))
    honest = [peer for peer in range(peers) if peer not in members]
    collusion = Collusion(members, peers, seed)
    config = ProtocolConfig(peers=peers, byzantine=byzantine, run_id=f"witness {seed}", validation="tolerant")
    behaviours: dict[int, Behaviour] = {i: OneWitness(collusion, frozenset(honest[:shown])) for i in members}
    driver = LocalDriver(config, QuadraticTask(D), behaviours=behaviours, collusion=collusion)
    check_honest(play(driver, 40 if peers < 16 else 15, torch.ones(D)), members)


# Two lives.


class RemembersItsFormerLife(Attacker):
    """Withholds its aggregate in its first life, and in the second passes on what the others said to that."""

    def __init__(self, life: int, memory: dict[int, Signed]) -> None:
        self.life, self.memory = life, memory

    def active(self, step: int) -> bool:
        return step == 3

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if self.life == 1 else value

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        if phase != "coin_commit/0":
            return outgoing
        record = ctx.record
        if self.life == 1:
            self.memory.update({i: said[0] for i, said in record.heard[phase].items() if i != ctx.peer})
            return outgoing
        assert ctx.identity is not None
        old = tuple(
            Relayed(message, ((ctx.peer, ctx.identity.sign(relay_digest(message.digest(record.context)))),))
            for message in self.memory.values()
        )
        return {i: (*outgoing.get(i, ()), *old) for i in record.remaining if i != ctx.peer} if round == 1 else outgoing


@pytest.mark.parametrize("former", ["the first", "resumed from the same checkpoint"])
def test_messages_of_a_former_life_prove_nothing(former: str, seed: int) -> None:
    attacker, memory = 1 + seed % 4, dict[int, Signed]()
    config = ProtocolConfig(peers=5, byzantine=1, run_id=f"resume {seed}")

    def cohort(life: int) -> LocalDriver:
        return LocalDriver(config, QuadraticTask(D), behaviours={attacker: RemembersItsFormerLife(life, memory)})

    first, params = cohort(1), torch.ones(D)
    for _ in range(3):
        params = params - 0.1 * first.step(params).gradient
    state, tensors = first.state()
    state, tensors = json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}
    if former != "the first":
        first = cohort(1)
        first.restore(state, {name: x.clone() for name, x in tensors.items()}, life=b"second")
    first.step(params)
    assert memory, "the former life left nothing to replay"
    second = cohort(2)
    second.restore(state, tensors, life=b"third")
    check_honest(play(second, 3, params), frozenset({attacker}))


class ShowsPacketsOfAFormerLife(Attacker):
    """Makes all aggregates differ in its first life; in the second it shows those of the first as bad ones."""

    def __init__(self, life: int, kept: dict[int, Packet]) -> None:
        self.life, self.kept = life, kept

    def active(self, step: int) -> bool:
        return step == 3

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * gradient if self.life == 1 else gradient

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if self.life == 2 and phase == "coin_reveal/0":
            return sign(CoinReveal.lacking(sorted(self.kept))), {}
        return message, {}

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        if self.life == 1:
            return claims
        return tuple(sorted(Claim(3, packet.sender, "bad_aggregate", part) for part, packet in self.kept.items()))

    def disclose(self, ctx: Context, claim: Claim, packets: Sequence[Any]) -> Sequence[Any]:
        return [self.kept[claim.part]] if self.life == 2 and claim.part in self.kept else packets


def keep_aggregates(peer: Peer, step: int, kept: dict[int, Packet]) -> None:
    """Have `peer` keep the packets in which the others send it their aggregates of `step`: part -> packet."""
    plain = peer.step

    def watched() -> Any:
        running, answer = plain(), None
        while True:
            try:
                effect = running.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = yield effect
            if isinstance(effect, Together) and effect.phase == "aggregate" and peer.t == step:
                letters = [bundle.letters[-1] or () for bundle in answer.values()]
                kept.update({p.part: p for letter in letters for p in letter if isinstance(p, Packet)})

    peer.step = watched  # type: ignore[method-assign]


def test_packets_of_a_former_life_convict_nobody(seed: int) -> None:
    attacker, kept = 1 + seed % 6, dict[int, Packet]()
    config = ProtocolConfig(peers=7, byzantine=1, run_id=f"packets {seed}")

    def cohort(life: int) -> LocalDriver:
        return LocalDriver(config, QuadraticTask(D), behaviours={attacker: ShowsPacketsOfAFormerLife(life, kept)})

    first, params = cohort(1), torch.ones(D)
    keep_aggregates(first.peers[attacker], 3, kept)
    for _ in range(3):
        params = params - 0.1 * first.step(params).gradient
    state, tensors = first.state()
    state, tensors = json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}
    first.step(params)
    assert kept, "the former life left nothing to show"
    second = cohort(2)
    second.restore(state, tensors, life=b"second")
    check_honest(play(second, 3, params), frozenset({attacker}))
