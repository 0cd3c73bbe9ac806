"""Signatures that nobody made, and second forms of those that somebody made."""

from __future__ import annotations

import pytest
from nacl.signing import VerifyKey

from btard.protocol.identity import Identity, Roster, Signing, verify_key
from btard.protocol.memory import NOTHING, Memory

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
TWIST = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
"""The y of a point of order 8."""
SMALL = [y | sign for y in (0, 1, P - 1, TWIST, P - TWIST, P, P + 1) for sign in (0, 2**255)]
"""All points of order 1, 2, 4 and 8, also where they are encoded in a second way."""
MESSAGE = b"m" * 32


@pytest.mark.parametrize("point", SMALL)
def test_keys_and_points_of_small_order_sign_nothing(point: int) -> None:
    key, identity = point.to_bytes(32, "little"), Identity.from_seed("honest")
    for r in (key, (1).to_bytes(32, "little")):
        assert not verify_key(key, MESSAGE, r + bytes(32))
    assert not verify_key(identity.public_key, MESSAGE, key + identity.sign(MESSAGE)[32:])


@pytest.mark.parametrize("times", range(1, 16))
def test_a_signature_has_one_form(times: int) -> None:
    identity = Identity.from_seed("honest")
    signature = identity.sign(MESSAGE)
    assert verify_key(identity.public_key, MESSAGE, signature)
    s = int.from_bytes(signature[32:], "little") + times * ORDER
    if s < 2**256:
        assert not verify_key(identity.public_key, MESSAGE, signature[:32] + s.to_bytes(32, "little"))


def test_a_signature_that_was_made_here_is_known_and_any_other_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []
    verify = VerifyKey.verify

    def count(key: VerifyKey, message: bytes, signature: bytes) -> bytes:
        checked.append(signature)
        return verify(key, message, signature)

    monkeypatch.setattr(VerifyKey, "verify", count)
    identities = [Identity.from_seed("known", peer) for peer in range(2)]
    roster, memory = Roster(tuple(identity.public_key for identity in identities)), Memory()
    made = identities[0].sign(MESSAGE, memory)
    forged = identities[1].sign(MESSAGE, memory)
    assert roster.verify(0, MESSAGE, made, memory) and not checked
    assert not roster.verify(0, MESSAGE, forged, memory) and checked == [forged]
    assert not roster.verify(0, MESSAGE + b"!", made, memory) and checked == [forged, made]
    assert roster.verify(0, MESSAGE, made, Memory()) and checked == [forged, made, made], "another cohort knows nothing"


def test_a_signature_to_come_counts_for_its_key_its_message_and_its_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    identities = [Identity.from_seed("to come", peer) for peer in range(2)]
    roster, memory = Roster(tuple(identity.public_key for identity in identities)), Memory()
    to_come, made = identities[0].signing(MESSAGE, memory), identities[0].sign(MESSAGE)
    assert isinstance(to_come, Signing) and identities[0].signing(MESSAGE, NOTHING) == made
    assert to_come == identities[0].signing(MESSAGE, memory) != identities[1].signing(MESSAGE, memory)
    with monkeypatch.context() as patch:
        patch.setattr(VerifyKey, "verify", None)
        assert roster.verify(0, MESSAGE, to_come, memory)
    assert not roster.verify(1, MESSAGE, to_come, memory) and not roster.verify(0, MESSAGE + b"!", to_come, memory)
    checked: list[bytes] = []
    verify = VerifyKey.verify
    monkeypatch.setattr(VerifyKey, "verify", lambda key, *said: (checked.append(said[-1]), verify(key, *said))[1])
    assert roster.verify(0, MESSAGE, to_come, Memory()) and roster.verify(0, MESSAGE, to_come, NOTHING)
    assert checked == [made, made], "another cohort, and one that remembers nothing, look"
