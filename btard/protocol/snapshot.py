"""A peer between two steps as JSON values and tensors, and back: what a checkpoint needs to resume to the same bits.

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
from btard.protocol.ledger import Entry, still_byzantine
from btard.protocol.messages import JoinRequest
from btard.protocol.peer import Peer
from btard.protocol.record import Settled, Start, StepRecord, to_json

Tensors = dict[str, torch.Tensor]


def save_peer(peer: Peer) -> tuple[dict[str, Any], Tensors]:
    """State of `peer` and the tensors in it. Tensors are not copied: write them before the next step."""
    record = peer.last
    state: dict[str, Any] = {
        "start": to_json(peer.begin(), Start),
        "coins": [coin.hex() for coin in peer.coins],
        "ledger": [entry.to_json() for entry in peer.ledger.entries],
        "last": None if record is None else to_json(record, Settled),
    }
    if peer.config.heal != "off":
        state["taus"] = {str(step): tau for step, tau in peer.taus.items()}
    if peer.config.probation is not None:
        state["roster"] = [key.hex() for key in peer.roster.keys]
        state["requests"] = [[request.key.hex(), request.signature.hex()] for request in peer.requests.values()]
    return state, {} if record is None else record.tensors()


def load_peer(peer: Peer, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a fresh `peer` the state that `save_peer` returned. The tensors are used without a copy."""
    peer.coins = [bytes.fromhex(coin) for coin in state["coins"]]
    if "roster" in state:
        peer.roster = Roster(tuple(bytes.fromhex(key) for key in state["roster"]))
        requests = [JoinRequest(bytes.fromhex(key), bytes.fromhex(signed)) for key, signed in state.get("requests", [])]
        peer.requests = {request.key: request for request in requests}
    for line in state["ledger"]:
        peer.ledger.append(Entry.from_json(line))
    peer.resume(wire.convert(state["start"], Start, "start"))
    peer.taus = {int(step): tau for step, tau in state.get("taus", {}).items()}
    if state["last"] is not None:
        peer.last = StepRecord.restored(wire.convert(state["last"], Settled, "last"), tensors)
        before = [entry for entry in peer.ledger.entries if entry.step < peer.last.step]
        peer.last.byzantine = still_byzantine(peer.config, before)
    peer.byzantine = still_byzantine(peer.config, peer.ledger.entries)


def public_state(peer: Peer) -> bytes:
    """What all honest members hold in common, as JSON: equal bytes at each of them. No tensors; see `Download`."""
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
    """The digest of its state that `member` tells anybody that asks after this step; None if it says nothing."""
    hashed = state_digest(member.config.run_id, public_state(member), tensors)
    return member.behaviour_at(member.begin()).vouch(_context(member), hashed)


def load_public(newcomer: Peer, state: bytes) -> None:
    """Give a newcomer the `public_state` that it has downloaded and checked."""
    load_peer(newcomer, json.loads(state), {})


def _context(member: Peer) -> Context:
    if member.last is None:
        raise RuntimeError(f"peer {member.id}: nobody can be admitted before the first step")
    return member.context(member.last)
