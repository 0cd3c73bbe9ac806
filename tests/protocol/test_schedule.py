"""The coin and the reports, which go along with comparisons, against all that few Byzantine peers can do in them.

With n = 3 and one Byzantine peer: every choice of what it commits to and reveals to whom, and for whom it signs what
both have heard; with `--seeds N` and more than 4 also of wrong reveals, and of certificates that it shows. All else,
and n = 5 with two: choices drawn at random, `--seeds N` times as many.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement, product
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from btard.protocol.aggregate import offer
from btard.protocol.behaviour import Context
from btard.protocol.certificate import certify
from btard.protocol.coin import _secret, coin_commitment, combine, toss
from btard.protocol.effects import Broadcast, Compare, Effect, Exchange, Relay, Together
from btard.protocol.hashing import stream
from btard.protocol.hearing import AGAIN
from btard.protocol.ledger import Ledger
from btard.protocol.messages import NOBODY, Announce, AnnouncedPart, CoinCommit, CoinReveal, Report
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord
from btard.protocol.report import report, take_reports
from btard.protocol.signed import Bundle, Relayed, Signed, Vouch
from btard.protocol.split import Split
from tests.hunt.by_hand.cohort import cohort, damage
from tests.protocol.promises import Attacker
from tests.protocol.test_agreement import Phase

DRAWN = 20
"""Choices for each seed."""
PHASES = ("announce", "coin_commit/0", "coin_reveal/0", "report")


@dataclass(frozen=True)
class Choice:
    """What the Byzantine peers do. Honest peers are the first ones. Phases that are said again go like the first."""

    said: Mapping[str, Mapping[int, Sequence[int]]]
    """Phase -> Byzantine peer -> for each honest one the face that it is told: 1, 2, or 0 for nothing."""
    vouches: Mapping[str, Mapping[int, Sequence[bool]]]
    """Phase -> Byzantine peer -> for each honest one whether it gets a signature on what it heard."""
    shown: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """Phase -> round -> for each honest peer whether it is shown a "certificate", a "face", or nothing ("")."""


def reports_of(peer: Peer, record: StepRecord) -> Generator[Effect, Any, StepRecord]:
    """From the announcements to the reports on which all agree."""
    tossed = yield from toss(peer, record, offer(peer, record))
    heard = yield from report(peer, record, torch.ones(record.cut.d), tossed)
    yield from peer.agree(record, heard)
    take_reports(peer, record, heard)
    return record


class Schedule(Phase):
    """Honest peers from the coin's commitments to the reports."""

    def message(self, who: int, phase: str, face: int) -> Signed:
        secret = CoinReveal(bytes([face]) * 32, bytes(32))
        payload: Any
        if phase.startswith("coin_commit"):
            payload = CoinCommit(coin_commitment(self.peers[0].config.run_id, 3, 0, who, secret))
        elif phase == "announce":
            payload = Announce(()) if face == 1 else Announce((AnnouncedPart(0, bytes(32), (who,)),))
        elif phase == "coin_reveal/0/lacks":
            payload = CoinReveal.lacking(())
        elif phase.startswith("coin_reveal"):
            payload = secret
        else:
            payload = Report((float(face),) * self.n, ((0.0,),) * self.n, (), (0.0,) * self.n)
        return Signed.create(self.identities[who], b"context", who, 3, phase, payload, self.memory)

    def play(self, choice: Choice) -> str:
        """What goes wrong; "" if nothing does."""
        everybody = tuple(range(self.n))
        records = [
            StepRecord(3, everybody, {}, b"coin", context=b"context", here=everybody, byzantine=len(self.liars))
            for _ in self.honest
        ]
        running = {}
        for i in self.honest:
            self.peers[i].ledger = Ledger()
            records[i].split = Split(self.n, self.n)
            records[i].workers, records[i].owners = everybody, (NOBODY,) * self.n
            running[i] = reports_of(self.peers[i], records[i])
        answers: dict[int, Any] = dict.fromkeys(running)
        early: set[int] = set()
        while running:
            effects: dict[int, Any] = {}
            for i, generator in list(running.items()):
                try:
                    effects[i] = generator.send(answers[i])
                except StopIteration:
                    del running[i]
            phases = {effect.phase for effect in effects.values()}
            if not effects:
                break
            if len(phases) > 1 or len(effects) < len(self.honest):
                return f"honest peers are in different phases: {sorted(phases)}"
            [phase] = phases
            if phase == "coin_reveal/0":
                early = {i for i, effect in effects.items() if effect.effects[-1].message is not None}
            answers = {i: self._answer(i, phase, effects, records, choice) for i in effects}
        return self._broken(records, early, choice)

    def _answer(
        self, me: int, phase: str, effects: Mapping[int, Any], records: Sequence[StepRecord], choice: Choice
    ) -> Any:
        some = effects[me]
        if isinstance(some, Relay):
            if some.settled:
                return {}  # it passes the rounds by
            return self._in_relays(me, phase, effects, records, choice)
        if isinstance(some, Together):
            each = [{s: e.effects[k] for s, e in effects.items()} for k in range(len(some.effects))]
            answers = [self._answer(me, one[me].phase, one, records, choice) for one in each]
            senders = {s for answer in answers for s in answer}
            return {s: Bundle(tuple(answer.get(s) for answer in answers)) for s in senders}
        if isinstance(some, Compare):
            about, on = phase.removesuffix("/compare"), some.vouch.statement
            return {s: e.vouch for s, e in effects.items()} | {
                s: Vouch(b"", self.sign(s, on)) for s in self.liars if _of(choice.vouches, about, s)[me]
            }
        if isinstance(some, Exchange):
            return {}
        assert isinstance(some, Broadcast)
        said: dict[int, Signed | None] = {s: e.message for s, e in effects.items()}
        faces = {s: _of(choice.said, phase, s)[me] for s in self.liars}
        said |= {s: self.message(s, phase, face) if face else None for s, face in faces.items()}
        return {s: message for s, message in said.items() if message is not None}

    def _in_relays(
        self, me: int, phase: str, effects: Mapping[int, Relay], records: Sequence[StepRecord], choice: Choice
    ) -> dict[int, Any]:
        came: dict[int, Any] = {s: e.packets[me] for s, e in effects.items() if me in e.packets}
        came |= {s: (e.proof.look(),) for s, e in effects.items() if e.proof is not None}
        about, _, round = phase.partition("/relay/")
        shown = choice.shown.get(about.removesuffix(AGAIN), ())
        what = shown[int(round) - 1][me] if int(round) <= len(shown) else ""
        items: list[Relayed] = []
        if what == "face":
            items = [self.passed(self.message(s, about, 2), [f for f in self.liars if f != s]) for s in self.liars]
        elif what == "certificate":
            on = records[me].vouches[me].statement
            vouches = {**records[me].vouches, **{s: Vouch(on, self.sign(s, on)) for s in self.liars}}
            first, *rest = self.liars
            record = replace(records[me], vouches=vouches)
            items = [self.passed(certify(record, about, first, self.identities[first], sorted(vouches)), rest)]
        return came | ({self.liars[0]: items} if items else {})

    def _broken(self, records: Sequence[StepRecord], early: set[int], choice: Choice) -> str:
        peers = [self.peers[i] for i in self.honest]
        if len({peer.ledger.head for peer in peers}) > 1 or len({record.coin for record in records}) > 1:
            return "honest peers come to different ends"
        if set(self.honest) & records[0].expelled.keys():
            return "an honest peer is removed"
        if any(record.reports != records[0].reports or not record.coin for record in records):
            return "honest peers have different reports"
        for liar in self.liars:  # what counts of it was fixed before an honest peer revealed
            told = _of(choice.said, "coin_commit/0", liar)
            if liar in records[0].members and early and len({told[i] for i in early}) > 1:
                return "a liar stays that has told those that revealed different things"
        words = self.peers[0].config.run_id, 3
        if early and records[0].expelled:
            secrets = {i: _secret(self.peers[i], records[i], 0) for i in self.honest}
            for liar in records[0].members[len(self.honest) :]:
                secrets[liar] = CoinReveal(bytes([_of(choice.said, "coin_commit/0", liar)[min(early)]]) * 32, bytes(32))
            if records[0].coin == combine(*words, secrets):
                return "who has seen the coin fall goes out, and the coin of the others counts"
        return ""


def _of(by_phase: Mapping[str, Mapping[int, Sequence[Any]]], phase: str, liar: int) -> Sequence[Any]:
    """A later attempt goes like the first: who is left commits to the same faces, which are worth nothing then."""
    name = phase.removesuffix(AGAIN).partition("/")[0]
    return by_phase[name if name in ("announce", "report") else f"{name}/0"][liar]


def all_choices(thorough: bool) -> Iterator[Choice]:
    """With one Byzantine peer among three, which reports like an honest one.

    `thorough`: and reveals the wrong face, and shows certificates.
    """
    shows = [(), ("certificate",), ("", "certificate")] if thorough else [()]
    each = list(product((0, 1, 2), (0, 1, 2) if thorough else (0, 1), (False, True), (False, True), shows))
    for one, other in combinations_with_replacement(each, 2):
        commits, reveals, first, second, shown = zip(one, other, strict=True)
        in_round = [[of[r] if r < len(of) else "" for of in shown] for r in range(2)]
        yield Choice(
            {
                "announce": {2: (1, 1)},
                "coin_commit/0": {2: commits},
                "coin_reveal/0": {2: reveals},
                "report": {2: (1, 1)},
            },
            {
                "announce": {2: (True, True)},
                "coin_commit/0": {2: first},
                "coin_reveal/0": {2: second},
                "report": {2: (True, True)},
            },
            dict.fromkeys(PHASES, in_round),
        )


def test_one_byzantine_peer_neither_splits_the_coin_nor_chooses_it(pytestconfig: pytest.Config) -> None:
    thorough = pytestconfig.getoption("--seeds") > 4
    schedule, count = Schedule(3, 1), 0
    for choice in all_choices(thorough):
        assert not (wrong := schedule.play(choice)), f"{wrong}: {choice}"
        count += 1
    assert count == (5886 if thorough else 300)


def drawn(schedule: Schedule, rng: Any) -> Choice:
    """Of any kind or, half of the time, one in which all hear the same at first and little is said otherwise."""
    quiet, honest = bool(rng.integers(2)), len(schedule.honest)
    faces, signs = ((1, 1, 1, 1, 0), (False, True)) if quiet else ((0, 1, 1, 2), (False, True, True))
    shows = ("", "", "", "certificate", "face") if quiet else ("", "certificate", "face")
    rounds = len(schedule.liars) + 1
    return Choice(
        {p: {s: rng.choice(faces, size=honest).tolist() for s in schedule.liars} for p in PHASES},
        {p: {s: rng.choice(signs, size=honest).tolist() for s in schedule.liars} for p in PHASES},
        {p: [[str(rng.choice(shows)) for _ in schedule.honest] for _ in range(rounds)] for p in PHASES},
    )


def test_few_byzantine_peers_neither_split_the_coin_nor_choose_it(seed: int) -> None:
    rng = stream("schedule", seed)
    for n, b in ((3, 1), (4, 1), (5, 2)):
        schedule = Schedule(n, b)
        for _ in range(DRAWN):
            choice = drawn(schedule, rng)
            assert not (wrong := schedule.play(choice)), f"{wrong}: {choice}"


class Speechless(Attacker):
    """Announces nothing to anybody, or what is no announcement, and commits to the coin as it should."""

    def __init__(self, what: str) -> None:
        self.what = what

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "announce":
            return message, {}
        return (None if self.what == "silent" else sign(Announce((AnnouncedPart(0, bytes(32), ()),)))), {}


@pytest.mark.parametrize("what", ["silent", "malformed"])
def test_who_falls_out_by_its_announcement_owes_no_share(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = cohort({1: Speechless(what)}, validators=0)
    phases, talk = [], driver.talk

    def listening(step: int, letters: Mapping[int, Any]) -> Any:
        phases.append(next(iter(letters.values())).phase)
        return talk(step, letters)

    monkeypatch.setattr(driver, "talk", listening)
    assert not damage(driver, 2)
    assert driver.honest[0].active == (0, 2, 3, 4)
    assert "coin_reveal/0/again" in phases and "coin_commit/1" not in phases
