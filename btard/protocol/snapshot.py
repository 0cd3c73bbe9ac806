"""A peer between two steps as JSON values and tensors, and back: what a checkpoint needs to go on to the same bits.

The values are public but for the requests to join that the peer holds: a newcomer downloads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from btard.protocol import wire
from btard.protocol.behaviour import Context
from btard.protocol.download import Download, Vouch, state_digest
from btard.protocol.identity import Roster
from btard.protocol.ledger import Entry
from btard.protocol.messages import Announce, Commit, JoinRequest, Packet, Report
from btard.protocol.peer import Peer
from btard.protocol.record import Probation, Split, StepRecord

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
    if peer.config.probation is not None:
        state["roster"] = [key.hex() for key in peer.roster.keys]
        state["probation"] = {
            str(i): [standing.served, standing.missed, sorted(standing.cleared)]
            for i, standing in peer.probation.items()
        }
        state["requests"] = [[request.key.hex(), request.signature.hex()] for request in peer.requests.values()]
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
            "here": record.here,
            "unheld": sorted(record.unheld),
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
    if peer.config.tau == "auto":
        state["tau"] = [peer.tau, None if record is None else record.tau]
    return state, tensors


def load_peer(peer: Peer, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a fresh `peer` the state that `save_peer` returned. The tensors are used as they are, not copied."""
    peer.active = tuple(state["active"])
    peer.assignments = {int(validator): target for validator, target in state["assignments"].items()}
    peer.coins = [bytes.fromhex(coin) for coin in state["coins"]]
    peer.absences = {int(other): count for other, count in state["absences"].items()}
    if "roster" in state:
        peer.roster = Roster(tuple(bytes.fromhex(key) for key in state["roster"]))
        peer.probation = {
            int(i): Probation(served, missed, frozenset(cleared))
            for i, (served, missed, cleared) in state["probation"].items()
        }
        requests = [JoinRequest(bytes.fromhex(key), bytes.fromhex(signed)) for key, signed in state.get("requests", [])]
        peer.requests = {request.key: request for request in requests}
    peer.tau, last_tau = state.get("tau", (peer.tau, peer.tau))
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
        tau=last_tau,
        workers=tuple(kept["workers"]),
        split=Split(peer.d, kept["k"]),
        owners=tuple(kept["owners"]),
        commits={int(i): opened(Commit, packed) for i, packed in kept["commits"].items()},
        announced={entry.part: entry for entry in opened(Announce, kept["announced"]).parts},
        reports={int(i): opened(Report, packed) for i, packed in kept["reports"].items()},
        coin=bytes.fromhex(kept["coin"]),
        expelled={int(other): why for other, why in kept["expelled"].items()},
        skipped=set(kept["skipped"]),
        here=tuple(kept["here"]),
        unheld=frozenset(kept["unheld"]),
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


def public_state(peer: Peer) -> bytes:
    """What all honest members hold alike, as JSON: equal bytes at each of them. No tensors; see `Download`."""
    state, _ = save_peer(peer)
    return json.dumps({name: value for name, value in state.items() if name != "requests"}, sort_keys=True).encode()


def serve(member: Peer, tensors: Mapping[str, torch.Tensor]) -> Download | None:
    """The state with the training's `tensors`, as `member` gives it to a newcomer after a step."""
    honest = Download(public_state(member), tensors)
    return member.behaviour_at(member.begin()).serve(_context(member), honest)


def vouch(member: Peer, newcomer: bytes, tensors: Mapping[str, bytes]) -> Vouch | None:
    """What `member` tells the newcomer with this key about its state; `tensors`: name -> `tensor_digest`."""
    said = vouched(member, tensors)
    return None if said is None else Vouch.create(member.identity, member.config.run_id, member.id, newcomer, said)


def vouched(member: Peer, tensors: Mapping[str, bytes]) -> bytes | None:
    """The digest of its state that `member` tells whoever asks after this step; None if it says nothing."""
    hashed = state_digest(member.config.run_id, public_state(member), tensors)
    return member.behaviour_at(member.begin()).vouch(_context(member), hashed)


def load_public(newcomer: Peer, state: bytes) -> None:
    """Give a newcomer the `public_state` that it has downloaded and checked."""
    load_peer(newcomer, json.loads(state), {})


def _context(member: Peer) -> Context:
    if member.last is None:
        raise RuntimeError(f"peer {member.id}: nobody can be admitted before the first step")
    return member.context(member.last)
