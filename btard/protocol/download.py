"""The state that an admitted newcomer downloads from one member, and that most members vouch for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from btard.protocol.hashing import DIGEST_SIZE, digest, signed_digest, tensor_digest
from btard.protocol.identity import Identity, verify_key


class WrongState(ValueError):
    """A state that is not the one that most members vouch for, or that too few vouch for at all."""


@dataclass(frozen=True)
class Download:
    """What a newcomer downloads from one member: the agreed state as JSON, and the tensors of the training, by name.

    Nothing of it is looked into before its digest is the one that the majority signed.
    """

    state: bytes
    tensors: Mapping[str, torch.Tensor]

    def digest(self, run_id: str) -> bytes:
        """H of all of it; reads every tensor once."""
        return state_digest(run_id, self.state, {name: tensor_digest(x, name) for name, x in self.tensors.items()})


def state_digest(run_id: str, state: bytes, tensors: Mapping[str, bytes]) -> bytes:
    """H(run, state, name and digest of each tensor): what members vouch for. `tensors`: name -> `tensor_digest`."""
    return digest("state", run_id, state, *(field for name in sorted(tensors) for field in (name, tensors[name])))


@dataclass(frozen=True)
class Vouch:
    """A member's signed statement of the state's digest, valid only for the newcomer with this key."""

    member: int
    digest: bytes
    signature: bytes

    @classmethod
    def create(cls, identity: Identity, run_id: str, member: int, newcomer: bytes, hashed: bytes) -> Vouch:
        return cls(member, hashed, identity.sign(_vouched(run_id, member, newcomer, hashed)))

    def authentic(self, key: bytes, run_id: str, newcomer: bytes) -> bool:
        """Whether the member with public key `key` signed this for `newcomer`."""
        if not isinstance(self.digest, bytes) or len(self.digest) != DIGEST_SIZE:
            return False
        return verify_key(key, _vouched(run_id, self.member, newcomer, self.digest), self.signature)


def _vouched(run_id: str, member: int, newcomer: bytes, hashed: bytes) -> bytes:
    return signed_digest("vouch", run_id, member, newcomer, hashed)


def agreed_digest(run_id: str, newcomer: bytes, members: Mapping[int, bytes], vouches: Iterable[Vouch]) -> bytes:
    """The state digest that more than half of `members` (number -> public key) have signed for `newcomer`.

    Who the members are a newcomer has to know from elsewhere, as it has to know whom to ask to join: a state cannot
    vouch for its own witnesses. A member that signed several digests counts for none.
    Errors: WrongState if no digest has a majority.
    """
    said: dict[int, set[bytes]] = {}
    for vouch in vouches:
        if vouch.member in members and vouch.authentic(members[vouch.member], run_id, newcomer):
            said.setdefault(vouch.member, set()).add(vouch.digest)
    votes = Counter(hashed for digests in said.values() if len(digests) == 1 for hashed in digests)
    for hashed, count in votes.items():
        if 2 * count > len(members):
            return hashed
    raise WrongState(
        f"no state has the signatures of more than half of the {len(members)} members, only of "
        f"{max(votes.values(), default=0)}: ask again in the next step"
    )


def check_download(download: Download, donor: int, agreed: bytes, run_id: str) -> None:
    """WrongState, naming the donor, unless `download` is the state of digest `agreed`. Reads the tensors once."""
    hashed = download.digest(run_id)
    if hashed != agreed:
        raise WrongState(
            f"peer {donor} served the state {hashed.hex()[:16]}, but the majority of the members vouch for "
            f"{agreed.hex()[:16]}: take nothing of it and ask another member"
        )
