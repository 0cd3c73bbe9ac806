"""What a peer has heard in one phase of broadcasts, and what follows from that alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from btard.protocol.hashing import digest
from btard.protocol.identity import Roster
from btard.protocol.memory import Memory, remembered
from btard.protocol.messages import P
from btard.protocol.signed import Signed
from btard.protocol.wire import Malformed, Message

R = TypeVar("R")

EQUIVOCATION, MALFORMED = "equivocation", "malformed"
AGAIN = "/again"
"""End of the name of a phase in which all say once more what not all had said upon the same."""


class Hearing:
    """All genuine messages of a phase: sender -> digest -> message, one per sender unless it has two faces.

    Peers of one process share it (`first_heard`), so nobody changes it or what it returns.
    """

    def __init__(self, said: Mapping[int, Mapping[bytes, Signed]]) -> None:
        self.said = said
        self.messages = {sender: tuple(of_sender.values()) for sender, of_sender in said.items()}
        self._known: dict[Any, Any] = {}

    def once(self, function: Callable[..., R], *args: Any) -> R:
        """`function(self, *args)`, a pure function of hashable arguments: computed by the first that asks."""
        key = (function, args)
        if key not in self._known:
            self._known[key] = function(self, *args)
        found: R = self._known[key]
        return found

    @cached_property
    def view(self) -> bytes:
        """All of it in one digest: each sender's message or, for a sender that said two things, only its number.

        Not which two: honest peers may have kept different ones of its many faces, and come to the same step.
        """
        fields: list[int | bytes] = []
        for sender, said in sorted(self.said.items()):
            fields += said if len(said) == 1 else [sender]
        return digest("heard", *fields)


def opened(heard: Hearing, kind: type[Message], limit: int, memory: Memory) -> Mapping[int, Any]:
    """Sender -> its message as a `kind` of at most `limit` bytes, or the word EQUIVOCATION or MALFORMED."""
    return {sender: _open(said, kind, limit, memory) for sender, said in heard.messages.items()}


def well_formed(
    heard: Hearing, speakers: tuple[int, ...], kind: type[P], limit: int, memory: Memory
) -> Mapping[int, P]:
    """The messages of `speakers` that are a `kind`, in their order."""
    read = heard.once(opened, kind, limit, memory)
    return {sender: read[sender] for sender in speakers if isinstance(read.get(sender), kind)}


def _open(said: tuple[Signed, ...], kind: type[Any], limit: int, memory: Memory) -> Any:
    if len(said) > 1:
        return EQUIVOCATION
    try:
        return said[0].open(kind, limit, memory)
    except Malformed:
        return MALFORMED


@dataclass
class Heard:
    """A phase of broadcasts in which everybody has spoken, and what is known of it so far.

    First what this peer has heard itself, `direct`. Along with a later message, or in one of their own, all compare it;
    after that `agreed` is what all honest peers have heard. Who writes to it:

        seat.py: speakers, direct, agreed, certified, vouched_plainly
        broadcast.py: agreed, certified
        audit/observer.py: speakers, direct, agreed, certified
    """

    phase: str
    limit: int
    """The largest message that is read."""
    speakers: tuple[int, ...]
    """Whose messages `direct` has."""
    came: Mapping[int, Any]
    """What came from each peer, unchecked."""
    direct: Hearing
    agreed: Hearing | None = None
    certified: bool = False
    """Whether all honest peers have heard the same directly, and know that. What a peer has said in the meantime then
    follows from what is agreed. All honest peers know the same of it."""
    vouched_plainly: bool = True
    """Whether this peer tells everybody what it has heard: a Byzantine one may not."""


@dataclass
class FirstHeard:
    """The result, shared by peers that received the same messages. None: nobody has evaluated them yet."""

    hearing: Hearing | None = None
    came: tuple[Any, ...] = ()
    """These messages: kept, so that no other object gets their ids."""


@remembered(32)
def first_heard(
    context: bytes, phase: str, limit: int, senders: tuple[int, ...], roster: Roster, came: tuple[int, ...]
) -> FirstHeard:
    """`came`: the `id` of what came from each of the `senders`."""
    return FirstHeard()
