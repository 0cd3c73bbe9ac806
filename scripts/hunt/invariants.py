"""What must hold after every step, whatever Byzantine peers do. See docs/protocol.md for each sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch

from btard.aggregation import centered_clip, residual_and_floor
from btard.drivers.loop import StepResult
from btard.drivers.trail import State
from btard.protocol import half
from btard.protocol.commit import NoGradient, NoQuorum
from btard.protocol.effects import Losses
from btard.protocol.heal import HEALED, batch_seed, candidates, choose, measured, window
from btard.protocol.ledger import GRADUATED, Entry
from btard.protocol.record import StepRecord
from btard.protocol.split import Split
from btard.task import PARAMETERS
from scripts.hunt.cases import Environment
from scripts.hunt.environments import is_calm, missing_at, unheard_in
from scripts.hunt.room import Room
from scripts.hunt.watch import Watch, most_effects


class Broken(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, message: str) -> None:
        super().__init__(message)
        self.invariant = invariant


def check_step(
    environment: Environment,
    driver: Any,
    result: StepResult,
    room: Room,
    watch: Watch,
    past: Mapping[int, torch.Tensor],
) -> None:
    """`past`: step -> the parameters at its beginning, up to the current step. Errors: Broken."""
    honest = [peer for peer in driver.peers.values() if not peer.behaviour.byzantine]
    away = {peer for peer, step, *_ in (*environment.away, *environment.drops) if step == result.step}
    witness = next(peer for peer in honest if peer.id in peer.active and peer.id not in away)
    record = witness.last
    for entry in result.removed:
        check_removal(environment, entry, room)
    check_agreement(honest, result)
    check_members(environment, record, room)
    check_probation(environment, record, result, room)
    check_bound(witness, room)
    check_cost(environment, driver, watch, record, result.sent)
    check_parts(environment, driver, record, result, room)
    check_radius(environment, witness, record, room)
    check_healing(environment, driver, witness, result, past)


def check_removal(environment: Environment, entry: Entry, room: Room) -> None:
    """No honest peer is removed except with a Byzantine one, or for its own documented absence."""
    wronged = set(entry.peers) - room.members
    if not wronged:
        return
    dropped = {peer for peer, step, _ in environment.drops if step == entry.step}
    if wronged <= dropped and entry.kind in ("silent", "undelivered"):
        return
    taken = set(entry.peers) & room.members
    if entry.verdict == "eliminated" and len(entry.peers) == 2 and len(wronged) == 1 and not taken & room.spent:
        room.spent |= taken
        return
    raise Broken("honest peer removed", f"{entry.kind} ({entry.verdict}): peers {sorted(wronged)}: {entry.to_json()}")


def check_agreement(honest: list[Any], result: StepResult) -> None:
    """Equal ledgers, coins, radii and bounds; finite parameters."""
    seen = {
        (
            peer.ledger.head,
            tuple(peer.coins),
            peer.active,
            peer.tau,
            peer.byzantine,
            str(sorted(peer.absences.items())),
            tuple(sorted(peer.probation.items())),
            str(sorted(peer.taus.items())) if peer.config.heal != "off" else "",
        )
        for peer in honest
    }
    if len(seen) != 1:
        names = ("ledger", "coins", "active", "tau", "b_t", "absences", "probation", "earlier radii")
        differ = [name for i, name in enumerate(names) if len({state[i] for state in seen}) > 1]
        raise Broken("agreement", f"honest peers end the step with different {', '.join(differ)}")
    if not bool(torch.isfinite(result.gradient).all()):
        raise Broken("finite", "the agreed gradient is not finite")


def check_members(environment: Environment, record: StepRecord, room: Room) -> None:
    """Every honest peer whose messages arrive is in the step."""
    away = {peer for peer, step in environment.away if step == record.step} | unheard_in(environment, record)
    there = set(record.active) - room.members - away - set(record.expelled)
    lost = there - set(record.here or ())
    if lost:
        raise Broken("membership", f"honest peers {sorted(lost)} are not among the members")


def check_probation(environment: Environment, record: StepRecord, result: StepResult, room: Room) -> None:
    """No newcomer becomes a member unless an honest one has checked it since its probation last began."""
    hindered = {peer for peer, step in (*environment.away, *environment.late) if step == record.step}
    hindered |= unheard_in(environment, record)
    idle = room.members | hindered | set(record.expelled)
    room.checked[record.step] = {
        target
        for validator, target in record.assignments.items()
        if target in record.standings and validator not in idle
    }
    for entry in result.removed:
        if entry.kind == GRADUATED:
            began = record.step - record.standings[entry.accused].served
            if not any(entry.accused in room.checked.get(step, ()) for step in range(began, record.step + 1)):
                raise Broken("probation", f"peer {entry.accused} is a member, and no honest one has checked its work")


def check_bound(witness: Any, room: Room) -> None:
    """b_t is at least the number of remaining Byzantine peers."""
    left = room.members & set(witness.active)
    if witness.byzantine < len(left):
        raise Broken("bound", f"b_t is {witness.byzantine}, and {len(left)} Byzantine peers are left")


def check_cost(
    environment: Environment, driver: Any, watch: Watch, record: StepRecord, sent: Mapping[int, int]
) -> None:
    """Tosses and rounds, bytes that are read and sent (`sent`: peer -> bytes in the step), gradients recomputed."""
    hostile = sum(1 for peer in record.active if peer in watch.room.members)
    tosses = 1 + hostile + sum(1 for _, step, _ in environment.drops if step == record.step)
    if watch.tosses > tosses:
        raise Broken("tosses", f"the coin was tossed {watch.tosses} times with {hostile} Byzantine peers")
    if watch.chosen:
        raise Broken("coin", watch.chosen)
    most = most_effects(len(record.active) + len(record.standings), tosses, driver.config.rounds)
    if watch.effects > most:
        raise Broken("rounds", f"an honest peer took {watch.effects} effects to the end of the step, not {most}")
    pairs = environment.validators + bool(record.standings)
    if watch.judged > pairs:
        raise Broken("recomputed", f"a judge recomputed {watch.judged} gradients, {pairs} pairs were drawn")
    allowed = 8 * 4 * environment.d + 2**16
    if watch.evidence > allowed:
        raise Broken("evidence", f"up to {watch.evidence} bytes of evidence would be read from one peer, not {allowed}")
    if watch.unread:
        raise Broken("limits", f"an honest message is too long to be read: {watch.unread}")
    if watch.burden:
        raise Broken("load", f"more than `loads.py` says: {watch.burden}")
    for peer, due in watch.due.items():
        if sent.get(peer, 0) > due:
            raise Broken("load", f"peer {peer} sent {sent[peer]} bytes in the step, not {due}")


def check_parts(environment: Environment, driver: Any, record: StepRecord, result: StepResult, room: Room) -> None:
    """A part that is applied is the right one, or within the documented bound of an honest worker's."""
    config = driver.config
    for part in range(record.cut.k):
        value = record.cut.view(result.gradient, part)
        entry, owner = record.announced.get(part), record.owner(part)
        counts = part in record.aggregates and part not in record.skipped
        if not counts:
            if bool((value != 0).any()):
                raise Broken("skipped part", f"part {part} is skipped, and yet not zero")
            _check_skipped(environment, record, part, room)
            continue
        assert entry is not None
        rows = {i: row for i in entry.senders if (row := _row(driver, record, part, i, room)) is not None}
        honest = {i: row for i, row in rows.items() if i not in room.members}
        if not honest:
            raise Broken("liars' part", f"part {part} of {owner} has the rows of Byzantine peers {entry.senders} alone")
        known = len(rows) == len(entry.senders)
        x = torch.stack([rows[i] for i in sorted(rows)])
        if (
            owner not in room.members
            and known
            and not _is_solution(config, record.cut, value, x, record.tau, exactly=True)
        ):
            raise Broken("wrong part", f"honest owner {owner} has part {part} wrong")
        right = known and _is_solution(config, record.cut, value, x, record.tau, exactly=False)
        if right and len(entry.senders) > 2 * record.byzantine:
            continue
        sizes = [float(row.double().norm()) for row in honest.values()]
        reach = config.delta_max if config.delta_max is not None else 10 * max(sizes) + record.tau
        nearest = min(float((value.double() - row.double()).norm()) for row in honest.values())
        if nearest > reach * (1 + 1e-3) + 1e-12:
            raise Broken(
                "far-off part",
                f"part {part} of {owner} is {nearest:.3g} from the nearest honest one; allowed are {reach:.3g}"
                f" ({'right' if right else 'wrong' if known else 'unknown rows'}, senders {entry.senders})",
            )


def _is_solution(config: Any, cut: Split, value: torch.Tensor, x: torch.Tensor, tau: float, *, exactly: bool) -> bool:
    """Whether `value` [p] is CenteredClip of x [k, p], to the documented accuracy."""
    if torch.equal(cut.travelled("aggregate", centered_clip(x, tau, tol=config.tol).value), value):
        return True
    eps, quantum = (2 * half.ROUNDING, half.QUANTUM) if "aggregate" in cut.halved else (0.0, 0.0)
    residual, floor = residual_and_floor(x, value, tau, eps=eps, quantum=quantum)
    return not (exactly and config.validation == "exact") and residual <= max(config.residual_tol, floor)


def _row(driver: Any, record: StepRecord, part: int, sender: int, room: Room) -> torch.Tensor | None:
    """What `sender` committed to for `part` [p]; None if nobody knows."""
    gradient = room.noted(record.step, ("gradient",)).get(sender)
    committed = record.commits.get(sender)
    if gradient is not None and committed is not None and gradient.shape == (record.cut.d,):
        body = record.cut.body("part", record.cut.view(gradient, part))
        if driver.commitments.digest("part", sender, record.step, part, body) == committed.digests[part]:
            return half.values_of(body)
    owner = driver.peers.get(record.owner(part))
    last = owner.last if owner is not None else None
    packet = last.received.get(part, {}).get(sender) if last is not None else None
    return half.values_of(packet.body) if packet is not None and isinstance(packet.body, torch.Tensor) else None


def _check_skipped(environment: Environment, record: StepRecord, part: int, room: Room) -> None:
    """A part of an honest owner that is there is skipped only for a documented reason."""
    owner, entry = record.owner(part), record.announced.get(part)
    strict = 2 * environment.byzantine < environment.peers - environment.validators - bool(record.standings) - len(
        missing_at(environment, record.step)
    )
    if owner < 0 or owner in room.members or owner in record.expelled or not strict or environment.loss:
        return
    if environment.drops or environment.late or entry is None:
        return
    left_out = set(record.workers) - set(entry.senders)
    if left_out & set(record.expelled) or len(entry.senders) <= 2 * record.byzantine:
        return
    raise Broken("honest part skipped", f"part {part} of honest peer {owner} is skipped; expelled {record.expelled}")


def check_radius(environment: Environment, witness: Any, record: StepRecord, room: Room) -> None:
    """`tau: auto`: the next radius lies between two distances that honest workers reported to honest owners.

    Where so many are away that liars' distances could decide, between one of these and the radius before.
    """
    if environment.tau != "auto" or witness.tau in (record.tau, *witness.taus.values()):
        return
    parts = [j for j in record.announced if record.owner(j) not in room.members and j not in record.skipped]
    said = [
        report.norms[j]
        for i, report in record.reports.items()
        if i not in room.members
        for j in parts
        if i in record.announced[j].senders
    ]
    counted = [record.announced[j] for j in record.announced if j not in record.skipped]
    senders = min((len(set(entry.senders) - record.expelled.keys()) for entry in counted), default=0)
    few = witness.config.tau_quantile * senders <= record.byzantine or len(counted) <= 2 * record.byzantine
    allowed = [*said, record.tau] if few else said
    if said and not min(allowed) <= witness.tau <= max(allowed):
        raise Broken("radius", f"tau {witness.tau:.3g} is outside of [{min(allowed):.3g}, {max(allowed):.3g}]")


def check_healing(
    environment: Environment, driver: Any, witness: Any, result: StepResult, past: Mapping[int, torch.Tensor]
) -> None:
    """After a member was removed the run goes back to the state that honest peers find best, if clearly better.

    Where honest peers fell silent, or messages are lost, there may be no majority for it. There never is one for a
    state that is not clearly better.
    """
    config, entries, record, now = driver.config, witness.ledger.entries, witness.last, result.step
    due = candidates(config, entries, now)
    found = [entry for entry in entries if entry.step == now and entry.kind == HEALED]
    if len(found) != bool(due):
        raise Broken("healing", f"{len(found)} choices in step {now}, with {len(due)} earlier states")
    if not found:
        return
    [entry], steps = found, (*due, now)
    if not now - window(config) <= entry.about_step <= now:
        raise Broken("healing", f"step {now} goes back to step {entry.about_step}, farther than {window(config)}")
    seed = batch_seed(config.run_id, now, record.coin)
    digests = tuple(State({PARAMETERS: past[step]}, {}).digest() for step in steps)
    values = torch.stack([driver.task.public_losses(past[step], seed) for step in steps])
    truth = measured(Losses(digests, values))
    right = choose(record.members, steps, dict.fromkeys(record.members, truth))
    clearly = {step for step, bound in zip(due, truth.bounds, strict=True) if bound < 0}
    if entry.about_step not in (now, *clearly):
        raise Broken("healing", f"step {now} goes back to step {entry.about_step}; better are {sorted(clearly)}")
    heard = not environment.loss and now not in [step for _, step, _ in environment.drops]
    losses = {str(step): loss for step, loss in right.losses.items()}
    if heard and (entry.about_step, entry.losses) != (right.step, losses):
        raise Broken("healing", f"step {now} goes on from step {entry.about_step}, not {right.step}: {entry.losses}")
    state = result.state.get(PARAMETERS)
    if (now if result.back_to is None else result.back_to) != entry.about_step:
        raise Broken("healing", f"step {now} goes back to {result.back_to}, the ledger says {entry.about_step}")
    if result.back_to is not None and (state is None or not torch.equal(state, past[result.back_to])):
        raise Broken("healing", f"the state gone back to is not that of step {result.back_to}")


def allowed_end(environment: Environment, error: Exception, peers: Mapping[int, Any], room: Room) -> bool:
    """Whether the run may stop in this way: so many honest peers are away that half of all could be silent, or so many
    have no gradient that all that work could be Byzantine.

    Never where the honest peers and their links are well, and stay so.
    """
    honest = [peer for peer in peers.values() if not peer.behaviour.byzantine and peer.id in peer.active]
    if not honest:
        return False
    record = honest[0].current
    if is_calm(environment, record.step):
        return False
    away = {peer for peer, step in environment.away if step == record.step}
    away |= unheard_in(environment, record)
    late = {peer for peer, step in environment.late if step == record.step}
    there = [i for i in record.active if i not in room.members and i not in away]
    if isinstance(error, NoQuorum):
        if any(faint.step == record.step and faint.phase != "commit" for faint in environment.faint):
            return True  # a peer that agreed on something else in `join` takes the others' state, which ends a run
        return 2 * len(there) <= len(record.active)
    if isinstance(error, NoGradient):
        working = [i for i in there if i not in late and i not in record.assignments]
        return not working or (len(working) <= record.byzantine and bool(late.intersection(there)))
    return False


def check_audit(ledger: Sequence[Entry], found: Sequence[Entry]) -> None:
    """An auditor arrives at the ledger's entries, one by one."""
    for number, (entry, other) in enumerate(zip_longest(ledger, found), start=1):
        if entry != other:
            said, true = (None if one is None else one.to_json() for one in (other, entry))
            raise Broken("audit", f"line {number}: the audit has {said}, the ledger {true}")


def check_finite(params: torch.Tensor) -> None:
    if not math.isfinite(float(params.double().sum())):
        raise Broken("finite", "the parameters are not finite")
