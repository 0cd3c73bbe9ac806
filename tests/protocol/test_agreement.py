"""The agreement of one phase of broadcasts, against everything that few Byzantine peers can do in it.

With n = 3 and 4 and one Byzantine peer: every choice of what it says to whom, whose view it signs for whom, and what
it passes on in which round. With n = 5 and two: choices drawn at random, `--seeds N` times as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Any

import pytest
from msgspec.structs import replace

from btard.protocol.certificate import certify
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import QUIET, Broadcast, Compare, Relay
from btard.protocol.hashing import stream
from btard.protocol.hearing import Heard
from btard.protocol.identity import Identity, Roster
from btard.protocol.memory import Memory, remembered
from btard.protocol.messages import CoinReveal
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord
from btard.protocol.signed import Relayed, Signed, Vouch, relay_digest
from tests.protocol.agreed import advance, compared

DRAWN = 300
"""Choices for each seed."""


@remembered(2**16)
def _signed(identity: Identity, message: bytes) -> bytes:
    return identity.sign(message)


@dataclass(frozen=True)
class Choice:
    """What the Byzantine peers do. Honest peers are the first ones."""

    said: Mapping[int, Sequence[int]]
    """Byzantine peer -> for each honest one the face that it is told: 1, 2, or 0 for nothing."""
    vouches: Mapping[int, Sequence[bool]]
    """Byzantine peer -> for each honest one whether it gets a signature on what it heard."""
    shown: Sequence[Sequence[Sequence[str]]]
    """Round -> honest peer -> what it is shown: a "face" with all signatures of fellows, a "certificate" of its view,
    or "few" signatures on it, those of liars alone."""


class Phase:
    """Honest peers in one phase among `n` with `b` Byzantine ones, in the order of the rounds."""

    def __init__(self, n: int, b: int) -> None:
        self.n, self.b, self.honest, self.liars = n, b, range(n - b), range(n - b, n)
        self.identities = [Identity.from_seed("agreement", i) for i in range(n)]
        roster = Roster(tuple(identity.public_key for identity in self.identities))
        self.memory = Memory()
        config = ProtocolConfig(peers=n, byzantine=b, validators=0)
        self.peers = [Peer(i, self.identities[i], roster, config, n, memory=self.memory) for i in self.honest]

    def sign(self, who: int, message: bytes) -> bytes:
        return self.memory(_signed, self.identities[who], message)

    def says(self, who: int, face: int) -> Signed:
        unsigned = Signed.create(
            self.identities[who], b"context", who, 3, "phase", CoinReveal(bytes([face]) * 32, bytes(32))
        )
        return unsigned

    def passed(self, message: Signed, hands: Sequence[int]) -> Relayed:
        digest = relay_digest(message.digest(b"context"))
        return Relayed(message, tuple((hand, self.sign(hand, digest)) for hand in hands))

    def run(self, choice: Choice, here: bool) -> tuple[dict[int, Heard], int]:
        """What each honest peer has heard, and how many rounds the last one took."""
        everybody = tuple(range(self.n))
        records = [
            StepRecord(
                3, everybody, {}, b"coin", context=b"context", here=everybody if here else None, byzantine=self.b
            )
            for _ in self.honest
        ]
        running = {i: compared(self.peers[i], records[i], "phase", self.says(i, 1), 10_000) for i in self.honest}
        answers: dict[int, Any] = dict.fromkeys(running)
        heard: dict[int, Heard] = {}
        rounds = 0
        while True:
            effects = advance(running, answers, heard)
            if not effects:
                return heard, rounds
            some = next(iter(effects.values()))
            if isinstance(some, Broadcast):
                faces = {
                    i: {s: self.says(s, choice.said[s][i]) for s in self.liars if choice.said[s][i]} for i in effects
                }
                answers = {i: {**{s: e.message for s, e in effects.items()}, **faces[i]} for i in effects}
            elif isinstance(some, Compare):
                views = {i: effect.vouch.statement for i, effect in effects.items()}
                given = {i: [s for s in self.liars if choice.vouches[s][i]] for i in effects}
                answers = {
                    i: {s: e.vouch for s, e in effects.items()}
                    | {s: Vouch(b"", self.sign(s, views[i])) for s in given[i]}
                    for i in effects
                }
            elif not isinstance(some, Relay):  # at the end members tell those that said nothing
                assert some.phase == "phase/tell"
                answers = {i: {s: e.packets[i] for s, e in effects.items() if i in e.packets} for i in effects}
            else:
                rounds += 1
                answers = {i: self._relayed(i, effects, records, choice, rounds) for i in effects}
                # A settled peer may be elsewhere already, and hears nothing of all this.
                answers |= {i: QUIET for i, effect in effects.items() if effect.settled}

    def _relayed(
        self, me: int, effects: Mapping[int, Relay], records: Sequence[StepRecord], choice: Choice, round: int
    ) -> dict[int, Any]:
        came: dict[int, Any] = {s: e.packets[me] for s, e in effects.items() if me in e.packets}
        if not effects[me].settled:
            came |= {s: (e.proof.look(),) for s, e in effects.items() if e.proof is not None}
        items: list[Relayed] = []
        for what in choice.shown[round - 1][me] if round <= len(choice.shown) else ():
            if what == "face":
                items += [self.passed(self.says(s, 2), [f for f in self.liars if f != s]) for s in self.liars]
            else:
                on = records[me].vouches[me].statement
                vouches = {**records[me].vouches, **{s: Vouch(on, self.sign(s, on)) for s in self.liars}}
                first, *rest = self.liars
                record = replace(records[me], vouches=vouches)
                by = self.liars if what == "few" else sorted(vouches)
                made = certify(record, "phase", first, self.identities[first], by)
                items.append(self.passed(made, rest))
        return came | ({self.liars[0]: items} if items else {})


def broken(phase: Phase, choice: Choice, here: bool) -> str:
    """What goes wrong; "" if nothing does."""
    heard, rounds = phase.run(choice, here)
    if set(heard) != set(phase.honest):
        return "somebody does not end"
    late = 0 if here else phase.n - 2 * phase.b - 1
    if rounds > phase.b + late + 1:
        return f"{rounds} rounds"
    views = {i: one.agreed for i, one in heard.items() if one.agreed is not None}
    if len({view.view for view in views.values()}) > 1:
        return "honest peers have different views"
    if len({one.certified for one in heard.values()}) > 1:
        return "honest peers do not know the same of whether all had heard the same"
    if any(one.certified and views[i] is not one.direct for i, one in heard.items()):
        return "what was said upon another view counts"
    if any(len(one.said.get(i, ())) != 1 for one in views.values() for i in phase.honest):
        return "an honest peer was not heard, or has two faces"
    return ""


def all_choices(n: int) -> Iterator[Choice]:
    """With one Byzantine peer, up to the order of the honest ones."""
    liar, honest, rounds = n - 1, n - 1, 2
    shows = ((), ("certificate",), ("few",))[: None if n == 3 else 2]
    # An own second face that nobody else has signed counts in no round: honest peers pass on what they were told.
    each = list(product((0, 1, 2), (False, True), product(shows, repeat=rounds)))
    for chosen in combinations_with_replacement(each, honest):
        said, vouches, shown = zip(*chosen, strict=True)
        yield Choice({liar: said}, {liar: vouches}, [[of[r] for of in shown] for r in range(rounds)])


@pytest.mark.parametrize("here", [True, False], ids=["later", "roll call"])
@pytest.mark.parametrize("n", [3, 4])
def test_one_byzantine_peer_can_do_nothing(n: int, here: bool) -> None:
    phase, count = Phase(n, 1), 0
    for choice in all_choices(n):
        assert not (wrong := broken(phase, choice, here)), f"{wrong}: {choice}"
        count += 1
    assert count == {3: 1485, 4: 2600}[n]


def drawn(phase: Phase, rng: Any) -> Choice:
    """Of any kind or, half of the time, one in which all hear the same at first, nobody can certify it, and little is
    shown."""
    quiet = bool(rng.integers(2))
    faces, signs = ((1,), (False, False, True)) if quiet else ((0, 1, 1, 1, 2), (False, True, True))
    said = {s: rng.choice(faces, size=3).tolist() for s in phase.liars}
    vouches = {s: rng.choice(signs, size=3).tolist() for s in phase.liars}
    shows = ((), (), ("face",), ("certificate",), ("few",), ("face", "certificate"))
    shown = [[() if quiet else shows[int(rng.integers(len(shows)))] for _ in phase.honest] for _ in range(3)]
    for what in ("face", "certificate") if quiet else ():
        round, to = int(rng.integers(3)), int(rng.integers(3))
        shown[round][to] = (*shown[round][to], what)
    return Choice(said, vouches, shown)


def test_two_byzantine_peers_can_do_nothing(seed: int) -> None:
    phase, rng = Phase(5, 2), stream("agreement", seed)
    for _ in range(DRAWN):
        choice = drawn(phase, rng)
        assert not (wrong := broken(phase, choice, bool(rng.integers(2)))), f"{wrong}: {choice}"
