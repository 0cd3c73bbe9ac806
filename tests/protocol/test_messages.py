import contextlib
from functools import partial

import msgpack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from btard.protocol import messages, wire
from btard.protocol.identity import Identity, Roster
from btard.protocol.limits import MAX_STATES, Limits
from btard.protocol.messages import (
    Announce,
    AnnouncedPart,
    Certificate,
    Claim,
    Claims,
    CoinCommit,
    CoinReveal,
    Commit,
    Join,
    JoinRequest,
    Lacking,
    Measured,
    Report,
    TimedCommit,
    Votes,
)
from btard.protocol.signed import Packet, Signed, tensor_of
from btard.protocol.wire import Malformed

HASH = bytes(range(32))
MESSAGES = [
    Commit((HASH, HASH[::-1])),
    TimedCommit((HASH, HASH[::-1]), HASH, 1500),
    Announce((AnnouncedPart(3, HASH, (0, 2, 5)),)),
    CoinCommit(HASH),
    CoinReveal(HASH, HASH[::-1]),
    CoinReveal.lacking((1, 2)),
    Report((1.5, 0.0), ((0.25,), (-1e300,)), (1,), (2.5, 0.0)),
    Claims((Claim(7, 3, "misreport", 2), Claim(6, 1, "wrong_gradient"))),
    Votes(("guilty", "false", "excused"), (0, 3)),
    Lacking((1, 2)),
    Measured((HASH, HASH[::-1]), (0.5, 2.25), (-1e-300,)),
    Join((JoinRequest.create(Identity.from_seed("newcomer"), "run"),)),
    Certificate((0, 2), (bytes(64), bytes(range(64)))),
]


@given(st.text(st.characters(codec=None, categories=None), max_size=300), st.integers(10, 250))
def test_text_of_others_is_one_line_that_any_terminal_shows(text: str, limit: int) -> None:
    told = wire.shown(text, limit)
    assert told.isascii() and told.isprintable() and len(told) <= limit
    if text.isascii() and text.isprintable() and len(text) <= limit:
        assert told == text


def test_control_characters_are_escaped_and_long_text_is_cut() -> None:
    assert wire.shown("\x1b[2J\u202e\ud800\n") == r"\x1b[2J\u202e\ud800\n"
    assert wire.shown("x" * 300, 20) == "x" * 17 + "..."


def test_there_is_a_sample_of_every_payload() -> None:
    assert {type(message) for message in MESSAGES} == set(messages.P.__constraints__)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_wire_round_trip(message) -> None:
    packed = wire.encode(message)
    assert wire.decode(packed, type(message), max_bytes=len(packed), what="test") == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
@given(junk=st.binary(max_size=200))
def test_any_bytes_are_decoded_or_malformed(message, junk: bytes) -> None:
    with contextlib.suppress(Malformed):
        wire.decode(junk, type(message), max_bytes=200, what="test")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
@given(
    value=st.recursive(
        st.one_of(
            st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.binary(), st.text(max_size=9)
        ),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=12,
    )
)
def test_any_structure_is_accepted_or_malformed(message, value) -> None:
    try:
        accepted = wire.decode(msgpack.packb(value), type(message), max_bytes=10_000, what="test")
    except Malformed:
        return
    assert wire.decode(wire.encode(accepted), type(message), max_bytes=10_000, what="test") == accepted


def test_size_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args, **kwargs):
        raise AssertionError("decoded an oversized payload")

    monkeypatch.setattr(wire, "_decoder", never)
    for decode in (wire.unpack, partial(wire.decode, form=Commit)):
        with pytest.raises(Malformed, match="11 bytes, at most 10"):
            decode(b"x" * 11, max_bytes=10, what="commit")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), True, 1, "1.0", None])
def test_only_finite_floats_are_numbers(bad) -> None:
    for hostile in ([[bad], [[0.0]], [], [0.0]], [[0.0], [[bad]], [], [0.0]], [[0.0], [[0.0]], [], [bad]]):
        with pytest.raises(Malformed):
            wire.decode(msgpack.packb(hostile), Report, max_bytes=100, what="report")
    assert wire.decode(msgpack.packb([[0.5], [[0.0]], [], [0.5]]), Report, max_bytes=100, what="report").norms == (0.5,)


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (CoinReveal, msgpack.packb([HASH, HASH])),  # without the field that has a default
        (Report, msgpack.packb([[], [], []])),
        (Claims, msgpack.packb([[7, 3, "misreport"]])),
        (CoinCommit, msgpack.packb([HASH, 1])),  # with one more
        (CoinCommit, b"\x91\xc5\x00\x20" + HASH),  # with a length that takes more bytes than it needs
        (Votes, b"\x92\xdc\x00\x01\xa5false\x90"),
        (Claims, b"\x91\x94\xcc\x07\x03\xa9misreport\x02"),
        (Report, b"\x94\x91\xca\x3f\x80\x00\x00\x91\x91\xca\x3f\x80\x00\x00\x90\x90"),  # floats of half the bytes
        (Claims, msgpack.packb([[7, 3, "theft", 2]])),
        (Claims, msgpack.packb([[7, 3, "misreport\n", 2]])),
        (Votes, msgpack.packb([["guilty", "not guilty"], []])),
        (Claims, msgpack.packb([[2**31, 3, "misreport", 2]])),
        (Claims, msgpack.packb([[7, -2, "misreport", 2]])),
        (Commit, msgpack.packb([HASH[:31]])),
        (Join, msgpack.packb([[HASH, bytes(63)]])),
    ],
)
def test_what_is_said_has_one_form(kind, other: bytes) -> None:
    with pytest.raises(Malformed):
        wire.decode(other, kind, max_bytes=1000, what="test")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary() | st.text(),
        lambda inner: st.lists(inner) | st.lists(inner).map(tuple),
        max_leaves=12,
    )
)
def test_the_bytes_are_those_of_messagepack(value) -> None:
    """As another library packs it too."""
    assert wire.pack(value) == msgpack.packb(value)


@pytest.mark.parametrize("peers", [2, 16, 128])
def test_largest_honest_messages_fit_their_limits(peers: int) -> None:
    claims = Limits(peers, 2).claims
    pieces = tuple(range(peers * (peers + claims)))
    honest = {
        Commit: Commit((HASH,) * peers, HASH),
        TimedCommit: TimedCommit((HASH,) * peers, HASH, 2**31 - 1),
        Announce: Announce(tuple(AnnouncedPart(j, HASH, tuple(range(peers))) for j in range(1))),
        CoinReveal: CoinReveal(HASH, HASH, tuple(range(peers))),
        Report: Report((1e300,) * peers, ((1e300, 1e300),) * peers, (), (1e300,) * peers),
        Claims: Claims((Claim(2**31 - 1, peers, "withheld_aggregate", peers),) * claims),
        Votes: Votes(("excused",) * (claims * peers), pieces),
        Lacking: Lacking(pieces),
        Certificate: Certificate(tuple(range(peers)), (bytes(64),) * peers),
        Measured: Measured((HASH,) * (MAX_STATES + 1), (-1e300,) * (MAX_STATES + 1), (-1e300,) * MAX_STATES),
    }
    for kind, message in honest.items():
        assert len(wire.encode(message)) <= Limits(peers, 2).payload(kind), kind


def test_signature_binds_run_sender_step_phase_and_payload() -> None:
    keys = [Identity.from_seed("test", i) for i in range(2)]
    roster = Roster(tuple(key.public_key for key in keys))
    signed = Signed.create(keys[0], "run", 0, 5, "commit", MESSAGES[0])
    assert signed.proven("run", roster) == signed.digest("run") and not signed.proven("other run", roster)
    for change in ({"sender": 1}, {"step": 6}, {"phase": "report"}, {"payload": signed.payload + b"\0"}, {"sender": 9}):
        assert not replace(signed, **change).proven("run", roster)
    assert signed.open(Commit, 1000) == MESSAGES[0]
    with pytest.raises(Malformed):
        signed.open(Report, 1000)
    with pytest.raises(Malformed, match="at most 8"):
        signed.open(Commit, 8)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"garbage", "7 raw bytes"),
        (torch.zeros(4), r"shape \(3,\)"),
        (torch.zeros(3, dtype=torch.float64), "float64"),
        (torch.tensor([0.0, float("nan"), 0.0]), "NaN or Inf"),
        (torch.tensor([float("inf"), -float("inf"), 0.0]), "NaN or Inf"),
    ],
)
def test_bodies_that_are_no_part(body, reason: str) -> None:
    packet = Packet.create(Identity.from_seed("test", 0), "part", 0, 1, 2, body, hashed=bytes(32), context=bytes(32))
    with pytest.raises(Malformed, match=reason):
        tensor_of(packet, 3)


def test_huge_finite_numbers_are_numbers() -> None:
    body = torch.tensor([3e38, 3e38, 3e38])
    packet = Packet.create(Identity.from_seed("test", 0), "part", 0, 1, 2, body, hashed=bytes(32), context=bytes(32))
    assert tensor_of(packet, 3) is body
