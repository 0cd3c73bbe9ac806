"""What newcomers on probation can make every member write: keys cost nothing, so it has a bound."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from btard.protocol.claims import WORK_KINDS
from btard.protocol.config import ProtocolConfig
from btard.protocol.ledger import GRADUATED, Entry


def keeps_gradients(config: ProtocolConfig, entries: Iterable[Entry], step: int, on_probation: Collection[int]) -> bool:
    """Whether the proof of `step` holds what gradients on trial are judged by: parameters [d], and what was shown.

    `entries`: the ledger at the end of the step. It does if a member is removed in the step, and for as many convicted
    newcomers as there were peers at the start. Of later ones an auditor has the votes.
    """
    entries = tuple(entries)
    removed = {peer for entry in entries if entry.step == step for peer in entry.peers}
    if not removed or not removed <= set(on_probation):
        return True
    members = {entry.accused for entry in entries if entry.kind == GRADUATED} | set(range(config.peers))
    before = [entry for entry in entries if entry.step < step and entry.kind in WORK_KINDS]
    return sum(entry.accused not in members for entry in before) < config.peers
