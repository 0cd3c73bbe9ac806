"""What a step's votes say: which peers voted with the majority."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from btard.protocol.messages import Votes
from btard.protocol.wire import Malformed

if TYPE_CHECKING:
    from btard.protocol.peer import Peer


def votes_with_majority(peer: Peer) -> int:
    """How many votes of `peer` were with the majority: a peer that got other evidence than most has fewer."""
    record, owner = peer.current, peer.id
    agreeing = 0
    for attempt in record.trials:
        cast: dict[int, tuple[str, ...]] = {}
        for sender, said in record.heard.get(f"vote/{attempt}", {}).items():
            try:
                cast[sender] = said[0].open(Votes, peer.limits(record).message(Votes)).verdicts
            except (Malformed, IndexError):
                continue
        for index, mine in enumerate(cast.get(owner, ())):
            votes = Counter(verdicts[index] for verdicts in cast.values() if index < len(verdicts))
            agreeing += 2 * votes[mine] > len(cast)
    return agreeing
