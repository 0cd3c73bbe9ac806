"""What a peer asks of the outside world. A driver answers, in its own way (one process, a cluster, a swarm)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import ClassVar

import torch
from msgspec import Struct

from btard.protocol.memory import Later
from btard.protocol.signed import Packet, Relayed, Signed, Vouch


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
class Fetch:
    """The aggregates of `parts` of this step, from any member that has them; answered by {part: Packet}.

    Only a peer that is behind the others needs it: they no longer hear what it asks for in a phase. `fits`
    says whether a packet is the one that was announced, of at most `limit` bytes. A driver in lockstep answers nothing.
    """

    parts: tuple[int, ...]
    limit: int
    fits: Callable[[int, Packet], bool]
    phase: ClassVar[str] = "fetch"


@dataclass(frozen=True)
class Idle:
    """Takes part in a compute phase without computing, so that lockstep drivers keep step."""

    phase: str = "compute"
    work: int = 1
    """What the others compute in the meantime takes no longer than this many gradients."""


class Compare(Struct, frozen=True):
    """Send everybody my signature on what I heard in an earlier phase; answered by {sender: Vouch}.

    `faces`: as of a broadcast. It has a message of its own only where nobody has anything else to say: elsewhere it is
    `Together` with what is said next.
    """

    load: ClassVar[int] = 0
    """Nearly nothing."""

    phase: str
    vouch: Vouch | None
    faces: Mapping[int, Vouch | None]


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


class Exchange(Struct, frozen=True):
    """Send each recipient its items; answered by {sender: items}. What did not arrive in time is absent.

    From one sender at most `limit` bytes are read; one that sends more counts as having sent nothing. `load` as that of
    a broadcast.
    """

    phase: str
    packets: Mapping[int, Sequence[Packet | Relayed]]
    limit: int
    load: int


class Relay(Exchange, frozen=True):
    """An exchange that is one of the rounds in which differing broadcasts are passed on (`broadcast.py`).

    A driver that knows that all peers are quiet may answer `QUIET`, and they skip the rest.
    """

    left: int = 0
    """How many rounds of the phase follow."""
    first: bool = False
    """Whether it is the first round of a phase: what is said in it may be answered in it."""
    quiet: bool = False
    """Whether the peer says nothing in the rounds that follow either, unless it hears something."""
    settled: bool = False
    """Whether the peer needs nothing from this round or those that follow: no answer has to be waited for."""
    proof: Later[Relayed] | None = None
    """First round: what a settled peer shows to each peer that is not."""


class Together(Struct, frozen=True):
    """Say several things in one message; answered by {sender: Bundle}, in the order of `effects`."""

    phase: str
    effects: tuple[Broadcast | Compare | Exchange, ...]

    @property
    def load(self) -> int:
        return sum(effect.load for effect in self.effects)


QUIET: Mapping[int, Sequence[Packet | Relayed]] = MappingProxyType({})
"""Nobody says anything in this round or in those that follow it."""


Speech = Broadcast | Compare | Exchange | Together
"""What peers say to each other."""
Effect = Compute | Measure | Fetch | Idle | Speech
