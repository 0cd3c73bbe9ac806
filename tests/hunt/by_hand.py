"""An attack made by hand for each switch of `BLIND`: `broken(name)` says which promise it breaks, "" if none.

The switches were made by somebody who did not know what the hunt can try, and so were these. With all fixes in place
every attack comes to nothing; without the fix of its switch it gets what the switch says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from msgspec.structs import replace

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.commit import CutOff
from btard.protocol.config import ProtocolConfig
from btard.protocol.download import Download
from btard.protocol.effects import Compute
from btard.protocol.identity import Identity
from btard.protocol.limits import Limits, relay_limit
from btard.protocol.messages import Claim, CoinCommit, Packet, Relayed, Report, Signed, relay_digest
from btard.protocol.report import part_scalars
from btard.protocol.snapshot import public_state
from btard.task import QuadraticTask

D = 60
LARGEST = 30.0
"""No honest gradient of these cohorts has a larger entry."""


class Attacker(Behaviour):
    """Byzantine from step 1 on."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step >= 1

    @property
    def resting(self) -> Behaviour:
        rested = Behaviour()
        rested.byzantine = True
        return rested


class Away(Behaviour):
    """An honest peer that nobody hears in the steps in which `when` holds."""

    def __init__(self, when: Callable[[Context], bool]) -> None:
        self.when = when

    def acts(self, ctx: Any) -> bool:
        return self.when(ctx)

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return None, {}

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        return {}


def cohort(behaviours: Mapping[int, Behaviour], **settings: Any) -> LocalDriver:
    tasks = settings.pop("tasks", None)
    byzantine = sum(behaviour.byzantine for behaviour in behaviours.values())
    config = ProtocolConfig(**{"peers": 5, "byzantine": byzantine, "run_id": "by hand", **settings})
    return LocalDriver(config, QuadraticTask(D), behaviours=behaviours, tasks=tasks)


def damage(driver: LocalDriver, steps: int) -> str:
    """What breaks in so many steps; "" if nothing does. Who is cut off takes the others' state, which is no break."""
    honest = {peer.id for peer in driver.honest}
    params = torch.ones(D)
    for _ in range(steps):
        try:
            result = driver.step(params)
        except CutOff:
            return ""
        except RuntimeError as error:
            return str(error)
        except Exception as error:
            return f"crash: {type(error).__name__}: {error}"
        for entry in result.removed:
            if honest & set(entry.peers) and not (entry.verdict == "eliminated" and len(entry.peers) == 2):
                return f"honest peers {sorted(honest & set(entry.peers))} removed: {entry.kind}"
        if float(result.gradient.abs().max()) > LARGEST:
            return f"{result.gradient.abs().max():g} applied"
        for peer in driver.honest:
            record = peer.last
            if record is not None and not set(record.announced) <= record.skipped | set(record.aggregates):
                return f"peer {peer.id} has other parameters"
        params = params - 0.1 * result.gradient
    return ""


# ELIMINATE and evidence.


class FallsOutAccusing(Attacker):
    """Says that it lacks all aggregates, accuses the honest owners, and owes an accusation of its fellows."""

    def __init__(self, fellows: frozenset[int]) -> None:
        self.fellows = fellows

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "coin_commit/0":
            return message, {}
        lacking = tuple(j for j in sorted(ctx.record.announced) if ctx.record.owner(j) != ctx.peer)
        return sign(CoinCommit(payload.digest, lacking)), {}

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
    for run in range(10):
        broken = damage(cohort(behaviours, peers=8, run_id=f"absent {run}"), 12)
        if broken:
            return broken
    return ""


# Claims that prove nothing.


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


class CountsItselfOften(Attacker):
    """An owner that names itself `often` more times among the senders of a huge aggregate, and cooks its report."""

    def __init__(self, often: int) -> None:
        self.often, self.driver = often, list[LocalDriver]()

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(value, 1e6)

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "announce" or payload is None:
            return message, {}
        again = (ctx.peer,) * self.often
        parts = tuple(replace(part, senders=tuple(sorted((*part.senders, *again)))) for part in payload.parts)
        return sign(replace(payload, parts=parts)), {}

    def report(self, ctx: Context, report: Report) -> Report:
        record, seat = ctx.record, self.driver[0].peers[ctx.peer]
        sizes, norms, products = list(report.sizes), list(report.norms), list(report.products)
        for part, packets in record.received.items():
            others = [packets[i].body for i in sorted(packets) if i != ctx.peer]
            known = part_scalars(seat, record, record.aggregates[part], others, part)  # type: ignore[arg-type]
            sizes[part], norms[part] = 1e6, 0.0
            products[part] = (-sum(said.products[0] for said in known) / (1 + self.often),)
        return replace(report, sizes=tuple(sizes), norms=tuple(norms), products=tuple(products))


def counted_twice() -> str:
    attacker = CountsItselfOften(3)
    driver = cohort({1: attacker})
    attacker.driver.append(driver)
    return damage(driver, 4)


# Broadcasts.


class Relays(Attacker):
    """Adds `made` (phase, round -> recipient -> messages) to what it passes on."""

    def __init__(self, made: Callable[[Context, str, int], Mapping[int, Sequence[Relayed]]]) -> None:
        self.made = made

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        added = self.made(ctx, phase, round)
        return {to: (*outgoing.get(to, ()), *added.get(to, ())) for to in {*outgoing, *added}}


def _identity(peer: int) -> Identity:
    return Identity.from_seed("by hand", peer)


def _signed(ctx: Context, sender: int, phase: str, payload: bytes) -> Signed:
    unsigned = Signed(sender, ctx.step, phase, payload, b"")
    return replace(unsigned, signature=_identity(sender).sign(unsigned.digest(ctx.record.context)))


def _vouched(ctx: Context, message: Signed, relayer: int) -> Relayed:
    return Relayed(message, ((relayer, _identity(relayer).sign(relay_digest(message.digest(ctx.record.context)))),))


def own_relayer() -> str:
    def second_face(ctx: Context, phase: str, round: int) -> Mapping[int, Sequence[Relayed]]:
        if phase != "report" or round != 1:
            return {}
        return {2: (_vouched(ctx, _signed(ctx, 1, phase, b"second face"), 1),)}

    return damage(cohort({1: Relays(second_face)}, validators=0), 3)


def relayed_without_limit() -> str:
    """Peer 3 passes on a second message of peer 1, as long as a round of relays may be, to one honest peer."""

    def longest(ctx: Context, phase: str, round: int) -> Mapping[int, Sequence[Relayed]]:
        if phase != "report" or round != 1:
            return {}
        bound = relay_limit(6, Limits(6, 1).message(Report))
        room = bound - _vouched(ctx, _signed(ctx, 1, phase, b""), 3).nbytes
        return {2: (_vouched(ctx, _signed(ctx, 1, phase, bytes(room)), 3),)}

    quiet = Relays(lambda ctx, phase, round: {})
    return damage(cohort({1: quiet, 3: Relays(longest)}, peers=6, validators=0), 3)


def any_phase() -> str:
    def from_the_phase_before(ctx: Context, phase: str, round: int) -> Mapping[int, Sequence[Relayed]]:
        if phase != "coin_reveal/0" or round != 1:
            return {}
        [said] = ctx.record.heard["coin_commit/0"][2]
        again = replace(said, phase=phase)
        return dict.fromkeys((0, 2, 3, 4), (_vouched(ctx, again, 1),))

    return damage(cohort({1: Relays(from_the_phase_before)}, validators=0), 3)


# Tolerances, absences, and who is left.


class Scaled(QuadraticTask):
    """Another machine's numerics: all gradients times `factor`."""

    def __init__(self, factor: float) -> None:
        super().__init__(D)
        self.factor = factor

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        out.mul_(self.factor)


class AtTheTolerance(Attacker):
    """Within the tolerance of most honest peers, beyond that of the one whose numbers are smallest."""

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 1.09


def accused_at_once() -> str:
    numerics = {peer: Scaled(0.96 if peer == 0 else 1.0) for peer in range(5)}
    return damage(cohort({1: AtTheTolerance()}, validation="tolerant", tasks=numerics), 100)


def absences_stay() -> str:
    away = Away(lambda ctx: ctx.step % 5 == 4 and 2 not in ctx.assignments)
    return damage(cohort({2: away}), 30)


class NothingIsWrong(Attacker):
    """Its aggregates are off, and its reports are no numbers."""

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return value + 1.0

    def report(self, ctx: Context, report: Report) -> Report:
        return replace(report, products=((float("nan"),),) * len(report.products))


def nan_reported() -> str:
    driver = cohort({1: NothingIsWrong()})
    return damage(driver, 40) or ("40 steps without a verdict" if 1 in driver.honest[0].active else "")


class Tiny(Attacker):
    """Reports next to no distance on the fellows' parts, in steps in which half of the workers are liars."""

    def __init__(self, fellows: frozenset[int]) -> None:
        self.fellows = fellows

    def report(self, ctx: Context, report: Report) -> Report:
        record = ctx.record
        if 2 * len(self.fellows.intersection(record.workers)) < len(record.workers):
            return report
        hostile = [record.owner(part) in self.fellows for part in range(len(report.norms))]
        norms = (1e-300 if theirs else norm for theirs, norm in zip(hostile, report.norms, strict=True))
        return replace(report, norms=tuple(norms))


def radius_of_few() -> str:
    members = frozenset({1, 3})
    for run in range(10):
        away = {peer: Away(lambda ctx: ctx.step == 3 and ctx.peer not in ctx.assignments) for peer in (4, 6)}
        behaviours = {**away, **{i: Tiny(members) for i in members}}
        driver = cohort(behaviours, peers=7, tau="auto", run_id=f"radius {run}")
        broken = damage(driver, 4)
        if broken or driver.honest[0].tau < 1e-3:
            return broken or f"a radius of {driver.honest[0].tau:g}"
    return ""


class Withholds(Attacker):
    """Sends its aggregate of step 2 to everybody but peer 2."""

    def active(self, step: int) -> bool:
        return step == 2

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if recipient == 2 else value


def zero_for_lacking() -> str:
    away = Away(lambda ctx: ctx.step == 2)
    return damage(cohort({1: Withholds(), 2: away}, validators=0), 4)


class Silent(Attacker):
    def report(self, ctx: Context, report: Report) -> None:
        return None


def nobody_left_to_work() -> str:
    return damage(cohort({1: Silent(), 3: Silent()}, validators=2), 8)


# Newcomers.


class WhispersToNewcomers(Attacker):
    """Tells newcomers that nobody but itself has said anything."""

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        if round != 0 or phase != "coin_commit/0":
            return outgoing
        mine = tuple(Relayed(said, ()) for said in ctx.record.heard[phase].get(ctx.peer, ()))
        return dict.fromkeys(ctx.record.newcomers, mine)


def told_by_one() -> str:
    driver = cohort({1: WhispersToNewcomers()}, probation=4)
    driver.join(Identity.from_seed("newcomer"))
    return damage(driver, 5)


class Idler(Behaviour):
    """A newcomer that computes nothing."""

    byzantine = True

    def active(self, step: int) -> bool:
        return True

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradient)


class Lenient(Attacker):
    """A validator that finds nothing."""

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return ()


def one_checker() -> str:
    for run in range(10):
        driver = cohort({1: Lenient(), 3: Lenient()}, probation=1, run_id=f"checker {run}")
        driver.join(Identity.from_seed("idler"), Idler())
        broken = damage(driver, 6)
        if broken or any(entry.kind == "member" for entry in driver.honest[0].ledger.entries):
            return broken or "who has computed nothing is a member"
    return ""


class ServesItsOwnState(Attacker):
    """Vouches for a state with other parameters, and serves it."""

    def __init__(self) -> None:
        self.driver: list[LocalDriver] = []

    def active(self, step: int) -> bool:
        return True

    def _forged(self, ctx: Context) -> Download:
        return Download(public_state(self.driver[0].peers[ctx.peer]), {"parameters": torch.zeros(D)})

    def vouch(self, ctx: Context, hashed: bytes) -> bytes:
        return self._forged(ctx).digest(ctx.run_id)

    def serve(self, ctx: Context, download: Download) -> Download:
        return self._forged(ctx)


def state_of_one() -> str:
    attacker, taken = ServesItsOwnState(), list[torch.Tensor]()
    driver = cohort({0: attacker}, probation=4)
    attacker.driver.append(driver)
    driver.join(Identity.from_seed("newcomer"), receive=lambda tensors: taken.append(tensors["parameters"]))
    broken = damage(driver, 3)
    if broken or not taken:
        return broken
    return "a newcomer has a state that one member made up" if not bool(taken[0].any()) else ""


PLAYS: dict[str, Callable[[], str]] = {
    play.__name__: play
    for play in (
        removed_accusers,
        lacked_by_one,
        absent_answer,
        unlisted_misreport,
        counted_twice,
        own_relayer,
        relayed_without_limit,
        any_phase,
        any_step,
        unsigned_proof,
        accused_at_once,
        nan_reported,
        radius_of_few,
        absences_stay,
        zero_for_lacking,
        nobody_left_to_work,
        told_by_one,
        one_checker,
        state_of_one,
    )
}
