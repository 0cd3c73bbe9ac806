"""Newcomers to a cohort in one process: they ask, and once admitted they download and check the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from btard.protocol.behaviour import HONEST, Behaviour
from btard.protocol.download import Download, WrongState, agreed_digest, check_download
from btard.protocol.hashing import tensor_digest
from btard.protocol.identity import Identity
from btard.protocol.ledger import ADMITTED
from btard.protocol.peer import Peer
from btard.protocol.snapshot import load_public, serve, vouch


@dataclass
class Newcomer:
    """A peer that has asked to join, and the outcome."""

    identity: Identity
    behaviour: Behaviour = HONEST
    donor: int | None = None
    """The member it asks first for the state; None: the one with the lowest number."""
    receive: Callable[[Mapping[str, torch.Tensor]], None] | None = None
    """Called with the tensors of the download once they are checked."""
    peer: int | None = None
    """Its number, as soon as it is admitted and has the state."""
    refused: list[str] = field(default_factory=list)
    """What was wrong with the states that it refused."""

    def make_peer(self, number: int, like: Peer) -> Peer:
        """Peer `number` without any state yet, in the run of `like`."""
        self.peer = number
        shared = like.commitments, like.memory
        return Peer(number, self.identity, like.roster, like.config, like.d, self.behaviour, *shared)


def admitted_last(member: Peer) -> list[int]:
    """The numbers of the newcomers that were admitted in the step before, ascending."""
    return sorted(e.accused for e in member.ledger.entries if e.kind == ADMITTED and e.step == member.t - 1)


def bring_in(
    newcomer: Newcomer, number: int, members: Mapping[int, Peer], witness: Peer, tensors: Mapping[str, torch.Tensor]
) -> Peer:
    """The peer that the admitted `newcomer` becomes, with a state that most of the members vouch for.

    `members`: those that answer; `witness`: whose list of members the newcomer goes by.
    Errors: WrongState if no state has a majority, or nobody serves the one that has.
    """
    run_id, key = witness.config.run_id, newcomer.identity.public_key
    hashed = {name: tensor_digest(x, name) for name, x in tensors.items()}  # once, instead of at every member
    said = [vouch(member, key, hashed) for member in members.values()]
    known = {i: witness.roster.keys[i] for i in witness.active}
    agreed = agreed_digest(run_id, key, known, [given for given in said if given is not None])
    for donor in sorted(members, key=lambda i: (i != newcomer.donor, i)):
        try:
            download = _downloaded(members[donor], tensors, agreed)
        except WrongState as error:
            newcomer.refused.append(str(error))
            continue
        peer = newcomer.make_peer(number, witness)
        load_public(peer, download.state)
        if newcomer.receive is not None:
            newcomer.receive(download.tensors)
        return peer
    raise WrongState(f"newcomer {number}: nobody serves the state that the members vouch for: {newcomer.refused}")


def _downloaded(donor: Peer, tensors: Mapping[str, torch.Tensor], agreed: bytes) -> Download:
    download = serve(donor, tensors)
    if download is None:
        raise WrongState(f"peer {donor.id} served no state: ask another member")
    check_download(download, donor.id, agreed, donor.config.run_id)
    return download
