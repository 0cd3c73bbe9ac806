"""What a peer asks of the outside world. A driver answers, in its own way (one process, a cluster, a swarm)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import ClassVar

import torch
from msgspec import Struct

from btard.protocol.messages import Packet, Relayed, Signed


class Purpose(str, Enum):
    """Why a gradient is wanted. Only TRAIN may touch a peer's local state, such as BatchNorm's running statistics."""

    TRAIN = "train"
    VALIDATE = "validate"
    JUDGE = "judge"


@dataclass(frozen=True)
class Compute:
    """The gradient [d] at the parameters x^`step` of the public batch drawn with `seed` for `peer`.

    `step` is part of the request because validators and judges work one step behind. `flip_labels` asks for
    the batch with labels l -> classes - 1 - l, which only a Byzantine peer does.

    >>> import btard
    >>> btard.Compute(step=3, peer=1, seed=b"any public seed").phase
    'compute'
    """

    step: int
    peer: int
    seed: bytes
    purpose: Purpose = Purpose.TRAIN
    flip_labels: bool = False

    @property
    def phase(self) -> str:
        return "compute" if self.purpose is not Purpose.JUDGE else "judge"


@dataclass(frozen=True)
class Measure:
    """The losses of the states at the beginning of `steps`, ascending, the last of which is the current step.

    They are of one public batch drawn with `seed`. Answered by `Losses`, or None by whom some of the states are lost.
    """

    steps: tuple[int, ...]
    seed: bytes
    phase: ClassVar[str] = "heal/measure"

    @property
    def work(self) -> int:
        """As in `Idle`: the losses of a state take no longer than a gradient."""
        return len(self.steps)


@dataclass(frozen=True)
class Losses:
    """The result of a `Measure`, in the order of its steps."""

    digests: tuple[bytes, ...]
    """Digests of the states, 32 bytes each."""
    values: torch.Tensor
    """[states, examples] float64: the loss of every example of the batch."""


@dataclass(frozen=True)
class Idle:
    """Takes part in a compute phase without computing, so that lockstep drivers keep step."""

    phase: str = "compute"
    work: int = 1
    """What the others compute in the meantime takes no longer than this many gradients."""


class Broadcast(Struct, frozen=True):
    """Send `message` (None: nothing) to every active peer; answered by {sender: Signed} of this phase.

    `faces` says what single recipients get instead: only a Byzantine peer has more than one face. Whoever sends more
    than `limit` bytes is not read and counts as silent. `load`: bytes that an honest peer may have to move in this
    phase (`loads.py`), the same at all honest peers.
    """

    phase: str
    message: Signed | None
    faces: Mapping[int, Signed | None]
    limit: int
    load: int


class Compare(Struct, frozen=True):
    """Send everybody a 32-byte digest of what I hold; answered by {sender: digest}.

    A hint that needs no signature: who lies about it is sent what it has already, and nothing else happens.
    """

    load: ClassVar[int] = 0
    """Nearly nothing."""

    phase: str
    digest: bytes


class Exchange(Struct, frozen=True):
    """Send each recipient its items; answered by {sender: items}. What did not arrive in time is absent.

    From one sender at most `limit` bytes are read; one that sends more counts as having sent nothing. `load` as that of
    a broadcast. `quiet`: the peer says nothing in the rounds that follow either, unless it hears something. A driver
    that runs all peers may answer `QUIET` if all of them are quiet, and the peers then skip these rounds.
    """

    phase: str
    packets: Mapping[int, Sequence[Packet | Relayed]]
    limit: int
    load: int
    quiet: bool = False


QUIET: Mapping[int, Sequence[Packet | Relayed]] = MappingProxyType({})
"""Nobody says anything in this round or in those that follow it."""


Effect = Compute | Measure | Idle | Broadcast | Compare | Exchange
