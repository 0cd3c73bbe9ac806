"""The requests of honest peers, effect by effect: how much they would read, how often they toss and recompute."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any

from btard.drivers.letters import Letters
from btard.protocol.effects import Broadcast, Compare, Compute, Exchange, Idle, Measure, Purpose, Together
from btard.protocol.messages import CoinReveal
from btard.protocol.signed import ALIGNMENT, Bundle, Vouch
from scripts.hunt.room import FAILURES, Room

EFFECTS = (Broadcast, Compare, Compute, Exchange, Idle, Measure, Together)


class Endless(Exception):
    """A step takes longer than the protocol allows."""


class Watch:
    """The peers of a cohort as they run. A colluder whose own code fails is out from there on."""

    def __init__(self, room: Room, most: int) -> None:
        self.room, self.most = room, most
        """`most`: effects of an honest peer in a step."""
        self.begin()

    def begin(self) -> None:
        """Begin a new step."""
        self.tosses = self.judged = self.evidence = self.effects = 0
        self.unread = self.burden = self.chosen = ""
        self.due: dict[int, int] = {}
        """Honest peer -> the most that it may have to send in the step so far, by `btard.protocol.loads`."""

    def over(self, peer: Any) -> None:
        """Watch `peer`; repeated calls do no harm."""
        if "step" in vars(peer):
            return
        plain = peer.step
        peer.step = lambda: self._hostile(plain()) if peer.behaviour.byzantine else self._honest(peer, plain())

    def traffic(
        self, there: Iterable[int], letters: Mapping[int, Letters], answers: Mapping[int, Mapping[int, Any]]
    ) -> None:
        """Count what the honest peers that are `there` send and read in a phase.

        What goes to peers that fell out, or comes from them, is nobody's duty.
        """
        for me in there:
            said, out = letters[me], {me, *self.room.peers[me].current.expelled}
            if isinstance(said.effect, Compare):
                self.due[me] = self.due.get(me, 0) + said.nbytes(letters.keys() - {me})
                continue
            bundled = [Vouch.nbytes * isinstance(one.effect, Compare) + ALIGNMENT for one in said.several]
            load = said.effect.load + Bundle.sized(bundled) * len(letters)
            self.due[me] = self.due.get(me, 0) + load
            sent = sum(said.size(said.special.get(to, said.common)) for to in letters if to not in out)
            read = sum(said.size(letter) for sender, letter in answers[me].items() if sender not in out)
            if max(sent, read) > load:
                self.burden = f"peer {me} sends {sent} bytes in {said.phase} and reads {read}, not {load}"

    def _hostile(self, running: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        answer = None
        while True:
            try:
                effect = running.send(answer)
                if not isinstance(effect, EFFECTS):
                    raise TypeError(f"no effect: {effect!r}")
            except StopIteration as stop:
                return stop.value
            except FAILURES as error:
                self.room.crashes.append(f"{type(error).__name__}: {error}")
                return None
            answer = yield effect

    def _honest(self, peer: Any, running: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        me, answer, count, judged = peer.id, None, 0, 0
        shown: dict[int, frozenset[int]] = {}
        """Toss -> who was out when this peer showed its share."""
        while True:
            try:
                effect = running.send(answer)
            except StopIteration as stop:
                self.judged, self.effects = max(self.judged, judged), max(self.effects, count)
                return stop.value
            count += 1
            self.room.phase = effect.phase
            if count > self.most:
                raise Endless(f"peer {me} is at effect {count} of a step, in phase {effect.phase}")
            phase, _, attempt = effect.phase.partition("/")
            judged += isinstance(effect, Compute) and effect.purpose is Purpose.JUDGE
            if isinstance(effect, Broadcast | Together):
                if phase == "coin_reveal":
                    toss = int(attempt.partition("/")[0])
                    self.tosses = max(self.tosses, 1 + toss)
                    if _shows_share(effect):
                        shown.setdefault(toss, frozenset(peer.current.expelled))
                elif phase == "report" and shown and me in peer.current.members:
                    fell = peer.current.expelled.keys() - shown[max(shown)]
                    if fell and max(shown) == self.tosses - 1:
                        self.chosen = f"peers {sorted(fell)} fell out when peer {me} had shown its share of the coin"
            elif isinstance(effect, Exchange) and phase in ("evidence", "pass"):
                self.evidence = max(self.evidence, effect.limit)
            answer = yield effect


def _shows_share(effect: Broadcast | Together) -> bool:
    """Whether a peer reveals its share of the coin, rather than nothing or what it lacks."""
    said = effect.effects if isinstance(effect, Together) else (effect,)
    for one in said:
        if isinstance(one, Broadcast) and one.message is not None:
            return any(one.message.open(CoinReveal, one.limit).value)
    return False


def most_effects(peers: int, tosses: int, rounds: int) -> int:
    """How many effects an honest peer has in a step at most: see `resolve`, `toss`, `judge` and `heal`."""
    rounds += 1  # of certificates
    broadcasts = 1 + 1 + 1 + 2 * tosses + 1 + 1 + 2 * 3 + 1 + 3  # three of them again
    exchanges = 1 + 1 + 2 + 1 + 2 * 2 + 3 + 1
    late = 2 * peers  # rounds more in join and commit
    return broadcasts * (1 + 1 + rounds + 1 + 1) + late + exchanges + 1 + 2 * peers + 1
