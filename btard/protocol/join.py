"""Peers that join: admission by broadcast, and the probation.

A newcomer on probation commits to the gradients of its public batches and is validated like a worker, but nothing of it
goes into an aggregate, the coin or a vote: who wants an identity that counts has to work for it first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Any

import torch

from btard.protocol import loads
from btard.protocol.behaviour import taken
from btard.protocol.effects import Effect, Fetch
from btard.protocol.half import values_of
from btard.protocol.hashing import digest
from btard.protocol.ledger import ADMITTED, GRADUATED, Entry
from btard.protocol.limits import answer_limit, packet_limit, question_limit
from btard.protocol.messages import Join
from btard.protocol.packets import find_packet, packet_fault
from btard.protocol.record import Probation, StepRecord
from btard.protocol.seat import Seat
from btard.protocol.signed import Packet


def admit(seat: Seat, record: StepRecord) -> Generator[Effect, Any, None]:
    """Members name the requests they hold; the roster grows by those of the agreed view for which there is room.

    Who is named by most members comes first, and members name the oldest requests they hold: so an honest newcomer that
    has asked everybody is not crowded out by keys made to order. Among equals the hash with the last coin decides.
    A key that was ever in the roster stays out. No more are on probation at once than there were peers at the start: a
    key costs nothing, a check is one in a step, and whoever comes back every third step is not gone.
    """
    most = seat.config.max_newcomers
    known = set(seat.roster.keys)
    oldest = [request for key, request in seat.requests.items() if key not in known][:most]
    messages = yield from seat.broadcast(record, "join", Join, Join(tuple(oldest)), expected=())
    named: Counter[bytes] = Counter()
    for sender, message in messages.items():
        if len(message.requests) > most or not all(
            r.authentic(seat.config.run_id, seat.memory) for r in message.requests
        ):
            seat.expel(record, sender, "malformed_join")
        else:
            named.update({request.key for request in message.requests} - known)
    room = min(
        most,
        seat.config.peers - len(seat.probation),
        seat.d - len(record.remaining) - len(seat.probation),  # every member is to own a part one day
    )
    order = sorted(named, key=lambda key: (-named[key], digest("newcomer", record.previous_coin, key)))
    for key in order[: max(0, room)]:
        newcomer = len(seat.roster.keys)
        seat.roster = seat.roster.grown(key)
        seat.probation[newcomer] = Probation(0, 0, frozenset())
        _note(seat, record, ADMITTED, newcomer, key.hex())
    known.update(seat.roster.keys)
    seat.requests = {key: request for key, request in seat.requests.items() if key not in known}


def bring_up(seat: Seat, record: StepRecord) -> Generator[Effect, Any, None]:
    """Give the step's aggregates to the listeners, which take no part in computing them but must apply them.

    Owners send theirs to newcomers, as they have sent them to all others. What does not arrive intact a listener gets
    from the next b_t + 1 members after the owner, one of whom is honest. More do not answer, so that asking
    cannot be used to make everybody send. A listener that is behind the others asks in vain: they are past that phase.
    So it then fetches what is still missing from any member that has it.
    """
    newcomers, listeners = record.newcomers, record.listeners
    usable = [part for part in record.announced if part not in record.skipped]
    behaviour, ctx = seat.behaviour_at(record), seat.context(record)
    outgoing: dict[int, list[Packet]] = {newcomer: [] for newcomer in newcomers}
    for part in usable:
        if record.owner(part) == seat.id and part in record.aggregates:
            for recipient, sent in outgoing.items():
                value = record.aggregates[part]
                body = taken(value, behaviour.aggregate_for(ctx, recipient, part, value))
                if body is not None:
                    body = record.cut.body("aggregate", body)
                    sent.append(Packet("aggregate", seat.id, record.step, part, body, b""))
    outgoing = {newcomer: sent for newcomer, sent in outgoing.items() if sent}
    limit = packet_limit(record, [0], "aggregate")
    load = loads.of_bringing_up(record, usable, limit)
    arrived = yield from seat.send(record, "bring_up", outgoing, limit=limit, load=load)
    for part in usable:
        _take(seat, record, find_packet(arrived, record.owner(part), "aggregate", record.step, part), part)

    lacking = [part for part in usable if part not in record.aggregates]
    asked: dict[int, list[Packet]] = {}
    for part in lacking if seat.id in listeners else ():
        for helper in _helpers(record, part):
            asked.setdefault(helper, []).append(Packet("lacking", seat.id, record.step, part, b"", b""))
    helping = record.byzantine + 1
    limit = question_limit(len(usable))
    load = loads.of_questions(record, helping, limit)
    questions = yield from seat.send(record, "ask", asked, limit=limit, load=load)
    answers: dict[int, list[Packet]] = {}
    for listener in listeners if seat.id in record.members else ():
        for part in {packet.part for packet in questions.get(listener, ()) if packet.kind == "lacking"} & set(usable):
            if part in record.aggregates and seat.id in _helpers(record, part):
                value = record.aggregates[part]
                body = taken(value, behaviour.forward(ctx, listener, part, value))
                if body is not None:
                    body = record.cut.body("aggregate", body)
                    packet = Packet("aggregate", record.owner(part), record.step, part, body, b"")
                    answers.setdefault(listener, []).append(packet)
    limit = answer_limit(record, usable)
    load = loads.of_answers(record, usable, helping, limit)
    arrived = yield from seat.send(record, "forward", answers, limit=limit, load=load)
    for packets in arrived.values():
        for packet in packets:
            if packet.part in lacking:
                _take(seat, record, packet, packet.part)
    if missing := tuple(part for part in lacking if part not in record.aggregates):
        limit = packet_limit(record, [0], "aggregate")
        found = yield Fetch(missing, limit, lambda part, packet: _is_announced(seat, record, packet, part))
        for part, packet in found.items():
            _take(seat, record, packet, part)


def _take(seat: Seat, record: StepRecord, packet: Packet | None, part: int) -> None:
    """Keep an aggregate if it is the announced one, whoever sent it."""
    if part not in record.aggregates and packet is not None and _is_announced(seat, record, packet, part):
        assert isinstance(packet.body, torch.Tensor)
        record.aggregates[part] = values_of(packet.body)


def _is_announced(seat: Seat, record: StepRecord, packet: Packet, part: int) -> bool:
    """Whether it is the aggregate of `part` that its owner has announced."""
    if packet.kind != "aggregate" or not isinstance(packet.body, torch.Tensor):
        return False
    return packet_fault(seat, record, packet, record.announced[part].digest, part, "aggregate") is None


def _helpers(record: StepRecord, part: int) -> list[int]:
    """The members after the owner of `part`, cyclically, b_t + 1 of them."""
    members = record.members
    after = [p for p in members if p > record.owner(part)] + [p for p in members if p < record.owner(part)]
    return after[: record.byzantine + 1]


def count_probation(seat: Seat, record: StepRecord) -> tuple[int, ...]:
    """Bring the newcomers' standing up to the end of the step; returns those that are members from now on, ascending.

    It takes `probation` steps of commitments in a row and clean checks by more than b_t different members, so by an
    honest one: else colluding validators could let their Sybils through who never computed anything. They count as long
    as they are members: no more than b_t of these are Byzantine, of all that ever were it can be any number. A
    validator that claims something about its target, or says that it could not check it, has not cleared it.

    Misses count from the last clean check on: in mode `tolerant` a newcomer that is away whenever it is drawn is never
    caught, and would keep its place from others for ever.
    """
    for validator, target in record.assignments.items():
        standing = seat.probation.get(target)
        spoke = validator in record.members and target not in record.uncleared
        if standing is not None and spoke and target not in record.expelled:
            cleared = standing.cleared | {validator}
            seat.probation[target] = Probation(standing.served, 0, cleared)
    for newcomer in record.newcomers:
        standing = seat.probation[newcomer]
        if newcomer in record.commits:
            seat.probation[newcomer] = Probation(standing.served + 1, standing.missed, standing.cleared)
        elif record.honest_work:  # or else nobody may be able to work, see `commit.py`
            missed = standing.missed + record.weight
            seat.probation[newcomer] = Probation(0, missed, frozenset())
            if missed >= seat.config.longest_absence:
                seat.expel(record, newcomer, "gone")
    checks = min(record.byzantine + 1, len(record.remaining))
    graduates = tuple(
        newcomer
        for newcomer in record.newcomers
        if seat.probation[newcomer].served >= (seat.config.probation or 0)
        and len(seat.probation[newcomer].cleared.intersection(record.remaining)) >= checks
    )
    for newcomer in graduates:
        _note(seat, record, GRADUATED, newcomer)
    gone = {*graduates, *record.expelled}
    seat.probation = {i: standing for i, standing in sorted(seat.probation.items()) if i not in gone}
    return graduates


def _note(seat: Seat, record: StepRecord, kind: str, newcomer: int, evidence: str = "") -> None:
    """Write to the ledger that a peer was added: its head covers the roster, and every signature covers its head."""
    entry = Entry(
        record.step, kind, "public", newcomer, accusers=(), peers=(), about_step=record.step, evidence=evidence
    )
    seat.enter(record, entry)
