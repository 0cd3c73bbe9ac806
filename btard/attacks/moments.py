"""When attackers strike: what they can know before they must commit, and how they may use it.

Functions of the step's public state alone, without a memory, so that a resumed run goes on to the same bits. Why none
of them helps: docs/protocol.md, "Why an attacker cannot pick its moment".
"""

from __future__ import annotations

from collections.abc import Callable

from btard.protocol.behaviour import View
from btard.protocol.collusion import Collusion

SELDOM = 0.1
"""Share of the steps of `seldom`."""


def always(collusion: Collusion, ctx: View) -> bool:
    """All steps."""
    return True


def checked(collusion: Collusion, ctx: View) -> bool:
    """Steps in which its own work of the step before is being checked: it hopes that nobody is drawn twice in a row."""
    return ctx.peer in ctx.assignments.values()


def covered(collusion: Collusion, ctx: View) -> bool:
    """Steps in which a fellow, which reports nobody, is among the present validators."""
    return any(validator in collusion.members and validator != ctx.peer for validator in ctx.assignments)


def seldom(collusion: Collusion, ctx: View) -> bool:
    """One step in ten, drawn from its own random stream."""
    return bool(collusion.stream("seldom", ctx.step, ctx.peer).random() < SELDOM)


def in_turn(collusion: Collusion, ctx: View) -> bool:
    """One attacker after the other: the next begins when the attackers with lower numbers are gone."""
    return ctx.peer == min((peer for peer in ctx.active if peer in collusion.members), default=ctx.peer)


MOMENTS: dict[str, Callable[[Collusion, View], bool]] = {
    moment.__name__: moment for moment in (always, checked, covered, seldom, in_turn)
}
"""The values of the option `when`."""
