"""Who the members of a run are, by its ledger: the first peers and those who have joined, without the removed."""

from __future__ import annotations

from collections.abc import Sequence

from btard.protocol.join import ADMITTED, GRADUATED
from btard.protocol.ledger import Entry


def members_of(entries: Sequence[Entry], peers: int) -> list[int]:
    """The numbers of the members after these entries, ascending; `peers` are the first ones. Newcomers on probation do
    not count."""
    removed = {peer for entry in entries for peer in entry.peers}
    return [peer for peer in everybody(entries, peers) if peer not in removed]


def everybody(entries: Sequence[Entry], peers: int) -> list[int]:
    """The numbers of all that were ever members, ascending."""
    return [*range(peers), *sorted({entry.accused for entry in entries if entry.kind == GRADUATED} - {*range(peers)})]


def keys_of(entries: Sequence[Entry], founders: Sequence[bytes]) -> dict[int, bytes]:
    """Number -> public key of all first peers and of everybody that was admitted after them."""
    admitted = {entry.accused: bytes.fromhex(entry.evidence) for entry in entries if entry.kind == ADMITTED}
    return dict(enumerate(founders)) | admitted
