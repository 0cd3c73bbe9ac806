"""Section 7: peers that join. Admission by broadcast, the probation, and the state that a newcomer downloads.

A newcomer on probation commits to the gradients of its public batches and is validated like a worker, but nothing of it
goes into an aggregate, the coin or a vote: who wants an identity that counts has to work for it first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from btard.protocol.effects import Effect
from btard.protocol.exchange import find_packet, packet_fault, packet_limit
from btard.protocol.hashing import DIGEST_SIZE, digest, stream, tensor_digest
from btard.protocol.identity import Identity, verify_key
from btard.protocol.ledger import Entry
from btard.protocol.messages import PACKET_OVERHEAD, Join, Packet
from btard.protocol.record import StepRecord

if TYPE_CHECKING:
    from btard.protocol.peer import Peer

ADMITTED, GRADUATED = "join", "member"
"""Kinds of the ledger's entries that add a peer; they remove nobody."""

WAITING = 1024
"""Requests that a member keeps; more than that are refused until some are admitted."""


@dataclass(frozen=True)
class Probation:
    """How far a newcomer is. Everybody counts the same, for all of it follows from broadcasts."""

    served: int = 0
    """Steps in a row whose gradient it committed to."""
    missed: int = 0
    """Commit phases in a row that it missed; one of them starts its probation again."""
    cleared: frozenset[int] = frozenset()
    """Members that recomputed one of its gradients and had nothing to say against it."""


def admit(peer: Peer, record: StepRecord) -> Generator[Effect, Any, None]:
    """Members name the requests they hold; the roster grows by those of the agreed view that there is room for.

    Who is named by most members comes first, and members name the oldest requests they hold: so an honest newcomer that
    has asked everybody is not crowded out by keys made to order. Among equals the hash with the last coin decides.
    A key that was ever in the roster stays out.
    """
    most = peer.config.max_newcomers
    oldest = [request for key, request in peer.requests.items() if key not in peer.roster.keys][:most]
    messages = yield from peer.broadcast(record, "join", Join, Join(tuple(oldest)), expected=())
    named: Counter[bytes] = Counter()
    for sender, message in messages.items():
        if len(message.requests) > most or not all(r.authentic(peer.config.run_id) for r in message.requests):
            peer.expel(record, sender, "malformed_join")
        else:
            named.update({request.key for request in message.requests} - set(peer.roster.keys))
    room = min(most, peer.d - len(record.remaining) - len(peer.probation))  # every member is to own a part one day
    order = sorted(named, key=lambda key: (-named[key], digest("newcomer", record.previous_coin, key)))
    for key in order[: max(0, room)]:
        newcomer = len(peer.roster.keys)
        peer.roster = peer.roster.grown(key)
        peer.probation[newcomer] = Probation()
        _note(peer, record, ADMITTED, newcomer, key.hex())
    peer.requests = {key: request for key, request in peer.requests.items() if key not in peer.roster.keys}


def bring_up(peer: Peer, record: StepRecord) -> Generator[Effect, Any, None]:
    """Give the step's aggregates to the newcomers, who take no part in making them but have to apply them.

    Owners send theirs; what does not arrive intact a newcomer gets from the next `byzantine` + 1 members after the
    owner, one of whom is honest. More do not answer, so that asking cannot be used to make everybody send.
    """
    cut, newcomers = record.cut, record.newcomers
    usable = [part for part in record.announced if part not in record.skipped]
    behaviour, ctx = peer.behaviour_at(record), peer.context(record)
    outgoing: dict[int, list[Packet]] = {newcomer: [] for newcomer in newcomers}
    for part in usable:
        if record.owner(part) == peer.id and part in record.aggregates:
            for recipient, sent in outgoing.items():
                body = behaviour.aggregate_for(ctx, recipient, part, record.aggregates[part])
                if body is not None:
                    sent.append(Packet("aggregate", peer.id, record.step, part, body, b""))
    limit = packet_limit(record, usable)
    arrived = yield from peer.send(record, "bring_up", {i: p for i, p in outgoing.items() if p}, limit=limit)
    for part in usable:
        _take(peer, record, find_packet(arrived, record.owner(part), "aggregate", record.step, part), part)

    lacking = [part for part in usable if part not in record.aggregates]
    asked: dict[int, list[Packet]] = {}
    for part in lacking if peer.id in newcomers else ():
        for helper in _helpers(peer, record, part):
            asked.setdefault(helper, []).append(Packet("lacking", peer.id, record.step, part, b"", b""))
    questions = yield from peer.send(record, "lacking", asked, limit=len(usable) * PACKET_OVERHEAD)
    answers: dict[int, list[Packet]] = {}
    for newcomer in newcomers if peer.id in record.remaining else ():
        for part in {packet.part for packet in questions.get(newcomer, ()) if packet.kind == "lacking"} & set(usable):
            if part in record.aggregates and peer.id in _helpers(peer, record, part):
                body = behaviour.forward(ctx, newcomer, part, record.aggregates[part])
                if body is not None:
                    packet = Packet("aggregate", record.owner(part), record.step, part, body, b"")
                    answers.setdefault(newcomer, []).append(packet)
    arrived = yield from peer.send(record, "forward", answers, limit=sum(8 * cut.size(j) + 256 for j in usable))
    for packets in arrived.values():
        for packet in packets:
            if packet.part in lacking:
                _take(peer, record, packet, packet.part)


def _take(peer: Peer, record: StepRecord, packet: Packet | None, part: int) -> None:
    """Keep an aggregate that is the announced one, whoever brought it."""
    if part in record.aggregates or packet is None or packet.kind != "aggregate":
        return
    fault = packet_fault(peer, packet, record.announced[part].digest, record.cut.size(part), "aggregate")
    if fault is None and isinstance(packet.body, torch.Tensor):
        record.aggregates[part] = packet.body


def _helpers(peer: Peer, record: StepRecord, part: int) -> list[int]:
    """The members after the owner of `part`, cyclically, `byzantine` + 1 of them."""
    members = record.remaining
    after = [p for p in members if p > record.owner(part)] + [p for p in members if p < record.owner(part)]
    return after[: peer.config.byzantine + 1]


def count_probation(peer: Peer, record: StepRecord) -> tuple[int, ...]:
    """Bring the newcomers' standing up to the end of the step; returns those that are members from now on, ascending.

    It takes `probation` steps of commitments in a row and clean checks by more than `byzantine` different members, so
    by an honest one: else colluding validators could let their Sybils through who never computed anything.
    """
    for validator, target in record.assignments.items():
        standing = peer.probation.get(target)
        if standing is not None and validator in record.remaining and target not in record.expelled:
            cleared = standing.cleared | {validator}
            peer.probation[target] = Probation(standing.served, standing.missed, cleared)
    for newcomer in record.newcomers:
        standing = peer.probation[newcomer]
        if newcomer in record.commits:
            peer.probation[newcomer] = Probation(standing.served + 1, 0, standing.cleared)
        else:
            peer.probation[newcomer] = Probation(missed=standing.missed + 1)
            if standing.missed + 1 >= peer.config.max_absences:
                peer.expel(record, newcomer, "gone")
    checks = min(peer.config.byzantine + 1, len(record.remaining))
    graduates = tuple(
        newcomer
        for newcomer in record.newcomers
        if peer.probation[newcomer].served >= (peer.config.probation or 0)
        and len(peer.probation[newcomer].cleared) >= checks
    )
    for newcomer in graduates:
        _note(peer, record, GRADUATED, newcomer)
    gone = {*graduates, *record.expelled}
    peer.probation = {i: standing for i, standing in sorted(peer.probation.items()) if i not in gone}
    return graduates


def draw_check(
    coin: bytes,
    newcomers: Mapping[int, Iterable[int]],
    active: tuple[int, ...],
    assignments: Mapping[int, int],
) -> dict[int, int]:
    """{validator: newcomer}: one more pair drawn from r^t while anybody is on probation, beside the `assignments`.

    `newcomers`: those with work of step t, and who has cleared them; each is as likely as the other, whatever is known
    of it, so that nobody can tell when it will be checked. A validator that has not checked it yet goes first. None if
    that would leave no worker.
    """
    free = [p for p in active if p not in assignments and p not in assignments.values()]
    if not newcomers or not free or len(active) - len(assignments) < 2:
        return {}
    rng = stream("newcomer check", coin)
    target = sorted(newcomers)[int(rng.integers(len(newcomers)))]
    unused = [p for p in free if p not in set(newcomers[target])] or free
    return {unused[int(rng.integers(len(unused)))]: target}


def _note(peer: Peer, record: StepRecord, kind: str, newcomer: int, evidence: str = "") -> None:
    """Write to the ledger that a peer was added: its head covers the roster, and every signature covers its head."""
    peer.ledger.append(
        Entry(record.step, kind, "public", newcomer, accusers=(), peers=(), about_step=record.step, evidence=evidence)
    )


# The download.


class WrongState(ValueError):
    """A state that is not the one most members vouch for, or that too few vouch for at all."""


@dataclass(frozen=True)
class Download:
    """What a newcomer gets from one member: the agreed state as JSON, and the tensors of the training, by name.

    Nothing of it is looked into before its digest is the one that the majority signed.
    """

    state: bytes
    tensors: Mapping[str, torch.Tensor]

    def digest(self, run_id: str) -> bytes:
        """H of all of it; reads every tensor once."""
        return state_digest(run_id, self.state, {name: tensor_digest(x, name) for name, x in self.tensors.items()})


def state_digest(run_id: str, state: bytes, tensors: Mapping[str, bytes]) -> bytes:
    """H(run, state, name and digest of each tensor): what members vouch for. `tensors`: name -> `tensor_digest`."""
    return digest("state", run_id, state, *(field for name in sorted(tensors) for field in (name, tensors[name])))


@dataclass(frozen=True)
class Vouch:
    """A member's signed word on the digest of the state, given to the newcomer with this key alone."""

    member: int
    digest: bytes
    signature: bytes

    @classmethod
    def create(cls, identity: Identity, run_id: str, member: int, newcomer: bytes, hashed: bytes) -> Vouch:
        return cls(member, hashed, identity.sign(_vouched(run_id, member, newcomer, hashed)))

    def authentic(self, key: bytes, run_id: str, newcomer: bytes) -> bool:
        """Whether the member with public key `key` signed this for `newcomer`."""
        if not isinstance(self.digest, bytes) or len(self.digest) != DIGEST_SIZE:
            return False
        return verify_key(key, _vouched(run_id, self.member, newcomer, self.digest), self.signature)


def _vouched(run_id: str, member: int, newcomer: bytes, hashed: bytes) -> bytes:
    return digest("vouch", run_id, member, newcomer, hashed)


def agreed_digest(run_id: str, newcomer: bytes, members: Mapping[int, bytes], vouches: Iterable[Vouch]) -> bytes:
    """The state digest that more than half of `members` (number -> public key) have signed for `newcomer`.

    Who the members are a newcomer has to know from elsewhere, as it has to know whom to ask to join: a state cannot
    vouch for its own witnesses. A member that signed several digests counts for none.
    Errors: WrongState if no digest has a majority.
    """
    said: dict[int, set[bytes]] = {}
    for vouch in vouches:
        if vouch.member in members and vouch.authentic(members[vouch.member], run_id, newcomer):
            said.setdefault(vouch.member, set()).add(vouch.digest)
    votes = Counter(hashed for digests in said.values() if len(digests) == 1 for hashed in digests)
    for hashed, count in votes.items():
        if 2 * count > len(members):
            return hashed
    raise WrongState(
        f"no state has the signatures of more than half of the {len(members)} members, only of "
        f"{max(votes.values(), default=0)}: ask again in the next step"
    )


def check_download(download: Download, donor: int, agreed: bytes, run_id: str) -> None:
    """WrongState, naming the donor, unless `download` is the state of digest `agreed`. Reads the tensors once."""
    hashed = download.digest(run_id)
    if hashed != agreed:
        raise WrongState(
            f"peer {donor} served the state {hashed.hex()[:16]}, but the majority of the members vouch for "
            f"{agreed.hex()[:16]}: take nothing of it and ask another member"
        )
