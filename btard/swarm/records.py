"""What the DHT holds: entries that their authors have signed, and nothing else.

On its way an entry is its author's public key, the signature and the body. hivemind decodes whatever it finds, and a
body that it cannot decode ends the search without an answer; so it is shown none before its author is known.
"""

from __future__ import annotations

import math
import struct

from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils import MSGPackSerializer

from btard.protocol.hashing import digest
from btard.protocol.identity import SIGNATURE_SIZE, Identity, verify_key
from btard.protocol.memory import Memory, remembered

MAX_RECORD = 3500
"""Largest size of an entry in the DHT in bytes: more does not fit the messages of every node."""
HEAD = 32 + SIGNATURE_SIZE
"""Bytes of an entry before its body."""

_verify = remembered(2**15)(verify_key)
"""A node's answer holds all entries under a key, and each look checks all of them: more do not fit into an answer."""


class Signed(RecordValidatorBase):
    """Checks entries before hivemind stores them, and in other nodes' answers: those under their author's own key.

    The clock has no part in it: one entry that is refused makes hivemind refuse the whole answer, so that nodes must
    not differ. The author signs when the entry expires, and nobody can make it last longer.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._memory = Memory()

    def validate(self, record: DHTRecord) -> bool:
        author, signature, body = record.value[:32], record.value[32:HEAD], record.value[HEAD:]
        if len(record.value) > MAX_RECORD or record.subkey != MSGPackSerializer.dumps(author.hex()):
            return False
        return math.isfinite(record.expiration_time) and self._memory(_verify, author, _signed(record, body), signature)

    def sign_value(self, record: DHTRecord) -> bytes:
        body = MSGPackSerializer.loads(record.value)
        return self.identity.public_key + self.identity.sign(_signed(record, body)) + body

    def strip_value(self, record: DHTRecord) -> bytes:
        return MSGPackSerializer.dumps(record.value[HEAD:])


def _signed(record: DHTRecord, body: bytes) -> bytes:
    return digest("record", record.key, record.subkey, struct.pack("<d", record.expiration_time), body)
