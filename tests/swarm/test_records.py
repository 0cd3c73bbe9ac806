"""Entries of the DHT: what is checked of them, and how often."""

from __future__ import annotations

import time

import pytest
from hivemind.dht.validation import DHTRecord
from hivemind.utils import MSGPackSerializer

from btard.protocol.identity import Identity
from btard.swarm import records


def test_an_entry_is_valid_under_its_authors_key_and_its_signature_checked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = []
    verify = records._verify.function
    monkeypatch.setattr(records._verify, "function", lambda *words: checked.append(words) or verify(*words))
    author, other = (Identity.from_seed("records", name) for name in ("author", "other"))
    validator, subkey = records.Signed(author), MSGPackSerializer.dumps(author.public_key.hex())
    entry = DHTRecord(b"key", subkey, MSGPackSerializer.dumps(b"body"), time.time() + 60)
    signed = DHTRecord(b"key", subkey, validator.sign_value(entry), entry.expiration_time)
    assert all(validator.validate(signed) for _ in range(3)) and len(checked) == 1
    stolen = MSGPackSerializer.dumps(other.public_key.hex())
    assert not validator.validate(DHTRecord(b"key", stolen, signed.value, signed.expiration_time))
    assert not validator.validate(DHTRecord(b"key", subkey, signed.value, signed.expiration_time + 1))
