"""What a peer remembers of one step, in the groups in which it is kept and handed on, and their one form in JSON.

A verdict about step t can fall at t + 1, so a peer keeps the record of the step before. Checkpoints, proofs and the
downloads of newcomers hold a step as what `to_json` makes of these groups: a new field is added here and nowhere else.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta, Struct

from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import digest, signed_digest
from btard.protocol.messages import NOBODY, AnnouncedPart, Claim, Commit, Report
from btard.protocol.signed import Packet, Signed, Vouch
from btard.protocol.split import Split
from btard.protocol.wire import Number

Radius = Annotated[float, Meta(gt=0)]
Phase = Annotated[str, Meta(max_length=64, pattern=r"^[ -~]*\Z")]


@lru_cache
def settings_digest(config: ProtocolConfig) -> bytes:
    """Of all settings, 32 bytes: what signatures are bound to. Equal numbers count as equal, 10 and 10.0 too.

    Later settings only where they are set: a run without one is what it was before there was such a setting, also to
    an audit.
    """
    plain = {name: float(value) if type(value) is int else value for name, value in asdict(config).items()}
    for name, unset in (("max_away", None), ("wire", "float32")):
        if plain[name] == unset:
            del plain[name]
    return digest("settings", json.dumps(plain, sort_keys=True))


class Probation(Struct, frozen=True, forbid_unknown_fields=True):
    """How far a newcomer is. All peers count the same, because all of it follows from broadcasts."""

    served: Number
    """Consecutive steps whose gradient it committed to."""
    missed: Number
    """Weight of the commit phases that it missed since its last clean check; one starts its probation again."""
    cleared: frozenset[Number]
    """Members that checked one of its gradients and had nothing to say about it."""


class Start(Struct, forbid_unknown_fields=True):
    """The state at the start of a step that all honest peers agree on; every signature of the step is bound to it."""

    step: Number
    active: tuple[Number, ...]
    """A_t, ascending."""
    assignments: dict[Number, Number]
    """V_t: validator -> its target, a worker of step t - 1."""
    previous_coin: bytes
    """r^{t-1}, the seed of this step's batches."""
    tau: Radius = math.inf
    """The clipping radius of this step, whenever the step is judged; inf clips nothing."""
    head: bytes = b""
    """The ledger's head."""
    absences: dict[Number, Number] = {}
    """Peer -> its count of absences, see `commit.py`."""
    standings: dict[Number, Probation] = {}
    """Newcomer on probation -> how far it is."""
    epoch: bytes = b""
    """Which life of the run this is: peers that repeat steps after a common restart begin another one."""

    def binding(self, config: ProtocolConfig) -> bytes:
        """What a signature of the step is bound to: the version of the protocol, the run's settings, and all of this.

        A message of another step, life, run or version, or of a peer that sees another history, is no message here.
        """
        agreed = msgspec.msgpack.encode(to_json(self, Start), order="deterministic")
        return signed_digest("context", settings_digest(config), agreed)


class Settled(Start):
    """A finished step, as far as it is the same at all honest peers: what members vouch for to a newcomer."""

    # Opened broadcasts.
    commits: dict[Number, Commit] = {}
    """The commitments of the workers, and of the newcomers."""
    announced: dict[Number, AnnouncedPart] = {}
    """Part -> H(a[j]) and the workers that went in."""
    missing: dict[Number, tuple[Number, ...]] = {}
    """Peer -> parts whose aggregate it said it lacks; each of them needs an accusation."""
    reports: dict[Number, Report] = {}
    coin: bytes = b""
    """r^t."""

    # What follows from them.
    workers: tuple[Number, ...] = ()
    """W_t, ascending: the peers that committed and are not on probation."""
    split: Split | None = None
    owners: tuple[Number, ...] = ()
    """owners[j] aggregates part j; NOBODY where the worker that would have owned it is not at work. Nobody inherits a
    part, so that a minority of the workers never owns half of the parts that count."""
    expelled: dict[Number, str] = {}
    """Peers that fell out during this step -> why."""
    here: tuple[Number, ...] | None = None
    """M_t, ascending: the peers of A_t that were heard in the commit phase. Anybody else is out of the step: it says
    nothing that counts, owes nothing, and is tried for nothing that it would have to answer. None: not known yet."""
    unheld: frozenset[Number] = frozenset()
    """Announced parts whose aggregate half of those that spoke at the coin's reveal lacked, or more, or that no
    more than b_t of the members left at the reports have."""
    skipped: set[Number] = set()
    """Parts without a trustworthy aggregate: their parameters get a zero gradient in this step."""

    @property
    def cut(self) -> Split:
        if self.split is None:
            raise RuntimeError(f"step {self.step}: parts are only known once the gradient's size is")
        return self.split

    def held(self, part: int) -> bool:
        """Whether more than half of those that spoke had a[part] before the coin, and more than b_t of them were left.

        Then an honest peer had it, and has passed it on. Only such parts count, and only reports about them can be held
        against anybody: about others honest peers know different things.
        """
        return part not in self.unheld

    def lacking(self, peers: Collection[int]) -> Counter[int]:
        """Part -> how many of the `peers` said before the coin that they lacked its aggregate."""
        return Counter(part for peer, parts in self.missing.items() if peer in peers for part in set(parts))

    def owner(self, part: int) -> int:
        return self.owners[part] if 0 <= part < len(self.owners) else NOBODY

    def attends(self, peer: int) -> bool:
        """Whether `peer`, a newcomer or not, was heard in the roll call: otherwise it need not answer for anything."""
        return peer in (self.commits if peer in self.standings else self.here or ())

    def parts_to_show(self, peer: int, now: Settled) -> tuple[int, ...]:
        """The parts of `peer`'s gradient in this step that must be shown in the step of `now`, ascending.

        All of them. If it is away then, those that it had sent to owners who are here.
        """
        if now.attends(peer):
            return tuple(range(self.cut.k))
        announced = sorted(self.announced.items())
        return tuple(j for j, entry in announced if peer in entry.senders and self.owner(j) in (now.here or ()))


class StepRecord(Settled):
    """One step as one peer sees it: what all agree on (`Start`, `Settled`), the transcript, and what only it holds.

    These files write to it, each to these fields:

        record.py: aggregates, received, own
        peer.py: context, byzantine
        seat.py: phase, heard, expelled
        broadcast.py: vouches
        commit.py: split, commits, here, workers, owners, own, weight
        exchange.py: received, suspects
        aggregate.py: announced, aggregates, suspects
        recover.py: aggregates, unheld, skipped
        coin.py: unheld, missing, coin
        report.py: reports, coin
        verify.py: truths
        disclose.py: disclosed
        accuse.py: trials, shown, informed, skipped, uncleared
        trial.py: shown
        join.py: aggregates
        snapshot.py: byzantine
        audit/recorder.py: heard
    """

    context: bytes = b""
    """`binding` of the run."""
    byzantine: int = 0
    """b_t: how many of A_t may still be Byzantine, by the settings and the ledger (`ledger.still_byzantine`)."""
    phase: str = ""
    """The current broadcast phase."""
    weight: int = 1
    """How much missing this step counts as an absence, in the units of `commit.py`."""

    heard: dict[str, dict[int, tuple[Signed, ...]]] = {}
    """The transcript: phase -> sender -> its message, or both of them. Honest peers hear the same, up to the bytes of
    the signatures."""

    vouches: dict[int, Vouch] = {}
    """Peer -> its signature on what it heard, of the latest comparison."""

    uncleared: set[int] = set()
    """Targets about which their validator says something: that their work is wrong, or that it could not check it."""
    informed: dict[Claim, dict[int, str]] = {}
    """Claim that was tried -> the votes of those that had all the evidence, by their own word."""

    # What this peer alone holds.
    received: dict[int, dict[int, Packet]] = {}
    """Part that this peer owns -> sender -> its packet, as it came (its own part included)."""
    aggregates: dict[int, torch.Tensor] = {}
    """Part -> a[j] that matches its announced hash."""
    truths: dict[int, Mapping[int, Any]] = {}
    """Part that this peer owns -> sender -> what that has to report about it (V1)."""
    own: torch.Tensor | None = None
    """What this peer committed to, [d]: others may ask for it, in the next step too."""
    disclosed: dict[int, torch.Tensor] = {}
    """Part -> what this peer's target committed to in the step before, as it was shown (tolerant validation)."""
    suspects: dict[tuple[str, int, int], Packet | None] = {}
    """(claim kind, accused, part) -> the packet that proves it, None if it never came."""
    trials: dict[int, dict[Claim, tuple[int, ...]]] = {}
    """Round of accusations -> claim that was tried -> its accusers."""
    shown: dict[int, dict[int, tuple[Packet, ...]]] = {}
    """Round of accusations -> peer -> the evidence that this peer has from it."""

    @property
    def probation(self) -> tuple[int, ...]:
        """Newcomers on probation, ascending: they commit and hear everything, and do nothing else (`join.py`)."""
        return tuple(sorted(self.standings)) if self.standings else ()

    @property
    def remaining(self) -> tuple[int, ...]:
        """A_t without the peers that already fell out."""
        return tuple(peer for peer in self.active if peer not in self.expelled) if self.expelled else self.active

    @property
    def members(self) -> tuple[int, ...]:
        """M_t without the peers that already fell out: they may speak, and owe every further broadcast of the step.

        Until the commit phase has shown who is here, all of A_t.
        """
        if self.here is None or len(self.here) == len(self.active):
            return self.remaining
        return tuple(peer for peer in self.here if peer not in self.expelled)

    @property
    def planned(self) -> tuple[int, ...]:
        """Who is to work in this step if it is here, ascending: the j-th of them owns part j."""
        return tuple(peer for peer in self.active if peer not in self.assignments)

    @property
    def honest_work(self) -> bool:
        """Whether an honest peer works in this step: more do than may be Byzantine. No part counts otherwise."""
        return len(self.workers) > self.byzantine

    @property
    def newcomers(self) -> tuple[int, ...]:
        """The newcomers on probation without those that already fell out."""
        return tuple(peer for peer in self.probation if peer not in self.expelled) if self.standings else ()

    @property
    def listeners(self) -> tuple[int, ...]:
        """Peers that apply the step but have no say in it: newcomers, and peers that were not heard in the roll call.

        The members tell them what they agreed on, and give them the aggregates that they lack.
        """
        here = self.active if self.here is None else self.here
        return (*self.newcomers, *(peer for peer in self.remaining if peer not in here))

    @property
    def speakers(self) -> tuple[int, ...]:
        """Whose broadcasts count in the present phase: the members', and the newcomers' commitments."""
        return (*self.members, *self.newcomers) if self.phase == "commit" else self.members

    def committed(self, me: int) -> Iterator[tuple[tuple[str, int, int, int], torch.Tensor, bytes]]:
        """Tensors that peers committed to, as far as still here: (kind, sender, step, part), the tensor and its digest.

        `me`: whose record this is.
        """
        if self.own is not None:
            for part, hashed in enumerate(self.commits[me].digests):
                yield ("part", me, self.step, part), self.cut.body("part", self.cut.view(self.own, part)), hashed
        for part, packets in self.received.items():
            for sender, packet in packets.items():
                if isinstance(packet.body, torch.Tensor):
                    yield ("part", sender, self.step, part), packet.body, self.commits[sender].digests[part]
        for part, value in self.aggregates.items():
            body = self.cut.body("aggregate", value)
            yield ("aggregate", self.owner(part), self.step, part), body, self.announced[part].digest

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the next step still needs of what only this peer holds, by name; not copied."""
        found = {f"aggregate/{part}": value for part, value in self.aggregates.items()}
        for part, packets in self.received.items():
            for sender, packet in packets.items():
                if isinstance(packet.body, torch.Tensor):
                    found[f"received/{part}/{sender}"] = packet.body
        if self.own is not None:  # by parts: where these lie in memory, other peers hold them as received
            found |= {f"own/{part}": self.cut.view(self.own, part) for part in range(self.cut.k)}
        return found

    @classmethod
    def restored(cls, settled: Settled, tensors: Mapping[str, torch.Tensor]) -> StepRecord:
        """The record from the kept `settled` and from what `tensors` returned, which is used without a copy."""
        record = cls(**_fields(settled, Settled))
        for name, tensor in tensors.items():
            what, *numbers = name.split("/")
            if what == "aggregate":
                record.aggregates[int(numbers[0])] = tensor
            elif what == "received":
                part, sender = map(int, numbers)
                # The hash is what proves a disclosed part; the signature was only needed while it could differ.
                packet = Packet("part", sender, record.step, part, tensor, b"")
                record.received.setdefault(part, {})[sender] = packet
        own = [tensors[name] for part in range(record.cut.k) if (name := f"own/{part}") in tensors]
        record.own = torch.cat(own) if own else None
        return record


class Transcript(Start):
    """One step as its broadcasts show it: the agreed state at its start, and the signed messages by phase."""

    messages: dict[Phase, dict[Number, tuple[tuple[bytes, bytes], ...]]] = {}
    """Phase -> sender -> (payload, signature) of its message, or of both of them."""

    @classmethod
    def of(cls, record: StepRecord, phases: Iterable[str] | None = None) -> Transcript:
        """The messages of all phases that the step has gone through, or only of `phases`."""
        said = record.heard if phases is None else {p: record.heard[p] for p in phases if p in record.heard}
        messages = {
            phase: {sender: tuple((m.payload, m.signature) for m in said[phase][sender]) for sender in said[phase]}
            for phase in said
        }
        return cls(**_fields(record, Start), messages=messages)

    def heard(self) -> dict[str, dict[int, tuple[Signed, ...]]]:
        """The messages as a `StepRecord` has them."""
        return {
            phase: {
                sender: tuple(Signed(sender, self.step, phase, *m) for m in of_sender)
                for sender, of_sender in said.items()
            }
            for phase, said in self.messages.items()
        }


def _fields(step: Start, form: type[Start]) -> dict[str, Any]:
    return {name: getattr(step, name) for name in form.__struct_fields__}


def to_json(step: Start, form: type[Start]) -> dict[str, Any]:
    """The fields of `step` that `form` (Start, Settled or Transcript) has, as JSON values; equal for equal fields.

    `wire.convert` makes a `form` of them again.
    """
    kept = form(**_fields(step, form))
    result: dict[str, Any] = msgspec.to_builtins(kept, str_keys=True, order="deterministic")
    return result
