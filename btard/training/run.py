"""The result of a training: `btard.Run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from btard.protocol.ledger import Entry


class Ban(NamedTuple):
    """A peer that was removed.

    >>> import btard
    >>> btard.Ban(step=3, peer=2, reason="wrong_gradient", attacker=True)
    Ban(step=3, peer=2, reason='wrong_gradient', attacker=True)
    """

    step: int
    peer: int
    reason: str
    """The ledger's kind, such as wrong_gradient."""
    attacker: bool
    """Whether it was one of the attackers of the simulation."""


class Return(NamedTuple):
    """A step that ended with an earlier state, after a ban."""

    step: int
    back_to: int


@dataclass
class Run:
    """The result of a training. It grows with each step, and the model holds the present parameters.

    >>> import btard
    >>> btard.Run(attackers=frozenset({2}), bans=[btard.Ban(3, 2, "wrong_gradient", True)], losses=[1.0, 0.5])
    Run: 2 steps, loss 1 to 0.5, 1 of 1 attackers banned, 0 honest peers banned
    """

    attackers: frozenset[int] = frozenset()
    """The numbers of the peers that attack."""
    losses: list[float] = field(default_factory=list)
    """Step -> the mean loss of the honest peers on their own batches; NaN if none of them trained in it."""
    bans: list[Ban] = field(default_factory=list)
    """The peers that were removed, in the order of the ledger."""
    ledger: list[Entry] = field(default_factory=list)
    """Every verdict, with its votes; the same at all honest peers."""
    returns: list[Return] = field(default_factory=list)
    """The steps after which the peers went back to an earlier state, as healing does."""
    lrs: list[float] = field(default_factory=list)
    """Step -> the learning rate, of the first parameter group."""
    radii: list[float | None] = field(default_factory=list)
    """Step -> the clipping radius tau; None with a rule at a server."""
    active: tuple[int, ...] = ()
    """The remaining peers."""
    diverged_at: int | None = None
    """The step at which no honest gradient was finite, which ended the run; None if all went well."""
    leads: bool = True
    """Whether this process speaks for the run: the lowest honest rank under torchrun, always in one process."""
    fallen: str | None = None
    """Why the peer of this rank is out of the run, under torchrun; None if it reached the end."""

    @property
    def steps(self) -> int:
        """Steps that were done."""
        return len(self.losses)

    @property
    def honest_banned(self) -> list[Ban]:
        """Bans of honest peers: none, unless the protocol is used beyond its promises."""
        return [ban for ban in self.bans if not ban.attacker]

    def summary(self) -> dict[str, Any]:
        """The run in JSON values."""
        return {
            "steps": self.steps,
            "loss": self.losses[-1] if self.losses else None,
            "byzantine": sorted(self.attackers),
            "bans": [ban._asdict() for ban in self.bans],
            "went_back": [back._asdict() for back in self.returns],
            "active": list(self.active),
            "diverged_at": self.diverged_at,
        }

    def state(self) -> dict[str, Any]:
        """All that a checkpoint has to hold of it, as JSON values."""
        listed = {name: list(getattr(self, name)) for name in ("losses", "lrs", "radii", "active", "returns", "bans")}
        return {**listed, "ledger": [entry.to_json() for entry in self.ledger]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.losses, self.lrs, self.radii = state["losses"], state["lrs"], state["radii"]
        self.active = tuple(state["active"])
        self.bans, self.returns = [Ban(*x) for x in state["bans"]], [Return(*x) for x in state["returns"]]
        self.ledger = [Entry.from_json(line) for line in state["ledger"]]

    def __repr__(self) -> str:
        attackers = len({ban.peer for ban in self.bans if ban.attacker})
        loss = f"loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}, " if self.losses else ""
        ended = f", diverged at step {self.diverged_at}" if self.diverged_at is not None else ""
        ended += f", out of the run: {self.fallen}" if self.fallen else ""
        return (
            f"Run: {self.steps} steps, {loss}{attackers} of {len(self.attackers)} attackers banned, "
            f"{len(self.honest_banned)} honest peers banned{ended}"
        )
