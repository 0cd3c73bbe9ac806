"""Which life of the run begins when its peers gather, with which name, and at which step.

Its name is one that no peer picked and that was never used.

Peers that all stop and go on from a checkpoint repeat steps. What they sign is bound to the life they are in, so that
what they said before is nothing that anybody can hold against them. Each of them brings a nonce of its own, made when
its process started, and takes part in no life without it.

Nonces are told in statuses, over connections whose ends are authenticated, and a nonce counts if most of the members
say that they have heard it: the members by the ledger of a peer's own newest checkpoint, also those that have joined.
The step is the newest of which a peer knows that more honest members have its checkpoint than can lie: members without
it are silent in the first step, and liars must be no majority there. A peer knows it of a step that more than half of
all, and more than twice as many as can lie, say they have. It also knows it of a step that more than can lie say they
have passed. Peers save a checkpoint before they speak in its step, so an honest peer that has done the step has heard
enough that have it. Peers name the step that they see, and to name a step counts as much as to have passed it: if more
than can lie do so, an honest one knows. A peer with two checkpoints has passed the older one, and names none before it.
So liars cost all at most the steps between two checkpoints. Nobody begins where half of all or fewer have the
checkpoint.

Peers begin a life at the same step and time. A peer that begins alone finds nobody in its first phase. So where members
are missing, a peer says that it waits no longer, and settles on a life when enough say so; it says so when its own time
is over, or that of more peers than can lie. A peer that has settled on a life stays with it, and begins when enough
have settled on it. Liars can say to each honest peer that they are in its life. So more than half is not enough: it
takes so many that any two such groups share an honest peer (`Life.enough`), which is in one life alone. No two lives
begin. Liars can keep all from beginning: by silence if the others are not enough, or if they tell peers different
things as these settle, whatever the number of liars. Then all end, and are to be started again. A peer whose own
checkpoint is older than the others' may know of fewer members, so that liars can lead it into a life of their own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from btard.protocol.hashing import digest, tensor_digest
from btard.task import PARAMETERS

NONCE = 16
"""Bytes of a nonce."""
OVERDUE = "overdue"
"""What a peer says of itself that waits no longer for members that are missing."""
SETTLED = "settled"
"""What it says of itself once it stays with the life that it sees."""
GATHERING = ("gathering", "ready", OVERDUE, SETTLED)
"""What it says of itself before it begins."""

_NUMBER = re.compile("0|[1-9][0-9]{0,8}")

Nonces = Mapping[int, bytes]
Seen = tuple[tuple[tuple[int, bytes], ...], int]
"""The nonces of a life, and the step at which it begins."""


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
        """The nonces that most peers say they have heard: those of the life, as this peer sees it."""
        self.begin = 0
        """The step at whose checkpoint it begins, as this peer sees it."""
        self.holding = 0
        """How many, including this peer, say that they have that checkpoint."""
        self.settled = False
        """Whether this peer stays with the life that it sees, unless another one has begun."""

    @property
    def enough(self) -> int:
        """So many members that any two groups of them share an honest one, though liars are in both."""
        return (self.voters + self.tolerated) // 2 + 1

    def hear(
        self, statuses: Mapping[int, Mapping[str, Any]], stored: Iterable[int] = (), passed: Iterable[int] = ()
    ) -> None:
        """Record what the others say about themselves, by number, all of it at once.

        `stored`: the own checkpoints; `passed`: those of which this peer has done the step.
        """
        direct = {peer: _nonce(said.get("nonce")) for peer, said in statuses.items()}
        self.heard = {peer: nonce for peer, nonce in direct.items() if nonce is not None} | {self.me: self.nonce}
        views = [self.heard, *(_nonces(said.get("heard")) for said in statuses.values())]
        disks = [{0, *stored}, *(_steps(said.get("stored")) for said in statuses.values())]
        if not self.settled:
            told = Counter((peer, nonce) for view in views for peer, nonce in view.items())
            self.gathered = {peer: nonce for (peer, nonce), count in sorted(told.items()) if 2 * count > self.voters}
            known = [{*passed, self.begin}]
            known += [_steps(said.get("passed")) | {self._seen_by(said)[1]} for said in statuses.values()]
            self.begin = self._beginning(disks, known)
        for state in ("running",) if self.settled else (SETTLED, "running"):
            seen = Counter(self._seen_by(said) for said in statuses.values() if said.get("state") == state)
            for (nonces, begin), count in seen.items():  # an honest one among them has settled on it, or begun
                if count > self.tolerated and (self.me, self.nonce) in nonces:
                    self.gathered, self.begin = dict(nonces), begin
        self.holding = sum(self.begin in disk for disk in disks)

    def agreeing(self, statuses: Mapping[int, Mapping[str, Any]]) -> int:
        """How many peers, including this one, are in the life that it sees, and see it too; 0 if it is not in it."""
        if self.gathered.get(self.me) != self.nonce:
            return 0
        mine = tuple(self.gathered.items()), self.begin
        return 1 + sum(self._seen_by(said) == mine for said in statuses.values())

    def told(self) -> dict[str, Any]:
        """What a status says about it: JSON values."""
        return {
            "nonce": self.nonce.hex(),
            "heard": {str(peer): nonce.hex() for peer, nonce in self.heard.items()},
            "gathered": {str(peer): nonce.hex() for peer, nonce in self.gathered.items()},
            "begin": self.begin,
        }

    def _beginning(self, disks: Sequence[set[int]], known: Sequence[set[int]]) -> int:
        """By the steps that each member has on its `disks`, this peer first, and those that it has passed or names."""
        safe = {sorted(disks[0])[-2:][0]}
        for told, bound in ((disks, max(self.voters / 2, 2 * self.tolerated)), (known, self.tolerated)):
            safe |= {step for step, count in Counter(s for steps in told for s in steps).items() if count > bound}
        return max(safe)

    def _seen_by(self, said: Mapping[str, Any]) -> Seen:
        """The life as another peer sees it."""
        begin = said.get("begin")
        return tuple(_nonces(said.get("gathered")).items()), begin if type(begin) is int else 0

    def epoch(self, run_id: str, checkpoint: bytes) -> bytes:
        """The name of the life (32 bytes) that begins at the checkpoint with this digest."""
        fields = [field for peer, nonce in sorted(self.gathered.items()) for field in (peer, nonce)]
        return digest("life", run_id, checkpoint, *fields)


def checkpoint_digest(peer: Mapping[str, Any], params: torch.Tensor) -> bytes:
    """The digest of a peer's values in a checkpoint, without what only it holds, and of the parameters [d]."""
    common = json.dumps({name: value for name, value in peer.items() if name != "requests"}, sort_keys=True)
    return digest("checkpoint", common, tensor_digest(params, PARAMETERS))


def _nonces(value: Any) -> dict[int, bytes]:
    """The nonces in a status, ascending by peer; anything that is no nonce is left out.

    A peer whose checkpoint is older does not know all members, and takes their word for who else is there.
    """
    given = value if isinstance(value, dict) else {}
    numbers = sorted(int(peer) for peer in given if _NUMBER.fullmatch(peer))
    known = {peer: _nonce(given[str(peer)]) for peer in numbers}
    return {peer: nonce for peer, nonce in known.items() if nonce is not None}


def _steps(value: Any) -> set[int]:
    """The steps in a list of a status."""
    return {step for step in value if type(step) is int and step >= 0} if isinstance(value, list) else set()


def _nonce(value: Any) -> bytes | None:
    try:
        nonce = bytes.fromhex(value) if isinstance(value, str) and len(value) == 2 * NONCE else b""
    except ValueError:
        return None
    return nonce if len(nonce) == NONCE else None
