"""Attacks on evidence, votes and ELIMINATE, and claims whose proof is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from msgspec.structs import replace

from btard.protocol.behaviour import Context
from btard.protocol.messages import Claim, CoinReveal
from btard.protocol.signed import Packet, Signed
from tests.hunt.by_hand.cohort import cohort, damage
from tests.protocol.promises import Attacker, Away


class FallsOutAccusing(Attacker):
    """Says that it lacks all aggregates, accuses the honest owners, and owes an accusation of its fellows."""

    def __init__(self, fellows: frozenset[int]) -> None:
        self.fellows = fellows

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "coin_reveal/0":
            return message, {}
        return sign(CoinReveal.lacking(j for j in sorted(ctx.record.announced) if ctx.record.owner(j) != ctx.peer)), {}

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        owners = {j: ctx.record.owner(j) for j in ctx.record.missing.get(ctx.peer, ())}
        honest = (Claim(ctx.step, i, "withheld_aggregate", j) for j, i in owners.items() if i not in self.fellows)
        return tuple(sorted(honest))


def removed_accusers() -> str:
    members = frozenset({1, 3, 5})
    return damage(cohort({i: FallsOutAccusing(members) for i in members}, peers=7, validators=0), 3)


class HidesItsRow(Attacker):
    """A wrong aggregate of which it does not show its own row; in the vote it says that it lacks all evidence."""

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return value + 1.0

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        if not phase.startswith(("evidence", "pass")):
            return packets
        return {to: [item for item in items if item.sender != ctx.peer] for to, items in packets.items()}

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "vote/0" or payload is None:
            return message, {}
        trials = ctx.record.trials[0]
        pieces = sum(len(ctx.record.announced[claim.part].senders) + 1 for claim in trials)
        return sign(replace(payload, lacking=tuple(range(pieces)))), {}


def lacked_by_one() -> str:
    return damage(cohort({1: HidesItsRow()}, validators=0), 3)


class WrongGradient(Attacker):
    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


class HidesRows(Attacker):
    """An owner that shows nothing of the step before."""

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        return {} if phase in ("evidence/1", "pass/1") else packets


class AccusesOwner(Attacker):
    """Puts the part of `owner` in the step before on trial as soon as a fellow is convicted."""

    def __init__(self, owner: int) -> None:
        self.owner = owner

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        last = ctx.last
        if last is None or not {"wrong_gradient"}.intersection(ctx.record.expelled.values()):
            return claims
        mine = {
            Claim(last.step, self.owner, "wrong_aggregate", j) for j in last.announced if last.owner(j) == self.owner
        }
        return tuple(sorted({*claims, *mine}))


def absent_answer() -> str:
    """Peer 7 worked in the step before, and is away when the liar of that step is checked."""

    def away(ctx: Context) -> bool:
        duties, last = ctx.assignments, ctx.last
        hidden = last is not None and 7 in last.workers and 1 in last.workers
        return hidden and 2 in duties.values() and duties.keys().isdisjoint({1, 3, 7})

    behaviours = {1: HidesRows(), 2: WrongGradient(), 3: AccusesOwner(1), 7: Away(away)}
    return damage(cohort(behaviours, peers=9, run_id="absent 0"), 12)  # where the duties fall so soon enough


class LeavesOut(Attacker):
    """An owner that lists nobody but itself, and accuses the others of withheld parts and of what they report."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "announce" or payload is None:
            return message, {}
        return sign(replace(payload, parts=tuple(replace(part, senders=(ctx.peer,)) for part in payload.parts))), {}

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x[sorted(ctx.record.workers).index(ctx.peer)].clone()

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        record = ctx.record
        parts = [j for j in record.announced if record.owner(j) == ctx.peer]
        others = [i for i in record.workers if i != ctx.peer]
        kinds = ("withheld_part", "misreport")
        return tuple(sorted({Claim(ctx.step, i, kind, j) for i in others for j in parts for kind in kinds}))


def unlisted_misreport() -> str:
    return damage(cohort({1: LeavesOut()}, validators=0), 3)


class ShowsBadParts(Attacker):
    """Claims that everybody sent it a bad part, and shows what `proof` makes of its part's number and the sender."""

    def __init__(self, proof: Callable[[Context, int, int], Packet | None]) -> None:
        self.proof = proof

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        record = ctx.record
        if ctx.step < 2 or record.phase.endswith("/1"):
            return claims
        parts = [j for j in record.announced if record.owner(j) == ctx.peer]
        others = [i for i in record.workers if i != ctx.peer]
        return tuple(sorted(Claim(ctx.step, i, "bad_part", j) for i in others for j in parts))

    def disclose(self, ctx: Context, claim: Claim, packets: Sequence[Any]) -> Sequence[Any]:
        if claim.kind != "bad_part" or claim.step != ctx.step:
            return packets
        shown = self.proof(ctx, claim.part, claim.accused)
        return packets if shown is None else [shown]


def any_step() -> str:
    def of_the_step_before(ctx: Context, part: int, sender: int) -> Packet | None:
        packet = ctx.last.received.get(part, {}).get(sender) if ctx.last is not None else None
        return None if packet is None else replace(packet, step=ctx.step)

    return damage(cohort({1: ShowsBadParts(of_the_step_before)}, validators=0), 4)


def unsigned_proof() -> str:
    def made_up(ctx: Context, part: int, sender: int) -> Packet:
        return Packet("part", sender, ctx.step, part, torch.zeros(3), bytes(64))

    return damage(cohort({1: ShowsBadParts(made_up)}, validators=0), 4)
