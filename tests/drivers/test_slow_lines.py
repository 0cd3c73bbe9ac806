"""Slow lines cost time, and nobody its place: ALBERT-large among 16 peers at 10 Mbit/s, in simulated time.

Parameters and rates are both a 50th of the real ones, so that all that carries tensors takes as long as there. What
carries none takes 50 times as long, and is provided for all the same.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from btard.protocol.behaviour import Context
from btard.protocol.config import ProtocolConfig
from btard.protocol.messages import Report
from btard.protocol.signed import Packet, Signed
from btard.swarm.deadlines import Deadlines
from btard.task import QuadraticTask
from tests.drivers.slow_lines import SlowLines
from tests.protocol.promises import Attacker, check_honest, play

SCALE = 50
D = 17_700_000 // SCALE
LINE = 10.0 / SCALE
"""Mbit/s."""
PEERS, BYZANTINE = 16, 7
MEMBERS = frozenset(range(1, 1 + BYZANTINE))
DEADLINES = Deadlines(compute=0.001, phase=1.0, message=0.1, uplink=LINE)
"""With little to spare beside what the bytes take."""


class CooksAllReports(Attacker):
    """At step 1 it reports nonsense about every part: all of them are on trial. `floods`: and sends much junk as proof.

    As much of it as is read: twice what the owner of a part on trial shows.
    """

    floods = False

    def active(self, step: int) -> bool:
        return step == 1

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase == "report" and isinstance(payload, Report) and payload.norms:
            products = tuple(tuple(1e6 + x for x in row) for row in payload.products)
            message = sign(Report(payload.norms, products, payload.missing, payload.sizes))
        return message, {}

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        if phase != "evidence/0" or not self.floods:
            return packets
        junk = bytes(2 * 4 * ctx.record.cut.size(0) * len(ctx.record.workers))
        packet = Packet("part", ctx.peer, ctx.step, 0, junk, b"")
        return {to: [packet] for to in ctx.record.members if to != ctx.peer}


class Unsigned(Attacker):
    """Signs nothing of what it hears, so that all rounds of relays are held."""

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        return None, {}


def swarm(
    deadlines: Deadlines, attackers: frozenset[int] = MEMBERS, floods: bool = False, **settings: Any
) -> SlowLines:
    config = ProtocolConfig(peers=PEERS, byzantine=BYZANTINE, run_id="slow lines")
    behaviours = {peer: CooksAllReports() for peer in attackers}
    for behaviour in behaviours.values():
        behaviour.floods = floods
    rate = LINE * 1e6 / 8
    return SlowLines(config, QuadraticTask(D), behaviours=behaviours, rate=rate, deadlines=deadlines, **settings)


def test_a_step_takes_its_time() -> None:
    driver = swarm(DEADLINES, frozenset())
    check_honest(play(driver, 2, torch.ones(D)), frozenset())
    assert not driver.missed
    gradient = 4 * D / driver.rate
    assert 0.8 * gradient < driver.took["part"] < 1.2 * gradient, driver.took


@pytest.mark.parametrize("hangs", ["nobody", "in lacking/0", "to some in evidence/0", "nobody, they flood"])
def test_trials_of_all_parts_cost_no_honest_peer_its_place(hangs: str) -> None:
    def never(sender: int, phase: str, recipient: int) -> bool:
        some = hangs.startswith("in") or recipient % 2 == 0
        return sender in MEMBERS and phase == hangs.rpartition(" ")[2] and some

    driver = swarm(DEADLINES, floods=hangs.endswith("flood"), never=never)
    results = play(driver, 3, torch.ones(D))
    check_honest(results, MEMBERS)
    honest = set(range(PEERS)) - MEMBERS
    assert not {late for late in driver.missed if late[1] in honest and late[2] in honest}
    shown = 15 * 4 * D / driver.rate
    assert driver.took["evidence/0"] > 0.8 * shown, driver.took


def test_deadlines_of_one_gradient_cost_honest_peers_their_places() -> None:
    """So the lines are as slow as it takes."""

    class OneGradient(Deadlines):
        def allowance(self, phase: str, load: int, gradients: int = 0) -> float:
            return super().allowance(phase, load if phase in ("part", "aggregate") else 0, gradients)

    driver = swarm(OneGradient(compute=0.001, phase=1.0, message=0.1, uplink=LINE))
    with pytest.raises(RuntimeError, match="no honest peer is left"):
        play(driver, 2, torch.ones(D))


@pytest.mark.parametrize("ends", [True, False])
def test_liars_that_are_silent_to_some_at_the_end_make_nobody_late_for_the_next_roll_call(ends: bool) -> None:
    """To say nothing in a round of relays is no fault, and the others wait there longer than in a roll call.

    Without the word that the step is over, they miss it.
    """

    def never(sender: int, phase: str, recipient: int) -> bool:
        return phase == f"accuse/0/relay/{BYZANTINE + 1}" and sender in MEMBERS and recipient >= PEERS - 2

    config = ProtocolConfig(peers=PEERS, byzantine=BYZANTINE, run_id="late")
    behaviours = {peer: Unsigned() for peer in MEMBERS}
    driver = SlowLines(
        config, QuadraticTask(D), behaviours=behaviours, rate=1e9, deadlines=Deadlines(), never=never, ends=ends
    )
    params = torch.ones(D)
    driver.step(params)
    clocks = [driver.now[peer] for peer in range(PEERS) if peer not in MEMBERS]
    assert max(clocks) - min(clocks) > Deadlines().phase, "the liars have kept some waiting"
    assert not driver.missed
    driver.step(params)  # who is not heard in the roll call is told what the others agreed on
    assert ("commit" in {phase for phase, _, _ in driver.missed}) is not ends
    assert not driver.missed or not ends
