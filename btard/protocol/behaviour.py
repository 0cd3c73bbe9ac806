"""What a Byzantine peer may do differently. Every hook behaves honestly by default; an attack overrides one.

The protocol calls the hooks of its own peer only, and never trusts what comes out of them: to everybody else it is
just a message.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from msgspec import Struct

from btard.protocol.commitments import Commitments
from btard.protocol.config import ProtocolConfig
from btard.protocol.download import Download
from btard.protocol.effects import Compute
from btard.protocol.identity import Identity
from btard.protocol.memory import NOTHING, Memory
from btard.protocol.messages import Claim, CoinReveal, Report
from btard.protocol.record import StepRecord
from btard.protocol.signed import Packet, Relayed, Signed


class View(Struct, frozen=True):
    """What is public before anybody commits to a gradient: all that an attack on gradients may use.

    Peers of a trusted server have nothing else: no validators, no radius, and no word of each other.
    """

    step: int
    peer: int
    run_id: str
    coins: Sequence[bytes]
    """coins[t] is r^{t-1}, the coin that seeds the batches of step t."""
    active: tuple[int, ...]
    """A_t, ascending."""
    assignments: Mapping[int, int] = {}
    """V_t: validator -> its target, a worker of step t - 1."""
    tau: float = math.inf
    """The clipping radius of the step; inf clips nothing."""
    last: StepRecord | None = None
    """The step before as the peer saw it; None in the first one."""
    rule: Callable[[torch.Tensor], torch.Tensor] | None = None
    """What a trusted server makes of the gradients [n, d] of all peers; None where there is no server."""


class Context(View, frozen=True, kw_only=True):
    """What a hook of the protocol may also use: the peer's own view of the step, and what the peer holds."""

    record: StepRecord
    config: ProtocolConfig | None = None
    """What all peers agreed on."""
    identity: Identity | None = None
    """The peer's own keys: a Byzantine peer signs what it likes."""
    commitments: Commitments | None = None
    """How the peers of the run commit to tensors."""
    memory: Memory = NOTHING
    """Results that the peers of this process have computed already."""


class Behaviour:
    """An honest peer. Subclasses in `btard.attacks` override single hooks; `acts` says in which steps they apply.

    Hooks of different peers may run at the same time: what attackers share goes through `Collusion`.

    >>> import btard
    >>> btard.Behaviour().byzantine, btard.Attack.byzantine
    (False, True)
    """

    byzantine = False
    lookback = 1
    """How many steps back this behaviour may ask for gradients (validators need 1)."""
    requires_cohort: ClassVar[bool] = False
    """Whether it needs the honest gradients of the step. In a swarm these are those that the colluders see."""

    def active(self, step: int) -> bool:
        """Whether the overridden hooks may apply at `step`: the plan, made before the run."""
        return False

    def acts(self, ctx: View) -> bool:
        """Whether they really apply in the current step: a function of its public state at the start."""
        return self.active(ctx.step)

    @property
    def resting(self) -> Behaviour:
        """What the peer does in the other steps."""
        return HONEST

    def check_validators(self, validators: int) -> None:
        """ValueError if `acts` depends on validators and a step has none."""

    def request(self, ctx: View, request: Compute) -> Compute:
        """Which gradient the peer computes as its own."""
        return request

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient [d] that the peer commits to."""
        return gradient

    def commit(self, ctx: Context, digests: tuple[bytes, ...]) -> tuple[bytes, ...] | None:
        """The commitments h_i[.]; None stays silent."""
        return digests

    def part(self, ctx: Context, part: int, body: torch.Tensor) -> torch.Tensor | bytes | None:
        """What the peer sends to the owner of `part`; None sends nothing."""
        return body

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The aggregate that the peer announces for `part`; `x` [k, p] are the parts it was made of."""
        return value

    def aggregate_for(
        self, ctx: Context, recipient: int, part: int, value: torch.Tensor
    ) -> torch.Tensor | bytes | None:
        """What the peer sends to `recipient` as the announced aggregate; None sends nothing."""
        return value

    def forward(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | bytes | None:
        """What the peer gives to `recipient`, which lacks the aggregate of `part`; None gives nothing."""
        return value

    def reveal(self, ctx: Context, reveal: CoinReveal) -> CoinReveal | None:
        """The coin's reveal; None stays silent."""
        return reveal

    def report(self, ctx: Context, report: Report) -> Report | None:
        """norm_i[.] and s_i[.]; None stays silent."""
        return report

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        """The accusations of a round."""
        return claims

    def disclose(self, ctx: Context, claim: Claim, packets: Sequence[Any]) -> Sequence[Any]:
        """The evidence shown for a claim."""
        return packets

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        """The verdict on somebody's claim."""
        return verdict

    def say(
        self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Callable[[Any], Signed]
    ) -> tuple[Signed | None, Mapping[int, Signed | None]]:
        """The broadcast of `phase`, and what single recipients are sent instead of it.

        `message` is `payload` signed, None for silence; `sign` signs another payload for the same phase.
        """
        return message, {}

    def compare(self, ctx: Context, phase: str, view: bytes) -> tuple[bytes | None, Mapping[int, bytes | None]]:
        """The digest of what the peer says it heard in `phase`, and what it tells single recipients instead.

        `ctx.record.heard[phase]` is what came directly; None says nothing.
        """
        return view, {}

    def relay(
        self, ctx: Context, phase: str, round: int, outgoing: Mapping[int, Sequence[Relayed]]
    ) -> Mapping[int, Sequence[Relayed]]:
        """What the peer passes on of the others' broadcasts in this round, by recipient."""
        return outgoing

    @property
    def relays_news(self) -> bool:
        """Whether it relays like an honest peer: anything new, in the round after it came."""
        return getattr(self.relay, "__func__", None) is Behaviour.relay

    def dispatch(
        self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Packet]]
    ) -> Mapping[int, Sequence[Packet]]:
        """The packets of a point-to-point phase, by recipient."""
        return packets

    def serve(self, ctx: Context, download: Download) -> Download | None:
        """The state that the peer gives to a newcomer; None gives nothing."""
        return download

    def vouch(self, ctx: Context, hashed: bytes) -> bytes | None:
        """The digest of the state that the peer tells a newcomer; None says nothing."""
        return hashed

    def crashed(self, ctx: Context, phase: str) -> bool:
        """Whether the peer is dead from this phase on."""
        return False


HONEST = Behaviour()


class HookError(ValueError):
    """A hook of a user's own attack returned something that cannot be sent; one line."""


def taken(given: torch.Tensor, sent: Any) -> Any:
    """What a hook that got `given` has returned: a plain tensor of its own, whatever becomes of the one it returned.

    An attack may use a buffer again, or return a tensor of another class or with a gradient. A tensor without numbers
    becomes bytes, which are no part of anything.
    """
    if sent is given or not isinstance(sent, torch.Tensor):
        return sent
    with torch._C.DisableTorchFunctionSubclass():
        if sent.is_meta:
            return b""
        dense = sent.detach() if sent.layout is torch.strided else sent.detach().to_dense()
        return dense.as_subclass(torch.Tensor).resolve_conj().resolve_neg().clone()


def sent_by(behaviour: Behaviour, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
    """What the peer commits to instead of `gradient` [d].

    Errors: HookError if that is no vector like it, or the hook has written into `gradient`: validators of this process
    remember it, and would find nothing wrong.
    """
    changes = _changes(gradient)
    sent = taken(gradient, behaviour.gradient(ctx, gradient))
    if isinstance(sent, torch.Tensor):
        alike = sent.shape == gradient.shape, sent.dtype == gradient.dtype, sent.device == gradient.device
        if all(alike) and changes == _changes(gradient):
            return sent
    kind = type(behaviour)
    where = f"attack {kind.__module__}:{kind.__qualname__}, step {ctx.step}, peer {ctx.peer}"
    if changes != _changes(gradient):
        raise HookError(
            f"{where}: gradient was written into; return a new tensor, such as gradient * 2 and not gradient.mul_(2)"
        )
    came = (
        f"{sent.dtype} {tuple(sent.shape)} on {sent.device}" if isinstance(sent, torch.Tensor) else type(sent).__name__
    )
    raise HookError(
        f"{where}: gradient returned {came}, expected {gradient.dtype} {tuple(gradient.shape)} on {gradient.device}, "
        "as it was given"
    )


def _changes(tensor: torch.Tensor) -> int:
    """How often `tensor` was written to, as far as torch counts."""
    return 0 if tensor.is_inference() else tensor._version
