import contextlib

import msgpack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from btard.protocol import messages, wire
from btard.protocol.identity import Identity, Roster
from btard.protocol.limits import Limits
from btard.protocol.messages import (
    Announce,
    AnnouncedPart,
    Claim,
    Claims,
    CoinCommit,
    CoinReveal,
    Commit,
    Join,
    JoinRequest,
    Packet,
    Report,
    Signed,
    Votes,
    tensor_of,
)
from btard.protocol.wire import Malformed

HASH = bytes(range(32))
MESSAGES = [
    Commit((HASH, HASH[::-1])),
    Announce((AnnouncedPart(3, HASH, (0, 2, 5)),)),
    CoinCommit(HASH, (1, 2)),
    CoinReveal(HASH, HASH[::-1]),
    Report((1.5, 0.0), ((0.25,), (-1e300,)), (1,)),
    Claims((Claim(7, 3, "misreport", 2), Claim(6, 1, "wrong_gradient"))),
    Votes(("guilty", "false", "excused")),
    Join((JoinRequest.create(Identity.from_seed("newcomer"), "run"),)),
]


def test_there_is_a_sample_of_every_payload() -> None:
    kinds = {kind.__name__ for kind in vars(messages).values() if isinstance(kind, type) and "from_wire" in vars(kind)}
    assert {type(message).__name__ for message in MESSAGES} == kinds - {"Payload"}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_wire_round_trip(message) -> None:
    packed = wire.pack(message.to_wire())
    assert type(message).from_wire(wire.unpack(packed, max_bytes=len(packed), what="test")) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
@given(junk=st.binary(max_size=200))
def test_any_bytes_are_decoded_or_malformed(message, junk: bytes) -> None:
    with contextlib.suppress(Malformed):
        type(message).from_wire(wire.unpack(junk, max_bytes=200, what="test"))


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
        accepted = type(message).from_wire(wire.unpack(msgpack.packb(value), max_bytes=10_000, what="test"))
    except Malformed:
        return
    assert type(message).from_wire(wire.unpack(wire.pack(accepted.to_wire()), max_bytes=10_000, what="t")) == accepted


def test_size_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args, **kwargs):
        raise AssertionError("decoded an oversized payload")

    monkeypatch.setattr(wire.msgpack, "unpackb", never)
    with pytest.raises(Malformed, match="11 bytes, at most 10"):
        wire.unpack(b"x" * 11, max_bytes=10, what="commit")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), True, 1, "1.0", None])
def test_only_finite_floats_are_numbers(bad) -> None:
    with pytest.raises(Malformed, match="finite float"):
        Report.from_wire([[bad], [[0.0]], []])


@pytest.mark.parametrize("peers", [2, 16, 128])
def test_largest_honest_messages_fit_their_limits(peers: int) -> None:
    honest = {
        Commit: Commit((HASH,) * peers),
        Announce: Announce(tuple(AnnouncedPart(j, HASH, tuple(range(peers))) for j in range(1))),
        CoinCommit: CoinCommit(HASH, tuple(range(peers))),
        Report: Report((1e300,) * peers, ((1e300, 1e300),) * peers, ()),
        Claims: Claims((Claim(2**31 - 1, peers, "withheld_aggregate", peers),) * 4 * peers),
        Votes: Votes(("excused",) * (4 * peers * peers)),
    }
    for kind, message in honest.items():
        assert len(wire.pack(message.to_wire())) <= Limits(peers, 2).payload(kind), kind


def test_signature_binds_run_sender_step_phase_and_payload() -> None:
    keys = [Identity.from_seed("test", i) for i in range(2)]
    roster = Roster(tuple(key.public_key for key in keys))
    signed = Signed.create(keys[0], "run", 0, 5, "commit", MESSAGES[0])
    assert signed.proven("run", roster) == signed.digest("run") and not signed.proven("other run", roster)
    for change in ({"sender": 1}, {"step": 6}, {"phase": "report"}, {"payload": signed.payload + b"\0"}, {"sender": 9}):
        assert not Signed(**{**signed.__dict__, **change}).proven("run", roster)
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
    packet = Packet.create(Identity.from_seed("test", 0), "part", 0, 1, 2, body, hashed=bytes(32))
    with pytest.raises(Malformed, match=reason):
        tensor_of(packet, 3)


def test_huge_finite_numbers_are_numbers() -> None:
    body = torch.tensor([3e38, 3e38, 3e38])
    packet = Packet.create(Identity.from_seed("test", 0), "part", 0, 1, 2, body, hashed=bytes(32))
    assert tensor_of(packet, 3) is body
