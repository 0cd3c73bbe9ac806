"""Who can be accused of what, by whom and when: every kind of claim says it, by the broadcasts alone."""

from __future__ import annotations

import pytest

from btard.protocol.claims import KINDS, admissible
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity, Roster
from btard.protocol.messages import (
    CLAIM_KINDS,
    ELIMINATE_KINDS,
    NOBODY,
    PROBATION_KINDS,
    TOLERANT_KINDS,
    AnnouncedPart,
    Claim,
    Commit,
    Report,
)
from btard.protocol.peer import Peer
from btard.protocol.record import Probation, StepRecord
from btard.protocol.split import Split

PEERS, HERE, WORKERS, OWNERS = (0, 1, 2, 3, 4), (0, 1, 2, 3), (1, 2, 3), (1, 2, 3, NOBODY)
"""Peer 0 validates peer 2's work of the step before; peer 4 is away, and nobody has its part."""
BEFORE, NOW = 6, 7

Possible = set[tuple[int, int, int]]
"""(accuser, accused, part)"""


def seat(validation: str = "exact") -> Peer:
    identities = [Identity.from_seed("claims", i) for i in PEERS]
    config = ProtocolConfig(peers=5, validation=validation)  # type: ignore[arg-type]
    peer = Peer(0, identities[0], Roster(tuple(i.public_key for i in identities)), config, 40)
    peer.last, peer.current = record(BEFORE), record(NOW)
    return peer


def record(step: int) -> StepRecord:
    made = StepRecord(step, PEERS, {0: 2}, b"coin")
    made.here, made.workers, made.owners, made.split = HERE, WORKERS, OWNERS, Split(40, 4)
    made.commits = {i: Commit((bytes(32),) * 4) for i in WORKERS}
    made.announced = {part: AnnouncedPart(part, bytes(32), WORKERS) for part in (0, 1)}  # peer 3 fell silent
    made.reports = {i: Report((1.0,) * 4, ((0.0,),) * 4, sizes=(1.0,) * 4) for i in (1, 2)}
    made.missing = {0: (1,), 3: (0, 1)}
    return made


def possible(peer: Peer, kind: str, step: int, attempt: int) -> Possible:
    """All claims of `kind` about `step` that are admitted in round `attempt`."""
    return {
        (accuser, accused, part)
        for accuser in HERE
        for accused in (*PEERS, 5, NOBODY)
        for part in (NOBODY, 0, 1, 2, 3, 4, 10**6)
        if admissible(peer, peer.current, accuser, Claim(step, accused, kind, part), attempt)
    }


NEVER: Possible = set()
KNOWN_TO_OWNER = {(owner, sender, part) for part, owner in enumerate(OWNERS) if owner > 0 for sender in WORKERS}
REPORTED = {(owner, sender, part) for owner, sender, part in KNOWN_TO_OWNER if part in (0, 1) and sender in (1, 2)}
LACKED = {(0, 2, 1), (3, 1, 0), (3, 2, 1)}
POSSIBLE = {
    # kind: about the step at hand, about the one before
    "wrong_gradient": (NEVER, {(0, 2, NOBODY)}),
    "undisclosed": (NEVER, NEVER),
    "unchecked": (NEVER, NEVER),
    "misreport": (REPORTED, NEVER),
    "wrong_aggregate": (NEVER, NEVER),
    "bad_part": (KNOWN_TO_OWNER, NEVER),
    "withheld_part": (KNOWN_TO_OWNER, NEVER),
    "bad_aggregate": (LACKED, NEVER),
    "withheld_aggregate": (LACKED, NEVER),
}


def test_each_word_on_the_wire_has_a_class() -> None:
    assert set(KINDS) == CLAIM_KINDS | TOLERANT_KINDS | PROBATION_KINDS == set(POSSIBLE)
    assert {name for name, kind in KINDS.items() if not kind.trial and kind.accuses} == ELIMINATE_KINDS
    assert {name for name, kind in KINDS.items() if not kind.accuses} == PROBATION_KINDS
    assert {name for name, kind in KINDS.items() if kind.recomputes} == {"wrong_gradient", "undisclosed"}


@pytest.mark.parametrize("kind", POSSIBLE)
def test_who_may_accuse_whom(kind: str) -> None:
    peer = seat()
    for step, expected in zip((NOW, BEFORE), POSSIBLE[kind], strict=True):
        assert possible(peer, kind, step, 0) == {(who, whom, part) for who, whom, part in expected if who != whom}
    for step, attempt in ((BEFORE - 1, 0), (NOW + 1, 0), (NOW, 1), (BEFORE, 1)):
        assert not possible(peer, kind, step, attempt)


@pytest.mark.parametrize("why", ["wrong_gradient", "undisclosed", "undelivered"])
def test_a_conviction_gives_everybody_cause_to_look_again_at_what_its_reports_were_about(why: str) -> None:
    peer = seat()
    assert peer.last is not None
    peer.last.announced[0] = AnnouncedPart(0, bytes(32), (1, 3))
    peer.current.expelled = {2: why}
    assert possible(peer, "wrong_aggregate", BEFORE, 1) == {(who, 2, 1) for who in HERE if who != 2}
    assert not possible(peer, "wrong_aggregate", BEFORE, 0)
    peer.current.expelled = {2: "silent"}
    assert not possible(peer, "wrong_aggregate", BEFORE, 1)


@pytest.mark.parametrize(
    ("validation", "active", "tried"), [("exact", True, True), ("exact", False, False), ("tolerant", True, False)]
)
def test_the_aggregate_of_an_owner_that_is_away(validation: str, active: bool, tried: bool) -> None:
    peer = seat(validation)
    assert peer.last is not None
    peer.last.announced[0] = AnnouncedPart(0, bytes(32), (1, 3))
    peer.current.here, peer.current.expelled = (0, 1, 3), {1: "wrong_gradient"}
    if not active:  # it was removed in the step before
        peer.current.active = (0, 1, 3, 4)
    assert ((0, 2, 1) in possible(peer, "wrong_aggregate", BEFORE, 1)) == tried


def test_a_part_that_half_of_the_members_lacked_holds_nobody_to_anything() -> None:
    peer = seat()
    for about in (peer.last, peer.current):
        assert about is not None
        about.unheld = frozenset({0, 1})
    peer.current.expelled = {2: "wrong_gradient"}
    assert not possible(peer, "misreport", NOW, 0) | possible(peer, "wrong_aggregate", BEFORE, 1)


def test_nobody_is_held_to_what_it_said_it_cannot_report_on() -> None:
    peer = seat()
    peer.current.reports[2] = replace_missing(peer.current.reports[2], (0,))
    assert possible(peer, "misreport", NOW, 0) == {(2, 1, 1)}


def replace_missing(said: Report, parts: tuple[int, ...]) -> Report:
    return Report(said.norms, said.products, parts, said.sizes)


def test_only_its_validator_was_to_be_shown_a_gradient() -> None:
    assert possible(seat("tolerant"), "undisclosed", BEFORE, 0) == {(0, 2, NOBODY)}


AWAY = [
    # mode, who is here, whether wrong_gradient and undisclosed can be claimed
    ("exact", (0, 1, 3), (True, False)),
    ("tolerant", (0, 1, 3), (True, True)),
    ("tolerant", (0, 3), (False, False)),
]


@pytest.mark.parametrize(("validation", "here", "expected"), AWAY)
def test_who_is_away_is_tried_only_for_what_others_can_show(
    validation: str, here: tuple[int, ...], expected: tuple[bool, bool]
) -> None:
    """Hashes, or the parts that it had sent to owners who are here: peer 1, for there is no aggregate of peer 3."""
    peer = seat(validation)
    peer.current.here = here
    for kind, may in zip(("wrong_gradient", "undisclosed"), expected, strict=True):
        assert possible(peer, kind, BEFORE, 0) == ({(0, 2, NOBODY)} if may else NEVER)
    assert {accused for _, accused, _ in possible(peer, "bad_aggregate", NOW, 0)} == {1} & set(here)


@pytest.mark.parametrize("away", [False, True])
def test_a_newcomer_that_is_away_is_tried_for_nothing_that_it_would_have_to_show(away: bool) -> None:
    peer = seat("tolerant")
    assert peer.last is not None
    peer.current.assignments, peer.current.standings = {0: 5}, {5: Probation(1, 0, frozenset())}
    peer.last.commits[5] = Commit((bytes(32),) * 4)
    if not away:
        peer.current.commits[5] = Commit((bytes(32),) * 4)
    assert possible(peer, "unchecked", BEFORE, 0) == {(0, 5, NOBODY)}, "it costs nobody anything"
    expected = NEVER if away else {(0, 5, NOBODY)}
    assert possible(peer, "wrong_gradient", BEFORE, 0) == possible(peer, "undisclosed", BEFORE, 0) == expected
