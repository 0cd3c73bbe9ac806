"""`max_away`: an absent peer is gone after seconds, not only steps; no minority of clocks can hurry or stop them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from btard.audit.__main__ import main as audit
from btard.audit.recorder import Recorder
from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour
from btard.protocol.commit import _weight
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity
from btard.protocol.ledger import Ledger
from btard.protocol.messages import UNKNOWN, TimedCommit
from btard.protocol.record import StepRecord, settings_digest
from btard.task import QuadraticTask

LONGEST = 2**31 - 1


class Away(Behaviour):
    """Is not there in the steps from `start` to before `stop`."""

    byzantine = False

    def __init__(self, start: int, stop: int = 10**6) -> None:
        self.start, self.stop = start, stop

    def active(self, step: int) -> bool:
        return self.start <= step < self.stop

    def say(self, ctx, phase, payload, message, sign):  # type: ignore[no-untyped-def]
        return None, {}


def run(
    clocks: Mapping[int, int],
    away: Behaviour,
    *,
    steps: int = 12,
    max_away: float | None = 5.0,
    byzantine: int = 2,
    out: Path | None = None,
    peers: int = 7,
) -> dict[int, int]:
    """Peer -> the step in which it was removed as gone. `clocks`: peer -> the ms that it says a step takes; 1000."""
    config = ProtocolConfig(
        peers=peers, byzantine=byzantine, max_absences=2, max_away=max_away, run_id="away", validators=0
    )
    recorder = None if out is None else Recorder(out, config)
    driver = LocalDriver(config, QuadraticTask(32), behaviours={peers - 1: away}, recorder=recorder)
    x = torch.ones(32)
    for _ in range(steps):
        for number, peer in driver.peers.items():
            peer.elapsed = clocks.get(number, 1000)
        x = x - 0.1 * driver.step(x).gradient
    if out is not None:
        driver.attest(x)
        ledger = Ledger()
        lines = [ledger.append(entry) for entry in driver.peers[0].ledger.entries]
        (out / "ledger.jsonl").write_text("".join(line + "\n" for line in lines))
    honest = [driver.peers[number] for number in range(peers - 1)]
    assert len({peer.ledger.head for peer in honest}) == 1 and len({str(peer.absences) for peer in honest}) == 1
    return {entry.accused: entry.step for entry in honest[0].ledger.entries if entry.kind == "gone"}


@pytest.mark.parametrize(
    ("clocks", "gone"),
    [
        ({}, 7),  # from step 3 on, at a second each: after five seconds
        (dict.fromkeys(range(7), 100), None),  # fast steps: none of the twelve is enough
        (dict.fromkeys(range(7), 60_000), 4),  # slow ones: after max_absences of them, whatever time that is
        ({0: LONGEST, 1: LONGEST}, 7),  # two liars, as many as there may be, that hurry the time
        ({0: 0, 1: 0}, 7),  # or stop it
        ({0: LONGEST, 1: 0}, 7),
        ({0: UNKNOWN, 1: UNKNOWN, 2: 1001}, 7),  # whoever does not know the time is left out
        (dict.fromkeys(range(7), UNKNOWN), 4),  # nobody knows it: steps alone
        (dict.fromkeys(range(1, 7), UNKNOWN) | {0: 0}, 4),  # nor do as many as may lie
    ],
)
def test_steps_and_seconds_both_have_to_be_over(clocks: dict[int, int], gone: int | None) -> None:
    assert run(clocks, Away(3)) == ({} if gone is None else {6: gone})


def test_no_step_is_too_short_to_count() -> None:
    """Else whoever stays away would never be gone."""
    config = ProtocolConfig(peers=5, byzantine=1, max_absences=3, max_away=86_400.0)
    record = StepRecord(0, tuple(range(5)), {}, b"", byzantine=1)
    assert _weight(config, record, {peer: TimedCommit((), b"", 1) for peer in range(4)}) == 1


def test_who_is_back_in_time_stays_and_pays_by_the_leak() -> None:
    assert run({}, Away(3, 7), steps=16) == {}


def test_without_the_setting_clocks_count_for_nothing() -> None:
    assert run(dict.fromkeys(range(7), 1), Away(3), max_away=None) == {6: 4}
    config = ProtocolConfig(peers=4, run_id="a", tau=1.0, tau_start=1.0)
    assert settings_digest(config).hex() == "3698de9342ad304ab33351e9b3530c6647bc6b8e921771c55b2368fdc5964f6b"
    assert settings_digest(ProtocolConfig(peers=4, run_id="a", max_away=5.0)) != settings_digest(config)


def test_an_audit_counts_the_same_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run({0: LONGEST}, Away(3), out=tmp_path) == {6: 7}
    assert audit([str(tmp_path)]) == 0
    assert "gone" in capsys.readouterr().out


def test_a_newcomer_on_probation_has_as_long() -> None:
    config = ProtocolConfig(
        peers=5, byzantine=1, probation=30, max_absences=2, max_away=4.0, run_id="newcomer", validators=1
    )
    driver, x = LocalDriver(config, QuadraticTask(32)), torch.ones(32)
    driver.join(Identity.from_seed("newcomer"))
    ended: list[int] = []
    for step in range(14):
        if step == 4:
            driver.peers[5].behaviour = Away(4)
        for peer in driver.peers.values():
            peer.elapsed = 1000
        driver.step(x)
        ended += [entry.step for entry in driver.peers[0].ledger.entries if entry.kind == "gone" and entry.step == step]
    assert ended == [7]
