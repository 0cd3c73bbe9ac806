"""Phases among peers with clocks of their own: every peer says something to every other, and no peer waits forever.

A peer that has heard all others goes on at once. How long a peer waits for one that is silent grows from phase to phase
by what a message may take: then an honest peer that was kept waiting by a liar in one phase still comes in time for all
honest peers in the next one. (Let the wait in phase p be w_p, and let A leave p when it has heard B. B had begun p by
then, so it leaves p within w_p, and what it says next arrives within w_p + one message: w_{p+1} must be that long.)

Waits begin anew at each step: nobody's first one begins before the last step is known to be over (`btard.swarm.ends`).

A peer that has kept me waiting is not waited for any more until it has caught up. If it does so again, it is not waited
for any more in this step: what it says counts if it is there by the time that the others have been heard. So a liar can
waste two waits of each other peer in a step, and an honest peer that has once been unreachable for a moment still has
its say. (An honest peer that a liar has kept waiting comes in time, as above: it has no strike at all.)

The others do not wait for a peer that comes back behind them. Until it has been in a step, one strike is enough, and
none is forgiven unless more than b_t members have one: so liars that are silent cost it one wait each, and not in every
step. (Those that speak just in time are not struck, here as elsewhere.) The others tell it what it misses by that, or
it fetches that (`btard.swarm.aggregates`).

In the first round of relays a peer with a certificate shows it to those that speak there, and is past that round
(`btard.swarm.certificates`). It is waited for all the same, since only its certificate spares a peer the rounds. If
none comes, that is no strike: nothing was due in the stream that it is followed by. But after two of these it is not
waited for in such a round any more. So that wastes two waits more.

The others wait for a peer that was kept waiting. So a liar that is silent to one honest peer at a time can make all
wait once in each phase, until it has two strikes with each of them: l liars waste at most 4 l h waits of h honest
peers, and never more than one deadline in each phase. To hurry once more than b_t members are past a phase would cost
more than it saves: where the honest peers are b_t + 1, a liar's victim sees no more than b_t of them, and where they
are more, one broken line between two honest peers and b_t liars that run ahead would cut off an honest peer.

Keys cost nothing, so any number of newcomers can lie. In the phases in which one of them may owe something (`OWED`)
each is waited for as a member is. In all others newcomers say no more than whether they have heard the same, and one
that is silent there is told it. So there all newcomers together can waste one wait of each other peer in a step. Not
to wait for them there at all would cut off honest ones, whose delays would add up from one phase to the next. A
liar can do that to one of them after this wait, because the others do not wait for its victim any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterable

from btard.drivers.letters import Pieces
from btard.swarm.cancel import cancel
from btard.swarm.certificates import Certificates, Deliver
from btard.swarm.ends import OVER, Ends
from btard.swarm.links import Dial, Link
from btard.swarm.node import Node
from btard.swarm.outbox import Outbox, Position, Said

SLICE = 0.5
"""Seconds between two looks at the clock while waiting."""
STALL = 1.0
"""If a look comes later than this many seconds, this process counts as having been stopped itself."""
STRIKES = 2
"""How often a peer may keep this one waiting in a step."""
OWED = frozenset({"commit", "disclose", "evidence/0"})
"""Phases in which a newcomer on probation can be held to what it says."""


class Rounds:
    """This peer's outbox and its links to the others. `give_up`: seconds after which one that is down counts as silent.

    `position` is the phase at hand.
    """

    def __init__(self, node: Node, give_up: float, ends: Ends) -> None:
        self.node, self.give_up, self.ends = node, give_up, ends
        self.outbox = Outbox()
        self.links: dict[int, Link] = {}
        self.position: Position = (0, 0)
        self.newcomers: frozenset[int] = frozenset()
        """Those of the others that are on probation."""
        self._newcomers_struck = False
        """Whether one of them has kept me waiting in this step where it owed nothing."""
        self._before: Position = (-1, 0)
        self._passed_on = False
        self._struck: set[int] = set()
        """Peers that have kept this one waiting and have not been heard since."""
        self._strikes: Counter[int] = Counter()
        """Peer -> how often it has kept this one waiting in this step, or since this peer came back."""
        self._behind = False
        """Whether this peer has come back behind the others, and has not been in a step since."""
        self._unshown: Counter[int] = Counter()
        """Peer -> how often it was past a first round of relays and has shown me no certificate, in the same time."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self.certificates = Certificates(lambda work: node.spawn(work), self._changed.set)

    def follow(self, peer: int, dial: Dial, deliver: Deliver) -> None:
        """Begin to follow `peer`, and show it certificates by `deliver`. For the network's thread."""
        self.links[peer] = link = Link(
            dial,
            self.position,
            lambda: self._heard_of(peer),
            lambda body: self.ends.hear(peer, body),
            lambda: self.ends.limit,
        )
        self.certificates.reach(peer, deliver)
        self._tasks[peer] = self.node.spawn(link.follow())

    async def unfollow(self, peer: int) -> None:
        """Stop following `peer`."""
        self.links.pop(peer)
        self._struck.discard(peer)
        del self._strikes[peer], self._unshown[peer]
        await self.certificates.leave(peer)
        await cancel(self._tasks.pop(peer))

    def outrun_by(self, members: Iterable[int]) -> int:
        """How many of `members` are known to be past the current phase.

        Of members alone: of newcomers, whose keys cost nothing, any number can lie.
        """
        step, number = self.position
        here = (step, number or 1)  # the word that the last step is over is passed on within the first phase
        return sum(link.position is not None and link.position > here for link in self._links_of(members))

    def left_behind_by(self, members: Iterable[int]) -> int:
        """How many of `members` no longer keep what this peer would need to catch up with them."""
        ahead = (link.ahead_of_me for link in self._links_of(members))
        return sum(step is not None and step > self.position[0] for step in ahead)

    def refusals(self, members: Iterable[int]) -> list[str]:
        """Why some of `members` do not admit this peer."""
        return [link.refusal for link in self._links_of(members) if link.refusal is not None]

    async def say(self, said: Said) -> None:
        """Offer to the others what this peer says in the current phase."""
        await self.outbox.say(self.position, said)

    def show(self, members: Iterable[int], certificate: Pieces) -> None:
        """Show `certificate` to each of `members` that says something in the current phase.

        That is a first round of relays, which this peer itself passes by. For the network's thread.
        """
        self.certificates.show(self.position, members, certificate)

    def _heard_of(self, peer: int) -> None:
        """Something is new about `peer`."""
        self._changed.set()
        link = self.links.get(peer)
        if link is not None and link.position is not None:
            self.certificates.seen(peer, link.position)

    async def hear(
        self,
        phase: str,
        peers: Iterable[int],
        limit: int,
        wait: float,
        *,
        hurry: float = math.inf,
        hold: float = 0.0,
    ) -> dict[int, bytearray]:
        """Sender -> what it says in the current phase, up to `limit` bytes; waits `wait` seconds at most.

        Peers that are `asked` for a certificate may show that instead, if they are past this phase.

        Once the step at hand is known to be over, it waits for `hurry` seconds more at most. In a step's first phase
        the wait begins when the last step is known to be over, and at the latest after `hold` seconds.
        """
        peers = tuple(peers)
        for peer in peers:
            self.links[peer].want(self.position, limit)
        step, number = self.position
        last = time.monotonic()
        latest, deadline, hurried = last + hold, math.inf, False
        while True:
            self._changed.clear()
            waiting = [peer for peer in peers if not self._settled(peer, phase)]
            now = time.monotonic()
            if deadline == math.inf and (number > 0 or now >= latest or self.ends.over(step - 1)):
                deadline = now + wait
                await self._pass_on()
            if not hurried and self.ends.over(step):
                deadline, hurried = min(deadline, now + hurry), True
            if now - last > SLICE + STALL:  # this process was stopped: what came meanwhile is still to be read
                deadline = max(deadline, now + self.give_up)
            last = now
            if not waiting or now >= deadline:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(SLICE, deadline - now))
        await self._pass_on()
        out_of_reach = {peer for peer in peers if self._given_up(peer)}
        unshown = {peer for peer in waiting if self._gone_on(peer)}
        waiting = [peer for peer in waiting if peer not in unshown]  # nothing is known of those that is worth a strike
        self._unshown.update(unshown)
        missed = {*waiting, *(out_of_reach - self._struck)}
        self._strikes.update(missed)
        if self._behind and len(self._strikes.keys() - self.newcomers) > self.ends.peer.byzantine:
            self._forgive()  # not all of them lie: it is this peer's own line
        self._newcomers_struck |= phase not in OWED and not self.newcomers.isdisjoint(missed)
        self._struck.update(waiting, out_of_reach)
        bodies = self.certificates.close()
        self._struck.difference_update(bodies)
        for peer in peers:
            frame = self.links[peer].frame()
            if frame is None:
                continue
            self._struck.discard(peer)
            if frame.phase == phase and frame.body is not None and len(frame.body) <= limit:
                bodies[peer] = frame.body
        return bodies

    def advance(self) -> None:
        """End the current phase."""
        self._before = self.position
        self.pass_by()

    def pass_by(self, phases: int = 1) -> None:
        """Leave out the current phase and those after it, `phases` in all. Others may be in them for some time yet."""
        self.position = (self.position[0], (self.position[1] or 1) + phases)

    async def finish(self, step: int, *, sign: bool) -> None:
        """End the step, which this peer signs by `sign`; the next one begins."""
        await self.outbox.say(self.position, Said(OVER, [self.ends.sign(step)] if sign else None))
        await self.outbox.finish(step, self.position[1] + 1)
        self.ends.forget(step)
        self.position, self._passed_on = (step + 1, 0), False
        self._behind &= not sign
        if not self._behind:
            self._forgive()

    async def restart(self, step: int, ends: Ends, *, behind: bool = False) -> None:
        """I go on at the beginning of `step`, wherever I was; `behind`: the others are in it already."""
        await self.outbox.restart(step)
        await self.certificates.restart()
        self.ends, self._passed_on = ends, False
        self.position, self._before, self._struck = (step, 0), (step - 1, 0), set()
        if not (behind and self._behind):
            self._forgive()
        self._behind = behind
        for link in self.links.values():
            link.restart(self.position)

    def _forgive(self) -> None:
        self._strikes.clear()
        self._unshown.clear()
        self._newcomers_struck = False

    async def _pass_on(self) -> None:
        """In the first phase of a step, once: say what shows that the last one is over."""
        step, number = self.position
        if number == 0 and not self._passed_on:
            self._passed_on = True
            await self.outbox.say((step, 1), Said(OVER, [self.ends.proof(step - 1)]))

    def _links_of(self, members: Iterable[int]) -> list[Link]:
        return [self.links[peer] for peer in members if peer in self.links]

    def _given_up(self, peer: int) -> bool:
        """Whether it cannot be reached; once it can be, it is still to catch up."""
        return self.links[peer].down_for() > self.give_up

    def _gone_on(self, peer: int) -> bool:
        """Whether it is past the current phase."""
        position = self.links[peer].position
        return position is not None and position > self.position

    def _settled(self, peer: int, phase: str) -> bool:
        """Whether there is nothing to wait for: it has spoken, it cannot, or it was waited for and is still late."""
        link, asked, strikes = self.links[peer], peer in self.certificates.asked, 1 if self._behind else STRIKES
        if link.frame() is not None or peer in self.certificates.came or link.refusal is not None:
            return True
        if link.ahead_of_me is not None and link.ahead_of_me > self.position[0]:
            return True
        if self._gone_on(peer) and (not asked or self._unshown[peer] >= strikes):
            return True  # it has passed by without saying it: it needed nothing, or lives in another history
        if self._given_up(peer):
            return True
        if self._strikes[peer] >= strikes:
            return True
        if self._newcomers_struck and peer in self.newcomers and phase not in OWED:
            return True
        behind = link.position is None or link.position < self._before
        return peer in self._struck and behind
