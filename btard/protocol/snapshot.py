"""A peer between two steps as JSON values and tensors, and back: what a checkpoint needs to go on to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from btard.protocol import wire
from btard.protocol.ledger import Entry
from btard.protocol.messages import Announce, Commit, Packet, Report
from btard.protocol.peer import Peer
from btard.protocol.record import Split, StepRecord

Tensors = dict[str, torch.Tensor]


def save_peer(peer: Peer) -> tuple[dict[str, Any], Tensors]:
    """State of `peer` and the tensors in it. Tensors are not copied: write them before the next step."""
    state: dict[str, Any] = {
        "active": peer.active,
        "assignments": {str(validator): target for validator, target in peer.assignments.items()},
        "coins": [coin.hex() for coin in peer.coins],
        "absences": {str(other): count for other, count in peer.absences.items()},
        "ledger": [entry.to_json() for entry in peer.ledger.entries],
        "last": None,
    }
    tensors: Tensors = {}
    record = peer.last
    if record is not None:
        state["last"] = {
            "step": record.step,
            "active": record.active,
            "assignments": {str(validator): target for validator, target in record.assignments.items()},
            "previous_coin": record.previous_coin.hex(),
            "workers": record.workers,
            "k": record.cut.k,
            "owners": record.owners,
            "commits": {str(i): wire.pack(message.to_wire()).hex() for i, message in record.commits.items()},
            "announced": wire.pack(Announce(tuple(record.announced.values())).to_wire()).hex(),
            "reports": {str(i): wire.pack(message.to_wire()).hex() for i, message in record.reports.items()},
            "coin": record.coin.hex(),
            "expelled": {str(other): why for other, why in record.expelled.items()},
            "skipped": sorted(record.skipped),
            "missing": {str(other): parts for other, parts in record.missing.items()},
        }
        tensors |= {f"aggregate/{part}": value for part, value in record.aggregates.items()}
        tensors |= {
            f"received/{part}/{sender}": packet.body
            for part, packets in record.received.items()
            for sender, packet in packets.items()
            if isinstance(packet.body, torch.Tensor)
        }
        if record.own is not None:  # by parts: where these lie in memory, other peers hold them as received
            tensors |= {f"own/{part}": record.cut.view(record.own, part) for part in range(record.cut.k)}
    return state, tensors


def load_peer(peer: Peer, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a fresh `peer` the state that `save_peer` returned. The tensors are used as they are, not copied."""
    peer.active = tuple(state["active"])
    peer.assignments = {int(validator): target for validator, target in state["assignments"].items()}
    peer.coins = [bytes.fromhex(coin) for coin in state["coins"]]
    peer.absences = {int(other): count for other, count in state["absences"].items()}
    for line in state["ledger"]:
        peer.ledger.append(Entry.from_json(line))
    kept = state["last"]
    if kept is None:
        return

    def opened(kind: Any, packed: str) -> Any:
        raw = bytes.fromhex(packed)
        return kind.from_wire(wire.unpack(raw, max_bytes=len(raw), what=kind.__name__))

    record = peer.last = StepRecord(
        step=kept["step"],
        active=tuple(kept["active"]),
        assignments={int(validator): target for validator, target in kept["assignments"].items()},
        previous_coin=bytes.fromhex(kept["previous_coin"]),
        workers=tuple(kept["workers"]),
        split=Split(peer.d, kept["k"]),
        owners=tuple(kept["owners"]),
        commits={int(i): opened(Commit, packed) for i, packed in kept["commits"].items()},
        announced={entry.part: entry for entry in opened(Announce, kept["announced"]).parts},
        reports={int(i): opened(Report, packed) for i, packed in kept["reports"].items()},
        coin=bytes.fromhex(kept["coin"]),
        expelled={int(other): why for other, why in kept["expelled"].items()},
        skipped=set(kept["skipped"]),
        missing={int(other): tuple(parts) for other, parts in kept["missing"].items()},
    )
    own = [tensors[name] for part in range(kept["k"]) if (name := f"own/{part}") in tensors]
    record.own = torch.cat(own) if own else None
    for name, tensor in tensors.items():
        what, _, rest = name.partition("/")
        if what == "aggregate":
            record.aggregates[int(rest)] = tensor
        elif what == "received":
            part, sender = map(int, rest.split("/"))
            # The hash is what proves a disclosed part; the signature was only needed while it could differ.
            packet = Packet("part", sender, record.step, part, tensor, b"")
            record.received.setdefault(part, {})[sender] = packet
