"""A simulated cohort whose messages take time: lines of a given rate, and a clock and deadlines for every peer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from btard.drivers.letters import Letters
from btard.drivers.local import LocalDriver
from btard.drivers.loop import Heard, StepResult
from btard.swarm.deadlines import Deadlines

DELAY = 0.02
"""Seconds from one peer to another, beside what the bytes take."""


class SlowLines(LocalDriver):
    """Gradients cost nothing; each peer's line carries `rate` bytes per second out, and as many in.

    Times are the worst that fair lines allow: what a peer says to several arrives everywhere when all of it is out, and
    what several say to one is there when all of it is in. A peer goes on when it has heard everybody, or when its wait
    is over, which grows from phase to phase as in a swarm. What has not arrived by then counts as never said. Once
    b + 1 honest peers have signed that a step is over (`btard.swarm.ends`; liars do not) all know so, and go on.

    `never(sender, phase, recipient)`: what is not said at all, and waited for until the end. `ends`: whether peers sign
    the ends of steps.
    """

    def __init__(
        self,
        *args: Any,
        rate: float,
        deadlines: Deadlines,
        never: Callable[[int, str, int], bool] = lambda sender, phase, recipient: False,
        ends: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.rate, self.deadlines, self.never, self.ends = rate, deadlines, never, ends
        self.now: dict[int, float] = defaultdict(float)
        """Peer -> seconds on its clock."""
        self.took: dict[str, float] = defaultdict(float)
        """Phase -> seconds that it took the slowest peer, the longest of all steps."""
        self.missed: set[tuple[str, int, int]] = set()
        """(phase, sender, recipient) of what was said and came too late."""
        self._out_free: dict[int, float] = defaultdict(float)
        self._in_free: dict[int, float] = defaultdict(float)
        self._wait, self._load = 0.0, 0
        self._over = 0.0
        """When it became known to all that the last step is over."""
        self._given_up: set[tuple[int, int]] = set()

    def step(self, params: torch.Tensor, shared: Mapping[str, torch.Tensor] | None = None) -> StepResult:
        self._wait = self.deadlines.phase
        self._given_up.clear()
        self._load = 0
        result = super().step(params, shared)
        if self.ends:
            honest = [i for i, peer in self.peers.items() if not peer.behaviour.byzantine]
            self._over = sorted(self.now[i] for i in honest)[self.config.byzantine]
            hurried = self._over + DELAY + self.deadlines.allowance("over", self._load)
            for i in honest:
                self.now[i] = min(self.now[i], hurried)
        return result

    def talk(self, step: int, letters: Mapping[int, Letters]) -> Heard:
        heard = super().talk(step, letters)
        phase = next(iter(letters.values())).phase
        loads = {said.effect.load for i, said in letters.items() if not self.peers[i].behaviour.byzantine}
        assert len(loads) == 1, f"{phase}: honest peers have different deadlines"
        begun_anew = self._wait == self.deadlines.phase
        self._load = loads.pop()
        self._wait += self.deadlines.allowance(phase, self._load)
        size = {
            (i, to): said.size(said.special.get(to, said.common))
            for i, said in letters.items()
            for to in letters
            if to != i
        }
        begun = {i: max(self.now[i], self._out_free[i]) for i in letters}
        for i in letters:
            self._out_free[i] = begun[i] + sum(size[i, to] for to in letters if to != i) / self.rate
        answers: dict[int, Mapping[int, Any]] = {}
        for me in letters:
            ignored = self.peers[me].current.expelled
            others = [i for i in letters if i not in (me, *ignored) and not self.never(i, phase, me)]
            coming = sum(size[i, me] for i in others)
            if coming:
                first = max(self._in_free[me], min(begun[i] for i in others if size[i, me]))
                self._in_free[me] = first + coming / self.rate
            at = {i: max(self._out_free[i], self._in_free[me] if size[i, me] else 0.0) + DELAY for i in others}
            over = (max(self.now[me], self._over) if begun_anew else self.now[me]) + self._wait
            silent = {i for i in letters if i not in (me, *ignored) and at.get(i, over + 1) > over}
            waiting = [i for i in letters if i not in (me, *ignored) and (i, me) not in self._given_up]
            waited = max((min(at.get(i, over), over) for i in waiting), default=0.0)
            self._given_up |= {(i, me) for i in silent}
            self.missed |= {(phase, i, me) for i in silent & at.keys() if size[i, me]}
            answers[me] = {i: letter for i, letter in heard.answers[me].items() if i not in silent}
            self.took[phase] = max(self.took[phase], waited - self.now[me])
            self.now[me] = max(self.now[me], waited)
        return Heard(answers, heard.sent)
