"""Which life of the run begins when its peers gather, with which name, and at which step.

Its name is one that no peer picked and that was never used.

Peers that all stop and go on from a checkpoint repeat steps. What they sign is bound to the life they are in, so that
what they said before is nothing that anybody can hold against them. Each of them brings a nonce of its own, made when
its process started, and takes part in no life without it.

Nonces are told in statuses, over connections whose ends are authenticated. A nonce counts if more members than can lie
say that they have heard it, so that liars keep no honest peer out; if a peer has two, the one that more have heard
does. The members are those of the ledger of a peer's own newest checkpoint, also those that have joined.

The step is the newest of which a peer knows that more honest members have its checkpoint than can lie, one checkpoint
to the bit: members without it are silent in the first step, and liars must be no majority there. A peer knows it of a
step that more than half of all, and more than twice as many as can lie, say they have. It also knows it of a step that
it has passed itself, or that more than can lie say they have. Peers save a checkpoint before they speak in its step, so
an honest peer that has done the step has heard enough that have it. Peers name the step that they see, and to name a
step counts as much as to have passed it: if more than can lie do so, an honest one knows. So liars cost all at most the
steps between two checkpoints. Nobody begins where half of all or fewer have the checkpoint. A checkpoint does not count
if it is of a life that was left at an earlier step: a machine that was off then has it still, and has passed it. Those
that were there know that it was left, and others believe it if more than can lie say so.

Peers begin a life at the same step and time. A peer that begins alone finds nobody in its first phase. So where members
are missing, a peer says that it waits no longer, and settles on a life when enough say so; it says so when its own time
is over, or that of more peers than can lie. To settle is to sign the life, and a peer signs one alone. A life begins by
a certificate: so many signatures that any two such groups share an honest peer (`Life.enough`), though liars can say to
each honest peer that they are in its life. No two lives begin. A peer that has a certificate shows it, also once it has
begun, and all that are in that life take it over: so liars do not choose which of the honest peers begin. Liars can
keep all from beginning: by silence if the others are not enough, or if they tell peers different things as these
settle, whatever the number of liars. So can, without any liar, a peer that comes just as the others settle, if these
are not enough without those that have seen it. Then all end, and are to be started again. Peers whose newest
checkpoints name other members count differently: liars can lead those that know of fewer into a life of their own.

A restarted peer has a new nonce, and could sign another life. It does not while more members than can lie say that they
run: they are still in the life before, however many have stopped. And nobody begins a life of which so many have been
started again that those that are still in it are not enough: signatures can be kept back until then.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from btard.protocol.hashing import DIGEST_SIZE, digest, signed_digest, tensor_digest
from btard.protocol.identity import SIGNATURE_SIZE, Identity, verify_key
from btard.task import PARAMETERS

NONCE = 16
"""Bytes of a nonce."""
OVERDUE = "overdue"
"""What a peer says of itself that waits no longer for members that are missing."""
SETTLED = "settled"
"""What it says of itself once it stays with the life that it sees."""
BEGINNING = "beginning"
"""What it says of itself once it has a certificate, until all that are there have one."""
GATHERING = ("gathering", "ready", OVERDUE, SETTLED, BEGINNING)
"""What it says of itself before it begins."""

_NUMBER = re.compile("0|[1-9][0-9]{0,8}")

Nonces = Mapping[int, bytes]
Point = tuple[int, bytes, bytes]
"""A step, the digest of its checkpoint, and the name of the life in which that was written."""
Left = Mapping[bytes, int]
"""Name of a life -> the step at which another one has begun instead of it: its later checkpoints do not count."""
MAX_LEFT = 16
"""Lives that a peer remembers to have left."""
START: Point = (0, b"", b"")
"""Where all begin that have no checkpoint."""
Seen = tuple[tuple[tuple[int, bytes], ...], Point]
"""The nonces of a life, and where it begins."""


class Life:
    """What peer `me` knows of the life that is about to begin.

    `voters`: how many members have a say in it; `tolerated`: how many of them may lie.
    """

    def __init__(self, me: int, voters: int, tolerated: int) -> None:
        self.me, self.voters, self.tolerated = me, voters, tolerated
        self.nonce = secrets.token_bytes(NONCE)
        self.heard: Nonces = {me: self.nonce}
        """What each present peer has told this one, and its own nonce."""
        self.gathered: Nonces = {}
        """The nonces that more peers than can lie say they have heard: those of the life, as this peer sees it."""
        self.left: Left = {}
        """The lives that this peer has left."""
        self.begin = START
        """The checkpoint at which it begins, as this peer sees it."""
        self.holding = 0
        """How many, including this peer, say that they have that checkpoint."""
        self.signatures: dict[int, bytes] = {}
        """Of peers that have settled on the life that this one sees; none before it has itself."""

    @property
    def enough(self) -> int:
        """So many members that any two groups of them share an honest one, though liars are in both."""
        return (self.voters + self.tolerated) // 2 + 1

    @property
    def settled(self) -> bool:
        """Whether this peer stays with the life that it sees, unless there is a certificate of another one."""
        return bool(self.signatures)

    @property
    def certified(self) -> bool:
        """Whether this peer has a certificate of the life that it sees."""
        return len(self.signatures) >= self.enough

    @property
    def present(self) -> int:
        """How many of those that are in the life say so themselves: processes that have ended since do not."""
        return sum(self.heard.get(peer) == nonce for peer, nonce in self.gathered.items())

    @property
    def begins(self) -> bool:
        """Whether there is a certificate of the life, and enough of its peers are there still."""
        return self.certified and self.present >= self.enough

    @property
    def _seen(self) -> Seen:
        return tuple(self.gathered.items()), self.begin

    def settle(self, identity: Identity, run_id: str) -> None:
        """Stay with the life that this peer sees."""
        self.signatures = {self.me: identity.sign(_statement(run_id, self._seen))}

    def hear(
        self, statuses: Mapping[int, Mapping[str, Any]], stored: Iterable[Point] = (), passed: Iterable[Point] = ()
    ) -> None:
        """Record what the others say about themselves, by number, all of it at once.

        `stored`: the own checkpoints; `passed`: those of which this peer has done the step.
        """
        direct = {peer: _nonce(said.get("nonce")) for peer, said in statuses.items()}
        self.heard = {peer: nonce for peer, nonce in direct.items() if nonce is not None} | {self.me: self.nonce}
        disks = [{START, *stored}, *(_points(said.get("stored")) for said in statuses.values())]
        if not self.settled:
            views = [self.heard, *(_nonces(said.get("heard")) for said in statuses.values())]
            heard = Counter((peer, nonce) for view in views for peer, nonce in view.items())
            known = sorted((count, peer, nonce) for (peer, nonce), count in heard.items() if count > self.tolerated)
            self.gathered = dict(sorted({peer: nonce for _, peer, nonce in known}.items()))  # of two the one of more
            named = [{*passed, self.begin}]
            named += [_points(said.get("passed")) | {_seen_by(said)[1]} for said in statuses.values()]
            left = [_left(said.get("left")) for said in statuses.values()]
            self.begin = self._beginning(disks, named, {START, *passed}, left)
            settled = Counter(_seen_by(said) for said in statuses.values() if said.get("state") == SETTLED)
            for seen, count in settled.items():  # an honest one among them has settled on it
                if count > self.tolerated and (self.me, self.nonce) in seen[0]:
                    self.gathered, self.begin = dict(seen[0]), seen[1]
        self.holding = sum(self.begin in disk for disk in disks)

    def collect(self, statuses: Mapping[int, Mapping[str, Any]], keys: Mapping[int, bytes], run_id: str) -> None:
        """Keep the signatures on the life that this peer has settled on, or take over a life with enough of them.

        An honest peer shows nothing forged: nothing more is read of one after a false signature.
        """
        for said in [] if self.certified else statuses.values():
            seen = _seen_by(said)
            nonces, statement = dict(seen[0]), _statement(run_id, seen)
            if nonces.get(self.me) != self.nonce:
                continue
            found = dict(self.signatures) if seen == self._seen else {}
            for peer, signature in _settled(said.get("settled")).items():
                if peer in found:
                    continue
                if peer not in nonces or peer not in keys or not verify_key(keys[peer], statement, signature):
                    break
                found[peer] = signature
            if len(found) >= self.enough:
                self.gathered, self.begin, self.signatures = nonces, seen[1], found
                return
            if self.settled and seen == self._seen:
                self.signatures = found

    def agreeing(self, statuses: Mapping[int, Mapping[str, Any]]) -> int:
        """How many peers, including this one, are in the life that it sees, and see it too; 0 if it is not in it."""
        if self.gathered.get(self.me) != self.nonce:
            return 0
        return 1 + sum(_seen_by(said) == self._seen for peer, said in statuses.items() if peer in self.gathered)

    def told(self) -> dict[str, Any]:
        """What a status says about it: JSON values."""
        return {
            "nonce": self.nonce.hex(),
            "heard": {str(peer): nonce.hex() for peer, nonce in self.heard.items()},
            "gathered": {str(peer): nonce.hex() for peer, nonce in self.gathered.items()},
            "begin": said_of([self.begin])[0],
            "left": [[life.hex(), step] for life, step in self.left.items()],
            "settled": {str(peer): self.signatures[peer].hex() for peer in sorted(self.signatures)[: self.enough]},
        }

    def _beginning(
        self, disks: Sequence[set[Point]], named: Sequence[set[Point]], passed: set[Point], left: Sequence[Left]
    ) -> Point:
        """By what each member has on its disks, has passed or names, and what is passed here; `left` by the others."""
        held = Counter(point for disk in disks for point in disk)
        safe = passed | {point for point, count in held.items() if count > max(self.voters / 2, 2 * self.tolerated)}
        counts = Counter(point for points in named for point in points)
        safe |= {point for point, count in counts.items() if count > self.tolerated}
        dead = {
            (step, digest, life)
            for step, digest, life in safe
            if self.left.get(life, step) < step or sum(said.get(life, step) < step for said in left) > self.tolerated
        }
        return max(safe - dead, key=lambda point: (point[0], held[point], point))

    def epoch(self, run_id: str, checkpoint: bytes) -> bytes:
        """The name of the life (32 bytes) that begins at the checkpoint with this digest."""
        fields = [field for peer, nonce in sorted(self.gathered.items()) for field in (peer, nonce)]
        return digest("life", run_id, checkpoint, *fields)


def _statement(run_id: str, seen: Seen) -> bytes:
    """The 32 bytes that a peer signs if it settles on the life `seen`."""
    return signed_digest("settled", run_id, *seen[1], *(field for nonce in seen[0] for field in nonce))


def checkpoint_digest(peer: Mapping[str, Any], params: torch.Tensor) -> bytes:
    """The digest of a peer's values in a checkpoint, without what only it holds, and of the parameters [d]."""
    common = json.loads(json.dumps({name: value for name, value in peer.items() if name != "requests"}))
    return digest("checkpoint", json.dumps(common, sort_keys=True), tensor_digest(params, PARAMETERS))


def said_of(points: Iterable[Point]) -> list[list[Any]]:
    """Checkpoints as JSON values, ascending."""
    return [[step, digest.hex(), life.hex()] for step, digest, life in sorted(points)]


def after(left: Left, life: bytes, step: int) -> dict[bytes, int]:
    """What a peer has left that leaves also `life`, at `step`: the newest `MAX_LEFT` of them."""
    return dict([*((old, at) for old, at in left.items() if old != life), (life, step)][-MAX_LEFT:])


def _seen_by(said: Mapping[str, Any]) -> Seen:
    """The life as another peer sees it."""
    return tuple(_nonces(said.get("gathered")).items()), next(iter(_points([said.get("begin")])), START)


def _nonces(value: Any) -> dict[int, bytes]:
    """The nonces in a status, ascending by peer; anything that is no nonce is left out.

    A peer whose checkpoint is older does not know all members, and takes their word for who else is there.
    """
    given = value if isinstance(value, dict) else {}
    numbers = sorted(int(peer) for peer in given if _NUMBER.fullmatch(peer))
    known = {peer: _nonce(given[str(peer)]) for peer in numbers}
    return {peer: nonce for peer, nonce in known.items() if nonce is not None}


def _points(value: Any) -> set[Point]:
    """The checkpoints in a list of a status."""
    given = [item for item in value if isinstance(item, list) and len(item) == 3] if isinstance(value, list) else []
    known = [
        (step, _bytes(digest, DIGEST_SIZE), _bytes(life, DIGEST_SIZE)) for step, digest, life in given if _is_step(step)
    ]
    start = {START for item in given if type(item[0]) is int and item == [0, "", ""]}
    return start | {(step, digest, life) for step, digest, life in known if digest is not None and life is not None}


def _left(value: Any) -> dict[bytes, int]:
    """The lives in a status that its peer has left."""
    given = [item for item in value if isinstance(item, list) and len(item) == 2] if isinstance(value, list) else []
    known = {_bytes(life, DIGEST_SIZE): step for life, step in given if step == 0 or _is_step(step)}
    return {life: step for life, step in known.items() if life is not None}


def _is_step(value: Any) -> bool:
    """Whether this is the number of a step after the start."""
    return type(value) is int and 0 < value < 2**31


def _settled(value: Any) -> dict[int, bytes]:
    """The signatures in a status, by peer."""
    given = value.items() if isinstance(value, dict) else ()
    known = {int(peer): _bytes(word, SIGNATURE_SIZE) for peer, word in given if _NUMBER.fullmatch(peer)}
    return {peer: signature for peer, signature in known.items() if signature is not None}


def _nonce(value: Any) -> bytes | None:
    return _bytes(value, NONCE)


def _bytes(value: Any, size: int) -> bytes | None:
    """So many bytes from their hex digits; None for anything else."""
    try:
        found = bytes.fromhex(value) if isinstance(value, str) and len(value) == 2 * size else b""
    except ValueError:
        return None
    return found if len(found) == size else None
